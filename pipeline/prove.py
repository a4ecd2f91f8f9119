"""The proof that a stream resumes exactly: an undisturbed run against one that was cut and moved."""

import hashlib
import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from pipeline.batch import Images
from pipeline.digest import SampleDigest
from pipeline.settings import StreamConfig
from pipeline.stream import Stream

TASKS = ("scene", "canvas")


class Seen(NamedTuple):
    """A sample as it came; `content` is a hash of all that its batch holds of it, or empty."""

    task: str
    position: int
    key: str
    content: str = ""


@dataclass(frozen=True)
class Proof:
    stream_digest: str
    steps: int
    cut: int
    """First step of the second half."""
    worlds: tuple[int, int]
    """Ranks before and after the cut."""
    samples: int
    samples_digest: str
    """What `metrics.jsonl` of a run has after as many steps."""
    difference: tuple[Seen | None, Seen | None] | None
    """The first pair that differs: undisturbed, interrupted."""


def prove_resume(config: StreamConfig, steps: int, pixels: bool = False) -> Proof:
    """Without `pixels` nothing is decoded: the order alone is proved."""
    worlds, cut = choose_worlds(config), steps // 2
    undisturbed = run(config, 1, range(steps), pixels)
    interrupted = run(config, worlds[0], range(cut), pixels)
    interrupted += run(config, worlds[1], range(cut, steps), pixels)
    digest = SampleDigest()
    for task in TASKS:
        digest.add_samples(task, ((s.position, s.key) for s in undisturbed if s.task == task))
    digest.absorb(digest.take())
    return Proof(
        stream_digest=Stream.open(config).digest,
        steps=steps,
        cut=cut,
        worlds=worlds,
        samples=len(undisturbed),
        samples_digest=digest.hex(),
        difference=first_difference(undisturbed, interrupted),
    )


def choose_worlds(config: StreamConfig) -> tuple[int, int]:
    """Two numbers of ranks as different as the batches allow, up to 8."""
    common = math.gcd(config.scene_batch, config.canvas_batch)
    fitting = [world for world in range(1, 9) if common % world == 0]
    return fitting[-1], fitting[-2] if len(fitting) > 1 else 1


def run(config: StreamConfig, world_size: int, steps: range, pixels: bool) -> list[Seen]:
    """What all ranks get, each from a stream of its own, put together by step, task and rank."""
    streams = [Stream.open(config, rank, world_size) for rank in range(world_size)]
    parts = [
        _read(stream, steps) if pixels else [_ask(stream, step) for step in steps]
        for stream in streams
    ]
    return [
        seen
        for number in range(len(steps))
        for task in TASKS
        for part in parts
        for seen in part[number]
        if seen.task == task
    ]


def first_difference(
    undisturbed: list[Seen], interrupted: list[Seen]
) -> tuple[Seen | None, Seen | None] | None:
    for pair in zip_longest(undisturbed, interrupted):
        if pair[0] != pair[1]:
            return pair
    return None


def _ask(stream: Stream, step: int) -> list[Seen]:
    tasks = dict(zip(("detection", "reid"), TASKS))
    return [
        Seen(tasks[task], position, key)
        for ids in stream.rank_ids(step)
        for task, samples in ids.items()
        for position, key in samples
    ]


def _read(stream: Stream, steps: range) -> list[list[Seen]]:
    with stream.batches(steps.start, steps.stop) as batches:
        return [
            _fingerprints(TASKS[0], batch.scenes) + _fingerprints(TASKS[1], batch.canvases)
            for batch in batches
        ]


def _fingerprints(task: str, images: Images | None) -> list[Seen]:
    if images is None:
        return []
    return [
        Seen(task, position, key, _fingerprint(images, number))
        for number, (position, key) in enumerate(zip(images.position.tolist(), images.keys))
    ]


def _fingerprint(images: Images, number: int) -> str:
    """Of the image's part of every tensor, so that it does not depend on where in a batch it lies."""
    persons = images.image == number
    parts = [images.domain[number], images.person[persons], images.identity[persons]]
    for view in images.views:
        parts += [view.pixels[number], view.valid[number], view.boxes[persons], view.use[persons]]
    content = hashlib.sha256()
    for part in parts:
        content.update(part.numpy().tobytes())
    return content.hexdigest()[:16]
