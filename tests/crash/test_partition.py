"""A node is cut off without a word and goes on writing, while its shards are written again elsewhere."""

import time
from collections.abc import Callable
from pathlib import Path

from crash.cluster import START_S, TOKEN, start_node, stop
from crash.moments import slowed
from crash.network import two_namespaces
from crash.runs import Job, files

PORT = "6379"
GIVEN_UP_S = 60


def test_a_node_is_cut_off(
    job_to: Callable[..., Job], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Both nodes see the same folder all the time, as with a store in a third place."""
    out = tmp_path / "out"
    job, nodes = job_to(str(out)), []
    with two_namespaces() as (here, there):
        head = ["--head", "--port", PORT, "--include-dashboard", "false"]
        member = ["--address", f"{here.address}:{PORT}"]
        try:
            for end, options in ((here, head), (there, member)):
                own = [*options, "--node-ip-address", end.address]
                nodes.append(start_node(own, slowed(1.0), before=end.inside()))
            driver = {"RAY_ADDRESS": f"{here.address}:{PORT}", "RAY_AUTH_MODE": "token"}
            with job.started({**driver, "RAY_AUTH_TOKEN": TOKEN}, here.inside()) as process:
                wait_for_writers(out, 2)
                there.cut_off()
                cut = time.monotonic()
                assert process.wait(START_S) == 0, job.log.read_text()
                assert time.monotonic() - cut < GIVEN_UP_S
        finally:
            job.reap()
            stop(nodes)
    assert files(out) == undisturbed


def wait_for_writers(out: Path, number: int) -> None:
    """Until so many shards are being written at a time."""
    limit = time.monotonic() + START_S
    while len(list(out.glob("shards/v0/.*.tar.*.tmp"))) < number:
        assert time.monotonic() < limit
        time.sleep(0.02)
