"""Online instance matching: look-up table, queue, and the loss against them.

Xiao et al., Joint Detection and Identification Feature Learning for Person Search, CVPR 2017. Here
the loss is a function of detached tables, and the tables change in one explicit update a step.

Letters: M embeddings, K look-up table rows, U queue slots, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from training.distributed import all_gather_rows

NO_INSTANCE = -1


class OimConfig(Config):
    scale: float = Field(default=30.0, gt=0)
    """Multiplies cosines before the softmax."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Of a row against the step's mean embedding of its identity."""
    queue: int = Field(default=5000, ge=0)
    """Embeddings of unlabelled people kept as negatives."""
    unlabelled: Literal["queue", "instance"] = "queue"
    """`queue`: unlabelled people are negatives only, as in NAE. `instance`: each is its own positive as
    well, the paper's other reading of "different identities"."""
    mean: Literal["person", "roi"] = "person"
    """What the loss of labelled people is a mean over: people, each by the mean over its RoIs in a view; or
    RoIs, as in NAE, so that people with more RoIs count more. How many RoIs there are is known only after the
    forward, which `roi` adds a collective to, and which keeps it to an accumulation of 1."""
    instance_scale: float = Field(default=10.0, gt=0)
    mask_empty: bool = True
    """Rows and slots never filled are no negatives; False: zero rows compete, as in NAE."""


