"""Plots for the pages of `page.py`: inline SVG whose colours follow the page's light or dark mode.

Series are told apart by dash or shape as well as by colour, so that they survive print and colour
blindness. Values that are not finite are left out, and said to be.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.pages.page import Html, escape, legend, number

COLOURS = 7
"""Colour variables --s0 ... of the page's style; further series start again."""
DASHES = ("", "6 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4")
MAX_POINTS = 600
"""Longer series are drawn as the extremes (raw) or the means (smoothed) of so many stretches."""
MOST_BARS = 30
"""Of a histogram."""
WIDE_RATIO = 50
"""Of the largest value to the smallest, from which a histogram is cut by ratios."""
SHAPES = (
    "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "M-2.7,-2.7h5.4v5.4h-5.4z",
    "M0,-3.5l3.4,6h-6.8z",
    "M0,-3.8l3.4,3.8l-3.4,3.8l-3.4,-3.8z",
    "M0,3.5l3.4,-6h-6.8z",
    "M-1.1,-3.4h2.2v2.3h2.3v2.2h-2.3v2.3h-2.2v-2.3h-2.3v-2.2h2.3z",
    "M-3.4,-1h6.8v2h-6.8z",
)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    name: str
    x: ArrayLike
    y: ArrayLike

    @cached_property
    def finite(self) -> tuple[Values, Values]:
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        keep = np.isfinite(x) & np.isfinite(y)
        return x[keep], y[keep]

    @property
    def dropped(self) -> int:
        return len(np.asarray(self.y)) - len(self.finite[1])


