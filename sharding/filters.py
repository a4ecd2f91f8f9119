"""Which samples of a listing are taken, decided before anything is opened.

Each is kept, or left out by a rule that is counted. Filters choose samples and change none: a scene
that is kept keeps all of its people.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from pipeline.annotation import Box, Person, Task
from pipeline.config import Config
from pipeline.errors import UserError
from sharding.datasets.base import SourceSample


class Rule(NamedTuple):
    name: str
    """What it leaves out."""
    passes: Callable[[SourceSample], bool]
    by_key: bool = False
    """It looks at the key alone: then it is asked of samples too that the release names and lacks."""


class FilterConfig(Config):
    min_size: tuple[int, int] = (0, 0)
    """[height, width] of the smallest image taken. Where the release does not say its images' sizes, smaller
    ones are quarantined when they are opened."""
    min_person_height: float = Field(default=0, ge=0)
    """Pixels: keep scenes with a person, not ignored, of at least this height ..."""
    min_visible: float = Field(default=0, ge=0, le=1)
    """... of whose box at least this share is visible, where the release says."""
    min_persons: int = Field(default=0, ge=0)
    """Keep scenes with at least so many such persons; 1 if one of the two above is set. Crops are kept."""
    keys: str | None = None
    """File of sample keys, one a line: take these only."""
    exclude_keys: str | None = None
    """File of sample keys, one a line: leave these out. Of people who do not want to be in, say."""

    @property
    def persons_needed(self) -> int:
        return self.min_persons or int(self.min_person_height > 0 or self.min_visible > 0)

    def contents(self) -> dict[str, str]:
        """sha256 of the key files: their names do not decide anything."""
        named = {"keys": self.keys, "exclude_keys": self.exclude_keys}
        return {
            name: hashlib.sha256("\n".join(sorted(read_names(path))).encode()).hexdigest()
            for name, path in named.items()
            if path is not None
        }

    def unknown_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """Keys of the files that are none of `keys`, and where they stand. A typo would be silent."""
        named = [path for path in (self.keys, self.exclude_keys) if path is not None]
        unknown = {key: place for path in named for key, place in read_names(path).items()}
        for key in keys if unknown else ():
            unknown.pop(key, None)
        return unknown


def make_rules(config: FilterConfig, task: Task) -> list[Rule]:
    """In the order in which they are asked. Raises UserError if a file of keys cannot be read."""
    rules: list[Rule] = []
    if config.keys is not None:
        taken = read_names(config.keys)
        rules.append(
            Rule("not in the list of keys", lambda sample: sample.key in taken, by_key=True)
        )
    if config.exclude_keys is not None:
        excluded = read_names(config.exclude_keys)
        name = "in the list of excluded keys"
        rules.append(Rule(name, lambda sample: sample.key not in excluded, by_key=True))
    if any(config.min_size):
        name = f"smaller than {config.min_size[1]}x{config.min_size[0]} pixels"
        rules.append(Rule(name, lambda sample: is_large(sample.expected_size, config)))
    if config.persons_needed and task != "reid":
        name = f"fewer than {config.persons_needed} persons as asked for"
        rules.append(Rule(name, lambda sample: _has_persons(sample, config)))
    return rules


def is_large(size: tuple[int, int] | None, config: FilterConfig) -> bool:
    """Whether an image of this width and height may be taken; so may one of unknown size."""
    return size is None or (size[1] >= config.min_size[0] and size[0] >= config.min_size[1])


def read_names(path: str) -> dict[str, str]:
    """Names of a file, one a line, and where they stand (`FILE:7`); `#` begins a comment line.

    Raises UserError.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read the names in {path}: {error}.") from None
    named = {line.strip(): f"{path}:{number}" for number, line in enumerate(lines, start=1)}
    return {name: place for name, place in named.items() if name and not name.startswith("#")}


def _has_persons(sample: SourceSample, config: FilterConfig) -> bool:
    found = sum(1 for person in sample.persons if _is_wanted(person, config))
    return found >= config.persons_needed


def _is_wanted(person: Person, config: FilterConfig) -> bool:
    height = person.box[3] - person.box[1]
    return (
        not person.ignore
        and height >= config.min_person_height
        and _visible_share(person) >= config.min_visible
    )


def _visible_share(person: Person) -> float:
    area = _area(person.box)
    return 1.0 if person.visible_box is None or area <= 0 else _area(person.visible_box) / area


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
