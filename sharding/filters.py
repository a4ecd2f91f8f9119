"""Which samples of a listing are taken, decided before anything is opened.

Each is kept, or left out by a rule that is counted. Filters choose samples and change none: a scene
that is kept keeps all of its people.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.annotation import Task
from pipeline.filters import PeopleFilter, read_names
from sharding.datasets.base import SourceSample


class Rule(NamedTuple):
    name: str
    """What it leaves out."""
    passes: Callable[[SourceSample], bool]
    by_key: bool = False
    """It looks at the key alone: then it is asked of samples too that the release names and lacks."""


class FilterConfig(PeopleFilter):
    """What is taken of a release; of its people, whatever the sample says of them. Crops are kept."""

    min_size: tuple[int, int] = (0, 0)
    """[height, width] of the smallest image taken. Where the release does not say its images' sizes, smaller
    ones are quarantined when they are opened."""
    keys: str | None = None
    """File of sample keys, one a line: take these only."""
    exclude_keys: str | None = None
    """File of sample keys, one a line: leave these out. Of people who do not want to be in, say."""

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
        rules.append(Rule(name, lambda sample: config.finds_people(sample.persons)))
    return rules


def is_large(size: tuple[int, int] | None, config: FilterConfig) -> bool:
    """Whether an image of this width and height may be taken; so may one of unknown size."""
    return size is None or (size[1] >= config.min_size[0] and size[0] >= config.min_size[1])
