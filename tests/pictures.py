"""Pictures whose views can be judged, and samples made of them."""

import cv2
import numpy as np
import simplejpeg
import torch

from pipeline.annotation import Annotation, Person
from pipeline.batch import Images
from pipeline.keyed import Draws
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.decode import Pixels
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import RenderedView, Renderer, TaskName
from pipeline.samples import Sample
from tests.shardset import picture


def psnr(left: Pixels, right: Pixels) -> float:
    error = np.mean((left.astype(float) - right.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def textured(height: int, width: int, seed: int) -> Pixels:
    """Colourful, with detail that a resize must filter, so far from black and white that no step clips."""
    detail = np.random.default_rng(seed).normal(0, 12, (height // 2, width // 2, 3))
    detail = cv2.resize(detail, (width, height), interpolation=cv2.INTER_CUBIC)
    return (70 + 0.35 * picture(height, width, seed) + detail).clip(30, 190).astype(np.uint8)


def sample(
    pixels: Pixels,
    boxes: list[tuple[float, float, float, float]],
    identities: list[str | None] | None = None,
    task: TaskName = "detection",
    lossless: bool = True,
) -> Sample:
    """As a shard stores it: PNG, or JPEG of quality 95."""
    persons = [
        Person(box=box, identity=identity)
        for box, identity in zip(boxes, identities or [None] * len(boxes), strict=True)
    ]
    annotation = Annotation(
        version=1,
        key="set/train/0",
        dataset="set",
        domain="set",
        split="train",
        task=task,
        width=pixels.shape[1],
        height=pixels.shape[0],
        persons=tuple(persons),
        source="0.png",
    )
    if lossless:
        coded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
        return Sample(annotation, coded, "png")
    return Sample(annotation, simplejpeg.encode_jpeg(pixels, 95), "jpg")


def render_batch(
    samples: list[tuple[Sample, Sample]],
    size: Size,
    config: AugmentConfig,
    task: TaskName = "detection",
    first_seed: int = 0,
    left_over: int = 77,
) -> Images:
    """What a loader makes of them, before `to`; number n draws from seed `first_seed` + n.

    `left_over` is what the buffers hold of batches before.
    """
    renderer = Renderer(task, size, config)
    shapes = [(len(samples), *size, 3) for size in renderer.buffers]
    buffers = [torch.full(shape, left_over, dtype=torch.uint8) for shape in shapes]
    rendered: list[tuple[RenderedView, ...]] = []
    for number, pair in enumerate(samples):
        draws = Draws(first_seed + number, 0), Draws(first_seed + number, 1)
        out = tuple(buffer[number].numpy() for buffer in buffers)
        rendered.append(renderer.render(pair, draws, out))
    views, unrendered = renderer.join(buffers, rendered)
    counts = torch.tensor([len(of_sample[0].use) for of_sample in rendered])
    persons = int(counts.sum())
    return Images(
        views=views,
        position=torch.arange(len(samples)),
        domain=torch.zeros(len(samples), dtype=torch.int64),
        image=torch.arange(len(samples)).repeat_interleave(counts),
        person=torch.cat([torch.arange(int(count)) for count in counts]),
        identity=torch.full((persons,), -1),
        keys=tuple(pair[0].annotation.key for pair in samples),
        unrendered=unrendered,
    )
