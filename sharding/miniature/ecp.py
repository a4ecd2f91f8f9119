"""Writes a EuroCity Persons look-alike: PNGs under `ECP/{day,night}/img/{train,val}/city/`, and labels.

The look: a car's windscreen in many cities, wide, grey and low in contrast; by night head- and street
lamps. The same names occur by day and by night.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sharding.miniature.drawing import draw_person
from sharding.miniature.encode import png, put, truncated
from sharding.miniature.props import draw_bench, draw_bicycle
from sharding.miniature.scenery import PLACES, draw_place, night_light
from sharding.miniature.scenes import Drawn, Look, compose, draw_look, photograph
from sharding.miniature.sprites import Image, Sprite
from sharding.miniature.world import (
    Appearance,
    Box,
    MiniatureConfig,
    Pose,
    TruthImage,
    TruthPerson,
    draw_appearance,
    draw_pose,
    generator,
    riding_pose,
    sitting_pose,
)

SIZE = (510, 272)  # the aspect of 1920 x 1024
CITIES = ("amsterdam", "barcelona", "budapest", "dresden", "hamburg", "ljubljana", "praha", "roma")
DAY = Look(
    gains=(0.95, 1.0, 1.06),
    saturation=0.7,
    contrast=1.0,
    exposure=1.1,
    noise=0.6,
    haze=0.07,
    vignette=0.2,
)
NIGHT = Look(gains=(1.04, 0.98, 0.94), saturation=0.85, contrast=1.05, exposure=1.15, noise=2.2)
CAMERA_HEIGHT = 1.04
"""Of a person's height over the road; so heads are near the horizon whatever their distance."""
PERSON_KINDS = (
    "pedestrian",
    "rider",
    "co-rider",
    "person-group-far-away",
    "rider+vehicle-group-far-away",
    "unknown",
)
UNLABELLED = "bench"
NOBODY_KNOWS = "unknown"
"""Written as a null identity."""
RARE = (
    "buggy-group",
    "motorbike-group",
    "scooter-group",
    "tricycle-group",
    "wheelchair-group",
    "rider+vehicle-group-far-away",
    NOBODY_KNOWS,
)
"""One of them in every second frame, in turn. All vehicles are drawn as bicycles."""
NOT_POSITIVE = {"sitting-lying", "behind-glass", "depiction"}


@dataclass(frozen=True)
class _Figure:
    """Something that becomes one object of the label file."""

    identity: str
    sprite: Sprite
    foot: tuple[float, float]
    tall: float
    yaw: float | None = None
    tags: tuple[str, ...] = ()
    parent: int | None = None
    """Position, among the figures, of the rider that this belongs to."""


def write(root: Path, config: MiniatureConfig) -> list[TruthImage]:
    counts = {
        ("day", "train"): config.ecp_day_train + config.ecp_empty,
        ("day", "val"): config.ecp_day_val,
        ("night", "train"): config.ecp_night_train,
        ("night", "val"): config.ecp_night_val,
    }
    truth = []
    for (time, split), count in counts.items():
        first = (time, split) == ("day", "train")
        order = generator(config.seed, "ecp", "frames").permutation(count).tolist()
        empty = set(order[: config.ecp_empty]) if first else set()
        broken = (
            set(order[config.ecp_empty : config.ecp_empty + config.corrupt]) if first else set()
        )
        for index in range(count):
            state = (index in empty, index in broken)
            truth.append(_write_frame(root / "ecp", config, time, split, index, *state))
    return truth


