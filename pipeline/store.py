"""Files at a URL, through fsspec: local folders and object stores behind one small interface."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import UserError
from pipeline.replacement import LocalReplacement, RemoteReplacement, Replacement, remove_if_dead

DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Object stores by scheme, and the package that fsspec reaches them through."""
OPTIONS = {"s3": {"config_kwargs": {"response_checksum_validation": "when_required"}}}
"""Some stores, rclone's among them, answer a range with the checksum of the whole file: the client would
refuse it. Whole files have hashes of our own."""
UPLOAD = {"s3": {"chunksize": 16 << 20, "max_concurrency": 4}}
"""Parts of an upload are held in memory; s3fs's own defaults may hold a whole shard."""
ALLOWED_SCHEMES = ("file", "memory", *DRIVERS)
ATTEMPTS = 5
FIRST_WAIT_S = 0.2
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

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
        parts = urlsplit(self.url)
        if "::" in self.url or (parts.scheme or "file") not in ALLOWED_SCHEMES:
            raise UserError(
                f"the URL scheme of {self.url.split('?')[0]!r} is not one of {', '.join(ALLOWED_SCHEMES)}."
            )
        if parts.scheme and (parts.username or parts.password or parts.query):
            raise UserError(
                f"{parts.scheme}://{parts.hostname}{parts.path}: credentials and queries are not "
                "accepted in URLs; use the store's environment variables or credential file."
            )

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

    @property
    def scheme(self) -> str:
        return urlsplit(self.url).scheme

    @property
    def is_local(self) -> bool:
        return self.scheme in ("", "file")

    def child(self, *names: str) -> "Location":
        return Location("/".join([self.url.rstrip("/"), *names]))

    def size(self) -> int:
        """Bytes; raises FileNotFoundError."""
        return int(self._call(lambda: self.fs.size(self.path)))

    def file_size(self) -> int | None:
        """Bytes; None if there is no file, or a folder."""
        try:
            info = self._call(lambda: self.fs.info(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of the file; raises FileNotFoundError."""
        if start == 0 and end is None:
            return self._call(lambda: self.fs.cat_file(self.path))
        return self._call(lambda: self.fs.cat_file(self.path, start=start, end=end))

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

        Scratch files of live writers stay; a live writer whose upload is ended by this tries again.
        """
        if self.is_local:
            for scratch in Path(self.path).rglob(".*.tmp"):
                remove_if_dead(scratch)
        elif self.scheme == "s3":
            with suppress(FileNotFoundError):  # there is none, some stores say so; or it just ended
                self._call(self._end_uploads)

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
        return retry(call if self.is_local else lambda: _with_os_errors(call))

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
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def retry(call: Callable[[], T]) -> T:
    """`call()`, again after a growing pause while it raises an OSError that may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except FINAL_ERRORS:
            raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("unreachable")
