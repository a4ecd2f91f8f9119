"""How a run trained: its losses, what they mean for the features, and how fast it went."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from launch.reporting.curves import TITLES, Curves, Line, task_words
from launch.reporting.health import gradient_plots, health_plots
from pipeline.pages import page
from pipeline.pages.page import Html

FALLING = ("rpn_class", "rpn_box", "roi_class", "roi_box", "similarity")
"""Losses that ought to fall; OIM only once its table's growth is taken out, adversarial ones need not."""


def how_training_went(lines: Sequence[Line]) -> Html:
    """`lines` of metrics.jsonl."""
    if not lines:
        return page.section("How training went", page.callout("No step has been logged yet."))
    curves = Curves(lines)
    return page.section(
        "How training went",
        page.block("Losses fall?", trend_table(curves), lead=_trend_note(curves)),
        page.block("Losses", page.columns(*_losses(curves))),
        page.block("Features and tables", page.columns(*health_plots(curves))),
        page.block("Optimiser and speed", page.columns(*_speed(curves))),
        lead="Values are means over the steps since the line before; bold lines are running means over "
        f"{curves.window} lines.",
    )


TREND_NOTE = (
    "Mean of the last tenth of the lines against that of the second tenth (the first is warm-up). OIM is "
    "divided by log(1 + active rows), because its softmax grows with the table."
)
DOMAINS_NOTE = (
    " Domain losses are adversarial: the features work against them, so no direction is right."
)


def _trend_note(curves: Curves) -> str:
    return TREND_NOTE + (DOMAINS_NOTE if _alignment_tasks(curves.names("losses")) else "")


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
        plots.append(curves.plot(f"Domain alignment (L_adv), {task_words(task)}", *parts))
    return plots


def _speed(curves: Curves) -> list[Html]:
    wait = 100 * curves.column("data_wait")
    return [
        curves.plot("Learning rate", ("lr", curves.column("lr")), smooth=1, from_zero=True),
        *gradient_plots(curves),
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
