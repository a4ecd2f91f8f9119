"""Where people walk: streets, squares, stations, parks and corridors, painted in one-point perspective."""

from dataclasses import dataclass

import cv2
import numpy as np

from sharding.miniature.props import draw_car, draw_panel, draw_tree, strong_colour
from sharding.miniature.sprites import Image
from sharding.miniature.world import Colour

TOP_VIEW = (360, 360)
"""Pixels of the ground seen from above: across, and towards the horizon."""


@dataclass(frozen=True)
class Place:
    """A kind of surroundings."""

    sky: tuple[Colour, Colour] | None
    """Zenith and horizon; None is an indoor ceiling."""
    walls: tuple[Colour, ...]
    ground: str
    """road | tiles | brick | grass | floor"""
    ground_colour: Colour
    sides: float
    """How far the walls at left and right reach in, as a share of the half width (0: none)."""
    trees: float = 0.0
    """Mean number of trees."""
    cars: float = 0.0
    """Mean number of parked cars."""
    windows: bool = True
    panels: float = 0.0
    """Mean number of pillars and advertising panels."""


BRICK, STONE, PLASTER, GLASS = (
    (150.0, 92.0, 74.0),
    (168.0, 160.0, 148.0),
    (206.0, 192.0, 162.0),
    (96.0, 116.0, 134.0),
)
CLEAR = ((96.0, 144.0, 208.0), (206.0, 222.0, 236.0))
OVERCAST = ((168.0, 176.0, 186.0), (214.0, 216.0, 218.0))
EVENING = ((120.0, 120.0, 168.0), (236.0, 196.0, 160.0))
PLACES = {
    "street": Place(
        CLEAR, (BRICK, STONE, PLASTER, GLASS), "road", (104, 104, 108), 0.8, trees=1.5, cars=1.5
    ),
    "road": Place(
        OVERCAST,
        (STONE, PLASTER, (186, 156, 130), GLASS),
        "road",
        (98, 100, 104),
        0.72,
        trees=2,
        cars=3,
    ),
    "square": Place(
        OVERCAST, (PLASTER, STONE, BRICK), "tiles", (172, 164, 152), 0.0, trees=1.5, panels=0.6
    ),
    "market": Place(
        EVENING, (BRICK, PLASTER, (170, 120, 92)), "brick", (164, 132, 112), 0.62, panels=2.5
    ),
    "park": Place(CLEAR, (STONE,), "grass", (110, 142, 76), 0.0, trees=6),
    "station": Place(
        None,
        ((176, 180, 184), (150, 160, 172)),
        "floor",
        (164, 164, 166),
        0.66,
        windows=False,
        panels=4,
    ),
    "campus": Place(
        CLEAR, (BRICK, (178, 128, 104), STONE), "tiles", (158, 156, 148), 0.45, trees=3
    ),
    "hall": Place(
        None,
        ((206, 202, 190), (182, 178, 170)),
        "floor",
        (146, 140, 128),
        0.72,
        windows=True,
        panels=1.5,
    ),
    "walkway": Place(
        OVERCAST,
        ((142, 140, 138), (128, 132, 138)),
        "brick",
        (132, 116, 112),
        0.55,
        trees=0.6,
        panels=1,
    ),
}


