"""Writes a CrowdHuman look-alike: `Images/*.jpg` and one JSON line an image in annotation_{train,val}.odgt.

The look: pictures from the web, of all kinds of places, bright and saturated, of many sizes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.miniature.drawing import draw_person
from sharding.miniature.encode import damaged, jpeg, put, truncated, with_orientation
from sharding.miniature.scenery import PLACES, draw_place
from sharding.miniature.scenes import Drawn, Look, compose, draw_look, photograph
from sharding.miniature.sprites import Image, Sprite
from sharding.miniature.world import (
    Appearance,
    Box,
    MiniatureConfig,
    TruthImage,
    TruthPerson,
    draw_appearance,
    draw_pose,
    generator,
)

SIZES = ((480, 288), (512, 320), (560, 352), (600, 400), (640, 400), (480, 320))
LOOK = Look(saturation=1.22, contrast=1.1, exposure=1.06, noise=2.0)
PREFIXES = (273271, 273275, 273278, 282555, 283081, 283554, 284193, 1066405, 1074488, 283647)


@dataclass(frozen=True)
class _Scene:
    image: NDArray[np.uint8]
    people: list[tuple[Drawn, bool]]
    """Far to near, and whether it is no real person but a statue."""
    crowd: Box | None
    """People too far and too many to be told apart."""


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    folder = root / "crowdhuman"
    truth = []
    for split, count in (("train", config.crowdhuman_train), ("val", config.crowdhuman_val)):
        rng = generator(config.seed, "crowdhuman", "damage")
        broken = damaged(rng, count, config.corrupt if split == "train" else 0)
        lines = []
        for index in range(count):
            line, image = _write_image(folder, config, split, index, index in broken)
            lines.append(json.dumps(line, separators=(", ", ": ")) + "\n")
            truth.append(image)
        put(folder / f"annotation_{split}.odgt", "".join(lines).encode())
    return truth


def _write_image(
    folder: Path, config: MiniatureConfig, split: str, index: int, corrupt: bool
) -> tuple[dict[str, Any], TruthImage]:
    rng = generator(config.seed, "crowdhuman", split, index)
    digits = int(rng.integers(12, 18))
    name = f"{rng.choice(PREFIXES)},{rng.bytes(9).hex()[:digits]}"
    scene = _draw_scene(rng, config)
    data = jpeg(scene.image, int(rng.integers(84, 95)))
    if index % 40 == 3:
        data = with_orientation(data, 6)  # boxes fit the stored pixels all the same
    put(folder / "Images" / f"{name}.jpg", truncated(data) if corrupt else data)
    boxes = _annotate(rng, scene, degenerate=index % 40 == 1)
    height, width = scene.image.shape[:2]
    persons = tuple(_truth(box) for box in boxes)
    image = TruthImage("crowdhuman", split, f"Images/{name}.jpg", width, height, persons, corrupt)
    if split == "train":
        return {"ID": name, "gtboxes": boxes}, image
    order = ("fbox", "tag", "hbox", "extra", "vbox", "head_attr")
    return {"gtboxes": [{k: box[k] for k in order if k in box} for box in boxes], "ID": name}, image


def _draw_scene(rng: np.random.Generator, config: MiniatureConfig) -> _Scene:
    width, height = (round(v * config.scale) for v in SIZES[rng.integers(len(SIZES))])
    horizon = height * float(rng.uniform(0.26, 0.44))
    place = PLACES[str(rng.choice(["street", "square", "market", "park", "station", "campus"]))]
    scene = draw_place(rng, place, (width, height), horizon)
    crowd = _draw_crowd(rng, scene, config, horizon) if rng.random() < 0.3 else None
    light = float(rng.uniform(-1, 1))
    camera_height = float(rng.uniform(0.85, 1.25))
    sprites: list[tuple[Sprite, tuple[float, float], float]] = []
    statues = []
    talls = sorted(float(t) for t in rng.uniform(0.25, 0.68, int(rng.integers(2, 9))))
    for tall in talls:
        person = draw_appearance(config.seed, "crowdhuman", int(rng.integers(1 << 30)))
        statue = rng.random() < 0.04
        tall *= height * person.stature
        foot = (float(rng.uniform(-0.02, 1.02)) * width, horizon + tall * camera_height)
        sprite = draw_person(person, draw_pose(rng), tall, light)
        sprites.append((_petrified(sprite) if statue else sprite, foot, tall))
        statues.append(statue)
    drawn = compose(scene, sprites)
    look = draw_look(rng, LOOK, 0.05 + 0.15 * config.difficulty)
    image = photograph(rng, scene, look)
    return _Scene(
        image, [(d, s) for d, s in zip(drawn, statues, strict=True) if d.visible_box], crowd
    )


def _petrified(sprite: Sprite) -> Sprite:
    grey = sprite.rgb.mean(2, keepdims=True) * 0.5 + 70
    stone = np.repeat(grey, 3, 2).astype(np.float32)
    return Sprite(stone, sprite.alpha, sprite.foot, sprite.box, sprite.head)


def _draw_crowd(
    rng: np.random.Generator, scene: Image, config: MiniatureConfig, horizon: float
) -> Box:
    height, width = scene.shape[:2]
    tall = height * float(rng.uniform(0.08, 0.12))
    middle = float(rng.uniform(0.2, 0.8)) * width
    sprites = []
    for _ in range(int(rng.integers(6, 12))):
        person: Appearance = draw_appearance(config.seed, "crowdhuman", int(rng.integers(1 << 30)))
        foot = (
            middle + float(rng.uniform(-2, 2)) * tall,
            horizon + tall * float(rng.uniform(0.98, 1.1)),
        )
        sprites.append((draw_person(person, draw_pose(rng), tall), foot, tall))
    boxes = np.array([d.box for d in compose(scene, sprites)])
    x1, y1 = boxes[:, :2].min(0)
    x2, y2 = boxes[:, 2:].max(0)
    return (float(x1), float(y1), float(x2), float(y2))


def _annotate(rng: np.random.Generator, scene: _Scene, degenerate: bool) -> list[dict[str, Any]]:
    """The `gtboxes` of an image, members in the order of the training file."""
    boxes: list[dict[str, Any]] = []
    for drawn, statue in scene.people:
        if statue:
            boxes.append(_mask(drawn.box))
            continue
        assert drawn.visible_box is not None
        extra = {"box_id": len(boxes), "occ": int(drawn.visible_share < 0.9)}
        if drawn.visible_share < 0.12:
            extra["ignore"] = 1
        elif rng.random() < 0.15:
            extra["ignore"] = 0
        if rng.random() < 0.05:
            extra["unsure"] = 1
        head_attr = {"ignore": int(drawn.visible_share < 0.3), "occ": 0, "unsure": 0}
        boxes.append(
            {
                "tag": "person",
                "hbox": _xywh(drawn.head),
                "head_attr": {} if rng.random() < 0.2 else head_attr,
                "fbox": _xywh(drawn.box),
                "vbox": _xywh(drawn.visible_box),
                "extra": extra,
            }
        )
    if scene.crowd is not None:
        boxes.append(_mask(scene.crowd))
    if degenerate:
        x, y = (int(v) for v in rng.integers(10, 200, 2))
        flat = [x, y, 0, 60] if rng.random() < 0.5 else [x, y, 24, -1]
        extra = {"box_id": len(boxes), "occ": 0}
        boxes.append(
            {
                "tag": "person",
                "hbox": flat,
                "head_attr": {},
                "fbox": flat,
                "vbox": flat,
                "extra": extra,
            }
        )
    return boxes


def _mask(box: Box) -> dict[str, Any]:
    xywh = _xywh(box)
    return {
        "tag": "mask",
        "hbox": xywh,
        "head_attr": {},
        "fbox": xywh,
        "vbox": xywh,
        "extra": {"ignore": 1},
    }


def _xywh(box: Box) -> list[int]:
    x1, y1, x2, y2 = (round(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _truth(box: dict[str, Any]) -> TruthPerson:
    x, y, w, h = box["fbox"]
    vx, vy, vw, vh = box["vbox"]
    return TruthPerson(
        box=(float(x), float(y), float(x + w), float(y + h)),
        kind=box["tag"],
        ignore=box["tag"] != "person" or box["extra"].get("ignore") == 1,
        visible_box=(float(vx), float(vy), float(vx + vw), float(vy + vh)),
    )
