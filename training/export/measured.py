"""What an evaluation of the very weights that are exported measured, as the card tells it."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from training.evaluation.results import percent

ABOUT = (
    "With the weights of this checkpoint, by `launch/evaluate.py`, in percent. These are numbers of this "
    "project's own NAE model with all its heads: a backbone that is exported alone, or another target's "
    "code, has not been measured."
)
COLUMNS = (
    "Images: short and long side that scenes are fitted into. Annotated boxes: the same search with "
    "everybody annotated in place of the detections. Detection AP: at an IoU of a half, times recall. "
    "Records lie in the run's folder and have all settings."
)
HEADER = [
    "data set",
    "protocol",
    "images",
    "mAP",
    "top-1",
    "mAP, annotated boxes",
    "top-1, annotated boxes",
    "detection AP",
    "record",
]


class _Part(BaseModel):
    """Whatever else the record has is passed over."""

    model_config = ConfigDict(frozen=True)


class Data(_Part):
    dataset: str
    split: str


class Settings(_Part):
    size: tuple[int, int]
    """Short and long side."""


class Everybody(_Part):
    ap: float | None


class Detection(_Part):
    all: Everybody


class Ranked(_Part):
    """Shares of 1; None: nobody was asked for."""

    mAP: float | None
    top1: float | None


class Searched(Ranked):
    annotated_boxes: Ranked


class Evaluation(_Part):
    """A record of `launch/evaluate.py`, as far as the card tells it."""

    record: str
    """Its file, from the run's folder."""
    data: Data
    settings: Settings
    detection: Detection
    search: dict[str, Searched]
    """By protocol."""
    limits: tuple[str, ...]
    """What keeps the numbers from being the benchmark's."""

    @property
    def data_set(self) -> str:
        return f"{self.data.dataset}/{self.data.split}"


def rows(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """Below HEADER, one a protocol."""
    return [[*cells, f"`{one.record}`"] for one in evaluations for cells in _cells(one)]


def _cells(one: Evaluation) -> Iterator[list[str]]:
    short, long = one.settings.size
    for protocol, found in one.search.items():
        ranked = (found.mAP, found.top1, found.annotated_boxes.mAP, found.annotated_boxes.top1)
        numbers = [percent(value) for value in (*ranked, one.detection.all.ap)]
        yield [one.data_set, protocol, f"{short} x {long}", *numbers]


def limits(evaluations: Sequence[Evaluation]) -> list[str]:
    return [f"Of `{one.record}`: {limit}" for one in evaluations for limit in one.limits]
