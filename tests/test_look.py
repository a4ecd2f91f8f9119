"""`pipeline look` and `at --out`: pages that show batches as the trainer gets them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.batch import Use
from pipeline.pages import look
from pipeline.pages.look import Fate, Gallery, ShownPerson
from pipeline.settings import MixtureEntry, StreamConfig
from pipeline.stream import Stream
from tests.shardset import canvas_items, scene_items, write_shard_set


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("look")
    scenes = scene_items(8)
    scenes[3] = replace(scenes[3], image=scenes[3].image[:900])
    crowd = write_shard_set(root / "crowd", [[scenes]])
    market = write_shard_set(root / "market", [[canvas_items(8)]])
    file = root / "run.yaml"
    file.write_text(
        f"""
stream:
  scenes: [{{shards: {crowd}, weight: 1}}]
  canvases: [{{shards: {market}, weight: 1}}]
  scene_batch: 4
  canvas_batch: 4
  scene_size: [48, 64]
  canvas_size: [48, 32]
  views: {{match_height: 8}}
"""
    )
    return file


def test_the_page_shows_every_image_of_the_batches_with_its_persons(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    main(["look", "--config", str(config_file), "--steps", "2", "--out", str(out)])
    assert "wrote" in capsys.readouterr().out
    page = out.read_text()
    for number in range(8):
        assert f"market/train/{number:05d}" in page
        assert (f"crowd/train/{number:05d}, view 1" in page) == (number != 3)
    assert page.count("data:image/jpeg;base64,") == 2 * 16
    assert "train:0003 (row 3)" in page  # whom a label means
    assert "Could not be used" in page
    assert "damaged JPEG" in page
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", page)  # it needs no network


def test_pictures_are_bounded_and_numbers_are_of_all(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    main(["look", "--config", str(config_file), "--images", "1", "--out", str(out)])
    page = out.read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "Of all 8 images" in page
    monkeypatch.setattr(look, "MOST_PAGE_BYTES", 1)
    main(["look", "--config", str(config_file), "--out", str(out)])
    assert out.read_text().count("data:image/jpeg;base64,") == 2


def test_names_are_escaped(tmp_path: Path) -> None:
    url = write_shard_set(tmp_path / "<b>set", [[canvas_items(4)]])
    file = tmp_path / "<i>run.yaml"
    file.write_text(f"stream: {{canvases: [{{shards: {url}, weight: 1}}], canvas_batch: 2}}")
    main(["look", "--config", str(file), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "&lt;i&gt;run.yaml" in page
    assert "<i>run" not in page


def test_at_says_what_replaces_an_unusable_sample(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Stream.open(
        StreamConfig(
            scenes=(MixtureEntry(shards=str(config_file.parent / "crowd"), weight=1),),
            scene_batch=4,
        )
    )
    position = next(
        position
        for step in range(2)
        for position, key in stream.ids(step)["detection"]
        if key == "crowd/train/00003"
    )
    out = tmp_path / "at.html"
    asked = ["--task", "scenes", "--position", str(position), "--out", str(out)]
    main(["at", "--config", str(config_file), *asked])
    printed = capsys.readouterr().out
    assert "no, crowd/train/00003 could not be used" in printed
    assert re.search(r"unusable +crowd/train/00003, damaged JPEG.*000000\.tar at byte", printed)
    assert "As the trainer gets it" in out.read_text()
    assert "canvases" not in printed


@pytest.mark.parametrize(
    ("uses", "row", "fate"),
    [
        ((Use.MATCH, Use.MATCH), -1, Fate.CONTRAST),
        ((Use.MATCH, Use.MATCH), 4, Fate.IDENTITY),
        ((Use.ABSENT, Use.MATCH), -1, Fate.SINGLE),
        ((Use.DETECT, Use.IGNORE), -1, Fate.DETECT),
        ((Use.ABSENT, Use.ABSENT), 4, Fate.ABSENT),
    ],
)
def test_fates(uses: tuple[Use, Use], row: int, fate: Fate) -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    assert ShownPerson(0, row, "", uses, (box, box)).fate is fate


def test_persons_are_those_of_the_batch(config_file: Path) -> None:
    entry = MixtureEntry(shards=str(config_file.parent / "market"), weight=1)
    stream = Stream.open(StreamConfig(canvases=(entry,), canvas_batch=4))
    gallery = Gallery(stream, images_per_step=0)
    gallery.gather(1, 1)
    with stream.batches(1, 2) as batches:
        images = next(batches).canvases
    assert images is not None
    assert [image.key for image in gallery.images] == list(images.keys)
    boxes = [person.boxes[1] for image in gallery.images for person in image.persons]
    assert boxes == [tuple(box) for box in images.views[1].boxes.tolist()]
    assert all(image.views is None for image in gallery.images)
