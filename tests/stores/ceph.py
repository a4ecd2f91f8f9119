"""Ceph on this machine: one monitor, one store of objects and its S3 gateway, in a folder, on loopback."""

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from object_store import free_port

PACKAGES = "radosgw ceph-mon ceph-osd ceph-common ceph-base"
START_S = 90
KEY, SECRET = "AKIACEPHTEST", "ceph-secret-0123456789abcdef0123456789ab"

CONFIG = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
mon allow pool size one = true
osd crush chooseleaf type = 0
osd class load list = *
osd class update on start = false
osd crush update on start = false
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
bluestore block create = true
bluestore block size = 4294967296
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
"""


@dataclass(frozen=True)
class Ceph:
    """A cluster in `folder`, whose gateway answers at `port`."""

    folder: Path
    port: int

    def command(self, name: str, *arguments: str) -> list[str]:
        return [name, "--conf", str(self.folder / "ceph.conf"), *arguments]

    def call(self, name: str, *arguments: str) -> str:
        """Raises subprocess.TimeoutExpired where a daemon has died: Ceph would ask it for ever."""
        command = self.command(name, *arguments)
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=2 * START_S
        ).stdout

    @contextmanager
    def daemon(self, name: str, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
        with open(self.folder / f"{name}.out", "wb") as log:
            command = self.command(name, *arguments, "-f")
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def ceph(folder: Path) -> Iterator[Ceph]:
    """Starts one in `folder`, which is made; KEY and SECRET are let in. Takes about 20 s and 200 MB."""
    if missing := [name for name in ("ceph-mon", "ceph-osd", "radosgw") if not shutil.which(name)]:
        raise RuntimeError(
            f"{', '.join(missing)} not found: apt-get install --no-install-recommends {PACKAGES}"
        )
    mon_port, cluster = free_port(), Ceph(folder, free_port())
    _lay_out(cluster, mon_port)
    with ExitStack() as daemons:
        daemons.enter_context(cluster.daemon("ceph-mon", "-i", "a"))
        disk = str(uuid.uuid4())
        cluster.call("ceph", "--connect-timeout", str(START_S), "osd", "create", disk)
        cluster.call("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=localhost")
        cluster.call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        daemons.enter_context(cluster.daemon("ceph-osd", "-i", "0"))
        daemons.enter_context(cluster.daemon("radosgw", "-n", "client.rgw"))
        user = (
            "--uid=test",
            "--display-name=test",
            f"--access-key={KEY}",
            f"--secret-key={SECRET}",
        )
        json.loads(cluster.call("radosgw-admin", "-n", "client.rgw", "user", "create", *user))
        _wait_for(cluster.port)
        yield cluster


def _lay_out(cluster: Ceph, mon_port: int) -> None:
    folder, fsid = cluster.folder, str(uuid.uuid4())
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    text = CONFIG.format(fsid=fsid, mon_port=mon_port, gateway_port=cluster.port, folder=folder)
    (folder / "ceph.conf").write_text(text)
    map_file = str(folder / "monmap")
    where = ("--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "--fsid", fsid)
    subprocess.run(["monmaptool", "--create", *where, map_file], check=True, capture_output=True)
    cluster.call("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file)


def _wait_for(port: int) -> None:
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"Ceph's gateway does not answer at port {port}")
