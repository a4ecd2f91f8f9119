"""Files at a URL, through fsspec: local folders and object stores behind one small interface."""

import asyncio
import errno
import fcntl
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import UserError
from pipeline.stores.replacement import (
    SCRATCH_PATTERN,
    LocalReplacement,
    RemoteReplacement,
    Replacement,
    remove_if_dead,
)
from pipeline.stores.waiting import Abandoned, pause, wait_for, waiting_for

DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Object stores by scheme, and the package that fsspec reaches them through."""
OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"response_checksum_validation": "when_required"}}
}
"""Some stores, rclone's among them, answer a range with the checksum of the whole file: the client would
refuse it. Whole files have hashes of our own."""
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 15
"""Without a byte."""
UPLOAD = {"s3": {"chunksize": 16 << 20, "max_concurrency": 4}}
"""Parts of an upload are held in memory; s3fs's own defaults may hold a whole shard."""
AT_SCHEMES = ("abfs", "az")
"""Their URLs are CONTAINER@ACCOUNT."""
ALLOWED_SCHEMES = ("file", "memory", *DRIVERS)
ATTEMPTS = 5
STORE_ATTEMPTS = 8
"""Calls of a store, which may be away for longer than a disk: pauses of 25 s in all. One that takes
connections and says nothing is given up after STORE_ATTEMPTS * READ_TIMEOUT_S more, 145 s together."""
FIRST_WAIT_S = 0.2
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
FINAL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A file or folder at `url`. Calls that fail for passing reasons are tried again with back-off.

    Raises UserError on a scheme outside of the allow-list, on credentials inside the URL (those belong
    into the store's standard credential chain) and on a store whose package is not installed; OSError
    on whatever a store or its client complains about.
    """

    url: str

    def __post_init__(self) -> None:
        scheme, remote, rest = self.url.partition("://")
        place = rest.partition("/")[0]
        # A secret may hold any character: no URL that may have one is ever printed.
        if remote and (":" in place or "?" in rest or ("@" in place and scheme not in AT_SCHEMES)):
            raise UserError(
                f"a {scheme}:// URL holds credentials or a query, which are not accepted there; use the "
                "store's environment variables or credential file."
            )
        if "::" in self.url or (scheme if remote else "file") not in ALLOWED_SCHEMES:
            raise UserError(
                f"the URL scheme of {self.url!r} is not one of {', '.join(ALLOWED_SCHEMES)}."
            )
        try:
            urlsplit(self.url)
        except ValueError as error:
            raise UserError(f"{self.url!r} is not a URL ({error}).") from None

    @cached_property
    def _opened(self) -> tuple[fsspec.AbstractFileSystem, str]:
        scheme = urlsplit(self.url).scheme
        try:
            return fsspec.core.url_to_fs(self.url, **OPTIONS.get(scheme, {}))
        except ImportError:
            package = DRIVERS[scheme]
            raise UserError(
                f"{self.url}: {scheme}:// needs {package}: pip install {package}."
            ) from None

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._opened[0]

    @property
    def path(self) -> str:
        return self._opened[1]

    @cached_property
    def _reading_fs(self) -> fsspec.AbstractFileSystem:
        """For s3 a client that tries once: attempts of botocore, s3fs and ours would multiply to hours."""
        if self.scheme != "s3":
            return self.fs
        once = {
            **OPTIONS["s3"]["config_kwargs"],
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1},
        }
        # One read at once, so that s3fs does not ask for the size before every read of a whole file.
        fs, _ = fsspec.core.url_to_fs(self.url, config_kwargs=once, max_concurrency=1)
        fs.retries = 1
        return fs

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def is_local(self) -> bool:
        return self.scheme in ("", "file")

    def child(self, *names: str) -> "Location":
        return Location("/".join([self.url.rstrip("/"), *names]))

    def parent(self) -> "Location":
        return Location(self.url.rstrip("/").rpartition("/")[0])

    def size(self) -> int:
        """Bytes; raises FileNotFoundError."""
        return int(self._call(lambda: self._ask("size")))

    def file_size(self) -> int | None:
        """Bytes; None if there is no file, or a folder."""
        try:
            info = self._call(lambda: self.fs.info(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of the file; raises FileNotFoundError."""
        limits = {} if start == 0 and end is None else {"start": start, "end": end}
        content: bytes = self._call(lambda: self._ask("cat_file", **limits))
        return content

    def read_if_there(self) -> bytes | None:
        """The whole file; None if there is none."""
        try:
            return self.read()
        except FileNotFoundError:
            return None
        except PermissionError:  # what S3 says of a missing file to who may list a prefix alone
            if self.path.rpartition("/")[2] in self.parent().list_names():
                raise
            return None

    @contextmanager
    def needed(self) -> Iterator[None]:
        """For who cannot go on without the file: whatever keeps it from being read is a UserError."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.url} is missing, though the manifest names it. Bring it back, or run the "
                "sharding job again."
            ) from None
        except PermissionError as error:
            raise UserError(
                f"not allowed to read {self.url} ({error}). Check the credentials of this process and the "
                "rights they give."
            ) from None
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise UserError(
                    f"cannot open {self.url}: this process has all the files open that it may. Raise the "
                    "limit (`ulimit -n`), or set fewer `lanes` or a smaller `block`: a stream keeps lanes x "
                    "block shards of each dataset open, over all ranks."
                ) from None
            tried = "" if self.is_local else f", {STORE_ATTEMPTS} times with growing pauses"
            raise UserError(
                f"cannot read {self.url} (tried{tried}: {error}). Check the disk, or the network and the "
                "store; then resume the run, which loses nothing."
            ) from None

    def write(self, data: bytes) -> None:
        """Replaces the file as a whole: readers see the old bytes or the new, never a part."""
        if self.is_local:
            with self.replacement() as new:
                new.file.write(data)
                new.publish()
        else:
            self._call(lambda: self.fs.pipe_file(self.path, data))

    @contextmanager
    def replacement(self) -> Iterator[Replacement]:
        """A file to write into, which `publish` puts here whole; unpublished, it vanishes."""
        local = self.is_local
        new: Replacement = LocalReplacement(self.path) if local else RemoteReplacement(self._upload)
        try:
            yield new
        finally:
            new.close()

    def download(self, local_file: str | Path) -> None:
        """Raises FileNotFoundError."""
        self._call(lambda: self.fs.get_file(self.path, str(local_file)))

    def sweep(self) -> None:
        """Removes what killed writers left below: scratch files and unfinished uploads.

        Scratch files of live writers stay; a live writer whose upload is ended by this tries again. What
        cannot be removed is said, and stays: nothing depends on it.
        """
        try:
            if self.is_local:
                for scratch in Path(self.path).rglob(SCRATCH_PATTERN):
                    remove_if_dead(scratch)
            elif self.scheme == "s3":
                self._call(self._end_uploads)
        except FileNotFoundError:  # how some stores say that there is none
            return
        except OSError as error:
            print(
                f"{self.url}: cannot look for leftovers of killed writers: {error}", file=sys.stderr
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until no other process is in here, of this local folder. Stores have no such lock."""
        if not self.is_local:
            yield
            return
        Path(self.path).mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def list_files(self) -> list[str]:
        """Relative names of all files below, sorted; none if there is no such folder."""
        return sorted(self.file_sizes())

    def file_sizes(self) -> dict[str, int]:
        """Relative name -> bytes, of all files below; none if there is no such folder."""
        try:
            found = self._call(self._find)
        except FileNotFoundError:
            return {}
        return {
            str(os.path.relpath(name, self.path)): int(entry["size"] or 0)
            for name, entry in found.items()
        }

    def list_names(self) -> list[str]:
        """Names of the files and folders directly below; none if there is no such folder."""
        try:
            if self.is_local:
                return sorted(os.listdir(self.path))
            found = self._call(lambda: self.fs.ls(self.path, detail=False, refresh=True))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return os.path.exists(self.path) if self.is_local else self._call(self._exists)

    def is_file(self) -> bool:
        if self.is_local:
            return os.path.isfile(self.path)
        return self._call(lambda: bool(self.fs.isfile(self.path)))

    def remove(self) -> None:
        """Removes the file; it may be gone already."""
        with suppress(FileNotFoundError):
            self._call(lambda: self.fs.rm_file(self.path))

    def _call(self, call: Callable[[], T]) -> T:
        """`call` by `retry`. Clients of stores have errors of their own, which come out as OSError."""
        if self.is_local:
            return retry(call)
        with waiting_for(self.url):
            return retry(lambda: _with_os_errors(call), STORE_ATTEMPTS)

    def _ask(self, what: str, **options: int | None) -> Any:
        """What a method of fsspec says; raises Abandoned when nobody wants to know any more."""
        fs = self._reading_fs
        if not fs.async_impl:
            return getattr(fs, what)(self.path, **options)
        answer = getattr(fs, f"_{what}")(self.path, **options)
        return wait_for(asyncio.run_coroutine_threadsafe(answer, fs.loop))

    def _find(self) -> dict[str, dict[str, Any]]:
        self.fs.invalidate_cache()
        found: dict[str, dict[str, Any]] = self.fs.find(self.path, detail=True)
        return found

    def _exists(self) -> bool:
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.path))

    def _upload(self, local_file: str) -> None:
        options = UPLOAD.get(self.scheme, {})
        self._call(lambda: self.fs.put_file(local_file, self.path, **options))

    def _end_uploads(self) -> None:
        bucket, _, prefix = self.path.partition("/")
        while True:
            try:
                listed = self.fs.call_s3(
                    "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/"
                )
            except FileNotFoundError:  # how some stores say that there is none
                return
            for upload in listed.get("Uploads") or []:
                part_of = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                with suppress(FileNotFoundError):
                    self.fs.call_s3("abort_multipart_upload", **part_of)
            if not listed.get("IsTruncated"):
                return


def _with_os_errors(call: Callable[[], T]) -> T:
    """`call()`; whatever it raises of its own is raised as OSError, which Ray can also carry home."""
    try:
        return call()
    except (OSError, UserError, Abandoned):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def may_pass(error: OSError) -> bool:
    """Whether another try is of use: nothing is missing, forbidden or full."""
    return not isinstance(error, FINAL_ERRORS) and error.errno not in FINAL_NUMBERS


def retry(call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """`call()`, again after a growing pause while it raises an OSError that may pass."""
    for attempt in range(attempts):
        try:
            return call()
        except OSError as error:
            if not may_pass(error) or attempt == attempts - 1:
                raise
            # Not all ranks at one moment.
            pause(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1))
    raise AssertionError("unreachable")
