"""Files at a URL, through fsspec: local folders and object stores behind one small interface."""

import os
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import UserError

DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Object stores by scheme, and the package that fsspec reaches them through."""
OPTIONS = {"s3": {"config_kwargs": {"response_checksum_validation": "when_required"}}}
"""Some stores, rclone's among them, answer a range with the checksum of the whole file: the client would
refuse it. Whole files have hashes of our own."""
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
    def is_local(self) -> bool:
        return urlsplit(self.url).scheme in ("", "file")

    def child(self, *names: str) -> "Location":
        return Location("/".join([self.url.rstrip("/"), *names]))

    def size(self) -> int:
        """Bytes; raises FileNotFoundError."""
        return int(self._call(lambda: self.fs.size(self.path)))

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of the file; raises FileNotFoundError."""
        if start == 0 and end is None:
            return self._call(lambda: self.fs.cat_file(self.path))
        return self._call(lambda: self.fs.cat_file(self.path, start=start, end=end))

    def write(self, data: bytes) -> None:
        """Replaces the file as a whole: readers see the old bytes or the new, never a part."""
        if self.is_local:
            temporary = self._temporary()
            with open(temporary, "wb") as file:
                file.write(data)
            self._publish_local(temporary)
        else:
            self._call(lambda: self.fs.pipe_file(self.path, data))

    def scratch(self) -> Path:
        """Name for a local file that is to be `upload`ed here, unique to this attempt."""
        if self.is_local:
            return self._temporary()
        return Path(tempfile.gettempdir(), f".{uuid.uuid4().hex}.tmp")

    def upload(self, local_file: str | Path) -> None:
        """Moves a finished local file here, whole or not at all."""
        if self.is_local:
            temporary = self._temporary()
            try:
                os.replace(local_file, temporary)
            except OSError:  # another file system
                fsspec.filesystem("file").copy(str(local_file), str(temporary))
                os.remove(local_file)
            self._publish_local(temporary)
        else:
            self._call(lambda: self.fs.put_file(str(local_file), self.path))
            os.remove(local_file)

    def download(self, local_file: str | Path) -> None:
        """Raises FileNotFoundError."""
        self._call(lambda: self.fs.get_file(self.path, str(local_file)))

    def list_files(self) -> list[str]:
        """Relative names of all files below, sorted; none if there is no such folder."""
        try:
            found = self._call(self._find)
        except FileNotFoundError:
            return []
        return sorted(str(os.path.relpath(name, self.path)) for name in found)

    def _call(self, call: Callable[[], T]) -> T:
        """`call` by `retry`. Clients of stores have errors of their own, which come out as OSError."""
        return retry(call if self.is_local else lambda: _with_os_errors(call))

    def _find(self) -> list[str]:
        self.fs.invalidate_cache()
        found: list[str] = self.fs.find(self.path)
        return found

    def _temporary(self) -> Path:
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")

    def _publish_local(self, temporary: Path) -> None:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


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
