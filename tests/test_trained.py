"""One file of weights: our own commands take it as they take the run that it was exported from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import tiny_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from searchset import model_of_known_norms, write_run
from test_start import beginning
from test_start_weights import begin_with

from launch import export
from launch.reporting.summary import in_short
from pipeline.config import dump_config
from pipeline.errors import UserError
from training.evaluation.weights import load_weights
from training.hybrid import HybridConfig
from training.model.person_search import PersonSearch
from training.model.weights import LoadedWeights
from training.run import load_run, open_trained, require_same_weights
from training.run_config import StartConfig


def export_run(run: Path, out: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    arguments = ["export.py", str(run), "--target", target, "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    export.main()
    return out.with_suffix(".safetensors")


@pytest.fixture(scope="module")
def model() -> PersonSearch:
    return model_of_known_norms()


@pytest.fixture
def file(model: PersonSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run that is gone."""
    run = write_run(tmp_path / "first", model)
    file = export_run(run, tmp_path / "weights", "person_search", monkeypatch)
    shutil.move(run, run.with_name("gone"))
    return file


def test_it_searches_as_its_run_did(model: PersonSearch, file: Path) -> None:
    from_file, from_run = load_weights(file), load_weights(file.parent / "first" / "gone")
    own = model.state_dict()
    for name, tensor in from_file.model.state_dict().items():
        assert torch.equal(tensor, from_run.model.state_dict()[name])
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, own[name])
    assert from_file.model.config == from_run.model.config
    said = from_file.trained
    assert (said.name, said.step, said.scene_size) == ("run", 7, (64, 96))
    assert {path.suffix for path in file.parent.glob("weights.*")} == {
        ".safetensors",
        ".json",
        ".md",
    }


def test_a_run_begins_with_it_and_names_whose_data_it_was_trained_on(
    model: PersonSearch, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = beginning(file, "model")
    for name, tensor in search.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(tensor, model.state_dict()[name])
    second = file.parent / "second" / "run"
    begin_with(second, file, model)
    assert "from weights.safetensors, model" in in_short(load_run(second), [], [])
    export_run(second, file.parent / "again", "person_search", monkeypatch)
    card = (file.parent / "again.md").read_text()
    assert f"It began with weights of run ({file}, model, sha256 " in card
    data = next(iter(json.loads((second / "stream.json").read_text())["manifests"]))
    assert card.count(f"| {data} | 2 | generated |") == 2


def test_other_settings_than_it_was_trained_for_are_named(file: Path) -> None:
    tree = tiny_config().model_dump()
    tree["model"]["detector"]["roi_size"] = (5, 5)
    with pytest.raises(UserError, match=r"weights.safetensors was trained with .*roi_size"):
        beginning(file, "model", HybridConfig.model_validate(tree))


def test_a_file_is_no_run_to_export_and_the_one_it_came_from_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = "named run, and .* step 7.*export.py RUN/checkpoints/step-00000007 --target nae"
    other = file.with_suffix(".json")
    for named, said in (
        (file, again),
        (other, f"no trained weights in {other}: expected a run folder"),
    ):
        with pytest.raises(UserError, match=said):
            export_run(named, file.parent / "again", "nae", monkeypatch)
    assert not list(file.parent.glob("again*"))


def test_files_for_other_code_and_damaged_ones_are_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = file.parent / "first" / "gone"
    theirs = export_run(run, tmp_path / "theirs", "torchvision", monkeypatch)
    with pytest.raises(UserError, match=r"not which model they are of.*--target person_search"):
        open_trained(theirs)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    for wrong in (cut, tmp_path / "weights.md"):
        with pytest.raises(UserError, match=f"{wrong} cannot be read as weights"):
            open_trained(wrong)
    with safe_open(file, framework="pt") as opened:
        said = json.loads(opened.metadata()["person_search"])
    later, changed = tmp_path / "later.safetensors", tmp_path / "changed.safetensors"
    tensors = load_file(file)
    save_file(tensors, later, {"person_search": json.dumps({**said, "version": 2})})
    with pytest.raises(UserError, match="not written by this version of the code: version"):
        open_trained(later)
    tensors["backbone.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(tensors, changed, {"person_search": json.dumps(said)})
    with pytest.raises(UserError, match=r"changed.safetensors is damaged"):
        load_weights(changed)


def test_an_older_pth_does_not_stay_beside_it(
    model: PersonSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, model)
    for target in ("torchvision", "person_search"):
        export_run(run, tmp_path / "weights", target, monkeypatch)
    assert not (tmp_path / "weights.pth").exists()


def test_another_file_in_its_place_is_not_what_the_run_began_with(
    model: PersonSearch, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = file.parent / "second" / "run"
    begin_with(second, file, model)
    config = load_run(second).config.model_copy(
        update={"hybrid": tiny_config(), "start": StartConfig(weights=str(file))}
    )
    (second / "config.yaml").write_text(dump_config(config))
    load_run(second).first_model()
    other = write_run(file.parent / "other", PersonSearch(tiny_config().model, seed=1))
    export_run(other, file, "person_search", monkeypatch)
    with pytest.raises(UserError, match=r"is not what .* began with"):
        load_run(second).first_model()


def test_ranks_compare_what_files_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (LoadedWeights("/node/weights", sha * 32, 1, ()) for sha in ("a1", "b2"))
    device = torch.device("cpu")
    said: list[int] = []
    monkeypatch.setattr("training.run.same_on_all_ranks", lambda n, _: said.append(n) or True)
    for weights in (first, first, second, None):
        require_same_weights(weights, device)
    assert said[0] == said[1] and len(set(said)) == 3 and max(said) < 2**52
    monkeypatch.setattr("training.run.same_on_all_ranks", lambda n, _: False)
    with pytest.raises(UserError, match="rank 0 begins with /node/weights, others with other"):
        require_same_weights(first, device)
