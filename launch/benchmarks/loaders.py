"""Loaders side by side, each as its users write it, with two threads or two worker processes.

All yield the sizes of their batches without an end. Torchvision's pipeline runs in webdataset.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from launch.benchmarks.stream_sets import Sets
from pipeline.annotation import Annotation
from pipeline.batch import Batch
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.modes import BLUR_KERNEL
from pipeline.rendering.renderer import Renderer, view_draws
from pipeline.samples import Sample
from pipeline.settings import StreamConfig
from pipeline.stream import Stream

WORKERS = 2
BUFFER = 1000
"""Samples that webdataset shuffles among."""

Views = dict[str, Any]
Sizes = Generator[int, None, None]
Open = Callable[[], Sizes]
MakeViews = Callable[[bytes, bytes], Views]
"""From a coded image and its annotation's JSON."""


class TwoViews:
    """The stream's own work on a sample, into an array of its own."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def __call__(self, jpeg: bytes, record: bytes) -> Views:
        annotation = Annotation.from_json(record)
        draws = view_draws(0, annotation.key, 0)
        pixels = np.empty((2, *self._renderer.size, 3), np.uint8)
        sample = Sample(annotation, jpeg, "jpg")
        first, second = self._renderer.render((sample, sample), draws, (pixels[0], pixels[1]))
        boxes = np.stack([first.boxes, second.boxes])
        return {"pixels": pixels, "boxes": boxes, "use": np.stack([first.use, second.use])}


class TorchvisionViews:
    """Two views by torchvision's transforms, of the same strengths; the parameters are torch's draws."""

    def __init__(self, size: tuple[int, int], config: AugmentConfig) -> None:
        height, width = size
        jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    size, (1 / config.scene_scale[1] ** 2, 1.0), (width / height,) * 2
                ),
                v2.RandomHorizontalFlip(config.flip),
                v2.RandomApply([jitter], config.jitter),
                v2.RandomGrayscale(config.grey),
                v2.RandomApply(
                    [v2.GaussianBlur(BLUR_KERNEL, list(config.blur_sigma))], config.blur
                ),
                v2.ClampBoundingBoxes(),
            ]
        )

    def __call__(self, jpeg: bytes, record: bytes) -> Views:
        annotation = Annotation.from_json(record)
        coded = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        image = tv_tensors.Image(decode_jpeg(coded))
        boxes = tv_tensors.BoundingBoxes(
            [person.box for person in annotation.persons],
            format="XYXY",
            canvas_size=(annotation.height, annotation.width),
        )
        (first, placed), (second, placed_too) = (self._transform(image, boxes) for _ in range(2))
        pixels, both = torch.stack([first, second]), torch.stack([placed, placed_too])
        return {"pixels": pixels.numpy(), "boxes": both.numpy()}


def our_batches(config: StreamConfig) -> Sizes:
    with Stream.open(config).batches() as batches:
        for batch in batches:
            yield size(batch)


def size(batch: Batch) -> int:
    return sum(len(images.keys) for images in (batch.scenes, batch.canvases) if images)


def peers(sets: Sets, make_views: MakeViews, batch: int) -> dict[str, Open]:
    """Those that are installed."""
    found: dict[str, Open] = {
        "webdataset": partial(webdataset_batches, sets.tars, make_views, batch)
    }
    if sets.streaming:
        found["MosaicML Streaming"] = partial(streaming_batches, sets.streaming, make_views, batch)
    if sets.litdata:
        found["litData"] = partial(litdata_batches, sets.litdata, make_views, batch)
    return found


def webdataset_batches(tars: Sequence[str], make_views: MakeViews, batch: int) -> Sizes:
    dataset = (
        webdataset.WebDataset(list(tars), resampled=True, shardshuffle=False)
        .shuffle(BUFFER)
        .map(lambda sample: make_views(sample["jpg"], sample["json"]))
        .batched(batch, collation_fn=_collate)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS)
    return _endless(loader)


def streaming_batches(folder: Path, make_views: MakeViews, batch: int) -> Sizes:
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Scenes(StreamingDataset):
        def __getitem__(self, at: Any) -> Views:
            sample = super().__getitem__(at)
            return make_views(sample["jpg"], sample["json"])

    clean_stale_shared_memory()
    dataset = Scenes(local=str(folder), shuffle=True, batch_size=batch)
    return _endless(
        StreamingDataLoader(
            dataset, batch_size=batch, num_workers=WORKERS, collate_fn=_collate, drop_last=True
        )
    )


def litdata_batches(folder: Path, make_views: MakeViews, batch: int) -> Sizes:
    from litdata import StreamingDataLoader, StreamingDataset

    class Scenes(StreamingDataset):
        def __getitem__(self, index: Any) -> Views:
            sample = super().__getitem__(index)
            return make_views(sample["jpg"], sample["json"])

    dataset = Scenes(str(folder), shuffle=True, drop_last=True)
    return _endless(
        StreamingDataLoader(
            dataset, batch_size=batch, num_workers=WORKERS, collate_fn=_collate, drop_last=True
        )
    )


def _endless(loader: Any) -> Sizes:
    """Epoch after epoch; in the second, workers start anew unless the loader keeps them."""
    while True:
        for batch in loader:
            yield len(batch["pixels"])


def _collate(samples: list[Views]) -> Views:
    """Pixels as one tensor, in shared memory where this is a worker; the rest differs in length."""
    rest = {name: [sample[name] for sample in samples] for name in samples[0] if name != "pixels"}
    return {"pixels": default_collate([sample["pixels"] for sample in samples]), **rest}
