"""What each alignment module compares, out of the model's output (paper section 3.3)."""

import torch
from torch import Tensor

from pipeline.batch import Images
from training.losses.domain import DomainInput
from training.model.backbones.common import STRIDE
from training.model.person_search import SearchOutput


def _valid_pixels(out: SearchOutput, images: Images) -> Tensor:
    """(N, h, w): cells of the trunk's map whose centre shows image, not padding."""
    size = images.valid
    height, width = out.maps.shape[2:]
    y = (torch.arange(height, device=size.device) + 0.5) * STRIDE
    x = (torch.arange(width, device=size.device) + 0.5) * STRIDE
    shows = (y < size[:, :1])[:, :, None] & (x < size[:, 1:])[:, None, :]
    return shows.to(out.rois.labels.dtype)


def scene_input(out: SearchOutput, images: Images, domain: Tensor) -> DomainInput:
    """Detection: the trunk's map and the pooled RoIs."""
    n, q = out.rois.weights.shape
    image = torch.arange(n, device=domain.device).repeat_interleave(q)
    weights = out.rois.weights.reshape(-1)
    pixels = _valid_pixels(out, images)
    return DomainInput(out.maps, pixels, domain, out.roi_features.pooled, image, weights)


def canvas_input(out: SearchOutput, images: Images) -> DomainInput:
    """The re-ID module's "image" is the RoI: its mean runs over RoIAlign's cells."""
    features = out.match_features
    number = torch.arange(len(out.match_row), device=out.match_row.device)
    pixels = out.rois.labels.new_ones(len(number), *features.maps.shape[2:])
    domain = images.domain[images.image[out.match_row]]
    weights = pixels.new_ones(len(number))
    return DomainInput(features.maps, pixels, domain, features.embedding, number, weights)


def task_input(out: SearchOutput, images: Images, task: Tensor) -> DomainInput:
    """Inter-task: the trunk's map and the embeddings, of either kind."""
    image = images.image[out.match_row] + out.match_view * len(images.keys)
    weights = out.rois.labels.new_ones(len(image))
    pixels = _valid_pixels(out, images)
    return DomainInput(out.maps, pixels, task, out.match_features.embedding, image, weights)
