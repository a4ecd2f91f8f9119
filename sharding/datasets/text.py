"""Text and JSON files of a release, and what to say when they are not as they should be."""

import io
import json
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

from pipeline.errors import UserError
from sharding.datasets.base import Adapter
from sharding.source import Source, require

MOST_LEVELS = 32
"""Of a JSON object: deeper ones cannot be written into annotations."""


def check_split(adapter: Adapter, split: str) -> None:
    """Raises UserError unless `adapter` knows `split`."""
    if split not in adapter.splits:
        raise UserError(
            f"{adapter.name} has no split {split!r}; its splits are {', '.join(adapter.splits)}."
        )


def read_text(source: Source, path: str, advice: str) -> str:
    """A UTF-8 file. Raises UserError if it is missing or not text."""
    file = require(source, path, advice)
    try:
        data = source.read(file.locator)
    except ValueError as error:
        raise UserError(f"{source.at(path)} is damaged ({error}): copy it again.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source.at(path)}, near line {line}: not UTF-8 text ({error.reason})."
        ) from None


def text_lines(source: Source, path: str, advice: str) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file that are not blank, stripped, with their numbers from 1.

    Raises UserError if there is none, or it is not text.
    """
    empty = True
    for number, line in enumerate(io.StringIO(read_text(source, path, advice)), start=1):
        if text := line.strip():
            empty = False
            yield number, text
    if empty:
        raise UserError(f"{source.at(path)} is empty; copy it again from the release.")


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object, which can be written as one again. Raises ValueError."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # may be half a character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    _check_values(value)
    return value


def _check_values(value: Any) -> None:
    level = [value]
    for _ in range(MOST_LEVELS):
        if any(isinstance(one, float) and not isfinite(one) for one in level):
            raise ValueError("not valid JSON (NaN, Infinity or a number that is too large)")
        level = [inner for outer in level for inner in _inner(outer)]
    if level:
        raise ValueError(f"nested in more than {MOST_LEVELS} levels")


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
