"""A real S3 server on this machine, and the environment that leads clients there."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import s3fs

KEY, SECRET = "key", "secret"


@contextmanager
def s3_environment(port: int, secret: str = SECRET, key: str = KEY) -> Iterator[None]:
    """Clients made inside reach 127.0.0.1:`port` by the standard credential chain, and try once."""
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def s3_server(root: Path, secret: str = SECRET) -> Iterator[int]:
    """Serves the folders in `root` as buckets; yields the port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", str(root)]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{secret}"]
    command += ["--config", os.devnull]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def open_uploads(bucket: str) -> list[dict[str, Any]]:
    """Uploads in parts that were begun and neither completed nor ended."""
    try:
        listed = s3fs.S3FileSystem().call_s3("list_multipart_uploads", Bucket=bucket)
    except FileNotFoundError:  # rclone's way to say that there is none
        return []
    return listed.get("Uploads") or []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
