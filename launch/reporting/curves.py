"""How a run trained: its losses, what they mean for the features, and how fast it went."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.pages import page
from pipeline.pages.page import Html
from pipeline.pages.plot import Series, line_plot

Line = dict[str, Any]
TITLES = {
    "rpn_class": "Proposals: person or not",
    "rpn_box": "Proposals: box",
    "roi_class": "Regions: person or not",
    "roi_box": "Regions: box",
    "oim": "Identity matching (OIM)",
    "instance": "Instance discrimination of unlabelled people",
    "similarity": "View similarity (L_con)",
}
FALLING = ("rpn_class", "rpn_box", "roi_class", "roi_box", "similarity")
"""Losses that ought to fall; OIM only once its table's growth is taken out, adversarial ones need not."""
SMOOTHED_SHARE = 15
"""Curves are smoothed over a fifteenth of the lines."""


def how_training_went(lines: Sequence[Line], domains: dict[str, tuple[str, ...]]) -> Html:
    """`lines` of metrics.jsonl; `domains` by task, for chance level."""
    if not lines:
        return page.section("How training went", page.callout("No step has been logged yet."))
    curves = Curves(lines)
    return page.section(
        "How training went",
        page.block("Losses fall?", trend_table(curves), lead=TREND_NOTE),
        page.block("Losses", page.columns(*_losses(curves))),
        page.block("Features and tables", page.columns(*_health(curves, domains))),
        page.block("Optimiser and speed", page.columns(*_speed(curves))),
        lead="Values are means over the steps since the line before; bold lines are running means over "
        f"{curves.window} lines.",
    )


TREND_NOTE = (
    "Mean of the last tenth of the lines against that of the second tenth (the first is warm-up). OIM is "
    "divided by log(1 + active rows), because its softmax grows with the table. Domain losses are "
    "adversarial: the features work against them, so no direction is right."
)


