"""A native release as a folder: where it starts, which files it holds, what to say when it is not there."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from sharding.datasets.base import Adapter

SHOWN = 8


def check_split(adapter: Adapter, split: str) -> None:
    """Raises UserError unless `adapter` knows `split`."""
    if split not in adapter.splits:
        raise UserError(
            f"{adapter.name} has no split {split!r}; its splits are {', '.join(adapter.splits)}."
        )


def describe(folder: Path) -> str:
    """What lies in `folder`, in a few words for an error message."""
    if not folder.is_dir():
        return "is not a folder" if folder.exists() else "does not exist"
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "is empty"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"holds {', '.join(names[:SHOWN])}{more}"


def find_root(source: Path, inside: Iterable[str], markers: Iterable[str], expected: str) -> str:
    """The first of the subfolders `inside` (`""`: `source` itself) that holds one of `markers`.

    Returned as a prefix of paths below `source`: `""` or `ECP/`. Raises UserError with `expected`.
    """
    for name in inside:
        if any((source / name / marker).exists() for marker in markers):
            return f"{name}/" if name else ""
    raise UserError(f"{source} {describe(source)}; expected {expected}.")


def require(path: Path, advice: str) -> Path:
    """`path` if it exists. Raises UserError naming it, with what is there instead."""
    if not path.exists():
        raise UserError(f"{path} is missing ({path.parent} {describe(path.parent)}). {advice}")
    return path


def file_sizes(folder: Path, depth: int, suffix: str) -> dict[str, int]:
    """Path below `folder` -> bytes, of files that end in `suffix`, `depth` folders down.

    One directory scan and one stat a file: no file is opened. Hidden files are not seen.
    """
    return dict(_scan(str(folder), depth, suffix, ""))


def _scan(folder: str, depth: int, suffix: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if depth and entry.is_dir():
                yield from _scan(entry.path, depth - 1, suffix, f"{prefix}{entry.name}/")
            elif not depth and entry.name.endswith(suffix) and entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file that are not blank, stripped, with their numbers from 1.

    Raises UserError if there is none, or it is not text.
    """
    number, empty = 0, True
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if text := line.strip():
                    empty = False
                    yield number, text
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, near line {number + 1}: not UTF-8 text ({error.reason})."
        ) from error
    if empty:
        raise UserError(f"{path} is empty; copy it again from the release.")


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value
