"""Ray clusters of `ray start` on this machine: own ports, own folders, a token, nothing beyond loopback."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crash.runs import kill_sessions, session_of
from object_store import free_port

RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0123456789abcdef" * 4
START_S = 120
OBJECT_STORE_BYTES = 100 << 20
CUT_OFF_SOON = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""What `ray start` needs so that a node which a partition cuts off is given up within a minute."""


@dataclass(frozen=True)
class Node:
    leader: int
    """Of the session that its processes are in."""
    temporary: Path

    def raylet(self) -> int:
        (pid,) = [p for p in session_of(self.leader) if _command(p).endswith("/raylet")]
        return pid


@dataclass(frozen=True)
class Cluster:
    address: str
    dashboard: str
    nodes: list[Node]

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """For a driver."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}

    def texts(self) -> Iterator[bytes]:
        """All that the nodes have written, their logs above all."""
        for node in self.nodes:
            for path in node.temporary.rglob("*"):
                if path.is_file():
                    yield path.read_bytes()

    def fetch(self, path: str, token: str | None = TOKEN) -> bytes:
        """Of the dashboard. Raises HTTPError."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
        return content


@contextmanager
def two_nodes(environment: Mapping[str, str], *, dashboard: bool = False) -> Iterator[Cluster]:
    """A head and another node, of one core each."""
    port, dashboard_port, nodes = free_port(), free_port(), list[Node]()
    head = ["--head", "--port", str(port), "--ray-client-server-port", str(free_port())]
    head += ["--include-dashboard", str(dashboard).lower(), "--dashboard-host", "127.0.0.1"]
    head += ["--dashboard-port", str(dashboard_port)]
    address = f"127.0.0.1:{port}"
    try:
        for own in (head, ["--address", address]):
            nodes.append(start_node([*own, "--node-ip-address", "127.0.0.1"], environment))
        yield Cluster(address, f"http://127.0.0.1:{dashboard_port}", nodes)
    finally:
        stop(nodes)


def start_node(
    options: Sequence[str], environment: Mapping[str, str], before: Sequence[str] = ()
) -> Node:
    """`ray start`; `before` is a command that runs it, in a network namespace for one."""
    temporary = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # Ray's socket paths must be short
    command = [*before, RAY, "start", "--block", "--num-cpus", "1", *options]
    command += ["--temp-dir", str(temporary), "--object-store-memory", str(OBJECT_STORE_BYTES)]
    command += ["--min-worker-port", "0", "--max-worker-port", "0", "--disable-usage-stats"]
    command += ["--dashboard-agent-listen-port", str(free_port())]
    path = os.pathsep.join([str(Path(RAY).parent), os.environ["PATH"]])  # for a job's `python`
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": path, "OMP_NUM_THREADS": "1"}
    log = temporary / "start.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **own, **CUT_OFF_SOON, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    node = Node(process.pid, temporary)
    limit = time.monotonic() + START_S
    while b"Ray runtime started" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > limit:
            stop([node])
            raise RuntimeError(f"ray start failed: {log.read_text()}")
        time.sleep(0.2)
    return node


def stop(nodes: Sequence[Node]) -> None:
    kill_sessions({node.leader for node in nodes})
    for node in nodes:
        shutil.rmtree(node.temporary, ignore_errors=True)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except FileNotFoundError:
        return ""
