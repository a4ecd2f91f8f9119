"""Files at URLs: what a store complains about is an OSError, tried again, and a paragraph at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from object_store import free_port, s3_environment, s3_server
from shardset import simple_set

from pipeline.__main__ import main as pipeline_command
from pipeline.errors import UserError, run_command
from pipeline.shards import MANIFEST, ShardSet
from pipeline.stores import store
from pipeline.stores.store import Location
from sharding.__main__ import main as sharding_command

SET = "s3://bucket/crowd"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serves a bucket with a shard set in it."""
    root = tmp_path_factory.mktemp("store")
    simple_set(root / "bucket/crowd", "detection", shards=1, per_shard=4)
    with s3_server(root) as port:
        yield port


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0)


def commands(folder: Path) -> dict[str, Callable[[], None]]:
    """What asks for SET, by name."""
    config = folder / "run.yaml"
    config.write_text(f"stream: {{scenes: [{{shards: {SET}, weight: 1}}], scene_batch: 4}}")
    return {
        "verify": lambda: sharding_command(["verify", SET]),
        "at": lambda: pipeline_command(["at", "--config", str(config), "--position", "0"]),
    }


@pytest.mark.parametrize("name", ["verify", "at"])
class TestCommands:
    def test_a_store_that_is_not_there(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with s3_environment(free_port()), pytest.raises(SystemExit) as ended:
            run_command(commands(tmp_path)[name])
        assert ended.value.code == 2
        (paragraph,) = capsys.readouterr().err.splitlines()
        assert paragraph.startswith(f"error: cannot reach {SET} (EndpointConnectionError: ")

    def test_wrong_credentials(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: int
    ) -> None:
        with s3_environment(server, secret="wrong"), pytest.raises(SystemExit) as ended:
            run_command(commands(tmp_path)[name])
        assert ended.value.code == 2
        (paragraph,) = capsys.readouterr().err.splitlines()
        assert paragraph.startswith(f"error: not allowed to read {SET}/{MANIFEST} (")


def test_no_credentials_are_an_os_error(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_environment(server):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(OSError, match="NoCredentialsError"):
            Location(f"{SET}/{MANIFEST}").read()


def test_a_clients_own_errors_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class ClientError(Exception):
        pass

    def fail_once(path: str) -> bytes:
        calls.append(path)
        if len(calls) == 1:
            raise ClientError("slow down")
        return b"content"

    calls: list[str] = []
    location = Location("memory://folder/file")
    monkeypatch.setattr(location.fs, "cat_file", fail_once, raising=True)
    assert location.read() == b"content"
    assert len(calls) == 2


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_store_whose_package_is_not_installed(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str) -> None:
        raise ImportError(f"Please install {package}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(UserError, match=f"{scheme}:// needs {package}: pip install {package}"):
        _ = ShardSet(f"{scheme}://bucket/crowd").manifest


def test_what_is_written_to_a_bucket_is_there(server: int) -> None:
    with s3_environment(server):
        folder = Location("s3://bucket/written")
        assert folder.list_files() == []
        folder.child("a/b").write(b"content")
        assert folder.list_files() == ["a/b"]
        assert folder.child("a/b").read(2, 5) == b"nte"
        assert folder.child("a/b").size() == 7
        with pytest.raises(FileNotFoundError):
            folder.child("c").read()


@pytest.mark.parametrize(
    "url",
    [
        "https://user:PLANTED@host/release.zip",
        "s3://AKIA:PLAN/TED@bucket/shards",
        "s3://PLANTED@bucket/shards",
        "s3://bucket/shards?secret=PLANTED",
    ],
)
def test_a_url_that_may_hold_a_secret_is_refused_without_being_printed(url: str) -> None:
    with pytest.raises(UserError, match="holds credentials or a query") as refused:
        Location(url)
    assert "PLAN" not in str(refused.value)


def test_names_with_odd_characters_are_no_secrets() -> None:
    assert Location("s3://bucket/a@b:c.jpg").scheme == "s3"
    assert Location("abfs://container@account.dfs.core.windows.net/shards").scheme == "abfs"
    with pytest.raises(UserError, match="is not a URL"):
        Location("s3://[bucket/shards")


def test_sweeping_removes_what_dead_writers_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / f".000000.tar.{'0' * 32}.tmp"
    dead.write_bytes(b"left")
    (tmp_path / ".draft.tmp").write_bytes(b"the user's")
    (tmp_path / f".folder.{'1' * 32}.tmp").mkdir()
    root = Location(str(tmp_path))
    with root.child("live.tar").replacement() as live:
        live.file.write(b"being written")
        root.sweep()
        live.publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".draft.tmp",
        f".folder.{'1' * 32}.tmp",
        "live.tar",
    ]
    dead.write_bytes(b"left")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    root.sweep()
    assert not dead.exists()


def test_a_store_that_shows_no_uploads_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(self: Location) -> None:
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(Location, "_end_uploads", forbidden)
    Location("s3://bucket/shards").sweep()
    assert "cannot look for leftovers of killed writers: AccessDenied" in capsys.readouterr().err