@dataclass(frozen=True)
class TableRows:
    """What one micro-step of one rank has to say to the tables: a row a person."""

    embedding: Tensor
    """(P, D) of length 1: mean over the person's views."""
    identity: Tensor
    """(P,) look-up table row or -1."""
    instance: Tensor
    """(P,) number that stands for this very person over epochs."""
    order: Tensor
    """(P, 3) task, global position, person: the order of updates, the same for every world size."""

    @classmethod
    def joined(cls, parts: Sequence["TableRows"]) -> "TableRows":
        """Of several micro-steps or kinds of images, one below the other."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def gathered(self) -> "TableRows":
        """Of all ranks, sorted by `order`. Collective."""
        numbers = torch.cat([self.identity[:, None], self.instance[:, None], self.order], dim=1)
        embedding, numbers = all_gather_rows(self.embedding), all_gather_rows(numbers)
        by = torch.arange(len(numbers), device=numbers.device)
        for column in (4, 3, 2):
            by = by[numbers[by, column].argsort(stable=True)]
        numbers = numbers[by]
        return TableRows(embedding[by], numbers[:, 0], numbers[:, 1], numbers[:, 2:])


class OimTables(nn.Module):
    """Buffers, equal on all ranks."""

    lut: Tensor
    lut_filled: Tensor
    queue: Tensor
    queue_filled: Tensor
    queue_instance: Tensor
    queue_age: Tensor
    """(U,) optimiser steps since a slot was filled."""
    queue_head: Tensor

    def __init__(self, config: OimConfig, num_identities: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("lut", torch.zeros(num_identities, width))
        self.register_buffer("lut_filled", torch.zeros(num_identities, dtype=torch.bool))
        self.register_buffer("queue", torch.zeros(config.queue, width))
        self.register_buffer("queue_filled", torch.zeros(config.queue, dtype=torch.bool))
        self.register_buffer("queue_instance", torch.full((config.queue,), NO_INSTANCE))
        self.register_buffer("queue_age", torch.zeros(config.queue, dtype=torch.int64))
        self.register_buffer("queue_head", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_with_ages)

    def labelled_loss(self, unit: Tensor, identity: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of -log softmax over look-up table and queue. unit: (M, D), identity: (M,) >= 0.

        With `mask_empty`, an identity whose row is still empty has nothing to be pulled to: it counts
        zero until its first update.
        """
        if not len(self.lut):  # no identities in any dataset
            return unit.sum() * 0
        logits = self.config.scale * self._cosines(unit)
        if self.config.mask_empty:
            filled = torch.cat([self.lut_filled, self.queue_filled])
            weights = weights * self.lut_filled[identity]
            own = torch.arange(len(filled), device=identity.device) == identity[:, None]
            logits = logits.masked_fill(~(filled | own), float("-inf"))
        return (F.cross_entropy(logits, identity, reduction="none") * weights).sum()

    def instance_loss(
        self, unit: Tensor, instance: Tensor, positive: Tensor, weights: Tensor
    ) -> Tensor:
        """Weighted sum of -log softmax of each unlabelled person's own positive against all rows.

        positive: (M, D), what this step will push for that person; its older entries are no negatives.
        """
        scale = self.config.instance_scale
        own = (unit * positive.detach()).sum(1, keepdim=True)
        others = self._cosines(unit)
        same = self.queue_instance == instance[:, None]
        empty = ~torch.cat([self.lut_filled, self.queue_filled]) & self.config.mask_empty
        hidden = F.pad(same, (len(self.lut), 0)) | empty
        logits = scale * torch.cat([own, others.masked_fill(hidden, float("-inf"))], dim=1)
        target = torch.zeros(len(unit), dtype=torch.int64, device=unit.device)
        return (F.cross_entropy(logits, target, reduction="none") * weights).sum()

    def _cosines(self, unit: Tensor) -> Tensor:
        """(M, K + U). Autocast would leave three digits of what is multiplied by the scale."""
        with torch.autocast(unit.device.type, enabled=False):
            return unit @ torch.cat([self.lut, self.queue]).to(unit.dtype).T

    @torch.no_grad()
    def update(self, rows: TableRows) -> None:
        """Moves the rows of the identities seen and queues the unlabelled; rows as `gathered`."""
        self._update_lut(rows)
        self.queue_age += 1
        self._push(rows)

    def _update_lut(self, rows: TableRows) -> None:
        labelled = rows.identity >= 0
        identity, which = rows.identity[labelled].unique(return_inverse=True)
        if not len(identity):
            return
        # a matrix product, not atomics: the same sum in the same order everywhere
        member = F.one_hot(which, len(identity)).T.to(rows.embedding.dtype)
        mean = F.normalize(member @ rows.embedding[labelled], dim=1).to(self.lut.dtype)
        moved = self.config.momentum * self.lut[identity] + (1 - self.config.momentum) * mean
        filled = self.lut_filled[identity, None]
        self.lut[identity] = F.normalize(torch.where(filled, moved, mean), dim=1)
        self.lut_filled[identity] = True

    def _push(self, rows: TableRows) -> None:
        size = len(self.queue)
        unlabelled = rows.identity < 0
        embedding = rows.embedding[unlabelled][-size:] if size else rows.embedding[:0]
        count = len(embedding)
        if not count:
            return
        slot = (self.queue_head + torch.arange(count, device=embedding.device)) % size
        self.queue[slot] = embedding.to(self.queue.dtype)
        self.queue_filled[slot] = True
        self.queue_instance[slot] = rows.instance[unlabelled][-size:]
        self.queue_age[slot] = 0
        self.queue_head.copy_((self.queue_head + count) % size)

    def statistics(self) -> dict[str, float]:
        """How full the tables are and how old the queue is, NaN where it is empty. Waits for the device."""
        ages = self.queue_age * self.queue_filled
        numbers = [
            self.lut_filled.sum(),
            self.queue_filled.sum(),
            ages.sum(),
            F.pad(ages, (0, 1)).max(),  # a queue may have no slots
        ]
        rows, slots, total, oldest = torch.stack(numbers).tolist()
        return {
            "lut_fill": rows / max(len(self.lut), 1),
            "queue_fill": slots / max(len(self.queue), 1),
            "active_rows": float(rows + slots),
            "queue_age_mean": total / slots if slots else math.nan,
            "queue_age_max": float(oldest) if slots else math.nan,
        }


def _with_ages(tables: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A checkpoint from before ages were kept does not say them: they count from here on."""
    state.setdefault(prefix + "queue_age", torch.zeros_like(tables.get_buffer("queue_age")))
