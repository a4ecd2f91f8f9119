"""The job on a cluster that others run: it needs the token, outlives a node, and shows no secret."""

import json
import os
import secrets
import signal
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from crash.cluster import RAY, Cluster, two_nodes
from crash.moments import slowed
from crash.runs import ROOT, SETTINGS, Job, files
from object_store import free_port, s3_environment, s3_server

from sharding.upkeep.verify import verify

PLANTED = secrets.token_hex(16)
"""Drawn, because the job uploads this file too."""


def test_a_node_is_killed(
    job_to: Callable[..., Job], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    job = job_to(str(tmp_path / "out"))
    with two_nodes(slowed(0.5)) as cluster, job.started(cluster.environment()) as process:
        wait_for_index(tmp_path / "out", process)
        os.kill(cluster.nodes[1].raylet(), signal.SIGKILL)
        assert process.wait(120) == 0, job.log.read_text()
    assert files(tmp_path / "out") == undisturbed


def wait_for_index(out: Path, process: "subprocess.Popen[bytes]") -> None:
    while not list(out.glob("shards/v0/*.parquet")):
        assert process.poll() is None, "it ended before anything was written"
        time.sleep(0.02)


class TestSubmitted:
    """`ray job submit`, writing to a store whose secret must not be seen."""

    @pytest.fixture(scope="class")
    def store(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        root = tmp_path_factory.mktemp("store")
        (root / "bucket").mkdir()
        with s3_server(root, PLANTED) as port, s3_environment(port, PLANTED):
            yield root / "bucket"

    @pytest.fixture(scope="class")
    def cluster(self, store: Path) -> Iterator[Cluster]:
        with two_nodes({}, dashboard=True) as cluster:
            yield cluster

    @pytest.fixture
    def recipe(self, source: str, tmp_path: Path) -> Path:
        path = tmp_path / "recipe.yaml"
        one = {"dataset": "msmt17", "split": "train_val", "source": source}
        path.write_text(yaml.safe_dump({"out": "s3://bucket/sets", "sets": {"crops": one}}))
        return path

    def submit(self, cluster: Cluster, recipe: Path, **environment: str) -> tuple[int, str]:
        command = [RAY, "job", "submit", "--working-dir", ".", "--address", cluster.dashboard]
        command += ["--", "python", "-m", "sharding", "write", "--config", str(recipe)]
        command += [part for name in SETTINGS for part in ("--set", f"defaults.{name}")]
        own = {"RAY_AUTH_MODE": "token", **environment}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout

    def test_without_the_token_it_is_refused(self, cluster: Cluster, recipe: Path) -> None:
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.fetch("/api/jobs/", token=None)
        assert refused.value.code == 401
        code, output = self.submit(cluster, recipe, RAY_AUTH_TOKEN="0" * 64)
        assert code != 0
        assert "sharding" not in output.split("Traceback")[0]
        assert b"submission_id" not in cluster.fetch("/api/jobs/")

    def test_with_the_token_it_runs_to_the_end(
        self, cluster: Cluster, recipe: Path, store: Path, undisturbed: dict[str, bytes]
    ) -> None:
        code, output = self.submit(cluster, recipe, **cluster.environment())
        assert code == 0, output
        assert files(store / "sets/msmt17/train_val") == undisturbed
        assert verify("s3://bucket/sets/msmt17/train_val").problems == []

    def test_nothing_shows_the_secret(
        self, cluster: Cluster, recipe: Path, store: Path, job_to: Callable[..., Job]
    ) -> None:
        """After a run to the end, and after failures that print what the store's client says."""
        code, output = self.submit(cluster, recipe, **cluster.environment())
        assert code == 0, output
        shown = [output.encode(), *failures(job_to)]
        for job in json.loads(cluster.fetch("/api/jobs/")):
            shown.append(json.dumps(job).encode())
            shown.append(cluster.fetch(f"/api/jobs/{job['submission_id']}/logs"))
        assert any(b"images" in text for text in shown[2:])
        shown += [*files(store).values(), *cluster.texts()]
        assert not [text for text in shown if PLANTED.encode() in text]


def failures(job_to: Callable[..., Job]) -> Iterator[bytes]:
    """What runs print whose store does not let them in, has no such bucket, or is not there."""
    for bucket, environment in (
        ("bucket", {"AWS_SECRET_ACCESS_KEY": f"{PLANTED}-wrong"}),
        ("none", {}),
        ("bucket", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}),
    ):
        ended = job_to(f"s3://{bucket}/failed").run(environment)
        assert ended.code == 2
        assert ended.output.startswith("error: cannot ") and ended.output.count("\n") == 1
        yield ended.output.encode()
