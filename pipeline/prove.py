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


class Layout(NamedTuple):
    """How a run is spread; nothing of it may decide what comes when."""

    ranks: int
    accumulation: int
    threads: int

    def __str__(self) -> str:
        parts = {"rank": self.ranks, "micro-step": self.accumulation, "thread": self.threads}
        return " x ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in parts.items())


@dataclass(frozen=True)
class Proof:
    stream_digest: str
    steps: range
    cut: int
    """First step of the second half."""
    layouts: tuple[Layout, Layout, Layout]
    """Of the undisturbed run, and of the other before and after the cut."""
    samples: int
    samples_digest: str
    """What `metrics.jsonl` of a run has after these steps, if they begin with 0 and no sample is bad."""
    difference: tuple[Seen | None, Seen | None] | None
    """The first pair that differs: undisturbed, interrupted."""


def prove_resume(config: StreamConfig, steps: range, pixels: bool = False) -> Proof:
    """Without `pixels` nothing is decoded: the order alone is proved."""
    alone = Layout(1, 1, config.threads)
    before, after = choose_layouts(config)
    cut = steps[len(steps) // 2]
    undisturbed = run(config, alone, steps, pixels)
    interrupted = run(config, before, range(steps.start, cut), pixels)
    interrupted += run(config, after, range(cut, steps.stop), pixels)
    digest = SampleDigest()
    for task in TASKS:
        digest.add_samples(task, ((s.position, s.key) for s in undisturbed if s.task == task))
    digest.absorb(digest.take())
    return Proof(
        stream_digest=Stream.open(config).digest,
        steps=steps,
        cut=cut,
        layouts=(alone, before, after),
        samples=len(undisturbed),
        samples_digest=digest.hex(),
        difference=first_difference(undisturbed, interrupted),
    )


def choose_layouts(config: StreamConfig) -> tuple[Layout, Layout]:
    """Two as different as the batches allow, of at most 8 ranks."""
    common = math.gcd(config.scene_batch, config.canvas_batch)
    fitting = [ranks for ranks in range(1, 9) if common % ranks == 0]
    fewer = fitting[-2] if len(fitting) > 1 else 1
    micro_steps = next(n for n in (2, 3, 1) if common % (fewer * n) == 0)
    return Layout(fitting[-1], 1, config.threads + 1), Layout(fewer, micro_steps, 1)


def run(config: StreamConfig, layout: Layout, steps: range, pixels: bool) -> list[Seen]:
    """What all ranks get, each from a stream of its own, put together by step, task and rank."""
    spread = config.model_copy(update={"threads": layout.threads})
    streams = [
        Stream.open(spread, rank, layout.ranks, layout.accumulation) for rank in range(layout.ranks)
    ]
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
    """Of every step what its micro-batches hold, task by task."""
    seen: list[list[Seen]] = [[] for _ in steps]
    with stream.batches(steps.start, steps.stop) as batches:
        for batch in batches:
            done = batch.to("cpu")  # views of mode device are made only now
            here = seen[batch.step - steps.start]
            here += _fingerprints(TASKS[0], done.scenes) + _fingerprints(TASKS[1], done.canvases)
    return seen


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
