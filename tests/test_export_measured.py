"""The card's numbers: those of evaluations of the very weights that are exported, and of no others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from searchset import write_run, write_search_set
from test_inference import trained_model

from launch import evaluate, export

Results = dict[str, object]
HEADING = "## What was measured"


@pytest.fixture(scope="module")
def evaluated(miniature: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its evaluation in RUN/prw/test."""
    root = tmp_path_factory.mktemp("measured")
    write_search_set(miniature[0], "prw", root / "prw")
    run = write_run(root, trained_model())
    arguments = ["--weights", run, "--data", root / "prw", "--out", run / "prw" / "test"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evaluate.py", *map(str, arguments), "--set", "size=[48, 80]"])
        patch.setenv("DS_ACCELERATOR", "cpu")
        evaluate.main()
    return run


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Exports, and returns what the card says."""

    def written(run: Path, *arguments: str) -> str:
        out = tmp_path / "weights"
        monkeypatch.setattr("sys.argv", ["export.py", str(run), "--out", str(out), *arguments])
        export.main()
        return out.with_suffix(".md").read_text()

    return written


def record(run: Path) -> Results:
    return json.loads((run / "prw/test/results.json").read_text())


@pytest.mark.parametrize("target", ["person_search", "torchvision"])
def test_the_card_has_the_numbers_of_these_weights_and_what_limits_them(
    evaluated: Path, target: str, card: Callable[..., str]
) -> None:
    found = record(evaluated)
    one = found["search"]["PRW"]
    alone = one["annotated_boxes"]
    shares = (one["mAP"], one["top1"], alone["mAP"], alone["top1"], found["detection"]["all"]["ap"])
    cells = [f"{100 * share:.2f}" for share in shares]
    row = ["prw/test", "PRW", "48 x 80", *cells, "`prw/test/results.json`"]
    text = card(evaluated, "--target", target)
    assert f"| {' | '.join(row)} |" in text
    assert "Of `prw/test/results.json`: this is not the release as published: 14 images" in text
    assert "own NAE model with all its heads" in text
    unknown = text.split("## What is not known")[1]
    wanted = {
        "person_search": "How well they search on other data, or with other settings, than above",
        "torchvision": "Whether torchvision gains from these weights",
    }
    assert wanted[target] in unknown


def test_the_card_has_no_numbers_of_re_estimated_statistics(
    evaluated: Path, card: Callable[..., str]
) -> None:
    text = card(evaluated, "--target", "person_search", "--re-estimate", "2")
    assert HEADING not in text
    assert "How well they search: `launch/evaluate.py --weights` measures it" in text


def other_weights(found: Results) -> str:
    return json.dumps({**found, "weights": {"sha256": "0" * 64}})


def without_numbers(found: Results) -> str:
    return json.dumps({**found, "search": {"PRW": {**found["search"]["PRW"], "mAP": "none"}}})


def without_images(found: Results) -> str:
    return json.dumps({key: value for key, value in found.items() if key != "images"})


@pytest.mark.parametrize(
    ("content", "unreadable"),
    [
        (other_weights, False),
        (without_numbers, True),
        (without_images, True),
        (lambda found: json.dumps(found)[:-9], True),
        (lambda found: "[]", True),
    ],
)
def test_other_weights_and_damaged_records_add_nothing_and_stop_nothing(
    evaluated: Path,
    content: Callable[[Results], str],
    unreadable: bool,
    card: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run(tmp_path, trained_model())
    file = run / "prw" / "results.json"
    file.parent.mkdir()
    file.write_text(json.dumps(record(evaluated)))
    assert HEADING in card(run), "the same weights, or nothing is compared"
    file.write_text(content(record(evaluated)))
    assert HEADING not in card(run)
    assert (
        f"note: {file} cannot be read as an evaluation" in capsys.readouterr().out
    ) == unreadable
