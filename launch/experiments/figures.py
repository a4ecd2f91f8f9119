"""The figures of docs/results.md."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launch.experiments.numbers import Numbers
from launch.experiments.settings import ArmConfig, TierConfig

INITIALISATIONS = {
    "random": "random",
    "backbone": "pre-trained backbone",
    "whole": "pre-trained model",
}
LABEL = 36
"""Characters of a line."""
MOMENTS = (("0.6", -0.17, "half of fine-tuning"), ("C0", 0.17, "all of it"))
"""Colour, shift and name of what was found after each."""


def draw_tier(tier: TierConfig, numbers: Numbers, path: Path) -> None:
    """Each world by its number, and the mean, of each arm: arms may have run in different worlds."""
    arms = [arm for arm in reversed(tier.arms) if numbers.of(arm, "mAP", tier.worlds)]
    figure, axes = _figure(0.9 + 0.5 * len(arms))
    for moment, (colour, shift, label) in enumerate(MOMENTS):
        for place, arm in enumerate(arms):
            values = numbers.of(arm, "mAP", tier.worlds, moment)
            for world, value in values.items():
                axes.plot(value, place + shift, marker=f"${world}$", color=colour, ms=5.5, mew=0.3)
            if len(values) > 1:
                ends = (place + shift - 0.16, place + shift + 0.16)
                axes.plot([np.mean(list(values.values()))] * 2, ends, color=colour, lw=2)
        axes.plot([], color=colour, lw=2.5, label=label)
    says = [textwrap.fill(numbers.experiment.config.arms[arm].says, LABEL) for arm in arms]
    axes.set_yticks(range(len(arms)), says)
    axes.set_xlabel("mAP, percent (a digit: a world; a bar: their mean)")
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    _save(figure, path)


def draw_curve(tier: TierConfig, numbers: Numbers, path: Path) -> bool:
    """mAP by the share of the target's images; False if there is nothing to draw."""
    arms = numbers.experiment.config.arms
    figure, axes = _figure(3.2)
    drawn = False
    for marker, (start, says) in zip("os^", INITIALISATIONS.items()):
        points = {
            arm.fraction: numbers.of(name, "mAP", tier.worlds)
            for name, arm in arms.items()
            if _is_like(arm, arms[start])
        }
        points = {share: values for share, values in points.items() if values}
        common = set.intersection(*map(set, points.values())) if points else set()
        if len(points) > 1 and common:
            drawn = True
            shares = sorted(points)
            means = [np.mean([points[share][world] for world in common]) for share in shares]
            label = f"{says}, {len(common)} world{'s' if len(common) > 1 else ''}"
            axes.plot([100 * share for share in shares], means, marker=marker, label=label)
    if drawn:
        axes.set_xlabel("share of the target's training images, percent")
        axes.set_ylabel("mAP, percent")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        _save(figure, path)
    return drawn


def draw_domains(layouts: Mapping[str, Mapping[str, NDArray[np.float64]]], path: Path) -> None:
    """t-SNE of images' features, a panel a stage, a colour a domain."""
    figure, panels = _figure(3.2, len(layouts))
    for axes, (stage, points) in zip(panels, layouts.items()):
        for marker, (name, xy) in zip("os^vD", points.items()):
            axes.plot(xy[:, 0], xy[:, 1], marker, ms=3, alpha=0.7, mew=0, label=name)
        axes.set_title(stage, fontsize="medium")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    _save(figure, path)


def _is_like(arm: ArmConfig, other: ArmConfig) -> bool:
    """But for the share and what it is called."""
    return arm.model_copy(update={"fraction": other.fraction, "says": other.says}) == other


def _figure(height: float, panels: int = 1):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "results", "font.size": 9})
    from matplotlib import pyplot

    figure, found = pyplot.subplots(
        1, panels, figsize=(7, height), layout="constrained", squeeze=False
    )
    for axes in found[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    return figure, found[0] if panels > 1 else found[0, 0]


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
