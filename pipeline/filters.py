"""What a sample is chosen by, when its release is sharded and when a shard set is selected from."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.annotation import Box, Person
from pipeline.config import Config
from pipeline.errors import UserError


class PeopleFilter(Config):
    min_person_height: float = Field(default=0, ge=0)
    """Pixels: keep scenes with a person, not ignored, of at least this height ..."""
    min_visible: float = Field(default=0, ge=0, le=1)
    """... of whose box at least this share is visible, where the release says."""
    min_persons: int = Field(default=0, ge=0)
    """Keep scenes with at least so many such persons; 1 if one of the two above is set."""

    @property
    def persons_needed(self) -> int:
        return self.min_persons or int(self.min_person_height > 0 or self.min_visible > 0)

    def finds_people(self, persons: Sequence[Person]) -> bool:
        """Whether as many as are needed are among `persons`."""
        return sum(map(self._is_wanted, persons)) >= self.persons_needed

    def _is_wanted(self, person: Person) -> bool:
        height = person.box[3] - person.box[1]
        return (
            not person.ignore
            and height >= self.min_person_height
            and _visible_share(person) >= self.min_visible
        )


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


def _visible_share(person: Person) -> float:
    area = _area(person.box)
    return 1.0 if person.visible_box is None or area <= 0 else _area(person.visible_box) / area


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
