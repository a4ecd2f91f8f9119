"""Feature domains before and after: what alignment is for, as pictures and as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from launch.reporting.data import Input
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.page import Html
from pipeline.pages.plot import bar_chart, scatter_plot
from pipeline.pages.sheet import spread_samples
from pipeline.rendering.decode import DecodeError, decode
from pipeline.samples import SampleReader
from training.features import Features, Probe, domain_probe, embed_in_plane, image_features
from training.model.norm import Kind
from training.model.person_search import PersonSearch
from training.run import Run

LAYOUT_NOTE = (
    "Each point is an image: the trunk's features (before the last residual stage), averaged over the image, "
    "laid out by t-SNE. The layout shows neighbourhoods only; its axes, distances between groups and their "
    "sizes mean nothing, and the two plots cannot be laid over each other."
)
PROBE_NOTE = (
    "Logistic regression on the same features, cross-validated, one standard error beside each figure. "
    "Lower is better aligned; chance would be perfect. The samples come from the training sets, a few dozen "
    "a dataset, so small differences mean nothing, and a network that loses all information would score at "
    "chance too: read it together with the losses."
)


@dataclass(frozen=True)
class DomainImages:
    """Samples of one shard set, decoded."""

    name: str
    kind: Kind
    size: tuple[int, int]
    images: list[NDArray[np.uint8]]


def feature_domains(run: Run, inputs: Sequence[Input], samples: int) -> Html:
    """Compares the run's first weights with its newest checkpoint, on `samples` images a dataset."""
    title = "Feature domains, before and after"
    if samples == 0:
        return page.section(title, page.paragraph("Left out (--samples 0)."))
    try:
        step = run.checkpoint().state.step
        models = {"before": run.model(trained=False), "after": run.model()}
    except UserError as error:
        return page.section(title, page.callout(f"Nothing to compare: {error}"))
    sets = [_read(one, one.reader, samples) for one in inputs if one.reader]
    names = [s.name for s in sets for _ in s.images]
    if not names:
        return page.section(title, page.callout("No sample of the shard sets could be read."))
    stages = {stage: _features(model.search, sets) for stage, model in models.items()}
    titles = {"before": "Before: the initial weights", "after": f"After: step {step:,}"}
    plots = [
        scatter_plot(titles[stage], _by_name(embed_in_plane(features), names))
        for stage, features in stages.items()
    ]
    kinds = np.array([s.kind for s in sets for _ in s.images])
    tasks = {"detection": kinds == "scenes", "re-ID": kinds == "canvases"}
    return page.section(
        title, page.columns(*plots), _probes(stages, np.array(names), tasks), lead=LAYOUT_NOTE
    )


def _read(one: Input, reader: SampleReader, count: int) -> DomainImages:
    images = []
    for _, data, image_type in spread_samples(reader, count):
        try:
            images.append(decode(data, image_type))
        except DecodeError:
            continue
    return DomainImages(reader.manifest.domain, one.kind, one.size, images)


def _features(model: PersonSearch, sets: Sequence[DomainImages]) -> Features:
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return np.concatenate([image_features(model, s.images, s.size, s.kind) for s in sets])


def _by_name(points: NDArray[np.float64], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    which = np.asarray(names)
    return {name: points[which == name] for name in dict.fromkeys(names)}


def _probes(
    stages: dict[str, Features], names: NDArray[np.str_], tasks: dict[str, NDArray[np.bool_]]
) -> Html:
    rows: list[list[page.Cell]] = []
    bars: dict[str, list[float]] = {stage: [] for stage in stages}
    labels = []
    for task, chosen in tasks.items():
        probes = {s: domain_probe(f[chosen], list(names[chosen])) for s, f in stages.items()}
        before, after = probes["before"], probes["after"]
        if before is None or after is None:
            continue
        labels.append(task)
        for stage, probe in probes.items():
            bars[stage].append(probe.accuracy if probe else 0.0)
        rows.append(
            [task, int(chosen.sum()), _share(before), _share(after), f"{100 * before.chance:.0f} %"]
        )
    if not labels:
        return page.paragraph("No task has two datasets, so there are no domains to tell apart.")
    return page.block(
        "Can a linear classifier still name the dataset?",
        bar_chart("Held-out accuracy of a linear probe", labels, bars),
        page.table(["task", "images", "before", "after", "chance"], rows),
        lead=PROBE_NOTE,
    )


def _share(probe: Probe) -> str:
    return f"{100 * probe.accuracy:.1f} % \N{PLUS-MINUS SIGN} {100 * probe.standard_error:.1f}"
