"""What instance matching compares and what its tables learn, out of the model's output."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.batch import Images, Use
from training.losses.oim import TableRows
from training.model.norm_aware import unit
from training.model.person_search import SearchOutput


@dataclass(frozen=True)
class MatchedRois:
    """All RoIs of persons that are MATCH, sampled ones and ground truth: M rows."""

    embedding: Tensor
    """(M, D) of length 1."""
    row: Tensor
    """(M,) row of the person in `Images`."""
    votes: Tensor
    """(M,) 1 over the number of the person's RoIs in this view: they share one vote."""


def matched_rois(out: SearchOutput, images: Images) -> MatchedRois:
    roi_row = out.rois.row.reshape(-1)
    used = (out.rois.use.reshape(-1) == Use.MATCH).nonzero()[:, 0]
    view = (used // out.rois.row.shape[1] >= len(images.keys)).to(torch.int64)
    row = torch.cat([roi_row[used], out.match_row])
    view = torch.cat([view, out.match_view])
    embedding = unit(torch.cat([out.roi_features.embedding[used], out.match_features.embedding]))
    persons = len(images.image)
    number = torch.bincount(view * persons + row, minlength=len(images.views) * persons)
    return MatchedRois(embedding, row, 1 / number[view * persons + row].to(embedding.dtype))


def table_rows(out: SearchOutput, images: Images, order: int) -> TableRows:
    """A row for every person that is MATCH in some view: the mean of its ground-truth embeddings."""
    row, which = out.match_row.unique(return_inverse=True)
    embedding = unit(out.match_features.embedding.detach())
    total = embedding.new_zeros(len(row), embedding.shape[1])
    for view in range(len(images.views)):  # a person once a view: plain indexing adds in one order
        seen = out.match_view == view
        total[which[seen]] += embedding[seen]
    image = images.image[row]
    key = torch.stack(
        [torch.full_like(row, order), images.position[image], images.person[row]], dim=1
    )
    numbers = torch.tensor([_key_number(k) for k in images.keys], dtype=row.dtype)
    numbers = numbers.to(row.device, non_blocking=True)
    instance = numbers[image] + images.person[row]
    return TableRows(unit(total), images.identity[row], instance, key)


def _key_number(key: str) -> int:
    """A number for a sample over epochs; the persons of one image follow it."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") << 12