def _write_frame(
    root: Path,
    config: MiniatureConfig,
    time: str,
    split: str,
    index: int,
    empty: bool,
    corrupt: bool,
) -> TruthImage:
    city = CITIES[index % len(CITIES)]
    # Numbers of train and val interleave; those of night are those of day.
    number = 20 * (index // len(CITIES)) + (10 if split == "val" else 0) + index % 9
    rng = generator(config.seed, "ecp", time, split, index)
    size = (round(SIZE[0] * config.scale), round(SIZE[1] * config.scale))
    horizon = size[1] * float(rng.uniform(0.36, 0.44))
    scene = _draw_road(rng, config, city, size, horizon)
    figures = []
    if not empty:
        if index % 2:
            # Random numbers of its own: it changes no other part of the picture.
            chance = generator(config.seed, "ecp", "rare", time, split, index)
            kind = RARE[index // 2 % len(RARE)]
            figures.append(_draw_group(chance, config, kind, size, horizon))
        _draw_figures(figures, rng, config, size, horizon, float(rng.uniform(-1, 1)))
    drawn = compose(scene, [(f.sprite, f.foot, f.tall) for f in figures])
    if time == "night":
        light, glow = night_light(rng, size, horizon)
        scene = scene * light + glow
    look = draw_look(rng, NIGHT if time == "night" else DAY, 0.02 + 0.06 * config.difficulty)
    data = png(photograph(rng, scene, look))
    objects, persons = _annotate(figures, drawn, size)
    frame: dict[str, Any] = {
        "identity": "frame",
        "imagewidth": size[0],
        "imageheight": size[1],
        "tags": ["rain"] if rng.random() < 0.05 else [],
        "children": objects,
    }
    if index == 1:  # some exports wrap the frame
        frame = {
            "identity": "@converter",
            "children": [{"identity": "seqlist", "children": [frame]}],
        }
    image_name = f"ECP/{time}/img/{split}/{city}/{city}_{number:05d}.png"
    put(root / image_name, truncated(data) if corrupt else data)
    label_name = image_name.replace("/img/", "/labels/").replace(".png", ".json")
    put(root / label_name, (json.dumps(frame, indent=1) + "\n").encode())
    return TruthImage("ecp", f"{time}_{split}", image_name, *size, persons, corrupt)


def _draw_road(
    rng: np.random.Generator,
    config: MiniatureConfig,
    city: str,
    size: tuple[int, int],
    horizon: float,
) -> Image:
    """Each city has walls of its own."""
    style = generator(config.seed, "ecp", "city", city)
    tones = style.uniform(95, 215, (3, 1)) * style.uniform(
        (1.0, 0.84, 0.68), (1.1, 0.98, 0.96), (3, 3)
    )
    walls = tuple((float(r), float(g), float(b)) for r, g, b in tones)
    return draw_place(rng, replace(PLACES["road"], walls=walls), size, horizon)


def _draw_figures(
    figures: list[_Figure],
    rng: np.random.Generator,
    config: MiniatureConfig,
    size: tuple[int, int],
    horizon: float,
    light: float,
) -> None:
    """Appends, far to near: groups, then people whose height is a quarter to two thirds of the picture's."""
    width, height = size
    for identity, odds in (
        ("person-group-far-away", 0.3),
        ("rider+vehicle-group-far-away", 0.12),
        ("bicycle-group", 0.12),
    ):
        if rng.random() < odds:
            figures.append(_draw_group(rng, config, identity, size, horizon))
    for share in sorted(rng.uniform(0.25, 0.68, int(rng.integers(2, 9))).tolist()):
        person = draw_appearance(config.seed, "ecp", int(rng.integers(1 << 30)))
        tall = share * height * person.stature
        foot = (float(rng.uniform(-0.02, 1.02)) * width, horizon + CAMERA_HEIGHT * tall)
        kind = str(
            rng.choice(
                ["walking", "riding", "sitting", "glass", "poster"],
                p=[0.74, 0.13, 0.05, 0.04, 0.04],
            )
        )
        if kind == "riding":
            figures += _draw_rider(rng, config, person, foot, tall, light, len(figures))
        else:
            figures += _draw_pedestrian(rng, kind, person, foot, tall, light)


def _draw_pedestrian(
    rng: np.random.Generator,
    kind: str,
    person: Appearance,
    foot: tuple[float, float],
    tall: float,
    light: float,
) -> list[_Figure]:
    pose = sitting_pose(rng, float(rng.uniform(-1, 1))) if kind == "sitting" else draw_pose(rng)
    sprite = draw_person(person, pose, tall, light)
    tags = {
        "sitting": ("sitting-lying",),
        "glass": ("behind-glass",),
        "poster": ("depiction",),
    }.get(kind, ())
    if kind == "glass":
        sprite = replace(
            sprite, rgb=sprite.rgb * np.float32(0.45) + np.array([58, 68, 76], np.float32)
        )
    elif kind == "poster":
        sprite = _on_poster(sprite)
    figures = [_Figure("pedestrian", sprite, foot, tall, pose.yaw, tags)]
    if kind == "sitting":
        figures.insert(0, _Figure(UNLABELLED, draw_bench(pose, tall, light), foot, tall))
    return figures


def _on_poster(sprite: Sprite) -> Sprite:
    """The person printed on a light board."""
    board = np.zeros_like(sprite.alpha)
    x1, y1, x2, y2 = (int(v) for v in sprite.box)
    border = max((x2 - x1) // 4, 2)
    board[max(y1 - border, 0) : y2 + border, max(x1 - border, 0) : x2 + border] = 1
    paper = np.array([224, 216, 190], np.float32)
    rgb = paper + (sprite.rgb * np.float32(0.8) + 40 - paper) * sprite.alpha[..., None]
    return replace(sprite, rgb=rgb.astype(np.float32), alpha=board)


def _draw_rider(
    rng: np.random.Generator,
    config: MiniatureConfig,
    person: Appearance,
    foot: tuple[float, float],
    tall: float,
    light: float,
    position: int,
) -> list[_Figure]:
    """A bicycle, the rider on it and perhaps someone on the rack; `position` is the first figure's."""
    pose = riding_pose(rng, float(rng.uniform(0, 2 * np.pi)))
    paint = tuple(float(v) for v in rng.uniform(30, 200, 3))
    bicycle = draw_bicycle(pose, tall, (paint[0], paint[1], paint[2]), light)
    rider = draw_person(replace(person, legwear="trousers", bag="none"), pose, tall, light)
    with_companion = rng.random() < 0.3
    parent = position + (2 if with_companion else 1)
    figures = [_Figure("bicycle", bicycle, foot, tall, parent=parent)]
    if with_companion:
        behind = (foot[0] - 0.26 * tall * float(np.sin(pose.yaw)), foot[1] - 0.02 * tall)
        friend = draw_appearance(config.seed, "ecp", int(rng.integers(1 << 30)))
        seat = Pose(pose.yaw, (1.0, 0.9), (0.7, 0.6), (0.8, 0.8), (0.3, 0.3), 0.1, 0.1)
        sprite = draw_person(
            replace(friend, legwear="trousers", bag="none"), seat, 0.9 * tall, light
        )
        figures.append(_Figure("co-rider", sprite, behind, tall, pose.yaw, parent=parent))
    figures.append(_Figure("rider", rider, foot, tall, pose.yaw))
    return figures


def _draw_group(
    rng: np.random.Generator,
    config: MiniatureConfig,
    identity: str,
    size: tuple[int, int],
    horizon: float,
) -> _Figure:
    """Several people or bicycles in one sprite: people are under twenty pixels tall."""
    tall = float(rng.uniform(12, 19)) * config.scale * (1.0 if "far-away" in identity else 3.0)
    wide, high = int(6 * tall), int(2 * tall)
    paper = np.full((high, wide, 3), -1, np.float32)
    sprites = []
    for _ in range(int(rng.integers(3, 8))):
        foot = (
            float(rng.uniform(1, 5)) * tall,
            high - 0.3 * tall - float(rng.uniform(0, 0.05)) * tall,
        )
        pose = riding_pose(rng, float(rng.uniform(0, 2 * np.pi)))
        if identity.endswith("-group") or "vehicle" in identity:
            sprites.append((draw_bicycle(pose, tall, (90.0, 90.0, 100.0)), foot, tall))
        if not identity.endswith("-group"):
            person = draw_appearance(config.seed, "ecp", int(rng.integers(1 << 30)))
            pose = pose if "vehicle" in identity else draw_pose(rng)
            sprites.append((draw_person(person, pose, tall), foot, tall))
    drawn = compose(paper, sprites)
    boxes = np.array([d.box for d in drawn])
    x1, y1, x2, y2 = (float(v) for v in (*boxes[:, :2].min(0), *boxes[:, 2:].max(0)))
    sprite = Sprite(
        paper,
        (paper[..., 0] >= 0).astype(np.float32),
        (wide / 2, high - 0.3 * tall),
        (x1, y1, x2, y2),
        (0, 0, 0, 0),
    )
    return _Figure(
        identity,
        sprite,
        (float(rng.uniform(0.25, 0.75)) * size[0], horizon + CAMERA_HEIGHT * tall),
        tall,
    )


def _annotate(
    figures: list[_Figure], drawn: list[Drawn], size: tuple[int, int]
) -> tuple[list[dict[str, Any]], tuple[TruthPerson, ...]]:
    """The frame's children, and its people with ignore where a pedestrian detector should not care."""
    objects: list[dict[str, Any]] = []
    persons = []
    kept = {}
    for i, (figure, seen) in enumerate(zip(figures, drawn, strict=True)):
        x0, y0, x1, y1 = _within(seen.box, size)
        hidden = seen.visible_box is None or x1 <= x0 or y1 <= y0
        if hidden or figure.identity == UNLABELLED:
            continue
        tags = list(figure.tags)
        tags += _bands("occluded", 1 - seen.visible_share / max(seen.inside_share, 1e-6))
        tags += _bands("truncated", 1 - seen.inside_share)
        entry: dict[str, Any] = {
            "identity": None if figure.identity == NOBODY_KNOWS else figure.identity,
            "x0": x0,
            "y0": y0,
            "x1": x1,
            "y1": y1,
            "tags": tags,
            "children": [],
        }
        if figure.yaw is not None and y1 - y0 > 40:
            entry["Orient" if i % 2 else "orient"] = round(float(np.degrees(figure.yaw)) % 360, 1)
        kept[i] = entry
        if figure.identity in PERSON_KINDS:
            ignore = figure.identity != "pedestrian" or not NOT_POSITIVE.isdisjoint(figure.tags)
            box = (float(x0), float(y0), float(x1), float(y1))
            persons.append(TruthPerson(box, kind=figure.identity, ignore=ignore, tags=tuple(tags)))
    for i, entry in kept.items():
        parent = figures[i].parent
        (objects if parent is None or parent not in kept else kept[parent]["children"]).append(
            entry
        )
    return objects, tuple(persons)


def _within(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """ECP's boxes are unsigned and stop at the border."""
    x0, x1 = (min(max(round(v), 0), size[0]) for v in (box[0], box[2]))
    y0, y1 = (min(max(round(v), 0), size[1]) for v in (box[1], box[3]))
    return x0, y0, x1, y1


def _bands(word: str, share: float) -> list[str]:
    bands = [limit for limit in (80, 40, 10) if share * 100 > limit]
    return [f"{word}>{bands[0]}"] if bands else []
