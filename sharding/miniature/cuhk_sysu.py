"""Writes a CUHK-SYSU look-alike: `Image/SSM/*.jpg`, and who is where in `annotation/` as MATLAB files.

The look: snapshots of streets in all kinds of places, and stills of films, wide, dark and teal.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.miniature.encode import jpeg, put
from sharding.miniature.encounters import deal, draw_people
from sharding.miniature.matlab import cell, integers, structs, write_mat
from sharding.miniature.scenery import PLACES, draw_place
from sharding.miniature.scenes import Drawn, Look, draw_look, photograph
from sharding.miniature.world import (
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    generator,
)

STREET = Look(gains=(1.06, 1.0, 0.92), saturation=0.9, contrast=0.92, exposure=1.02, noise=3.2)
FILM = Look(gains=(0.94, 1.0, 1.02), saturation=0.6, contrast=1.25, exposure=0.8, vignette=0.4)
STREET_SIZE, FILM_SIZE = (480, 360), (544, 272)
STREET_PLACES = ("street", "market", "square", "station", "campus")
FILM_PLACES = ("street", "hall", "station", "park")
IMAGES = 18_184
PEOPLE = 11_934
GALLERY_SHARES = {50: 0.2, 100: 0.35, 500: 0.5, 1000: 0.7, 2000: 0.85, 4000: 1.0}
"""Of the pool, in place of 50 to 4,000 of 6,978 images."""


@dataclass(frozen=True)
class _Box:
    """Somebody in an image."""

    person: str
    """idname of one of the benchmark or of Person.mat alone, or nothing."""
    xywh: tuple[int, int, int, int]
    """With corners that count from 1."""
    hard: bool

    def entry(self) -> dict[str, Any]:
        return {"idlocate": integers(self.xywh), "ishard": np.uint8(self.hard)}


@dataclass(frozen=True)
class _Image:
    name: str
    pixels: NDArray[np.uint8]
    boxes: list[_Box]


@dataclass(frozen=True)
class _Sighting:
    image: str
    box: _Box

    def entry(self) -> dict[str, Any]:
        return {"imname": self.image, **self.box.entry()}


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder, seed = root / "cuhk_sysu", config.seed
    counts = {"train": config.cuhk_sysu_train, "test": config.cuhk_sysu_test}
    sizes = {
        "train": config.cuhk_sysu_train_identities,
        "test": config.cuhk_sysu_test_identities,
    }
    numbers = (generator(seed, "cuhk_sysu", "images").permutation(IMAGES) + 1).tolist()
    people = (generator(seed, "cuhk_sysu", "people").permutation(PEOPLE) + 1).tolist()
    images: dict[str, list[_Image]] = {}
    named: dict[str, dict[str, list[_Sighting]]] = {}
    for split, count in counts.items():
        names = sorted(f"p{people.pop():05d}" for _ in range(min(sizes[split], count)))
        hands = deal(generator(seed, "cuhk_sysu", split, "who"), names, count)
        images[split] = [
            _draw_image(config, f"s{numbers.pop()}.jpg", hand, split, index)
            for index, hand in enumerate(hands)
        ]
        named[split] = _meetings(images[split], names)
    everything = [image for drawn in images.values() for image in drawn]
    for image in everything:
        put(folder / "Image" / "SSM" / image.name, jpeg(image.pixels, 90))
    annotation = folder / "annotation"
    _write_images(annotation, everything, images["test"])
    _write_people(annotation, everything, named["train"])
    _write_protocols(config, annotation, images["test"], named["test"])
    return [
        _truth(split, image, named[split]) for split, drawn in images.items() for image in drawn
    ]


def _draw_image(
    config: MiniatureConfig, name: str, hand: list[str], split: str, index: int
) -> _Image:
    rng = generator(config.seed, "cuhk_sysu", split, index)
    film = rng.random() < 0.3
    size = tuple(round(side * config.scale) for side in (FILM_SIZE if film else STREET_SIZE))
    place = PLACES[str(rng.choice(FILM_PLACES if film else STREET_PLACES))]
    horizon = size[1] * float(rng.uniform(0.26, 0.4))
    scene = draw_place(rng, place, (size[0], size[1]), horizon)
    # Person.mat names more people than the benchmark uses: every third stranger is one of them.
    strangers = [int(number) for number in rng.integers(1, 300, size=int(rng.integers(1, 5)))]
    names = [*hand, *(f"p{PEOPLE + n}" if n % 3 == 0 else f"nobody {n}" for n in strangers)]
    names = [names[place] for place in rng.permutation(len(names))]
    looks = [draw_appearance(config.seed, "cuhk_sysu", person) for person in names]
    drawn = draw_people(rng, scene, looks, horizon, float(rng.uniform(-1, 1)))
    look = draw_look(rng, FILM if film else STREET, 0.05 + 0.2 * config.difficulty)
    boxes = [
        _box(person, figure, (size[0], size[1]))
        for person, figure in zip(names, drawn, strict=True)
        if figure.visible_box is not None
    ]
    return _Image(name, photograph(rng, scene, look), _with_faults(boxes, hand, index))


def _box(person: str, figure: Drawn, size: tuple[int, int]) -> _Box:
    """Inside the image, unlike other releases' boxes."""
    x1, y1 = (max(round(side), 0) for side in figure.box[:2])
    x2, y2 = (min(round(side), most) for side, most in zip(figure.box[2:], size))
    hard = figure.visible_share < 0.7
    return _Box(person if person[0] == "p" else "", (x1 + 1, y1 + 1, x2 - x1, y2 - y1), hard)