class Curves:
    """Columns of the metrics, NaN where a line has no value."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.steps = np.array([line["step"] for line in lines], np.float64)
        self.window = max(1, len(lines) // SMOOTHED_SHARE)

    def names(self, group: str) -> list[str]:
        """Known losses in the order of TITLES, whatever else there is after them."""
        found = dict.fromkeys(name for line in self.lines for name in line.get(group, {}))
        return [name for name in TITLES if name in found] + [n for n in found if n not in TITLES]

    def column(self, name: str, group: str | None = None) -> NDArray[np.float64]:
        rows = [line.get(group) or {} for line in self.lines] if group else self.lines
        values = [row.get(name) for row in rows]
        return np.array([math.nan if value is None else value for value in values], np.float64)

    def oim_per_row(self) -> NDArray[np.float64]:
        """OIM over the entropy of guessing among the active rows of its tables."""
        active = self.column("active_rows", "statistics")
        chance = np.log1p(active)
        return self.column("oim", "losses") / np.where(chance > 0, chance, math.nan)

    def plot(self, title: str, *series: tuple[str, NDArray[np.float64]], **options: Any) -> Html:
        drawn = [Series(name, self.steps, values) for name, values in series]
        return line_plot(title, drawn, **{"smooth": self.window, **options})


def trend_table(curves: Curves) -> Html:
    columns: dict[str, NDArray[np.float64]] = {}
    for name in curves.names("losses"):
        columns[name] = curves.column(name, "losses")
        if name == "oim":
            columns["oim / log(1 + active rows)"] = curves.oim_per_row()
    rows: list[list[page.Cell]] = []
    for name, values in columns.items():
        early, late = tenth(values, 1), tenth(values, 9)
        expected = name in FALLING or name.startswith("oim /")
        verdict = ("falls" if late < early else "does not fall") if expected else "no rule"
        if not (math.isfinite(early) and math.isfinite(late)):
            verdict = "too short to say"
        rows.append([name, early, late, late - early, verdict])
    return page.table(["loss", "second tenth", "last tenth", "change", ""], rows)


def tenth(values: NDArray[np.float64], which: int) -> float:
    """Mean of the finite values in a tenth (0 ... 9) of the run; NaN for fewer than ten lines."""
    count = len(values)
    if count < 10:
        return math.nan
    part = values[which * count // 10 : (which + 1) * count // 10]
    part = part[np.isfinite(part)]
    return float(part.mean()) if len(part) else math.nan


def _losses(curves: Curves) -> list[Html]:
    names = curves.names("losses")
    plots = [curves.plot("Weighted sum", ("total", curves.column("total")))]
    for name in names:
        if name.startswith("domain_"):
            continue
        plots.append(curves.plot(TITLES.get(name, name), (name, curves.column(name, "losses"))))
        if name == "oim":
            title = "OIM over log(1 + active rows): 1 is guessing"
            plots.append(
                curves.plot(title, ("oim", curves.oim_per_row()), reference=("guessing", 1.0))
            )
    for task in _alignment_tasks(names):
        mine = [name for name in names if name.startswith(f"domain_{task}_")]
        parts = [(n.removeprefix(f"domain_{task}_"), curves.column(n, "losses")) for n in mine]
        plots.append(curves.plot(f"Domain alignment (L_adv), {_words(task)}", *parts))
    return plots


def _health(curves: Curves, domains: dict[str, tuple[str, ...]]) -> list[Html]:
    names = curves.names("statistics")

    def group(prefix: str, suffix: str = "") -> list[tuple[str, NDArray[np.float64]]]:
        found = [name for name in names if name.startswith(prefix) and name.endswith(suffix)]
        bare = (name.removeprefix(prefix).removesuffix(suffix) for name in found)
        return [(b, curves.column(n, "statistics")) for b, n in zip(bare, found)]

    plots = []
    if spread := group("collapse_"):
        title = "Spread of the embeddings (0: collapsed, 1: healthy)"
        plots.append(curves.plot(title, *spread, from_zero=True, reference=("healthy", 1.0)))
    if fill := group("", "_fill"):
        plots.append(curves.plot("Filled share of the OIM tables", *fill, smooth=1, from_zero=True))
    for task, accuracy in group("domain_", "_accuracy"):
        number = len(domains.get(task, ())) or 2
        title = f"Domain classifier's accuracy, {_words(task)}"
        chance = (f"chance, {number} domains", 1 / number)
        plots.append(curves.plot(title, (task, accuracy), from_zero=True, reference=chance))
    known = ("collapse_", "domain_")
    for name in names:
        if not name.startswith(known) and not name.endswith("_fill"):
            title = name.replace("_", " ").capitalize()
            plots.append(curves.plot(title, (name, curves.column(name, "statistics"))))
    return plots


def _speed(curves: Curves) -> list[Html]:
    wait = 100 * curves.column("data_wait")
    return [
        curves.plot("Learning rate", ("lr", curves.column("lr")), smooth=1, from_zero=True),
        curves.plot("Gradient norm, before clipping", ("norm", curves.column("grad_norm"))),
        curves.plot(
            "Images a second, all ranks", ("rate", curves.column("images_per_s")), from_zero=True
        ),
        curves.plot("Waiting for data, percent of the time", ("wait", wait), from_zero=True),
        curves.plot(
            "Seconds a step, of the last 100",
            ("median", curves.column("step_s_p50")),
            ("95th percentile", curves.column("step_s_p95")),
            smooth=1,
            from_zero=True,
        ),
    ]


def _alignment_tasks(names: Sequence[str]) -> list[str]:
    stems = (
        name.removeprefix("domain_").rsplit("_", 1)[0]
        for name in names
        if name.startswith("domain_")
    )
    return list(dict.fromkeys(stems))


def _words(task: str) -> str:
    return {"detection": "detection", "reid": "re-ID", "inter_task": "between the tasks"}.get(
        task, task
    )
