"""Another tool's JSON read as our annotation: which of its fields say where people are, and who they are."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from pipeline.annotation import MAX_JSON_BYTES, Annotation, Box, Canvas, Person, Task

LEAST_SIDE_PX = 1.0
"""A smaller box is taken for one in shares of the image."""


class FieldMap(BaseModel):
    """A field is named by its path, `objects.bbox` say; a list on the way stands for each of its elements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boxes: str | None = None
    """Field of the persons' boxes, in pixels: a list of them, or one. None: the whole image is one person."""
    box_format: Literal["xyxy", "xywh"] = "xyxy"
    identity: str | None = None
    """Field of who they are: a value a box, or one for all. None: unlabelled."""

    def annotate(
        self,
        data: bytes,
        *,
        key: str,
        size: tuple[int, int],
        dataset: str,
        domain: str,
        split: str,
        task: Task,
    ) -> Annotation:
        """The annotation of an image of `size` (height, width); `data` is empty if there is no JSON.

        Raises ValueError that says what of the JSON cannot be used.
        """
        height, width = size
        persons = self._persons(_parse(data), height, width, split)
        crop_size, canvas = _canvas(persons, height, width) if task == "reid" else (None, None)
        return Annotation(
            version=1,
            key=key,
            dataset=dataset,
            domain=domain,
            split=split,
            task=task,
            width=width,
            height=height,
            persons=persons,
            crop_size=crop_size,
            canvas=canvas,
            source=key,
        )

    def _persons(self, tree: Any, height: int, width: int, namespace: str) -> tuple[Person, ...]:
        if self.boxes is None:
            boxes = [(0.0, 0.0, float(width), float(height))]
        else:
            found = _pick(tree, self.boxes)
            boxes = [self._box(one, height, width) for one in _listed(found)]
        identities = self._identities(tree, len(boxes), namespace)
        return tuple(Person(box=box, identity=who) for box, who in zip(boxes, identities))

    def _box(self, values: Any, height: int, width: int) -> Box:
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != 4 or not all(map(math.isfinite, values)):
            raise ValueError(f"{self.boxes}: not four numbers")
        left, top, right, bottom = values
        if self.box_format == "xywh":
            right, bottom = left + right, top + bottom
        if right - left < LEAST_SIDE_PX or bottom - top < LEAST_SIDE_PX:
            raise ValueError(f"{self.boxes}: less than a pixel wide or high as {self.box_format}")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise ValueError(f"{self.boxes}: outside of the image as {self.box_format}")
        return (float(left), float(top), float(right), float(bottom))

    def _identities(self, tree: Any, count: int, namespace: str) -> list[str | None]:
        if self.identity is None:
            return [None] * count
        found = _pick(tree, self.identity)
        values = found if isinstance(found, list) else [found] * count
        if len(values) != count:
            raise ValueError(f"{self.identity}: {len(values)} values for {count} boxes")
        return [self._identity(value, namespace) for value in values]

    def _identity(self, value: Any, namespace: str) -> str | None:
        if value is None:
            return None
        if type(value) not in (int, str) or not str(value).isprintable() or value == "":
            raise ValueError(f"{self.identity}: neither a whole number nor a name")
        return f"{namespace}:{value}"


def _parse(data: bytes) -> Any:
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"JSON of {len(data)} bytes, more than {MAX_JSON_BYTES}")
    try:
        return from_json(data, allow_inf_nan=False) if data else {}
    except ValueError:
        raise ValueError("not JSON") from None


def _pick(tree: Any, path: str, passed: int = 0) -> Any:
    """What lies at `path`, in a list if a list lies on the way; `tree` is what lies at its first names."""
    for number, name in enumerate(path.split(".")[passed:], start=passed):
        if isinstance(tree, list):
            return [_pick(one, path, number) for one in tree]
        if not isinstance(tree, dict) or name not in tree:
            raise ValueError(f"no field {path}")
        tree = tree[name]
    return tree


def _listed(boxes: Any) -> list[Any]:
    """`boxes`, or a list of the one that it is."""
    if not isinstance(boxes, list):
        raise ValueError("boxes are not in a list")
    flat = bool(boxes) and not isinstance(boxes[0], list)
    return [boxes] if flat else boxes


def _canvas(persons: tuple[Person, ...], height: int, width: int) -> tuple[tuple[int, int], Canvas]:
    """Size of the crop, and where it lies: the image is its canvas."""
    if len(persons) != 1:
        raise ValueError(f"{len(persons)} persons in a re-ID image, not one")
    left, top, right, bottom = persons[0].box
    crop = (right - left, bottom - top)
    ratio = (width / crop[0], height / crop[1])
    return (round(crop[0]), round(crop[1])), Canvas(ratio=ratio, offset=(left, top), variant=0)
