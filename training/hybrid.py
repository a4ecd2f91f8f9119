"""The hybrid objective: L = L_ps + eta L_con + L_adv(lambda), forward and losses in one module.

What is summed over a batch is divided by counts that the batch alone decides (`denominators`), summed
over all ranks and micro-steps before the first forward: so any number of ranks computes one loss.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pipeline.batch import Batch, Images, Use
from pipeline.config import Config
from training.distributed import all_reduce_sum, world_size
from training.losses.detection import ROI_BETA, RPN_BETA, box_loss, classification_loss
from training.losses.domain import AlignmentModule, DomainInput
from training.losses.domain_inputs import canvas_input, scene_input, task_input
from training.losses.oim import OimConfig, OimTables, TableRows
from training.losses.oim_inputs import matched_rois, table_rows
from training.losses.similarity import collapse_indicator, similarity_loss
from training.model.norm import CrossRankNorm, Kind
from training.model.person_search import PersonSearch, PersonSearchConfig, SearchOutput
from training.model.predictor import Predictor
from training.statistics import Parts, count_domains, count_persons, count_proposals

KINDS: tuple[Kind, Kind] = ("scenes", "canvases")


class LossWeights(Config):
    """A weight of 0 switches a loss off."""

    rpn_class: float = 1.0
    rpn_box: float = 1.0
    roi_class: float = 1.0
    roi_box: float = 10.0
    oim: float = 1.0
    instance: float = 1.0
    """Only with `oim.unlabelled: instance`."""
    similarity: float = 1.0
    """eta"""


class AlignmentConfig(Config):
    """L_adv. A loss weight of 0 gives the ablation without it."""

    tasks: tuple[Literal["detection", "reid", "inter_task"], ...] = ("detection", "reid")
    """`detection`, `reid`: one module each, if that task has several domains; `inter_task` adds the one
    that tells tasks apart."""
    image: float = 1.0
    instance: float = 1.0
    consistency: float = 0.1
    image_head: Literal["pixel", "pooled"] = "pixel"
    """What the image-level classifier names the domain of: every cell of the map, as Domain Adaptive Faster
    R-CNN, or the map's mean behind its convolutions, as "convolutions, then FC" may be read."""
    coefficient: float = 0.1
    """lambda: how much of the reversed gradient reaches the features."""
    ramp: tuple[int, int] = (0, 1000)
    """Steps between which lambda grows from 0."""

    @model_validator(mode="after")
    def _check(self) -> "AlignmentConfig":
        if not 0 <= self.ramp[0] <= self.ramp[1]:
            raise ValueError("ramp must be [start, stop] with 0 <= start <= stop")
        return self


class HybridConfig(Config):
    model: PersonSearchConfig = PersonSearchConfig()
    weights: LossWeights = LossWeights()
    oim: OimConfig = OimConfig()
    alignment: AlignmentConfig = AlignmentConfig()


@dataclass
class StepOutput:
    total: Tensor
    """Weighted sum, times the world size because DeepSpeed averages gradients."""
    losses: dict[str, Tensor]
    """Detached shares: their sum over ranks and micro-steps is the global mean."""
    weighted: dict[str, Tensor]
    counts: dict[str, Tensor]
    """Statistics as (sum, count), to be added over ranks and micro-steps: `training.statistics`."""
    rows: TableRows


