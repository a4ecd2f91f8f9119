"""The batches of the parity tests: what all ranks together hold in a step, and how they share it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.batch import Batch, Images, Use
from tests.batches import first_views, make_images, select_images

STEPS = 20
"""Of the tour through the kinds of batches below."""
Cut = Callable[[int, int, int], tuple[int, int]]
"""(images, part, parts) -> the first of that part's images, and the first that is not."""


def even(images: int, part: int, parts: int) -> tuple[int, int]:
    return images * part // parts, images * (part + 1) // parts


def first_half(images: int, part: int, parts: int) -> tuple[int, int]:
    """Evenly to the first half of the parts; to the only one if there is one."""
    half = max(parts // 2, 1)
    return even(images, part, half) if part < half else (images, images)


def second_half(images: int, part: int, parts: int) -> tuple[int, int]:
    half = parts // 2
    return even(images, part - half, parts - half) if part >= half else (0, 0)


def lopsided(images: int, part: int, parts: int) -> tuple[int, int]:
    """To each part three quarters of what is left; the last takes the rest."""
    stop = images if part == parts - 1 else images - (images >> 2 * (part + 1))
    return images - (images >> 2 * part), stop


def all_on_last(images: int, part: int, parts: int) -> tuple[int, int]:
    return (0, images) if part == parts - 1 else (0, 0)


@dataclass(frozen=True)
class Stop:
    """A global batch, and how its images are shared."""

    batch: Batch
    scenes: Cut = even
    canvases: Cut = even


LABELLED = [[0], [0], [1], [1], [2], [3], [4], [5]]
UNLABELLED = [[-1]] * 8


def scenes(step: int, persons: list[int], **more: Any) -> Images:
    return make_images((48, 64), persons, first_position=4 * step, seed=1, **more)


def canvases(step: int, identities: list[list[int]], **more: Any) -> Images:
    persons = [len(row) for row in identities]
    return make_images((48, 32), persons, identities, first_position=8 * step, seed=2, **more)


def hybrid_batch(step: int) -> Batch:
    """Two domains of scenes, three of canvases; labelled, unlabelled, one scene of nobody."""
    people = [[0], [0], [1], [1], [2], [-1], [-1], [-1]]
    crops = canvases(step, people, domains=[0, 0, 0, 0, 1, 2, 2, 2])
    return Batch(step, scenes(step, [3, 0, 2, 1]), crops)


def hybrid(step: int) -> Stop:
    return Stop(hybrid_batch(step))


def apart(step: int) -> Stop:
    """The first half of the ranks has detection data only, the second crops only."""
    return Stop(hybrid_batch(step), first_half, second_half)


def half_lonely(step: int) -> Stop:
    """The second half of the ranks has images of nobody."""
    crops = [[0], [1], [-1], [-1], [], [], [], []]
    return Stop(Batch(step, scenes(step, [2, 2, 0, 0]), canvases(step, crops)))


def nobody(step: int) -> Stop:
    return Stop(Batch(step, scenes(step, [0] * 4), canvases(step, [[]] * 8)))


def domain_a_rank(step: int) -> Stop:
    """Each half of the ranks has one domain of each task, labelled people or unlabelled ones."""
    people = [[0], [1], [2], [3], [-1], [-1], [-1], [-1]]
    first = scenes(step, [2, 1, 1, 2], domains=[0, 0, 1, 1])
    return Stop(Batch(step, first, canvases(step, people, domains=[0] * 4 + [2] * 4)))


def one_domain(step: int) -> Stop:
    first = scenes(step, [1, 2, 0, 1], domains=[0] * 4)
    return Stop(Batch(step, first, canvases(step, LABELLED, domains=[1] * 8)))


def unlabelled(step: int) -> Stop:
    return Stop(Batch(step, scenes(step, [1, 2, 2, 1]), canvases(step, UNLABELLED)), lopsided)


def labelled(step: int) -> Stop:
    """Identities of several ranks at once: their rows in the table are means over ranks."""
    return Stop(Batch(step, scenes(step, [0, 1, 0, 3]), canvases(step, LABELLED)), even, lopsided)


def on_one_rank(step: int) -> Stop:
    """All other ranks hold no image."""
    return Stop(hybrid_batch(step), all_on_last, all_on_last)


def cut_people(step: int) -> Stop:
    """People who are absent, ignored or only detected in one view or both."""
    batch = hybrid_batch(step)
    assert batch.scenes is not None and batch.canvases is not None
    return Stop(Batch(step, with_uses(batch.scenes), with_uses(batch.canvases)), lopsided, lopsided)


def with_uses(images: Images) -> Images:
    number = torch.arange(len(images.image))
    views = []
    for view, factor in zip(images.views, (1, 3)):
        use = (number * factor + int(Use.MATCH)) % len(Use)
        boxes = view.boxes.masked_fill((use == Use.ABSENT)[:, None], 0)
        views.append(replace(view, boxes=boxes, use=use))
    return replace(images, views=(views[0], views[1]))


def one_view(step: int) -> Stop:
    return Stop(first_views(hybrid_batch(step)), lopsided, lopsided)


def scenes_alone(step: int) -> Stop:
    return Stop(Batch(step, hybrid_batch(step).scenes, None), lopsided)


def canvases_alone(step: int) -> Stop:
    return Stop(Batch(step, None, hybrid_batch(step).canvases), even, lopsided)


KINDS = (
    hybrid,
    apart,
    half_lonely,
    nobody,
    domain_a_rank,
    on_one_rank,
    unlabelled,
    one_domain,
    labelled,
    cut_people,
    scenes_alone,
    canvases_alone,
    one_view,
)


def stop_at(step: int) -> Stop:
    return KINDS[step % len(KINDS)](step)


def split(batch: Batch, part: int, parts: int) -> Batch:
    """That part of the batch, a rank's or one of its micro-steps': as its stop says."""
    stop = stop_at(batch.step)

    def cut(images: Images | None, how: Cut) -> Images | None:
        return images and select_images(images, *how(len(images.keys), part, parts))

    return Batch(batch.step, cut(batch.scenes, stop.scenes), cut(batch.canvases, stop.canvases))
