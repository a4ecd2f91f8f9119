"""CrowdHuman (https://www.crowdhuman.org): crowds from the web, full, visible and head boxes."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.annotation import Box, Person, Task, sample_key
from pipeline.errors import UserError
from sharding.datasets import text
from sharding.datasets.base import FaultySample, Listing, Published, SourceSample
from sharding.datasets.boxes import count_boxes, has_area, keep_dropped
from sharding.source import Source, SourceFile, find_root

EXPECTED = (
    "annotation_train.odgt and annotation_val.odgt beside the folder Images/ that "
    "CrowdHuman_train01.zip, _train02.zip, _train03.zip and CrowdHuman_val.zip unpack to"
)
SPLITS: Mapping[str, tuple[Published, ...]] = {
    "train": (Published("images", 15_000, "V"), Published("kept boxes", 438_783, "V")),
    "val": (Published("images", 4_370, "V"), Published("kept boxes", 127_710, "V")),
}


class CrowdHuman:
    """A box is ignored if it is not tagged `person` or its own `extra.ignore` is 1.

    `head_attr.ignore` says that the head alone is unusable: it stays in `extra` and decides nothing.
    """

    name = "crowdhuman"
    task: Task = "detection"
    licence = (
        "CrowdHuman: non-commercial research only, images and annotations not redistributable."
    )
    homepage = "https://www.crowdhuman.org"
    splits = SPLITS

    def list_samples(self, source: Source, split: str) -> Listing:
        text.check_split(self, split)
        odgt = f"annotation_{split}.odgt"
        root = find_root(source, ("", "CrowdHuman"), (odgt, "Images"), EXPECTED)
        images = _find_images(source, root)
        samples: list[SourceSample] = []
        faulty: list[FaultySample] = []
        seen: dict[str, int] = {}
        for number, line in text.text_lines(source, f"{root}{odgt}", f"Expected {EXPECTED}."):
            where = f"{source.at(root + odgt)}, line {number}"
            record = _parse(line, where)
            name = f"{_member(record, 'ID', str, where)}.jpg"
            first = seen.setdefault(name, number)
            if first != number:
                raise UserError(f"{where}: repeats the ID of line {first}; the file was edited.")
            if name in images:
                samples.append(_sample(record, name, split, images[name], where))
            else:
                faulty.append(FaultySample(_key(split, name), f"Images/{name}"))
        found = {"images": len(samples), **count_boxes(samples)}
        return Listing(samples, len(seen), faulty=tuple(faulty), found=found)

    def read(self, source: Source, locator: str) -> bytes:
        return source.read(locator)


def _find_images(source: Source, root: str) -> dict[str, SourceFile]:
    """By name: of Images/, or of an Images/ in the folder of each archive."""
    found: dict[str, SourceFile] = {}
    for path, file in sorted(source.files(root, ".jpg").items()):
        folder, _, name = path.removeprefix(root).rpartition("/")
        if folder == "Images" or (folder.endswith("/Images") and folder.count("/") == 1):
            found.setdefault(name, file)
    if not found:
        raise UserError(
            f"{source.at(root + 'Images')} {source.describe(root + 'Images')}: no image there; "
            f"expected {EXPECTED}."
        )
    return found


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        return text.parse_object(line)
    except ValueError as error:
        raise UserError(f"{where}: {error}; the file was cut or edited.") from error


def _key(split: str, name: str) -> str:
    return sample_key("crowdhuman", split, name)


def _sample(
    record: dict[str, Any], name: str, split: str, image: SourceFile, where: str
) -> SourceSample:
    persons: list[Person] = []
    dropped: list[Any] = []
    for entry in _member(record, "gtboxes", list, where):
        box = _box(entry, "fbox", where)
        if has_area(box):
            persons.append(_person(entry, box, where))
        else:
            dropped.append(entry)
    extra = {key: value for key, value in record.items() if key not in ("ID", "gtboxes")}
    locator, size = image
    return SourceSample(
        key=_key(split, name),
        locator=locator,
        origin=f"Images/{name}",
        size_bytes=size,
        persons=tuple(persons),
        extra=extra | keep_dropped(dropped),
    )


def _person(entry: dict[str, Any], box: Box, where: str) -> Person:
    tag = _member(entry, "tag", str, where)
    attributes = entry.get("extra") or {}
    extra = {key: value for key, value in entry.items() if key not in ("tag", "fbox", "vbox")}
    visible = _box(entry, "vbox", where) if "vbox" in entry else None
    if visible and not has_area(visible):
        visible, extra["vbox"] = None, entry["vbox"]
    try:
        return Person(
            box=box,
            ignore=tag != "person" or attributes.get("ignore") == 1,
            category=tag,
            visible_box=visible,
            extra=extra,
        )
    except (ValidationError, AttributeError) as error:
        raise UserError(f"{where}: a box that is not CrowdHuman's: {error}") from error


def _box(entry: Any, name: str, where: str) -> Box:
    """[x, y, width, height] as a half-open box, wherever it leaves the image."""
    try:
        x, y, width, height = (float(number) for number in entry[name])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {name} is not four numbers x, y, width, height.") from error
    return (x, y, x + width, y + height)


def _member(record: Any, name: str, kind: type, where: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"{where}: {name!r} is missing or not a {kind.__name__}; not an odgt line.")
    return value
