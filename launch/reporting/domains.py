"""Feature domains before and after: what alignment is for, as pictures and as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launch.reporting.data import Input
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.page import Html
from pipeline.pages.plot import bar_chart, scatter_plot
from pipeline.pages.sheet import spread_samples
from pipeline.rendering.decode import DecodeError, decode
from pipeline.samples import SampleReader
from training.device import inference_device
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
        found = measure_domains(run, inputs, samples)
    except UserError as error:
        return page.section(title, page.callout(f"Nothing to compare: {error}"))
    if not len(found.names):
        return page.section(title, page.callout("No sample of the shard sets could be read."))
    titles = {"before": "Before: the initial weights", "after": f"After: step {found.step:,}"}
    plots = [scatter_plot(titles[stage], found.layout(stage)) for stage in found.stages]
    return page.section(title, page.columns(*plots), _probes(found), lead=LAYOUT_NOTE)


@dataclass(frozen=True)
class Domains:
    """Features of images of all shard sets, by the first weights of a run and by its newest."""

    step: int
    names: NDArray[np.str_]
    """Domain of each image."""
    kinds: NDArray[np.str_]
    stages: dict[str, Features]
    """`before` and `after`."""

    def layout(self, stage: str) -> dict[str, NDArray[np.float64]]:
        """(N, 2) by domain, t-SNE."""
        points = embed_in_plane(self.stages[stage])
        return {name: points[self.names == name] for name in dict.fromkeys(self.names.tolist())}

    def probes(self) -> dict[str, tuple[int, dict[str, Probe]]]:
        """By task of several domains: images, and how well a linear classifier names their domain."""
        found = {}
        for task, kind in (("detection", "scenes"), ("re-ID", "canvases")):
            chosen = self.kinds == kind
            probes = {
                stage: domain_probe(features[chosen], list(self.names[chosen]))
                for stage, features in self.stages.items()
            }
            told = {stage: probe for stage, probe in probes.items() if probe is not None}
            if len(told) == len(probes):
                found[task] = (int(chosen.sum()), told)
        return found


def measure_domains(run: Run, inputs: Sequence[Input], samples: int) -> Domains:
    """On `samples` images of each set. Raises UserError if the run has no weights."""
    newest = run.checkpoint()
    models = {"before": run.first_model(), "after": run.model(newest)}
    sets = [_read(one, one.reader, samples) for one in inputs if one.reader]
    names = np.array([s.name for s in sets for _ in s.images])
    kinds = np.array([s.kind for s in sets for _ in s.images])
    stages = {stage: _features(model.search, sets) for stage, model in models.items()}
    return Domains(newest.state.step, names, kinds, stages)


def _read(one: Input, reader: SampleReader, count: int) -> DomainImages:
    images = []
    for _, data, image_type in spread_samples(reader, count):
        try:
            images.append(decode(data, image_type))
        except DecodeError:
            continue
    return DomainImages(reader.manifest.domain, one.kind, one.size, images)


def _features(model: PersonSearch, sets: Sequence[DomainImages]) -> Features:
    model = model.to(inference_device())
    return np.concatenate([image_features(model, s.images, s.size, s.kind) for s in sets])


def _probes(found: Domains) -> Html:
    rows: list[list[page.Cell]] = []
    bars: dict[str, list[float]] = {stage: [] for stage in found.stages}
    probes = found.probes()
    for task, (images, by_stage) in probes.items():
        for stage, probe in by_stage.items():
            bars[stage].append(probe.accuracy)
        before, after = by_stage["before"], by_stage["after"]
        chance = f"{100 * before.chance:.0f} %"
        rows.append([task, images, _share(before), _share(after), chance])
    if not probes:
        return page.paragraph("No task has two datasets, so there are no domains to tell apart.")
    return page.block(
        "Can a linear classifier still name the dataset?",
        bar_chart("Held-out accuracy of a linear probe", list(probes), bars),
        page.table(["task", "images", "before", "after", "chance"], rows),
        lead=PROBE_NOTE,
    )


def _share(probe: Probe) -> str:
    return f"{100 * probe.accuracy:.1f} % \N{PLUS-MINUS SIGN} {100 * probe.standard_error:.1f}"
