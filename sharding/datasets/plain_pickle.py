"""Reads lists, dicts, strings, bytes and numbers out of a pickle file, and can do nothing else.

The file is never executed: `pickletools` splits it into instructions and the few that build plain values
are followed here. Any other one (a class, a function, a call) is refused.
"""

import pickletools
from pathlib import Path
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


def read_plain(path: Path) -> Any:
    """The value in the pickle file at `path`. Raises ValueError if it is anything but plain values."""
    reader = _Reader()
    try:
        for instruction, argument, position in pickletools.genops(path.read_bytes()):
            reader.follow(instruction.name, argument, position)
        (value,) = reader.stack
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a well-formed pickle ({type(error).__name__}: {error})") from error
    return value


class _Reader:
    """A stack, the stacks below open marks, and the memo: all that a pickle of plain values needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any, position: int | None) -> None:
        """Raises ValueError on an instruction that is not needed for plain values."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in STORES:
            self.memo[argument] = self.stack[-1]
        elif name in FETCHES:
            self.stack.append(self.memo[argument])
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif not self._build(name) and name not in ("PROTO", "FRAME", "STOP"):
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
