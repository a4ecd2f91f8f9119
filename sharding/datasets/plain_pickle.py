"""Reads lists, dicts, strings, bytes and numbers out of a pickle, and can do nothing else.

It is never executed: the few instructions that build plain values are followed here, and any other one (a
class, a function, a call) is refused. Millions of strings take seconds.
"""

import io
import pickletools
from typing import Any

LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    )
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STORES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
FETCHES = frozenset(("GET", "BINGET", "LONG_BINGET"))
IGNORED = frozenset(("PROTO", "FRAME"))
INSTRUCTIONS = {known.code.encode("latin-1"): known for known in pickletools.opcodes}
STOP = b"."
# The codes that files of millions of keys consist of, each with the bytes of its argument or its length.
TEXTS = {b"X": 4, b"\x8c": 1}
INTEGERS = {b"K": 1, b"M": 2, b"J": 4}
PUTS = {b"q": 1, b"r": 4}
MEMOIZE = b"\x94"


def read_plain(data: bytes) -> Any:
    """The value of a pickle. Raises ValueError if it is anything but plain values."""
    reader = _Reader()
    try:
        reader.run(io.BytesIO(data))
        (value,) = reader.stack
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a well-formed pickle ({type(error).__name__}: {error})") from error
    return value


class _Reader:
    """A stack, the stacks below open marks, and the memo: all that a pickle of plain values needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: list[Any] = []
        self.integers: dict[int, int] = {}
        """Each number once, however often it comes: it is the label of many keys."""

    def run(self, file: io.BytesIO) -> None:
        """Raises ValueError on an instruction that is not needed for plain values."""
        read = file.read
        while (code := read(1)) != STOP:
            if code in TEXTS:
                size = int.from_bytes(read(TEXTS[code]), "little")
                text = read(size)
                if len(text) != size:
                    raise ValueError("it ends within a text")
                self.stack.append(text.decode("utf-8", "surrogatepass"))
            elif code == MEMOIZE:
                self.memo.append(self.stack[-1])
            elif code in PUTS:
                self._store(int.from_bytes(read(PUTS[code]), "little"))
            elif code in INTEGERS:
                number = int.from_bytes(read(INTEGERS[code]), "little", signed=code == b"J")
                self.stack.append(self.integers.setdefault(number, number))
            else:
                self._follow_rare(code, file)

    def _store(self, place: int) -> None:
        stored = len(self.memo)
        if 0 <= place < stored:
            self.memo[place] = self.stack[-1]
        elif place in (stored, stored + 1):  # one by one, from 0 or (Python 2) from 1
            self.memo += [self.stack[-1]] * (place + 1 - stored)
        else:
            raise ValueError(f"stores a value at place {place} after {stored} others")

    def _follow_rare(self, code: bytes, file: io.BytesIO) -> None:
        position = file.tell() - 1
        instruction = INSTRUCTIONS[code]
        argument: Any = instruction.arg.reader(file) if instruction.arg else None
        name = instruction.name
        if name in LITERALS:
            self.stack.append(argument)
        elif name in STORES:
            self._store(argument)
        elif name in FETCHES:
            self.stack.append(self.memo[argument])
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif not self._build(name) and name not in IGNORED:
            raise ValueError(
                f"instruction {name} at byte {position} builds more than lists, dicts and text"
            )

    def _build(self, name: str) -> bool:
        """Containers. False if `name` is none of theirs."""
        match name:
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                start = len(self.stack) - TUPLES[name]
                self.stack[start:] = [tuple(self.stack[start:])]
            case "LIST" | "TUPLE" | "DICT":
                items = self._since_mark()
                value = (
                    _pairs(items) if name == "DICT" else (list if name == "LIST" else tuple)(items)
                )
                self.stack.append(value)
            case "APPEND" | "APPENDS":
                items = self._since_mark() if name == "APPENDS" else [self.stack.pop()]
                self.stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = (
                    self._since_mark()
                    if name == "SETITEMS"
                    else [self.stack.pop(-2), self.stack.pop()]
                )
                self.stack[-1].update(_pairs(items))
            case _:
                return False
        return True

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))
