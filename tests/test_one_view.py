"""views.number: a stream of one view delivers the first of two, and a step does without pairs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.__main__ import main
from pipeline.batch import Images
from pipeline.prove import prove_resume
from pipeline.rendering.augment import AugmentConfig
from pipeline.rendering.geometry import Size
from pipeline.rendering.renderer import TaskName
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stream import Stream
from tests.batches import first_views, hybrid_batch
from tests.models import tiny_model
from tests.pictures import render_batch, sample, textured
from tests.shardset import simple_set
from training.run_config import RunConfig

MODES = ("exact", "fast", "reference", "device")
VIEW = Size(120, 160)
HEAVY: dict[str, Any] = {"scene_scale": (0.5, 3), "canvas_side": (0.2, 1), "match_height": 4}
"""Windows of such sizes that one view may want a finer decode than the other."""


def assert_first_views(one: Images | None, two: Images | None) -> None:
    assert one is not None and two is not None
    assert (len(one.views), len(two.views)) == (1, 2)
    assert one.keys == two.keys
    for name in ("pixels", "valid", "boxes", "use"):
        assert torch.equal(getattr(one.views[0], name), getattr(two.views[0], name)), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["detection", "reid"])
def test_it_is_the_first_of_two_to_the_bit(mode: Any, task: TaskName) -> None:
    box = (300.0, 200, 360, 330)
    stored = sample(textured(600, 800, 1), [box], task=task, lossless=False)
    one, two = (
        render_batch(
            [(stored, stored)] * 12,
            VIEW,
            AugmentConfig(mode=mode, number=number, **HEAVY),  # type: ignore[arg-type]
            task,
        )
        for number in (1, 2)
    )
    assert_first_views(one.to("cpu"), two.to("cpu"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StreamConfig:
    root = tmp_path_factory.mktemp("sets")
    crowd = simple_set(root / "crowd", "detection", shards=2, per_shard=6)
    msmt = simple_set(root / "msmt", "reid", shards=2, per_shard=6, dataset="msmt")
    return StreamConfig(
        scenes=(MixtureEntry(shards=crowd, weight=1),),
        canvases=(MixtureEntry(shards=msmt, weight=1),),
        scene_batch=4,
        canvas_batch=4,
        scene_size=(48, 64),
        canvas_size=(48, 32),
    )


def seen(config: StreamConfig, **views: Any) -> StreamConfig:
    return config.model_copy(update={"views": AugmentConfig(**views)})


@pytest.mark.parametrize("mode", ["exact", "device"])
def test_a_stream_of_it_is_the_same_samples_and_resumes(config: StreamConfig, mode: str) -> None:
    one, two = (Stream.open(seen(config, mode=mode, number=number)) for number in (1, 2))
    with one.batches(0, 3) as ours, two.batches(0, 3) as theirs:
        for first, both in zip(ours, theirs, strict=True):
            first, both = first.to("cpu"), both.to("cpu")
            assert_first_views(first.scenes, both.scenes)
            assert_first_views(first.canvases, both.canvases)
    proof = prove_resume(seen(config, mode=mode, number=1), range(4), pixels=True)
    assert proof.difference is None


def test_the_digest_of_two_views_is_what_it_was(config: StreamConfig) -> None:
    one, two = (Stream.open(seen(config, number=number)) for number in (1, 2))
    assert "number" not in two.definition["views"]
    assert one.definition["views"] == two.definition["views"] | {"number": 1}
    assert one.digest != two.digest


def test_what_wants_two_views_is_refused() -> None:
    with pytest.raises(ValidationError, match="two_variants"):
        AugmentConfig(number=1, two_variants=True)
    run: dict[str, Any] = {"run": "r", "steps": 1, "stream": {"views": {"number": 1}}}
    with pytest.raises(ValidationError, match=r"set `hybrid\.weights\.similarity: 0`"):
        RunConfig(**run, hybrid={})  # type: ignore[arg-type]
    RunConfig(**run, hybrid={"weights": {"similarity": 0}})  # type: ignore[arg-type]


def test_a_step_is_a_mean_over_half_as_many_and_has_no_pairs() -> None:
    model, both = tiny_model(), hybrid_batch()
    batch = first_views(both)
    counts, doubled = model.denominators([batch]), model.denominators([both])
    paired = model.DENOMINATORS.index("paired_images")
    assert doubled[paired] > 0
    assert counts[paired] == 0
    counts[paired] = doubled[paired] / 2
    assert torch.equal(counts, doubled / 2)

    number = model.denominators([batch])
    model.update_tables([model(batch, number, step=4).rows])
    output = model(batch, number, step=5)
    output.total.backward()
    assert output.losses["similarity"] == 0
    assert all(torch.isfinite(loss) for loss in output.losses.values())
    assert output.losses["oim"] > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert not any(p.grad is not None and p.grad.any() for p in model.predictor.parameters())
    assert sorted(output.rows.identity.tolist()) == [-1] * 9 + [0, 0, 1, 1, 2]


def test_its_page_shows_one_picture_of_an_image(config: StreamConfig, tmp_path: Path) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "page.html"
    stream = config.model_dump_json(include={"scenes", "canvases", "scene_batch", "canvas_batch"})
    file.write_text(f"stream: {stream}")
    main(["look", "--config", str(file), "--set", "stream.views.number=1", "--out", str(out)])
    page = out.read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "each in one view" in page
    assert "view 2" not in page