def _with_faults(boxes: list[_Box], hand: list[str], index: int) -> list[_Box]:
    """The annotators' mistakes, each in one image in twenty."""
    last = boxes[-1]
    match index % 20:
        case 1:  # a box without area
            return [*boxes, _Box("", (*last.xywh[:2], 0, last.xywh[3]), False)]
        case 2:  # one box twice
            return [*boxes, last]
        case 3:  # one name for two people
            return [_Box(hand[0], boxes[0].xywh, boxes[0].hard), *boxes[1:]]
    return boxes


def _meetings(images: list[_Image], names: list[str]) -> dict[str, list[_Sighting]]:
    """Where each of `names` is seen, of those that are seen in two images or more."""
    seen: dict[str, list[_Sighting]] = {name: [] for name in names}
    for image in images:
        for box in dict.fromkeys(image.boxes):
            if box.person in seen:
                seen[box.person].append(_Sighting(image.name, box))
    return {name: found for name, found in seen.items() if len({s.image for s in found}) > 1}


def _write_images(folder: Path, images: list[_Image], pool: list[_Image]) -> None:
    rows = [
        {
            "imname": image.name,
            "nAppear": np.uint8(len(image.boxes)),
            "box": structs([box.entry() for box in image.boxes]),
        }
        for image in sorted(images, key=lambda image: image.name)
    ]
    write_mat(folder / "Images.mat", "Img", structs(rows))
    write_mat(folder / "pool.mat", "pool", cell([image.name for image in pool]))


def _write_people(folder: Path, images: list[_Image], train: dict[str, list[_Sighting]]) -> None:
    """Train.mat is a cell array of structs, Person.mat a struct array of everybody with a name."""
    rows = [_person_row(name, seen) for name, seen in train.items()]
    trained = cell([structs([row]) for row in rows])
    write_mat(folder / "test" / "train_test" / "Train.mat", "Train", trained)
    everybody: dict[str, list[_Sighting]] = {}
    for image in images:
        for box in image.boxes:
            if box.person:
                everybody.setdefault(box.person, []).append(_Sighting(image.name, box))
    persons = [_person_row(name, seen) for name, seen in sorted(everybody.items())]
    write_mat(folder / "Person.mat", "Person", structs(persons))


def _person_row(name: str, seen: list[_Sighting]) -> dict[str, Any]:
    scene = structs([sighting.entry() for sighting in seen])
    return {"idname": name, "nAppear": np.uint8(len(seen)), "scene": scene}


def _write_protocols(
    config: MiniatureConfig,
    folder: Path,
    pool: list[_Image],
    people: dict[str, list[_Sighting]],
) -> None:
    names = [image.name for image in pool]
    rows: dict[int, list[dict[str, Any]]] = {}
    for size, share in GALLERY_SHARES.items():
        rows[size] = [
            _protocol_row(config, names, name, seen, round(share * len(names)), own=index == 0)
            for index, (name, seen) in enumerate(people.items())
        ]
        path = folder / "test" / "train_test" / f"TestG{size}.mat"
        write_mat(path, f"TestG{size}", structs(rows[size]))
    occluded = [{**row, "occlusion": 0.4} for row in rows[100][::3]]
    write_mat(folder / "test" / "subset" / "Occlusion.mat", "Occlusion1", structs(occluded))
    small = structs(rows[100][1::3] or rows[100])
    write_mat(folder / "test" / "subset" / "Resolution.mat", "Test_Size", small)


def _protocol_row(
    config: MiniatureConfig,
    pool: list[str],
    name: str,
    seen: list[_Sighting],
    size: int,
    own: bool,
) -> dict[str, Any]:
    """The person's first sighting is the query. With `own`, the gallery holds the query's image as well."""
    query = seen[0]
    positives = [s for s in seen if own or s.image != query.image]
    gallery = [sighting.entry() for sighting in positives]
    others = sorted(set(pool) - {sighting.image for sighting in seen})
    order = generator(config.seed, "cuhk_sysu", "gallery", name).permutation(len(others))
    for place in order[: max(size - len(gallery), 0)].tolist():
        # No idlocate where the person is not: an empty matrix of doubles, of one shape or another.
        gallery.append(
            {"imname": others[place], "idlocate": np.empty((place % 2, 0)), "ishard": 0.0}
        )
    return {"Query": structs([{**query.entry(), "idname": name}]), "Gallery": structs(gallery)}


def _truth(split: str, image: _Image, named: dict[str, list[_Sighting]]) -> TruthImage:
    height, width = image.pixels.shape[:2]
    persons = []
    for box in image.boxes:
        x, y, w, h = box.xywh
        corners = (float(x - 1), float(y - 1), float(x - 1 + w), float(y - 1 + h))
        identity = box.person if box.person in named else None
        persons.append(TruthPerson(corners, identity, tags=("hard",) if box.hard else ()))
    return TruthImage("cuhk_sysu", split, f"Image/SSM/{image.name}", width, height, tuple(persons))
