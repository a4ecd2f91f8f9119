"""Two machines, as far as the network goes: namespaces joined by a cable that can be cut without a word."""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Namespace:
    name: str
    address: str
    device: str

    def inside(self, *command: str) -> list[str]:
        """The command that runs `command` there."""
        return ["ip", "netns", "exec", self.name, *command]

    def processes(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def cut_off(self) -> None:
        """From now on packets vanish, in both directions."""
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            _do(*self.inside("iptables", "-A", chain, side, self.device, "-j", "DROP"))


@contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Whatever runs in them ends with them. Raises RuntimeError without root, `ip` or `iptables`."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("iptables")):
        raise RuntimeError(
            "network namespaces need root, ip and iptables: apt-get install iproute2 iptables"
        )
    tag = uuid.uuid4().hex[:6]
    ends = [Namespace(f"n{n}{tag}", f"10.77.0.{n}", "eth0") for n in (1, 2)]
    one, two = ends
    try:
        for end in ends:
            _do("ip", "netns", "add", end.name)
        peer = ("peer", "name", two.device, "netns", two.name)
        _do("ip", "link", "add", one.device, "netns", one.name, "type", "veth", *peer)
        for end in ends:
            _do("ip", "-n", end.name, "addr", "add", f"{end.address}/24", "dev", end.device)
            for device in ("lo", end.device):
                _do("ip", "-n", end.name, "link", "set", device, "up")
        yield one, two
    finally:
        for end in ends:
            for pid in end.processes():
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", end.name], check=False)


def _do(*command: str) -> None:
    subprocess.run(command, check=True)
