"""The figures of docs/results.md."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from launch.experiments.settings import ArmConfig, Experiment, TierConfig

Of = Callable[..., dict[int, float]]
"""(arm, number, moment) -> percent by world."""
INITIALISATIONS = {
    "random": "random",
    "backbone": "pre-trained backbone",
    "whole": "pre-trained model",
}
MOMENTS = (("0.65", -0.13, "half of fine-tuning"), ("C0", 0.13, "all of it"))
"""Colour, shift and name of what was found after each."""


def draw_tier(experiment: Experiment, tier: TierConfig, of: Of, path: Path) -> None:
    """A point a world and the mean, of each arm."""
    figure, axes = _figure(0.9 + 0.42 * len(tier.arms))
    for moment, (colour, shift, label) in enumerate(MOMENTS):
        for place, arm in enumerate(reversed(tier.arms)):
            values = list(of(arm, "mAP", moment).values())
            if values:
                axes.plot(values, [place + shift] * len(values), "o", color=colour, ms=4, alpha=0.6)
                middle, ends = float(np.mean(values)), (place + shift - 0.1, place + shift + 0.1)
                axes.plot([middle] * 2, ends, color=colour, lw=2.5)
        axes.plot([], color=colour, lw=2.5, label=label)
    axes.set_yticks(
        range(len(tier.arms)), [experiment.config.arms[a].says for a in reversed(tier.arms)]
    )
    axes.set_xlabel("person-search mAP in percent; a point is a world, a bar the mean")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def draw_curve(experiment: Experiment, of: Of, path: Path) -> bool:
    """mAP by the share of the target's images; False if there is nothing to draw."""
    figure, axes = _figure(3.2)
    drawn = False
    for marker, (start, says) in zip("os^", INITIALISATIONS.items()):
        points = {}
        for name, arm in experiment.config.arms.items():
            values = of(name, "mAP")
            if values and _is_like(arm, experiment.config.arms[start]):
                points[arm.fraction] = list(values.values())
        if len(points) > 1:
            drawn = True
            shares = sorted(points)
            means = [float(np.mean(points[share])) for share in shares]
            axes.plot([100 * share for share in shares], means, marker=marker, label=says)
    axes.set_xlabel("share of the target's training images, percent")
    axes.set_ylabel("mAP, percent")
    axes.set_ylim(bottom=0)
    if drawn:
        axes.legend(frameon=False)
        _save(figure, path)
    return drawn


def _is_like(arm: ArmConfig, other: ArmConfig) -> bool:
    """But for the share and what it is called."""
    return arm.model_copy(update={"fraction": other.fraction, "says": other.says}) == other


def _figure(height: float):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "results", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
