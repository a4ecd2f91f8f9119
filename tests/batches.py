"""Hand-made batches: what the stream delivers, without shards."""

from dataclasses import replace

import torch

from pipeline.batch import Batch, Images, Use, View


def make_images(
    size: tuple[int, int],
    persons: list[int],
    identities: list[list[int]] | None = None,
    domains: list[int] | None = None,
    first_position: int = 0,
    seed: int = 0,
) -> Images:
    """Images of noise with a bright rectangle for each person; `persons` counts them per image."""
    generator = torch.Generator().manual_seed(seed * 1000 + first_position)
    height, width = size
    image = torch.tensor([i for i, count in enumerate(persons) for _ in range(count)]).long()
    person = torch.tensor([p for count in persons for p in range(count)]).long()
    total = len(image)
    views = []
    for _ in range(2):
        pixels = torch.randint(60, 120, (len(persons), height, width, 3), generator=generator)
        h = torch.rand(total, generator=generator) * 0.35 * height + 0.4 * height
        w = h / 2.4
        x = torch.rand(total, generator=generator) * (width - w)
        y = torch.rand(total, generator=generator) * (height - h)
        boxes = torch.stack([x, y, x + w, y + h], 1)
        for i, box in zip(image.tolist(), boxes.round().int().tolist()):
            pixels[i, box[1] : box[3], box[0] : box[2]] += 100
        valid = torch.tensor([[height, width]]).repeat(len(persons), 1)
        use = torch.full((total,), int(Use.MATCH))
        views.append(View(pixels.to(torch.uint8), valid, boxes, use))
    flat = [i for row in identities for i in row] if identities else [-1] * total
    position = torch.arange(first_position, first_position + len(persons))
    return Images(
        views=(views[0], views[1]),
        position=position,
        domain=torch.tensor(domains or [i % 2 for i in range(len(persons))]).long(),
        image=image,
        person=person,
        identity=torch.tensor(flat).long(),
        keys=tuple(f"set/train/{p}" for p in position.tolist()),
    )


def select_images(images: Images, start: int, stop: int) -> Images:
    """The images [start, stop): what one rank of several gets."""
    keep = (images.image >= start) & (images.image < stop)
    return Images(
        views=tuple(
            View(v.pixels[start:stop], v.valid[start:stop], v.boxes[keep], v.use[keep])
            for v in images.views
        ),
        position=images.position[start:stop],
        domain=images.domain[start:stop],
        image=images.image[keep] - start,
        person=images.person[keep],
        identity=images.identity[keep],
        keys=images.keys[start:stop],
    )


def first_views(batch: Batch) -> Batch:
    """The batch of a stream that delivers one view."""

    def first(images: Images | None) -> Images | None:
        return images and replace(images, views=images.views[:1])

    return Batch(batch.step, first(batch.scenes), first(batch.canvases))


def rank_part(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rank's slice of a global batch."""

    def part(images: Images | None) -> Images | None:
        if images is None:
            return None
        each = len(images.keys) // world_size
        return select_images(images, rank * each, (rank + 1) * each)

    return Batch(batch.step, part(batch.scenes), part(batch.canvases))


def hybrid_batch(step: int = 0) -> Batch:
    """4 scenes of two domains, 8 canvases of three: labelled and unlabelled, one scene empty."""
    return Batch(
        step,
        make_images((64, 96), [3, 0, 2, 1], first_position=4 * step, seed=1),
        make_images(
            (64, 48),
            [1] * 8,
            identities=[[0], [0], [1], [1], [2], [-1], [-1], [-1]],
            domains=[0, 0, 0, 0, 1, 2, 2, 2],
            first_position=8 * step,
            seed=2,
        ),
    )