def draw_place(
    rng: np.random.Generator, place: Place, size: tuple[int, int], horizon: float
) -> Image:
    """A backdrop of `size` (width, height); `horizon` is the row where the ground ends."""
    width, height = size
    canvas = np.zeros((height, width, 3), np.float32)
    row = round(horizon)
    vanishing = width * float(rng.uniform(0.35, 0.65))
    _paint_above(rng, canvas, place, row, vanishing)
    _paint_far_walls(rng, canvas, place, row)
    _paint_ground(rng, canvas, place, row, vanishing)
    if place.sides:
        _paint_side_walls(rng, canvas, place, row, vanishing)
    _paint_objects(rng, canvas, place, row)
    return canvas


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> Image:
    """Smooth noise, about -1..1, whose blobs are `cell` pixels wide."""
    height, width = shape
    small = rng.normal(0, 0.6, (max(height // cell, 2), max(width // cell, 2))).astype(np.float32)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _paint_above(
    rng: np.random.Generator, canvas: Image, place: Place, row: int, vanishing: float
) -> None:
    width = canvas.shape[1]
    share = np.linspace(0, 1, max(row, 1), dtype=np.float32)[:, None, None]
    if place.sky is not None:
        zenith, low = (np.array(c, np.float32) for c in place.sky)
        canvas[:row] = zenith + (low - zenith) * share
        clouds = np.clip(_noise(rng, (row, width), 48) - 0.1, 0, 1)[..., None]
        canvas[:row] += (236 - canvas[:row]) * clouds * 0.8
        return
    canvas[:row] = 188 - 70 * share
    for lane in np.linspace(-1.2, 1.2, 5):
        x = vanishing + lane * width
        strip = np.array(
            [
                [x - 26, 0],
                [x + 26, 0],
                [vanishing + lane * 12 + 2, row],
                [vanishing + lane * 12 - 2, row],
            ]
        )
        cv2.fillPoly(canvas, [strip.astype(np.int32)], (244.0, 246.0, 240.0), cv2.LINE_AA)


def _facade(rng: np.random.Generator, place: Place, size: tuple[int, int]) -> Image:
    """A wall seen straight on, with windows in a grid and shops at the bottom."""
    width, height = size
    base = np.array(place.walls[rng.integers(len(place.walls))], np.float32) * float(
        rng.uniform(0.78, 1.12)
    )
    wall = np.empty((height, width, 3), np.float32)
    wall[:] = base
    wall *= 1 + 0.05 * _noise(rng, (height, width), 9)[..., None]
    if not place.windows:
        for x in range(0, width, 30):
            cv2.line(wall, (x, 0), (x, height), (base * 0.82).tolist(), 1)
        cv2.rectangle(
            wall, (0, int(height * 0.45)), (width, int(height * 0.52)), strong_colour(rng), -1
        )
        return wall
    bay, floor = int(rng.integers(16, 28)), int(rng.integers(22, 34))
    pane = np.array([70.0, 84.0, 98.0]) * float(rng.uniform(0.6, 1.3))
    for y in range(4, height - floor, floor):
        for x in range(4, width - bay // 2, bay):
            tint = (pane * float(rng.uniform(0.7, 1.35))).tolist()
            corner = (x + int(bay * 0.62), y + int(floor * 0.66))
            cv2.rectangle(
                wall, (x - 1, y - 1), (corner[0] + 1, corner[1] + 1), (base * 1.16).tolist(), -1
            )
            cv2.rectangle(wall, (x, y), corner, tint, -1)
    for x in range(0, width, 2 * bay):
        cv2.rectangle(
            wall, (x + 3, height - floor + 8), (x + 2 * bay - 3, height), (pane * 0.8).tolist(), -1
        )
        cv2.rectangle(
            wall,
            (x + 1, height - floor + 2),
            (x + 2 * bay - 1, height - floor + 8),
            strong_colour(rng),
            -1,
        )
    return wall


def _paint_far_walls(rng: np.random.Generator, canvas: Image, place: Place, row: int) -> None:
    width = canvas.shape[1]
    x = 0
    while x < width:
        w = int(rng.integers(60, 150))
        tall = int(row * float(rng.uniform(0.35, 0.85)))
        if tall > 8:
            wall = _facade(rng, place, (w, max(tall, 40)))
            facade = cv2.resize(wall, (w, tall), interpolation=cv2.INTER_AREA)
            target = canvas[row - tall : row, x : x + w]
            haze = 0.25 if place.sky is not None else 0.1
            target[:] = facade[:, : target.shape[1]] * (1 - haze) + 205 * haze
        x += w


def _ground_from_above(rng: np.random.Generator, place: Place) -> Image:
    across, depth = TOP_VIEW
    base = np.array(place.ground_colour, np.float32)
    ground = np.empty((depth, across, 3), np.float32)
    ground[:] = base
    dark = (base * 0.84).tolist()
    match place.ground:
        case "road":
            kerb = across // 4
            for x0, x1 in ((0, kerb), (across - kerb, across)):
                ground[:, x0:x1] = base * 0.3 + 118
                for y in range(0, depth, 12):
                    cv2.line(ground, (x0, y), (x1, y), (base * 0.25 + 105).tolist(), 1)
            for y in range(0, depth, 40):
                cv2.rectangle(
                    ground,
                    (across // 2 - 2, y),
                    (across // 2 + 2, y + 20),
                    (214.0, 214.0, 208.0),
                    -1,
                )
            if rng.random() < 0.45:
                y0 = int(rng.integers(depth // 2, depth - 60))
                for x in range(kerb, across - kerb, 16):
                    cv2.rectangle(ground, (x, y0), (x + 8, y0 + 46), (220.0, 220.0, 216.0), -1)
        case "tiles" | "floor":
            step = int(rng.integers(18, 30))
            for y in range(0, depth, step):
                for x in range(0, across, step):
                    tone = (base * float(rng.uniform(0.93, 1.07))).tolist()
                    cv2.rectangle(ground, (x, y), (x + step - 2, y + step - 2), tone, -1)
        case "brick":
            for i, y in enumerate(range(0, depth, 7)):
                cv2.line(ground, (0, y), (across, y), dark, 1)
                for x in range(7 * (i % 2), across, 14):
                    cv2.line(ground, (x, y), (x, y + 7), dark, 1)
        case _:
            x0, x1 = sorted(rng.integers(across // 4, 3 * across // 4, 2))
            ground[:, x0 : x1 + 60] = (186, 172, 142)
    ground *= (
        1
        + 0.06 * _noise(rng, (depth, across), 4)[..., None]
        + 0.07 * _noise(rng, (depth, across), 60)[..., None]
    )
    return ground


def _paint_ground(
    rng: np.random.Generator, canvas: Image, place: Place, row: int, vanishing: float
) -> None:
    height, width = canvas.shape[:2]
    ground = _ground_from_above(rng, place)
    across, depth = TOP_VIEW
    spread = 0.9 * width
    corners = np.array([[0, 0], [across, 0], [across, depth], [0, depth]], np.float32)
    far = 0.09 * spread
    onto = np.array(
        [
            [vanishing - far, row],
            [vanishing + far, row],
            [vanishing + spread, height],
            [vanishing - spread, height],
        ],
        np.float32,
    )
    plane = cv2.getPerspectiveTransform(corners, onto)
    seen = cv2.warpPerspective(
        ground, plane, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101
    )[row:]
    mean = ground.mean((0, 1))
    fade = np.clip(np.linspace(0, 4, height - row, dtype=np.float32), 0.25, 1)[:, None, None]
    canvas[row:] = mean + (seen - mean) * fade
    if place.ground == "floor":  # a polished floor mirrors what stands behind it
        mirrored = canvas[max(2 * row - height, 0) : row][::-1]
        canvas[row : row + len(mirrored)] = 0.75 * canvas[
            row : row + len(mirrored)
        ] + 0.25 * cv2.blur(mirrored, (5, 9))


def _paint_side_walls(
    rng: np.random.Generator, canvas: Image, place: Place, row: int, vanishing: float
) -> None:
    height, width = canvas.shape[:2]
    for edge in (0.0, float(width)):
        near = edge
        far = edge + (vanishing - edge) * place.sides * float(rng.uniform(0.75, 1.0))
        share = abs(far - vanishing) / max(abs(near - vanishing), 1.0)
        rise = row * float(rng.uniform(1.1, 1.9))
        sink = (height - row) * 0.62
        facade = _facade(rng, place, (280, 170))
        corners = np.array([[0, 0], [280, 0], [280, 170], [0, 170]], np.float32)
        onto = np.array(
            [
                [near, row - rise],
                [far, row - rise * share],
                [far, row + sink * share],
                [near, row + sink],
            ],
            np.float32,
        )
        plane = cv2.getPerspectiveTransform(corners, onto)
        shade = 0.72 if edge == 0 else 0.9
        cv2.warpPerspective(
            facade * shade, plane, (width, height), canvas, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT
        )


def _paint_objects(rng: np.random.Generator, canvas: Image, place: Place, row: int) -> None:
    """Trees, cars, pillars and panels, the far ones first; kept to the sides of the picture."""
    height, width = canvas.shape[:2]
    kinds = (
        ["tree"] * rng.poisson(place.trees)
        + ["car"] * rng.poisson(place.cars)
        + ["panel"] * rng.poisson(place.panels)
    )
    spots = sorted((float(rng.uniform(0.12, 0.55)), str(kind)) for kind in rng.permutation(kinds))
    for depth, kind in spots:
        foot = row + depth * (height - row)
        side = float(rng.choice([-1.0, 1.0]))
        x = width * (0.5 + side * float(rng.uniform(0.22, 0.5)))
        unit = (foot - row) * 1.1  # a person's height there
        if kind == "tree":
            draw_tree(rng, canvas, x, foot, unit)
        elif kind == "car":
            draw_car(rng, canvas, x, foot, unit)
        else:
            draw_panel(rng, canvas, x, foot, unit)


def night_light(
    rng: np.random.Generator, size: tuple[int, int], horizon: float
) -> tuple[Image, Image]:
    """(what to multiply a picture by, what to add): dark blue, headlights on the road, lamps with halos."""
    width, height = size
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    down = (ys - horizon) / (height - horizon)
    across = (xs - width / 2) / (0.4 * width)
    beam = np.exp(-(across**2) - ((down - 0.3) / 0.42) ** 2)
    light = 0.19 + beam[..., None] * np.array([0.62, 0.56, 0.44], np.float32)
    light *= np.array([0.9, 0.95, 1.15], np.float32)
    glow = np.zeros((height, width, 3), np.float32)
    for _ in range(int(rng.integers(3, 7))):
        x, y = rng.uniform(0, width), rng.uniform(0.15, 0.95) * horizon
        far = np.hypot(xs - x, ys - y) / width
        lamp = np.array([255, 196, 112] if rng.random() < 0.7 else [255, 250, 235], np.float32)
        halo = np.exp(-far / 0.006) + 0.12 * np.exp(-far / 0.035)
        glow += halo[..., None] * lamp
        light += 0.3 * np.exp(-np.hypot(xs - x, 0.5 * (ys - y)) / (0.09 * width))[..., None]
    return light, glow
