"""Curves of what a run says of itself beside its losses; docs/training.md says how each is read."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.reporting.curves import Curves, task_words
from pipeline.pages.page import Html

Named = list[tuple[str, NDArray[np.float64]]]
PLOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "collapse_": (
        "Spread of the embeddings (0: collapsed, 1: healthy)",
        {"from_zero": True, "reference": ("healthy", 1.0)},
    ),
    "proposal_recall_": (
        "Share of the persons that a proposal covers, IoU 0.5",
        {"from_zero": True, "reference": ("all", 1.0)},
    ),
    "proposals_": ("Proposals in a view", {"from_zero": True}),
    "persons_scenes/": ("Persons in a view of a scene", {"from_zero": True}),
    "persons_canvases/": ("Persons in a view of a canvas", {"from_zero": True}),
    "queue_age_": ("Age of the queue's embeddings, in steps", {"from_zero": True, "smooth": 1}),
    "active_rows": ("Identities and queue slots that OIM compares with", {"smooth": 1}),
    "foreground_rois": ("Share of the sampled regions that show a person", {"from_zero": True}),
    "skipped_steps": ("Steps left out since the start, as not finite", {"smooth": 1}),
}
"""Statistics of one plot, by how their names begin -> title and options."""


def health_plots(curves: Curves) -> list[Html]:
    """Of every statistic there is, the known ones first; gradients are left to `gradient_plots`."""
    plots = []
    for prefix, (title, options) in PLOTS.items():
        if found := statistics(curves, prefix):
            plots.append(curves.plot(title, *found, **options))
    if fill := statistics(curves, "", "_fill"):
        plots.append(curves.plot("Filled share of the OIM tables", *fill, smooth=1, from_zero=True))
    for task, _ in statistics(curves, "domain_", "_accuracy"):
        if not task.endswith("_image"):
            plots += _domain_plots(curves, task)
    known = (*PLOTS, "domain_", "grad_norm/")
    for name, values in statistics(curves, ""):
        if not name.startswith(known) and not name.endswith("_fill"):
            plots.append(curves.plot(name.replace("_", " ").capitalize(), (name, values)))
    return plots


def _domain_plots(curves: Curves, task: str) -> list[Html]:
    """Over all domains against chance, which is the share of the commonest; and of each domain."""
    levels = {
        "instances": f"domain_{task}_accuracy",
        "images": f"domain_{task}_image_accuracy",
        "naming the commonest": f"domain_{task}_chance",
    }
    there = set(curves.names("statistics"))
    shown = [(n, curves.column(key, "statistics")) for n, key in levels.items() if key in there]
    title = f"Domain classifier's accuracy, {task_words(task)}"
    plots = [curves.plot(title, *shown, from_zero=True)]
    if each := statistics(curves, f"domain_{task}_accuracy/"):
        title = f"Instances of each dataset told right, {task_words(task)}"
        chance = ("their mean, by chance", 1 / len(each))
        plots.append(curves.plot(title, *each, from_zero=True, reference=chance))
    return plots


def gradient_plots(curves: Curves) -> list[Html]:
    """Before clipping. Parts differ by more than a linear axis shows."""
    plots = [curves.plot("Gradient norm, before clipping", ("norm", curves.column("grad_norm")))]
    if parts := statistics(curves, "grad_norm/"):
        with np.errstate(divide="ignore"):  # a part without a gradient is left out, and said to be
            powers = [(name, np.log10(values)) for name, values in parts]
        plots.append(curves.plot("Gradient norm by part, as a power of ten", *powers))
    return plots


def statistics(curves: Curves, prefix: str, suffix: str = "") -> Named:
    """Those whose names begin and end so, by what is between."""
    found = [n for n in curves.names("statistics") if n.startswith(prefix) and n.endswith(suffix)]
    return [
        (n.removeprefix(prefix).removesuffix(suffix), curves.column(n, "statistics")) for n in found
    ]
