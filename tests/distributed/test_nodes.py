"""A run on two machines: two network namespaces with a cable between them and one folder that both see."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from crash.network import Namespace, two_namespaces
from ranks import command, newest

from training.signals import EXIT_STOPPED

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
PORT = "29500"
Nodes = tuple[Namespace, Namespace]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_namespaces() as ends:
        yield ends


@pytest.fixture(scope="module")
def hostfile(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nodes") / "hosts"
    path.write_text("".join(f"{node.address} slots=1\n" for node in nodes))
    return path


def environment(node: Namespace, hostfile: Path, number: int) -> dict[str, str]:
    own = {
        "HOSTFILE": str(hostfile),
        "NODE_RANK": str(number),
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": node.device,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own}


def start(
    nodes: Nodes, hostfile: Path, arguments: Sequence[str], log: Path
) -> "list[subprocess.Popen[bytes]]":
    """`launch/cluster/node.sh` on both."""
    script = str(ROOT / "launch/cluster/node.sh")
    return [
        spawn(node.inside(script, *arguments), environment(node, hostfile, number), log)
        for number, node in enumerate(nodes)
    ]


def spawn(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def wait_until(there: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not there():
        assert time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.02)


def rank_on(node: Namespace) -> int:
    """The process of the rank itself."""
    for pid in node.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if any(word.endswith("pretrain.py") for word in words[1:4]):
            return pid
    raise AssertionError("no rank there")


def test_a_rank_killed_on_one_node_costs_nothing(
    nodes: Nodes, hostfile: Path, tiny_run: Path, undisturbed_run: Path, tmp_path: Path
) -> None:
    """Both nodes end; resumed, the run ends in the bytes of two ranks on one machine."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = command(tiny_run, run).arguments
    killed = start(nodes, hostfile, arguments, log)
    wait_until((run / "checkpoints/latest").exists, log)
    os.kill(rank_on(nodes[1]), signal.SIGKILL)
    assert all(process.wait(LIMIT_S) for process in killed), log.read_text()[-6000:]
    assert "Where the ranks are:" in log.read_text()
    resumed = start(nodes, hostfile, [*arguments, "--resume"], log)
    assert [process.wait(LIMIT_S) for process in resumed] == [0, 0], log.read_text()[-6000:]
    assert newest(run) == newest(undisturbed_run)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_stops_both_nodes(
    nodes: Nodes, hostfile: Path, tiny_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As Slurm sends it: to launchers and shells too; or as Kubernetes does: to one pod's first process."""
    run, log = tmp_path / "run", tmp_path / "log"
    launched = start(nodes, hostfile, command(tiny_run, run).arguments, log)
    wait_until((run / "checkpoints/latest").exists, log)
    every = [*nodes[0].processes(), *nodes[1].processes()]
    for pid in every if number == signal.SIGUSR1 else [launched[1].pid]:
        os.kill(pid, number)
    codes = [process.wait(LIMIT_S) for process in launched]
    assert codes == [EXIT_STOPPED] * 2, log.read_text()[-6000:]


@pytest.fixture(scope="module")
def key(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lets its owner into an sshd on each node, port 2222."""
    if not (shutil.which("pdsh") and shutil.which("sshd")):
        raise RuntimeError("this needs pdsh and sshd: apt-get install pdsh openssh-server")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("key", "host"):
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(folder / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": "2222",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "key.pub",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    for node in nodes:
        sshd = node.inside("/usr/sbin/sshd", "-D", "-f", "/dev/null", *words)
        spawn(sshd, dict(os.environ), folder / "log")
    time.sleep(1)
    return folder / "key"


def test_one_node_starts_both_through_pdsh(
    nodes: Nodes,
    hostfile: Path,
    key: Path,
    tiny_run: Path,
    undisturbed_run: Path,
    tmp_path: Path,
) -> None:
    """And the exit code of a stopped run comes back through it."""
    run, log = tmp_path / "run", tmp_path / "log"
    variables = tmp_path / "deepspeed_env"
    names = ("GLOO_SOCKET_IFNAME", "DS_ACCELERATOR", "OMP_NUM_THREADS")
    here = environment(nodes[0], hostfile, 0)
    variables.write_text("".join(f"{name}={here[name]}\n" for name in names))
    checks = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    here |= {"DS_ENV_FILE": str(variables), "PDSH_SSH_ARGS_APPEND": f"-i {key} {checks}"}
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile)]
    launcher += ["--ssh_port", "2222", "--no_ssh_check", "--master_addr", nodes[0].address]
    pretrain = ["launch/pretrain.py", *command(tiny_run, run).arguments]
    stopped = spawn(nodes[0].inside(*launcher, *pretrain), here, log)
    wait_until((run / "checkpoints/latest").exists, log)
    os.kill(rank_on(nodes[1]), signal.SIGUSR1)
    assert stopped.wait(LIMIT_S) == EXIT_STOPPED, log.read_text()[-6000:]
    resumed = spawn(nodes[0].inside(*launcher, *pretrain, "--resume"), here, log)
    assert resumed.wait(LIMIT_S) == 0, log.read_text()[-6000:]
    assert newest(run) == newest(undisturbed_run)
