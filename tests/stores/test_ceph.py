"""The product over a real distributed store: reads, writes, the job, uploads in parts and what they leave."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from ceph import KEY, SECRET, Ceph, ceph
from crash.proxy import proxy_to
from crash.runs import ROOT, Job
from object_store import open_uploads, s3_environment

from pipeline.errors import UserError
from pipeline.shards import ShardSet, sha256
from pipeline.stores.store import Location
from sharding.destination import check_destination
from sharding.miniature import TruthImage
from sharding.upkeep.verify import verify

PARTS = 40 << 20
"""Bytes that are uploaded in parts."""
UPLOAD = """
import sys
from pipeline.stores.store import Location
with Location(sys.argv[1]).replacement() as new:
    new.file.write(bytes(int(sys.argv[2])))
    new.publish()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    with ceph(tmp_path_factory.mktemp("ceph") / "c") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def store(cluster: Ceph) -> Iterator[s3fs.S3FileSystem]:
    with s3_environment(cluster.port, SECRET, KEY):
        store = s3fs.S3FileSystem()
        store.call_s3("create_bucket", Bucket="bucket")
        yield store


def test_what_is_written_is_there(store: s3fs.S3FileSystem) -> None:
    folder = Location("s3://bucket/written")
    assert folder.list_files() == []
    assert not folder.exists()
    folder.child("a/b").write(b"content")
    assert folder.file_sizes() == {"a/b": 7}
    assert folder.list_names() == ["a"]
    assert folder.child("a/b").read() == b"content"
    assert folder.child("a/b").read(2, 5) == b"nte"
    assert folder.child("a").exists() and not folder.child("a").is_file()
    folder.child("a/b").write(b"other")
    assert folder.child("a/b").file_size() == 5
    folder.child("a/b").remove()
    folder.child("a/b").remove()
    with pytest.raises(FileNotFoundError):
        folder.child("a/b").read()
    folder.sweep()


def test_a_thousand_files_and_more_are_listed(store: s3fs.S3FileSystem) -> None:
    names = [f"bucket/many/{number:04}" for number in range(1200)]
    store.pipe(dict.fromkeys(names, b"x"))
    assert len(Location("s3://bucket/many").list_files()) == 1200
    store.rm("bucket/many", recursive=True)
    assert Location("s3://bucket/many").list_files() == []


def test_who_is_not_let_in_is_told_so(cluster: Ceph, store: s3fs.S3FileSystem) -> None:
    with pytest.raises(UserError, match="there is no bucket 'none'"):
        check_destination(Location("s3://none/set"))
    with s3_environment(cluster.port, "wrong", KEY):
        with pytest.raises(UserError, match="not allowed to use the bucket"):
            check_destination(Location("s3://bucket/set"))
        with pytest.raises(PermissionError):
            Location("s3://bucket/set/manifest.json").read()


def test_an_upload_in_parts_replaces_the_file_whole(store: s3fs.S3FileSystem) -> None:
    large = Location("s3://bucket/large/file")
    large.write(b"old")
    content = os.urandom(PARTS)
    with large.replacement() as new:
        new.file.write(content)
        assert large.read() == b"old"
        new.publish()
    assert store.info("bucket/large/file")["ETag"].strip('"').endswith("-3")  # parts
    assert sha256(large.read()) == sha256(content)
    assert large.read(PARTS - 4, PARTS) == content[-4:]
    assert open_uploads("bucket") == []


def test_what_a_killed_upload_leaves_is_swept(cluster: Ceph, store: s3fs.S3FileSystem) -> None:
    folder = Location("s3://bucket/killed")
    folder.child("file").write(b"old")
    with proxy_to(cluster.port) as proxy, s3_environment(proxy.port, SECRET, KEY):
        command = [sys.executable, "-c", UPLOAD, folder.child("file").url, str(PARTS)]
        process = subprocess.Popen(command, cwd=ROOT)
        proxy.faults.on_cut = lambda: os.kill(process.pid, signal.SIGKILL)
        proxy.faults.cut_after = PARTS * 3 // 4
        assert process.wait(60) == -signal.SIGKILL
    assert folder.child("file").read() == b"old"
    assert len(open_uploads("bucket")) == 1
    Location("s3://bucket/elsewhere").sweep()
    assert len(open_uploads("bucket")) == 1
    folder.sweep()
    assert open_uploads("bucket") == []


def test_the_job_writes_verifies_and_has_nothing_to_do_again(
    store: s3fs.S3FileSystem, miniature: tuple[Path, list[TruthImage]], tmp_path: Path
) -> None:
    source, url = str(miniature[0] / "msmt17"), "s3://bucket/set"
    jobs = [
        Job(source, out, tmp_path / name)
        for name, out in (("s3", url), ("local", str(tmp_path / "out")))
    ]
    try:
        for job in jobs:
            ended = job.run()
            assert ended.code == 0, ended.output
        assert verify(url).problems == []
        assert ShardSet(url).manifest == ShardSet(str(tmp_path / "out")).manifest
        before = store.find("bucket/set", detail=True)
        assert jobs[0].run().code == 0
        tars = [name for name in before if name.endswith(".tar")]
        after = store.find("bucket/set", detail=True)
        assert [after[name]["LastModified"] for name in tars] == [
            before[name]["LastModified"] for name in tars
        ]
    finally:
        for job in jobs:
            job.reap()
