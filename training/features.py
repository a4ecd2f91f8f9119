"""Image-level features of a model, and how well their domains can still be told apart.

The feature of an image is the mean of the trunk's map over the image's area: what the image-level
domain classifier of L_adv works against, before the last residual stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.batch import FILL_RGB
from training.model.norm import Kind
from training.model.person_search import STRIDE, PersonSearch

Features = NDArray[np.float32]
IMAGES_AT_ONCE = 8
FOLDS = 5
PERPLEXITY = 30


@dataclass(frozen=True)
class Probe:
    """Held-out accuracy of a linear classifier that tells domains from features."""

    accuracy: float
    standard_error: float
    chance: float
    """Of always naming the largest domain."""


@torch.no_grad()
def image_features(
    model: PersonSearch, images: Sequence[NDArray[np.uint8]], size: tuple[int, int], kind: Kind
) -> Features:
    """(N, trunk_channels) of RGB images (H, W, 3), each fitted into `size` (height, width) as a view is.

    The model must be in evaluation mode.
    """
    device = next(model.parameters()).device
    rows = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        fitted = [_fit(image, size) for image in images[start : start + IMAGES_AT_ONCE]]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in fitted])).to(device)
        with model.norms.using(kind):
            maps = model.backbone(model.normalise(pixels)).float()
        for map_, (_, (height, width)) in zip(maps, fitted):
            inside = map_[:, : max(1, height // STRIDE), : max(1, width // STRIDE)]
            rows.append(inside.mean((1, 2)).cpu().numpy())
    return np.stack(rows) if rows else np.zeros((0, model.trunk_channels), np.float32)


def domain_probe(features: Features, domains: Sequence[str]) -> Probe | None:
    """Cross-validated over stratified folds; None with fewer than two domains of two samples."""
    names, counts = np.unique(np.asarray(domains), return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        return None
    folds = StratifiedKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(classifier, features, np.asarray(domains), cv=folds)
    accuracy = float((predicted == np.asarray(domains)).mean())
    error = (accuracy * (1 - accuracy) / len(features)) ** 0.5
    return Probe(accuracy, error, float(counts.max() / counts.sum()))


def embed_in_plane(features: Features) -> NDArray[np.float64]:
    """(N, 2) by t-SNE from the leading principal components; zeros for fewer than five samples."""
    if len(features) < 5:
        return np.zeros((len(features), 2))
    scaled = StandardScaler().fit_transform(features)
    leading = PCA(min(50, *scaled.shape), random_state=0).fit_transform(scaled)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(leading)


def _fit(
    image: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The image at the top left of a filled view, aspect kept, and the height and width it takes."""
    factor = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    view = np.empty((*size, 3), np.uint8)
    view[:] = FILL_RGB
    view[:height, :width] = cv2.resize(image, (width, height), interpolation=method)
    return view, (height, width)
