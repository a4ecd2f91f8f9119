"""`python -m pipeline`: the proof of exact resumption, and what comes at a position."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from torch import Tensor

from pipeline import prove
from pipeline.__main__ import main
from pipeline.digest import SampleDigest
from pipeline.errors import UserError
from pipeline.order import Order, Place
from pipeline.prove import Seen, choose_layouts, first_difference, prove_resume
from pipeline.settings import StreamConfig
from pipeline.stream import Stream
from tests.shardset import simple_set


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    scenes = simple_set(root / "crowd", "detection", shards=3, per_shard=5)
    canvases = simple_set(root / "msmt", "reid", shards=3, per_shard=6)
    file = root / "run.yaml"
    file.write_text(
        f"""
stream:
  scenes: [{{shards: {scenes}, weight: 1}}]
  canvases: [{{shards: {canvases}, weight: 1}}]
  scene_batch: 4
  canvas_batch: 8
  scene_size: [48, 64]
  canvas_size: [48, 32]
optimiser: {{anything: else}}
"""
    )
    return file


def load(config_file: Path) -> StreamConfig:
    from pipeline.config import load_config

    return load_config(StreamConfig, config_file, section="stream")


@pytest.mark.parametrize("flags", [[], ["--pixels"]])
def test_the_proof_of_an_exact_stream(
    config_file: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["prove-resume", "--config", str(config_file), "--steps", "6", *flags])
    printed = capsys.readouterr().out
    assert "4 ranks x 1 micro-step x 3 threads up to step 2," in printed
    assert "2 ranks x 2 micro-steps x 1 thread from step 3 on" in printed
    assert "EXACT" in printed


def test_the_proof_fails_for_an_order_with_state(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stateful(self: Order, position: int) -> Place:
        calls[id(self)] = calls.get(id(self), 0) + 1
        return honest(self, calls[id(self)])

    calls: dict[int, int] = {}
    honest = Order.at
    monkeypatch.setattr(Order, "at", stateful)
    with pytest.raises(SystemExit) as stopped:
        main(["prove-resume", "--config", str(config_file), "--steps", "4"])
    assert stopped.value.code == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_the_digest_is_that_of_the_batches(config_file: Path) -> None:
    config = load(config_file)
    seen = SampleDigest()
    for rank in (0, 1):
        with Stream.open(config, rank, 2).batches(0, 4) as batches:
            for batch in batches:
                seen.add(batch)
    seen.absorb(seen.take())
    assert prove_resume(config, range(4)).samples_digest == seen.hex()


def test_the_proof_sees_whatever_a_batch_holds(config_file: Path) -> None:
    with Stream.open(load(config_file)).batches(0, 1) as batches:
        images = next(batches).scenes
    assert images is not None
    first, second = images.views
    proven = prove._fingerprints("scene", images)
    for name in ("position", "domain", "image", "person", "identity"):
        other = replace(images, **{name: _first_changed(getattr(images, name))})
        assert prove._fingerprints("scene", other) != proven, name
    for field in fields(second):
        view = replace(second, **{field.name: _first_changed(getattr(second, field.name))})
        other = replace(images, views=(first, view))
        assert prove._fingerprints("scene", other) != proven, field.name


def _first_changed(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] += 1
    return changed


def test_layouts_and_differences() -> None:
    assert choose_layouts(StreamConfig(scene_batch=12, canvas_batch=18)) == ((6, 1, 3), (3, 2, 1))
    assert choose_layouts(StreamConfig(scene_batch=7)) == ((7, 1, 3), (1, 1, 1))
    assert choose_layouts(StreamConfig(scene_batch=11)) == ((1, 1, 3), (1, 1, 1))
    assert choose_layouts(StreamConfig(scene_batch=9, threads=1)) == ((3, 1, 2), (1, 3, 1))
    a, b, c = (Seen("scene", number, "k") for number in range(3))
    assert first_difference([a, b], [a, b]) is None
    assert first_difference([a, b], [a, c]) == (b, c)
    assert first_difference([a, b], [a]) == (b, None)
    assert first_difference([a], [a, b]) == (None, b)
    assert prove.TASKS == ("scene", "canvas")


def test_at_names_the_sample(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["at", "--config", str(config_file), "--position", "9"])
    printed = capsys.readouterr().out
    ids = Stream.open(load(config_file)).ids(2)["detection"]
    assert dict(ids)[9] in printed
    assert "scenes     step 2, position 9" in printed
    assert "canvases   step 1, position 9" in printed


def test_commands_refuse_nonsense(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["at", "--config", str(config_file), "--position", "-1"])
    assert "'-1' is not a whole number from 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no folder"):
        main(["at", "--config", str(config_file), "--position", "1", "--out", "/nowhere/page.html"])
    with pytest.raises(UserError, match="at least 2"):
        main(["prove-resume", "--config", str(config_file), "--steps", "1"])
    with pytest.raises(UserError, match=r"threads=3: .* no effect; write it as stream\.key"):
        main(["prove-resume", "--config", str(config_file), "--set", "threads=3"])
    with pytest.raises(UserError, match="did you mean `lanes`"):
        main(["at", "--config", str(config_file), "--position", "1", "--set", "stream.lane=1"])
