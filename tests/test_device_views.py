"""Mode device: what the CPU leaves to be rendered is rendered alike, however it is batched."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.batch import FILL_RGB, Images, Use
from pipeline.prove import prove_resume
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import Renderer, TaskName
from pipeline.samples import Sample
from pipeline.settings import MixtureEntry, StreamConfig
from tests.pictures import psnr, render_batch, sample, textured
from tests.shardset import simple_set

VIEW = Size(120, 160)
HEAVY: dict[str, Any] = {"jitter": 1, "blur": 1, "erase": 1, "match_height": 4}


def samples(count: int, task: TaskName = "detection") -> list[tuple[Sample, Sample]]:
    stored = [
        sample(
            textured(180 + 20 * number, 260, number),
            [(30.0 + n, 20, 80, 160) for n in range(number % 3)],
            task=task,
            lossless=False,
        )
        for number in range(count)
    ]
    return [(one, one) for one in stored]


def pixels(images: Images) -> list[torch.Tensor]:
    return [view.pixels for view in images.to("cpu").views]


@pytest.mark.parametrize("task", ["detection", "reid"])
def test_views_do_not_depend_on_the_batch(task: TaskName) -> None:
    """Nor on what the buffers held before."""
    config = AugmentConfig(mode="device", **HEAVY)
    stored = samples(4, task)
    whole = pixels(render_batch(stored, VIEW, config, task))
    first = pixels(render_batch(stored[:2], VIEW, config, task, left_over=0))
    second = pixels(render_batch(stored[2:], VIEW, config, task, first_seed=2, left_over=255))
    for ours, *theirs in zip(whole, first, second, strict=True):
        assert torch.equal(ours, torch.cat(theirs))


@pytest.mark.parametrize("task", ["detection", "reid"])
@pytest.mark.parametrize(
    "settings", [{}, HEAVY, HEAVY | {"grey": 1}], ids=["default", "all", "grey"]
)
def test_views_are_those_of_fast(settings: dict[str, Any], task: TaskName) -> None:
    """But for a second bilinear step, from a base that the other view may have wanted larger."""
    fast, device = (
        render_batch(samples(6, task), VIEW, AugmentConfig(mode=mode, **settings), task).to("cpu")  # type: ignore[arg-type]
        for mode in ("fast", "device")
    )
    for ours, theirs in zip(device.views, fast.views, strict=True):
        assert ours.pixels.dtype == torch.uint8
        assert ours.pixels.is_contiguous()
        for one, other in zip(ours.pixels.numpy(), theirs.pixels.numpy(), strict=True):
            assert psnr(one, other) > 36


def test_one_to_one_is_the_image_itself() -> None:
    """Without scale, colour and blur nothing is lost: every pixel is sampled at its centre."""
    image = textured(120, 160, 3)
    stored = sample(image, [])
    config = AugmentConfig(mode="device", scene_scale=(1, 1), jitter=0, grey=0, blur=0)
    for seed in range(6):
        for view in pixels(render_batch([(stored, stored)], VIEW, config, first_seed=seed)):
            seen = view[0].numpy()
            assert (seen == image).all() or (seen == image[:, ::-1]).all()


def test_what_is_erased_and_what_is_padding_is_fill() -> None:
    stored = sample(textured(120, 160, 3), [(20, 10, 100, 110), (60, 30, 140, 90)])
    config = AugmentConfig(
        mode="device",
        scene_scale=(0.5, 0.5),
        jitter=0,
        grey=0,
        blur=0,
        erase=1,
        erase_area=(0.4, 0.4),
    )
    fill = torch.tensor(FILL_RGB)
    fast = render_batch([(stored, stored)], VIEW, config.model_copy(update={"mode": "fast"}))
    device = render_batch([(stored, stored)], VIEW, config).to("cpu")
    for ours, theirs in zip(device.views, fast.views, strict=True):
        assert (ours.use == Use.MATCH).all()
        filled = (ours.pixels == fill).all(-1)
        assert torch.equal(filled, (theirs.pixels == fill).all(-1))
        assert filled[0, :60, :80].any()
        assert filled[0, 60:].all()


def test_a_stream_of_it_resumes_to_the_pixel_on_other_ranks(tmp_path: Path) -> None:
    url = simple_set(tmp_path, "detection", shards=2, per_shard=6)
    config = StreamConfig(
        scenes=(MixtureEntry(shards=url, weight=1),),
        scene_batch=4,
        scene_size=(48, 64),
        views=AugmentConfig(mode="device"),
    )
    assert prove_resume(config, range(4), pixels=True).difference is None


def test_until_it_is_moved_a_batch_has_all_but_pixels() -> None:
    images = render_batch(samples(3), VIEW, AugmentConfig(mode="device"))
    assert images.unrendered is not None
    moved = images.to("cpu")
    assert moved.unrendered is None
    assert moved.to("cpu").views[0].pixels is moved.views[0].pixels
    for before, after in zip(images.views, moved.views, strict=True):
        assert before.pixels.shape == (0, *VIEW, 3)
        assert after.pixels.shape == (3, *VIEW, 3)
        assert torch.equal(before.boxes, after.boxes)
        assert torch.equal(before.use, after.use)
        assert torch.equal(before.valid, after.valid)


@pytest.mark.parametrize(
    ("task", "settings", "buffers"),
    [
        ("detection", {"scene_scale": (0.5, 2.0)}, [Size(240, 320)]),
        ("detection", {"scene_scale": (0.5, 0.8), "two_variants": True}, [VIEW]),
        ("reid", {"canvas_side": (0.5, 1.0)}, [Size(240, 320)]),
        ("reid", {"canvas_side": (0.5, 1.0), "two_variants": True}, [VIEW, VIEW]),
    ],
)
def test_a_base_has_room_for_all_that_views_can_show(
    task: TaskName, settings: dict[str, Any], buffers: list[Size]
) -> None:
    config = AugmentConfig(mode="device", **settings)
    assert list(Renderer(task, VIEW, config).buffers) == buffers