@dataclass(frozen=True)
class _Axes:
    """Maps data onto the plot's area inside the SVG's view box."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 540
    height: int = 270
    left: int = 52
    bottom: int = 38
    edge: int = 10

    def px(self, x: ArrayLike) -> Values:
        share = (np.asarray(x, np.float64) - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (self.width - self.left - self.edge)

    def py(self, y: ArrayLike) -> Values:
        share = (np.asarray(y, np.float64) - self.y[0]) / (self.y[1] - self.y[0])
        return self.height - self.bottom - share * (self.height - self.bottom - self.edge)


def line_plot(
    title: str,
    series: Sequence[Series],
    x_label: str = "step",
    y_label: str = "",
    smooth: int = 1,
    from_zero: bool = False,
    reference: tuple[str, float] | None = None,
) -> Html:
    """Lines over a common x. With `smooth` > 1 the running mean of so many points is drawn over the
    faint raw line. `reference` is a named level, such as chance.
    """
    levels = [reference[1]] if reference else []
    axes = _axes_around(series, levels, from_zero)
    if axes is None:
        return _figure(title, Html(""), "nothing was recorded", 540, 40, "")
    marks = [_grid(axes, x_label, y_label)]
    for index, one in enumerate(series):
        x, y = one.finite
        style = f'stroke="{_colour(index)}"'
        if smooth > 1:
            marks.append(f'<path class="raw" {style} d="{_path(axes, *_extremes(x, y))}"/>')
            y = running_mean(y, smooth)
        dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if index else ""
        marks.append(f'<path class="line" {style}{dash} d="{_path(axes, *_means(x, y))}"/>')
    swatches = [(_line_swatch(i), one.name) for i, one in enumerate(series)]
    if reference:
        level = float(axes.py(reference[1]))
        ends = f'x1="{axes.left}" x2="{axes.width - axes.edge}"'
        marks.append(f'<line class="reference" {ends} y1="{level:.1f}" y2="{level:.1f}"/>')
        swatches.append((_reference_swatch(), reference[0]))
    dropped = sum(one.dropped for one in series)
    note = f"{dropped} values left out: not finite, or of nothing that was there" if dropped else ""
    shown = legend(swatches) if len(swatches) > 1 else Html("")
    return _figure(title, shown, note, axes.width, axes.height, "".join(marks))


def scatter_plot(title: str, groups: Mapping[str, ArrayLike]) -> Html:
    """Points (N, 2) of each group by colour and shape; for embeddings, whose axes mean nothing."""
    points = {name: np.asarray(xy, np.float64).reshape(-1, 2) for name, xy in groups.items()}
    every = np.concatenate([np.zeros((0, 2)), *points.values()])
    if not len(every):
        return _figure(title, Html(""), "nothing was recorded", 540, 40, "")
    x, y = _padded(every[:, 0]), _padded(every[:, 1])
    axes = _Axes(x, y, width=540, height=420, left=10, bottom=10)
    marks = [
        f'<rect x="1" y="1" width="{axes.width - 2}" height="{axes.height - 2}" rx="4" '
        'fill="none" class="grid"/>'
    ]
    for index, (name, xy) in enumerate(points.items()):
        shape = SHAPES[index % len(SHAPES)]
        places = zip(axes.px(xy[:, 0]), axes.py(xy[:, 1]))
        dots = "".join(
            f'<path transform="translate({a:.1f},{b:.1f})" d="{shape}"/>' for a, b in places
        )
        marks.append(f'<g fill="{_colour(index)}" fill-opacity=".8">')
        marks.append(f"<title>{escape(name)}</title>{dots}</g>")
    swatches = [(_shape_swatch(i), f"{n} ({len(xy)})") for i, (n, xy) in enumerate(points.items())]
    return _figure(title, legend(swatches), "", axes.width, axes.height, "".join(marks))


def bar_chart(
    title: str,
    labels: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    reference: tuple[str, float] | None = None,
) -> Html:
    """Horizontal bars from zero, a cluster for each label with a bar for each group."""
    if not labels:
        return _figure(title, Html(""), "nothing was recorded", 540, 40, "")
    width, left, thick, gap = 540, 120, 16, 12
    cluster = thick * len(groups) + gap
    height = cluster * len(labels) + 8
    levels = [value for values in groups.values() for value in values if math.isfinite(value)]
    top = max([*levels, reference[1] if reference else 0, 1e-12])
    scale = (width - left - 70) / top
    marks = []
    for row, label in enumerate(labels):
        y = row * cluster + gap / 2
        middle = y + (cluster - gap) / 2 + 4
        marks.append(
            f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>'
        )
        for index, values in enumerate(groups.values()):
            length = max(0.0, values[row] * scale) if math.isfinite(values[row]) else 0.0
            place = y + index * thick
            marks.append(
                f'<rect x="{left}" y="{place + 1:.1f}" width="{length:.1f}" height="{thick - 2}" '
                f'rx="2" fill="{_colour(index)}"/>'
                f'<text class="value" x="{left + length + 6:.1f}" y="{place + 12:.1f}">'
                f"{escape(number(values[row]))}</text>"
            )
    swatches = [(_bar_swatch(i), name) for i, name in enumerate(groups)]
    if reference:
        x = left + reference[1] * scale
        marks.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        swatches.append((_reference_swatch(), reference[0]))
    shown = legend(swatches) if len(swatches) > 1 else Html("")
    return _figure(title, shown, "", width, height, "".join(marks))


def histogram(
    title: str,
    values: ArrayLike | Mapping[str, ArrayLike],
    x_label: str = "",
    reference: tuple[str, float] | None = None,
) -> Html:
    """How many values lie where; those of named groups are stacked. Few whole numbers have a bar each;
    positive values over a wide range are cut by their ratio, so that a long tail does not press the rest
    into one bar. `reference` is a named value, such as a threshold.
    """
    named = values if isinstance(values, Mapping) else {"": values}
    groups = {name: np.asarray(group, np.float64).reshape(-1) for name, group in named.items()}
    every = np.concatenate([np.zeros(0), *groups.values()])
    finite = every[np.isfinite(every)]
    if not len(finite):
        return _figure(title, Html(""), "nothing was recorded", 540, 40, "")
    edges, wide = bins(finite)
    counts = np.histogram(finite, edges)[0]
    scale = np.log10 if wide else np.asarray
    shown = scale(edges)
    axes = _Axes((shown[0], shown[-1]), (0.0, 1.06 * counts.max()), height=200)
    places = _ratio_ticks(finite) if wide else ticks(float(edges[0]), float(edges[-1]))
    if (finite == np.round(finite)).all():
        places = [place for place in places if place.is_integer()]
    x_ticks = [(float(scale(place)), number(place)) for place in places]
    marks = [_grid(axes, x_label, "", x_ticks, [y for y in ticks(*axes.y) if y.is_integer()])]
    below = np.zeros(len(counts))
    for index, (name, group) in enumerate(groups.items()):
        heights = np.histogram(group[np.isfinite(group)], edges)[0]
        marks += _bars(axes, edges, shown, below, heights, _colour(index), name)
        below += heights
    swatches = [
        (_bar_swatch(i), f"{name} ({len(group):,})")
        for i, (name, group) in enumerate(groups.items())
    ]
    if reference and edges[0] <= reference[1] <= edges[-1]:
        x = float(axes.px(scale(reference[1])))
        ends = f'y1="{axes.edge}" y2="{axes.height - axes.bottom}"'
        marks.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
        swatches.append((_reference_swatch(), reference[0]))
    ends = f"{number(finite.min())} to {number(finite.max())}"
    note = f"{number(len(finite))} values, {ends}, median {number(float(np.median(finite)))}"
    if dropped := len(every) - len(finite):
        note += f"; {number(dropped)} that are not finite were left out"
    key = legend(swatches) if len(swatches) > 1 else Html("")
    return _figure(title, key, note, axes.width, axes.height, "".join(marks))


def _bars(
    axes: _Axes,
    edges: Values,
    shown: Values,
    below: Values,
    counts: NDArray,
    colour: str,
    name: str,
) -> Iterator[str]:
    """A histogram's bars of one group on top of those `below`; `shown` are the edges as drawn."""
    ends, named = axes.px(shown), f"{name}, " if name else ""
    for place in np.flatnonzero(counts):
        floor = float(axes.py(below[place]))
        top = float(axes.py(below[place] + counts[place]))
        top = min(top, floor - 1.0)  # one value among millions still shows
        low, high = number(float(edges[place])), number(float(edges[place + 1]))
        yield (
            f'<rect x="{ends[place] + 0.5:.1f}" y="{top:.1f}" '
            f'width="{max(ends[place + 1] - ends[place] - 1, 1):.1f}" height="{floor - top:.1f}" '
            f'fill="{colour}"><title>{escape(named)}{low} to {high}: {number(int(counts[place]))}'
            "</title></rect>"
        )


