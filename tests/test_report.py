"""The report: of a whole run, of one that has hardly begun, and whether its numbers are true."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_config, tiny_model
from shardset import canvas_items, scene_items, simple_set, write_shard_set

from launch import export, report
from launch.reporting.curves import Curves
from launch.reporting.data import open_inputs
from launch.reporting.training import tenth, trend_table
from pipeline.config import dump_config
from pipeline.errors import UserError
from pipeline.pages.sheet import sample_sheet, spread_samples
from pipeline.samples import SampleReader
from pipeline.select import SelectConfig, select
from pipeline.settings import MixtureEntry, SegmentConfig, StreamConfig
from pipeline.shards import QUARANTINED, ShardSet
from pipeline.stream import Stream
from sharding.datasets import ADAPTERS
from training.checkpoint import State
from training.export.card import TERMS
from training.features import domain_probe, embed_in_plane, image_features
from training.run import RunFolder, build_model
from training.run_config import RunConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = tmp_path_factory.mktemp("report")
    scenes = [
        simple_set(root / name, "detection", 2, 6, dataset=name) for name in ("crowd", "city")
    ]
    canvases = [simple_set(root / name, "reid", 2, 6, dataset=name) for name in ("mars", "duke")]
    stream = StreamConfig(
        scenes=tuple(MixtureEntry(shards=url, weight=1) for url in scenes),
        canvases=tuple(MixtureEntry(shards=url, weight=1) for url in canvases),
        scene_batch=2,
        canvas_batch=4,
        scene_size=(64, 96),
        canvas_size=(64, 48),
    )
    return RunConfig(run=str(root / "run"), steps=40, stream=stream, hybrid=tiny_config())


def metrics_line(step: int) -> dict[str, object]:
    losses = {"rpn_class": 1 / step, "oim": 2.0 * math.log1p(step), "domain_reid_image": 0.5}
    return {
        "step": step,
        "images": 6 * step,
        "total": 3.0 + 1 / step,
        "losses": losses,
        "weighted": losses,
        "statistics": {"active_rows": step, "lut_fill": 0.5, "domain_reid_accuracy": None},
        "lr": 0.1,
        "grad_norm": 1.0,
        "images_per_s": 5.0,
        "step_s_p50": 1.0,
        "step_s_p95": 2.0,
        "data_wait": 0.1,
    }


def make_run(config: RunConfig, folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.create(config, Stream.open(config.stream))
    return run


def train_a_little(config: RunConfig, run: RunFolder) -> None:
    lines = [json.dumps(metrics_line(step)) for step in range(1, 31)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 31, "lo')
    run.write_status(30, 40, 10.0, True, "step-00000030")
    stream = Stream.open(config.stream)
    model = build_model(config, stream.identities, stream.domains)
    state = State(step=30, images=180, stream_digest="", tables_digest="", sample_digest="")
    run.checkpoints(config.checkpoint).write(state, model.state_dict(), {})


def write_report(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["report.py", str(folder), *arguments])
    report.main()
    return (folder / "report.html").read_text()


def test_a_stopped_run_is_reported_and_said_to_be_unfinished(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(config, tmp_path / "run")
    train_a_little(config, run)
    bad = {"dataset": "crowd/train", "reason": "damaged JPEG", "key": "a", "position": 7}
    other = {**bad, "key": "b"}
    lines = [json.dumps(record) for record in (bad, other, bad)]  # step 7 was repeated
    (run.path / "ledger-00000.jsonl").write_text("\n".join([*lines, '{"dataset": "cro']))
    text = write_report(monkeypatch, run.path, "--samples", "6")
    assert "not finished (stopped): 30 of 40 steps" in text
    assert text.count("data:image/jpeg") == 4 * 12
    assert "region to ignore" in text
    assert '<td>damaged JPEG</td><td class="number">2</td>' in text
    assert "After: step 30" in text
    assert text.count("city (6)") == 2
    assert "Held-out accuracy" in text
    assert "guessing" in text
    assert "Nothing was exported yet" in text


def test_a_named_checkpoint_is_exported_and_the_report_shows_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(config, tmp_path / "run")
    train_a_little(config, run)
    monkeypatch.setattr("sys.argv", ["export.py", str(run.path / "checkpoints/step-00000030")])
    export.main()
    names = {path.name for path in (run.path / "export").iterdir()}
    assert names == {
        f"torchvision-resnet18{end}" for end in (".json", ".md", ".pth", ".safetensors")
    }
    card = (run.path / "export" / "torchvision-resnet18.md").read_text()
    assert card.count("| generated |") == 4, "every set's licence note"
    assert "30 of 40 steps" in card
    assert "| oim | 6.8680 |" in card
    text = write_report(monkeypatch, run.path, "--samples", "0")
    assert "torchvision-resnet18" in text
    out = tmp_path / "elsewhere" / "weights.pth"
    monkeypatch.setattr(
        "sys.argv", ["export.py", str(run.path), "--out", str(out), "--re-estimate", "3"]
    )
    export.main()
    assert out.exists()
    assert json.loads(out.with_suffix(".json").read_text())["statistics_from_scenes"] == 4
    assert "means over 4 scenes" in out.with_suffix(".md").read_text()


def test_the_card_names_sets_that_cannot_be_read_and_what_ecp_forbids(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(config, tmp_path / "run")
    train_a_little(config, run)
    stream = json.loads((run.path / "stream.json").read_text())
    stream["manifests"]["ecp/day_train"] = {"manifest": "gone", "generation": 0}
    stream["manifests"]["crowd/train"]["manifest"] = "of before"
    (run.path / "stream.json").write_text(json.dumps(stream))
    monkeypatch.setattr("sys.argv", ["export.py", str(run.path), "--out", str(tmp_path / "w.pth")])
    export.main()
    card = (tmp_path / "w.md").read_text()
    assert "| ecp/day_train |  | not known" in card
    assert "EuroCity Persons forbids commercial use" in card
    assert "generated (read later; the set has changed since)" in card
    assert card.count("| generated |") == 3


def with_sets(config: RunConfig, root: Path, step: int, *names: str) -> RunConfig:
    """Adds shard sets from a step on."""
    urls = {name: simple_set(root / name, "detection", 1, 2, dataset=name) for name in names}
    added = tuple(MixtureEntry(shards=url, weight=1) for url in urls.values())
    segments = (*config.stream.segments, SegmentConfig(from_step=step, scenes=added))
    stream = config.stream.model_copy(update={"segments": segments})
    return config.model_copy(update={"stream": stream})


def test_the_card_keeps_a_set_that_the_run_dropped_after_it_was_trained_on_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = with_sets(with_sets(config, tmp_path, 20, "ecp"), tmp_path, 26, "planned")
    run = make_run(before, tmp_path / "run")
    for step in (25, 28):
        run.create(config, Stream.open(config.stream), step)
        shutil.rmtree(tmp_path / "ecp", ignore_errors=True)
    train_a_little(config, run)
    monkeypatch.setattr("sys.argv", ["export.py", str(run.path), "--out", str(tmp_path / "w.pth")])
    export.main()
    card = (tmp_path / "w.md").read_text()
    assert "| ecp/train | 2 | generated |" in card and "EuroCity Persons forbids" in card
    assert "planned" not in card
    assert card.count("| generated |") == 5


def test_the_card_knows_the_terms_of_every_data_set_that_can_be_sharded() -> None:
    assert TERMS.keys() == ADAPTERS.keys()


def test_a_missing_or_damaged_checkpoint_is_not_exported(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(config, tmp_path / "run")
    train_a_little(config, run)
    monkeypatch.setattr("sys.argv", ["export.py", str(run.path / "checkpoints/step-00000031")])
    with pytest.raises(UserError, match="beside it are step-00000030"):
        export.main()
    (run.path / "checkpoints" / "step-00000030" / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr("sys.argv", ["export.py", str(run.path / "checkpoints/step-00000030")])
    with pytest.raises(UserError, match="not whole"):
        export.main()
    assert not (run.path / "export").exists()


def without_pre_training(config: RunConfig) -> RunConfig:
    tree = config.model_dump()
    tree["stream"] |= {"canvases": [], "canvas_batch": 0}
    tree["hybrid"]["weights"]["similarity"] = 0
    tree["hybrid"]["alignment"]["tasks"] = ()
    return RunConfig.model_validate(tree)


def test_fine_tuning_is_named_and_nothing_is_said_of_canvases_and_domain_losses(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_pre_training = ("Pre-training: ", "canvases", "Domain losses")
    for name, settings in (("pretrain", config), ("finetune", without_pre_training(config))):
        monkeypatch.setattr("sys.argv", [f"launch/{name}.py", "--config", "run.yaml"])
        run = make_run(settings, tmp_path / name)
        line = metrics_line(1)
        if name == "finetune":
            line["losses"] = {"oim": 1.0}
        (run.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        text = write_report(monkeypatch, run.path, "--samples", "0")
        assert ("Fine-tuning: finetune" in text) == (name == "finetune")
        for sentence in of_pre_training:
            assert (sentence in text) == (name == "pretrain")


def test_a_run_without_a_step_is_reported_too(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(config, tmp_path / "run")
    text = write_report(monkeypatch, run.path)
    assert "not finished (not started): 0 of 40 steps" in text
    assert "No step has been logged yet" in text
    assert "has no checkpoint yet" in text


def test_inputs_are_what_every_mixture_may_draw(config: RunConfig, tmp_path: Path) -> None:
    crowd, city = (entry.shards for entry in config.stream.scenes)
    half = str(tmp_path / "half.selection")
    select(ShardSet(city), SelectConfig(fraction=0.5)).write(half)
    chosen = MixtureEntry(shards=city, weight=3, selection=half)
    stays = MixtureEntry(shards=crowd, weight=1)
    later = SegmentConfig(from_step=1500, scenes=(stays, chosen))
    changes = {"scenes": (stays,), "canvases": (), "canvas_batch": 0, "segments": (later,)}
    whole, part = open_inputs(config.stream.model_copy(update=changes))
    assert (whole.url, whole.share, whole.samples) == (
        crowd,
        "100 % of 2, 25 % of 2 from step 1,500",
        12,
    )
    assert (part.url, part.share, part.samples) == (city, "75 % of 2 from step 1,500", 6)
    assert part.reader and len(list(spread_samples(part.reader, 12))) == 6


def test_a_shard_set_that_has_moved_away_costs_its_part_only(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = config.stream.model_copy(
        update={"scenes": (MixtureEntry(shards=str(tmp_path / "gone"), weight=1),)}
    )
    run = make_run(config, tmp_path / "run")
    moved = config.model_copy(update={"stream": stream})
    (run.path / "config.yaml").write_text(dump_config(moved))
    text = write_report(monkeypatch, run.path, "--samples", "0")
    assert "no shard set at" in text
    assert text.count("data:image/jpeg") == 2 * 12


def test_quarantined_samples_are_passed_over_and_samples_are_spread(tmp_path: Path) -> None:
    items = scene_items(20)
    bad = type(items[3])(items[3].annotation, items[3].image, run=3, status=QUARANTINED)
    url = write_shard_set(tmp_path / "set", [[[*items[:3], bad, *items[4:10]], items[10:]]])
    reader = SampleReader(ShardSet(url))
    keys = [annotation.key for annotation, _, _ in spread_samples(reader, 19)]
    assert keys == [i.annotation.key for i in items if i is not items[3]]
    few = [annotation.key for annotation, _, _ in spread_samples(reader, 2)]
    assert few == ["crowd/train/00005", "crowd/train/00015"]
    assert sample_sheet(reader, 50).count("<figure") == 19


def test_a_damaged_picture_does_not_stop_the_sheet(tmp_path: Path) -> None:
    items = canvas_items(4)
    broken = type(items[0])(items[1].annotation, items[1].image[:100], run=items[1].run)
    url = write_shard_set(tmp_path / "set", [[[items[0], broken, *items[2:]]]])
    assert sample_sheet(SampleReader(ShardSet(url)), 4).count("<figure") == 3


def test_the_trend_compares_the_second_with_the_last_tenth() -> None:
    values = np.arange(40.0)
    assert tenth(values, 1) == 5.5
    assert tenth(values, 9) == 37.5
    assert math.isnan(tenth(values[:9], 1))
    text = trend_table(Curves([metrics_line(step) for step in range(1, 31)]))  # type: ignore[list-item]
    rows = [row.split("<td") for row in text.split("<tr>")[2:]]
    verdicts = {
        row[1].split(">")[1].split("<")[0]: row[-1].split(">")[1].split("<")[0] for row in rows
    }
    assert verdicts == {
        "rpn_class": "falls",
        "oim": "no rule",
        "oim / log(1 + active rows)": "does not fall",
        "domain_reid_image": "no rule",
    }


def test_oim_is_divided_by_the_loss_of_guessing() -> None:
    lines = [metrics_line(step) for step in range(1, 4)]
    np.testing.assert_allclose(Curves(lines).oim_per_row(), 2.0)  # type: ignore[arg-type]


def test_the_probe_finds_separable_domains_and_only_those() -> None:
    rng = np.random.default_rng(0)
    domains = ["a"] * 60 + ["b"] * 60
    noise = rng.normal(size=(120, 16)).astype(np.float32)
    blind = domain_probe(noise, domains)
    assert blind is not None
    assert abs(blind.accuracy - 0.5) < 4 * blind.standard_error
    assert blind.chance == 0.5
    noise[:60, 3] += 8
    seeing = domain_probe(noise, domains)
    assert seeing is not None
    assert seeing.accuracy > 0.97
    assert domain_probe(noise[:60], ["a"] * 60) is None


def test_few_points_can_be_laid_out() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 3, 12):
        assert embed_in_plane(rng.normal(size=(count, 8)).astype(np.float32)).shape == (count, 2)


def test_features_are_means_over_the_image_alone() -> None:
    model = tiny_model().eval().search
    image = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    wide = image_features(model, [image], (64, 96), "scenes")
    with torch.no_grad():
        view = torch.full((1, 64, 96, 3), 0, dtype=torch.uint8)
        view[:] = torch.tensor([124, 116, 104], dtype=torch.uint8)
        view[0, :, :32] = torch.from_numpy(image)
        map_ = model.backbone(model.normalise(view))
    np.testing.assert_allclose(wide[0], map_[0, :, :4, :2].mean((1, 2)), rtol=1e-4, atol=1e-6)
    assert image_features(model, [], (64, 96), "scenes").shape == (0, model.trunk_channels)
