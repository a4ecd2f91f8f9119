"""Random access to bytes: to a part of something, to parts in a row, to what a stream inflates to."""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from threading import Lock
from typing import Protocol

MOST_BYTES = 1 << 30
"""Of what is read whole: more is taken for a decompression bomb."""
MOST_RATIO = 500
"""Of inflated bytes to coded ones, beyond MOST_BYTES. Deflated zeros reach 1030, no release comes near."""
BLOCK = 1 << 20
FEED = 1 << 15
"""Bytes that the inflater gets at once: it copies those that it does not use."""
SPACING = 4 << 20
"""Between two places in a compressed stream at which reading can start again; each takes 45 kB."""
MOST_STATES = 1024


class Ranges(Protocol):
    """Random access to the bytes of something."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end); fewer at the end."""
        ...


@dataclass(frozen=True)
class Window:
    """A part of something, as if it were all."""

    whole: Ranges
    offset: int
    size: int

    def read(self, start: int, end: int) -> bytes:
        start, end = min(start, self.size), min(end, self.size)
        return self.whole.read(self.offset + start, self.offset + end)


class Joined:
    """Parts of a split archive, one after the other."""

    def __init__(self, parts: list[Ranges]) -> None:
        self._parts = parts
        self.size = sum(part.size for part in parts)

    def read(self, start: int, end: int) -> bytes:
        return b"".join(self._pieces(start, end))

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        before = 0
        for part in self._parts:
            low, high = max(start - before, 0), min(end - before, part.size)
            if low < high:
                yield part.read(low, high)
            before += part.size


class Inflated:
    """Random access to a deflated or gzipped stream, by states of the inflater kept along the way.

    Reading raises ValueError where the stream is damaged. Threads take turns.
    """

    def __init__(self, data: Ranges, wbits: int, size: int | None = None) -> None:
        self._data, self._wbits, self._size = data, wbits, size
        self._lock = Lock()
        self._states = [_State(zlib.decompressobj(wbits), 0, 0, b"")]
        self._spacing = SPACING
        self._ahead, self._ahead_start = b"", 0
        self._current = self._states[0].copy()

    @property
    def size(self) -> int:
        if self._size is None:
            with self._lock:
                while self._advance(BLOCK):
                    pass
                self._size = self._current.out
        return self._size

    def read(self, start: int, end: int) -> bytes:
        end = end if self._size is None else min(end, self._size)
        with self._lock:
            nearest = self._states[bisect_right(self._states, start, key=lambda s: s.out) - 1]
            if not nearest.out <= self._current.out <= start:
                self._current = nearest.copy()
            pieces = []
            while self._current.out < end:
                at = self._current.out
                piece = self._advance(end - at if at >= start else min(BLOCK, start - at))
                if not piece:
                    break
                if at >= start:
                    pieces.append(piece)
            return b"".join(pieces)

    def _advance(self, most: int) -> bytes:
        """The next bytes of the stream, at most `most`; none at its end. Raises ValueError."""
        state = self._current
        while True:
            if state.inflater.eof and not self._next_stream(state):
                return b""
            if not state.pending:
                state.pending = self._take(state)
                if not state.pending:
                    raise ValueError("the compressed stream ends early")
            try:
                piece = state.inflater.decompress(state.pending, min(most, BLOCK))
            except zlib.error as error:
                raise ValueError(f"cannot be inflated ({error})") from None
            # At the end of a stream what follows it can be in unconsumed_tail as well as in unused_data.
            state.pending = b"" if state.inflater.eof else state.inflater.unconsumed_tail
            state.out += len(piece)
            if state.out > max(MOST_BYTES, MOST_RATIO * state.taken):
                raise ValueError(f"inflates to more than {MOST_RATIO} times its size")
            if piece:
                self._keep(state)
                return piece

    def _keep(self, state: "_State") -> None:
        """The longer the stream, the further apart are the states."""
        if state.out < self._states[-1].out + self._spacing:
            return
        if len(self._states) == MOST_STATES:
            del self._states[1::2]
            self._spacing *= 2
        self._states.append(state.copy())

    def _next_stream(self, state: "_State") -> bool:
        """A gzip file may be several, one after the other, and end in zeros."""
        rest = state.inflater.unused_data or self._take(state)
        if self._wbits < 0 or not rest.strip(b"\0"):
            return False
        state.inflater, state.pending = zlib.decompressobj(self._wbits), rest
        return True

    def _take(self, state: "_State") -> bytes:
        at = state.taken - self._ahead_start
        if not 0 <= at < len(self._ahead):
            self._ahead = self._data.read(state.taken, state.taken + BLOCK)
            self._ahead_start, at = state.taken, 0
        data = self._ahead[at : at + FEED]
        state.taken += len(data)
        return data


@dataclass
class _State:
    inflater: "zlib._Decompress"
    out: int
    """Bytes inflated so far."""
    taken: int
    """Bytes read of the archive so far."""
    pending: bytes
    """Of those, not inflated yet."""

    def copy(self) -> "_State":
        return _State(self.inflater.copy(), self.out, self.taken - len(self.pending), b"")


class RangeFile(RawIOBase):
    """`Ranges` as a file object, for readers that want one."""

    def __init__(self, data: Ranges) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._at}[whence] if whence < 2 else self._data.size
        if base + offset < 0:
            raise ValueError("before the start of the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        data = self._data.read(self._at, self._at + len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
