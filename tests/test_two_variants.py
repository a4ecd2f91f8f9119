"""views.two_variants: each view of a canvas comes from another placement of its crop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stream import Stream
from tests.shardset import Item, canvas_items, scene_items, write_shard_set

VARIANTS = 3


def config(url: str, **settings: Any) -> StreamConfig:
    views = {"two_variants": True, "flip": 0, "canvas_side": (1, 1), "match_height": 4}
    return StreamConfig(
        canvases=(MixtureEntry(shards=url, weight=1),),
        canvas_batch=4,
        canvas_size=(96, 64),
        views=views | settings,  # type: ignore[arg-type]
    )


def canvases(url: Path, count: int = VARIANTS) -> str:
    return write_shard_set(url, [[canvas_items(4, variant=v)] for v in range(count)])


@pytest.mark.parametrize("mode", ["exact", "device"])
def test_views_show_every_pair_of_variants_in_turn(tmp_path: Path, mode: str) -> None:
    """The left edge of the box tells the variant."""
    pairs = []
    stream = Stream.open(config(canvases(tmp_path), mode=mode))
    with stream.batches(0, VARIANTS * (VARIANTS - 1)) as batches:
        for batch in batches:
            images = batch.to("cpu").canvases
            assert images is not None
            lefts = torch.stack([view.boxes[:, 0] for view in images.views], 1)
            (pair,) = {tuple(row) for row in ((lefts - 8) / 4).int().tolist()}
            pairs.append(pair)
    assert len(set(pairs)) == VARIANTS * (VARIANTS - 1)
    assert all(first != second for first, second in pairs)


def test_the_setting_is_part_of_the_stream_and_leaves_scenes_alone(tmp_path: Path) -> None:
    url = canvases(tmp_path / "canvases")
    assert Stream.open(config(url)).digest != Stream.open(config(url, two_variants=False)).digest
    scenes = write_shard_set(tmp_path / "scenes", [[scene_items(6)]])
    seen = []
    for two in (True, False):
        stream = Stream.open(
            StreamConfig(
                scenes=(MixtureEntry(shards=scenes, weight=1),),
                scene_batch=2,
                scene_size=(48, 64),
                views={"two_variants": two},  # type: ignore[arg-type]
            )
        )
        with stream.batches(0, 1) as batches:
            seen.append(next(batches).scenes)
    assert seen[0] is not None and seen[1] is not None
    for ours, theirs in zip(seen[0].views, seen[1].views, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)


def test_one_variant_is_refused(tmp_path: Path) -> None:
    url = canvases(tmp_path, 1)
    with pytest.raises(UserError, match=rf"two_variants .*{url}.* has one.*canvas\.variants=2"):
        Stream.open(config(url))


def test_other_persons_in_the_other_variant_are_a_bad_sample(tmp_path: Path) -> None:
    def strangers(item: Item) -> Item:
        person = item.annotation.persons[0].model_copy(update={"identity": "train:0099"})
        changed = item.annotation.model_copy(update={"persons": (person,)})
        return replace(item, annotation=changed) if item.annotation.key.endswith("1") else item

    second = [strangers(item) for item in canvas_items(4, variant=1)]
    stream = Stream.open(
        config(write_shard_set(tmp_path, [[canvas_items(4)], [second]])).model_copy(
            update={"max_bad_share": 1.0}
        )
    )
    with stream.batches(0, 1) as batches:
        batch = next(batches)
    assert batch.canvases is not None
    assert "market/train/00001" not in batch.canvases.keys
    assert "do not show the same persons" in stream.ledger.recent[0].reason