def bins(values: Values) -> tuple[Values, bool]:
    """Edges for a histogram of at most MOST_BARS bars, and whether they stand at equal ratios."""
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.round(values)).all())
    if whole and high - low < MOST_BARS:
        return np.arange(low - 0.5, high + 1), False
    if low > 0 and high / low >= WIDE_RATIO:
        edges = np.geomspace(low, high, MOST_BARS + 1)
        return np.unique(np.append(np.floor(edges[:-1]), high)) if whole else edges, True
    if whole:
        step = math.ceil((high - low + 1) / MOST_BARS)
        return np.arange(low - 0.5, high + step, step), False
    return np.linspace(low, high if high > low else low + 1, MOST_BARS + 1), False


def running_mean(values: ArrayLike, window: int) -> Values:
    """The mean of the `window` points around each one, of fewer at the ends."""
    y = np.asarray(values, np.float64)
    before, after = (window - 1) // 2, window // 2
    total = np.concatenate([[0.0], np.cumsum(y)])
    place = np.arange(len(y))
    first, last = np.maximum(place - before, 0), np.minimum(place + after + 1, len(y))
    return (total[last] - total[first]) / (last - first)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high]."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _figure(title: str, key: Html, note: str, width: int, height: int, marks: str) -> Html:
    foot = f'<p class="lead">{escape(note)}</p>' if note else ""
    return Html(
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>{key}'
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{marks}</svg>{foot}</figure>"
    )


def _axes_around(series: Sequence[Series], levels: list[float], from_zero: bool) -> _Axes | None:
    x = np.concatenate([np.zeros(0), *(one.finite[0] for one in series)])
    y = np.concatenate([np.zeros(0), *(one.finite[1] for one in series)])
    if not len(x):
        return None
    low, high = _padded(np.append(y, [*levels, *([0.0] if from_zero else [])]))
    if y.min() >= 0:
        low = max(low, 0.0)
    left, right = float(x.min()), float(x.max())
    return _Axes((left, right if right > left else left + 1), (low, high))


def _padded(values: Values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _grid(
    axes: _Axes,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]] = (),
    y_ticks: Sequence[float] = (),
) -> str:
    """Places on the axes are chosen here unless they are given."""
    right, floor = axes.width - axes.edge, axes.height - axes.bottom
    parts = []
    for value in y_ticks or ticks(*axes.y):
        y = float(axes.py(value))
        parts.append(
            f'<line class="grid" x1="{axes.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{axes.left - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value, name in x_ticks or [(value, number(value)) for value in ticks(*axes.x)]:
        x = float(axes.px(value))
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{name}</text>')
    parts.append(f'<line class="axis" x1="{axes.left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    centre = (axes.left + right) / 2
    parts.append(
        f'<text x="{centre}" y="{axes.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    if y_label:
        parts.append(
            f'<text transform="translate(11,{floor / 2:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
    return "".join(parts)


def _ratio_ticks(values: Values) -> list[float]:
    """1, 2, 5, 10, 20 ... inside the range; powers of ten alone if that gives too many."""
    low, high = float(values.min()), float(values.max())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [m * 10.0**power for power in powers for m in steps if low <= m * 10.0**power <= high]


def _path(axes: _Axes, x: Values, y: Values) -> str:
    points = zip(axes.px(x), axes.py(y))
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in points) if len(x) else ""


def _means(x: Values, y: Values) -> tuple[Values, Values]:
    if len(x) <= MAX_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[s].mean() for s in stretches]), np.array([y[s].mean() for s in stretches])


def _extremes(x: Values, y: Values) -> tuple[Values, Values]:
    if len(x) <= MAX_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), MAX_POINTS // 2)
    picked = np.concatenate([np.sort([s[y[s].argmin()], s[y[s].argmax()]]) for s in stretches])
    return x[picked], y[picked]


def _colour(index: int) -> str:
    return f"var(--s{index % COLOURS})"


def _line_swatch(index: int) -> Html:
    dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if index else ""
    return Html(f'<svg><path d="M0,6h22" stroke-width="2" stroke="{_colour(index)}"{dash}/></svg>')


def _reference_swatch() -> Html:
    return Html(
        '<svg><path d="M0,6h22" stroke="var(--soft)" stroke-width="1.2" stroke-dasharray="2 4"/></svg>'
    )


def _shape_swatch(index: int) -> Html:
    shape = SHAPES[index % len(SHAPES)]
    return Html(
        f'<svg><path transform="translate(11,6) scale(1.3)" d="{shape}" fill="{_colour(index)}"/></svg>'
    )


def _bar_swatch(index: int) -> Html:
    return Html(
        f'<svg><rect x="3" y="1" width="16" height="10" rx="2" fill="{_colour(index)}"/></svg>'
    )