class HybridModel(nn.Module):
    DENOMINATORS = (
        "anchors",
        "rois",
        "labelled",
        "unlabelled",
        "paired_images",
        "scenes",
        "scene_rois",
        "canvas_persons",
        "images",
        "persons",
    )

    def __init__(
        self,
        config: HybridConfig,
        num_identities: int,
        domains: dict[str, tuple[str, ...]],
        seed: int,
        load_weights: bool = True,
    ) -> None:
        """domains: names by task, `detection` and `reid`; seed: of the draws inside a step; load_weights:
        the backbone's first ones, which a checkpoint makes needless."""
        super().__init__()
        self.config = config
        self.domains = {"detection": (), "reid": (), **domains, "inter_task": KINDS}
        self.search = PersonSearch(config.model, seed, load_weights)
        width = config.model.heads.embedding
        self.predictor = Predictor(width, self.search.norms) if config.weights.similarity else None
        self.tables = OimTables(config.oim, num_identities, width)
        self.alignment = nn.ModuleDict(self._alignment_modules(width))
        self.register_load_state_dict_pre_hook(_without_idle_predictor)

    def _alignment_modules(self, width: int) -> dict[str, nn.Module]:
        config, trunk = self.config.alignment, self.search.trunk_channels
        instances = {"detection": self.search.head_channels, "reid": width, "inter_task": width}
        pooled = config.image_head == "pooled"
        # a single domain has nothing to be told from
        return {
            task: AlignmentModule((trunk, instances[task]), len(self.domains[task]), pooled)
            for task in config.tasks
            if len(self.domains[task]) > 1
        }

    def constant_lr_parameters(self) -> set[str]:
        """Names of the predictor's and the domain classifiers', whose rate does not decay."""
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name.startswith(("predictor.", "alignment."))}

    def denominators(self, batches: Sequence[Batch]) -> Tensor:
        """(len(DENOMINATORS),) float64 sums over these micro-batches, to be summed over ranks.

        Of batches still on the host, so that nothing waits for the device.
        """
        total = dict.fromkeys(self.DENOMINATORS, torch.zeros((), dtype=torch.float64))
        for batch in batches:
            for kind in KINDS:
                images: Images | None = getattr(batch, kind)
                if images is not None:
                    for name, value in self._count(images, kind).items():
                        total[name] = total[name] + torch.as_tensor(value).double()
        return torch.stack([total[name] for name in self.DENOMINATORS])

    def _count(self, images: Images, kind: Kind) -> dict[str, Tensor | int]:
        quota = getattr(self.config.model.detector, kind)
        shown, matched = images.shown, images.use == Use.MATCH
        labelled = (matched & (images.identity >= 0)).sum()
        counts: dict[str, Tensor | int] = {
            "anchors": shown * quota.anchors,
            "rois": shown * quota.rois,
            "labelled": labelled,
            "unlabelled": matched.sum() - labelled,
            "paired_images": len(images.image[_paired(images)].unique()),
            "images": shown,
            "persons": matched.sum(),
        }
        if kind == "scenes":
            return counts | {"scenes": shown, "scene_rois": shown * quota.rois}
        return counts | {"canvas_persons": matched.sum()}

    def forward(self, batch: Batch, denominators: Tensor, step: int) -> StepOutput:
        """One micro-step; `denominators` as all ranks' and micro-steps' sum. Collective (norms)."""
        names = zip(self.DENOMINATORS, denominators.clamp(min=1).tolist())
        number = dict(names)
        coefficient = self._coefficient(step)
        parts, rows = Parts(), []
        for order, kind in enumerate(KINDS):
            images: Images | None = getattr(batch, kind)
            if images is None:
                continue
            out = self.search(images, kind)
            self._detection(out, number, parts)
            rows.append(self._instance_matching(out, images, order, number, parts))
            self._similarity(out, images, kind, number, parts)
            self._align(out, images, kind, coefficient, number, parts)
            count_persons(parts, images, kind)
            count_proposals(parts, out, images, kind)
        if self.config.oim.mean == "roi":  # the one count that the batch does not know
            rois = all_reduce_sum(torch.as_tensor(parts.labelled_rois)).clamp(min=1)
            parts.sums["oim"] = parts.sums["oim"] / rois
        return self._weigh(parts, TableRows.joined(rows))

    def _coefficient(self, step: int) -> float:
        start, stop = self.config.alignment.ramp
        share = (step - start) / max(stop - start, 1)
        return self.config.alignment.coefficient * min(max(share, 0.0), 1.0)

    def _detection(self, out: SearchOutput, number: dict[str, float], parts: Parts) -> None:
        a, r = out.anchors, out.rois
        rpn_class = classification_loss(a.logits, a.labels, a.weights)
        rpn_box = box_loss(a.deltas, a.target_deltas, a.labels, a.weights, RPN_BETA)
        roi_class = classification_loss(out.roi_logits, r.labels, r.weights)
        roi_box = box_loss(out.roi_deltas, r.target_deltas, r.labels, r.weights, ROI_BETA)
        parts.add("rpn_class", rpn_class / number["anchors"])
        parts.add("rpn_box", rpn_box / number["anchors"])
        parts.add("roi_class", roi_class / number["rois"])
        parts.add("roi_box", roi_box / number["rois"])
        foreground = (r.labels * r.weights).sum()
        parts.count("foreground_rois", foreground, r.weights.sum())

    def _instance_matching(
        self, out: SearchOutput, images: Images, order: int, number: dict[str, float], parts: Parts
    ) -> TableRows:
        """OIM on every RoI of a person; a person's RoIs in a view share one vote, unless each has its own."""
        rois = matched_rois(out, images)
        identity = images.identity[rois.row]
        labelled = identity >= 0
        each = self.config.oim.mean == "roi"
        share = torch.ones_like(rois.votes) if each else rois.votes
        loss = self.tables.labelled_loss(
            rois.embedding[labelled], identity[labelled], share[labelled]
        )
        parts.add("oim", loss if each else loss / number["labelled"])
        parts.labelled_rois = parts.labelled_rois + labelled.sum()
        rows = table_rows(out, images, order)
        if self.config.oim.unlabelled == "instance":
            others = rois.row[~labelled]
            slot = others.new_zeros(len(images.image))
            slot[out.match_row.unique()] = torch.arange(len(rows.identity), device=slot.device)
            slot = slot[others]
            loss = self.tables.instance_loss(
                rois.embedding[~labelled],
                rows.instance[slot],
                rows.embedding[slot],
                rois.votes[~labelled],
            )
            parts.add("instance", loss / number["unlabelled"])
        return rows

    def _similarity(
        self, out: SearchOutput, images: Images, kind: Kind, number: dict[str, float], parts: Parts
    ) -> None:
        if self.predictor is None:
            return
        paired = _paired(images)
        first, second = (
            out.match_features.embedding[(out.match_view == v) & paired[out.match_row]]
            for v in (0, 1)
        )
        with self.search.norms.using(kind):
            z = self.predictor(torch.cat([first, second])).to(out.rois.labels.dtype)
        h = (first.to(z.dtype), second.to(z.dtype))
        image = images.image[paired]
        weights = 1 / torch.bincount(image, minlength=1)[image].to(z.dtype)
        loss = similarity_loss(h, (z[: len(first)], z[len(first) :]), weights)
        parts.add("similarity", loss / number["paired_images"])
        parts.count(f"collapse_{kind}", *collapse_indicator(h[0]))

    def _align(
        self,
        out: SearchOutput,
        images: Images,
        kind: Kind,
        coefficient: float,
        number: dict[str, float],
        parts: Parts,
    ) -> None:
        domain = images.for_views(images.domain)

        def add(name: str, x: DomainInput, images_: str, instances: str) -> None:
            sums, told = self.alignment[name](x, coefficient)
            for part, value in sums.items():
                count = number[images_ if part == "image" else instances]
                parts.add(f"domain_{name}_{part}", value / count)
            count_domains(parts, name, told, self.domains[name])

        if kind == "scenes" and "detection" in self.alignment:
            add("detection", scene_input(out, images, domain), "scenes", "scene_rois")
        if kind == "canvases" and "reid" in self.alignment:
            add("reid", canvas_input(out, images), "canvas_persons", "canvas_persons")
        if "inter_task" in self.alignment:
            task = torch.full_like(domain, KINDS.index(kind))
            add("inter_task", task_input(out, images, task), "images", "persons")

    def _weigh(self, parts: Parts, rows: TableRows) -> StepOutput:
        """The one place where losses get their weights."""
        weighted = {name: self._weight(name) * value for name, value in parts.sums.items()}
        # ties every parameter to the graph: an idle head must not leave this rank without a gradient
        trainable = [p.sum() for p in self.parameters() if p.requires_grad]
        anchor = torch.stack(trainable).sum() * 0.0
        total = torch.stack([*weighted.values(), anchor]).sum() * world_size()
        return StepOutput(
            total,
            {name: value.detach() for name, value in parts.sums.items()},
            {name: value.detach() for name, value in weighted.items()},
            parts.counts,
            rows,
        )

    def _weight(self, name: str) -> float:
        if name.startswith("domain_"):
            return getattr(self.config.alignment, name.rsplit("_", 1)[1])
        return getattr(self.config.weights, name)

    def update_tables(self, rows: Sequence[TableRows]) -> None:
        """Once an optimiser step, after backward, with the rows of its micro-steps. Collective."""
        self.tables.update(TableRows.joined(rows).gathered())

    def running_statistics(self) -> set[str]:
        """Names of the buffers that a forward in training moves."""
        norms = [(n, m) for n, m in self.named_modules() if isinstance(m, CrossRankNorm)]
        return {name for prefix, norm in norms for name, _ in norm.named_buffers(prefix)}

    def tables_digest(self) -> str:
        """sha256 of the tables, equal on all ranks."""
        digest = hashlib.sha256()
        for _, buffer in sorted(self.tables.named_buffers()):
            digest.update(buffer.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def statistics(self) -> dict[str, float]:
        """State of the tables, equal on all ranks; lambda's part is in the config."""
        return self.tables.statistics()


def _without_idle_predictor(
    model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Runs without L_con once had a predictor that nothing trained: their checkpoints still bring it."""
    if model.predictor is None:
        for name in [name for name in state if name.startswith(f"{prefix}predictor.")]:
            del state[name]


def _paired(images: Images) -> Tensor:
    """(P,): unlabelled and MATCH in both of two views, the persons of L_con."""
    return ((images.use == Use.MATCH).sum(0) == 2) & (images.identity < 0)
