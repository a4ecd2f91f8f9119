"""launch/evaluate.py: the numbers of a whole benchmark, on ranks, through kills, past damaged images."""

import json
import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from object_store import s3_environment, s3_server
from ranks import launch, ranks
from searchset import write_run, write_search_set
from sklearn.metrics import average_precision_score
from test_evaluation import literal_iou
from test_inference import trained_model

from launch import evaluate
from launch.evaluation.meeting import meet
from pipeline.errors import UserError, run_command
from pipeline.samples import SampleReader
from pipeline.shards import ShardSet
from training.evaluation.detections import (
    EvaluationConfig,
    Gathered,
    Plan,
    gather,
    make_plan,
)
from training.evaluation.scenes import decode_scene, find_people
from training.evaluation.weights import load_weights
from training.model.inference import Finder, InferenceConfig

CHUNK = 2
WIDTH = 256


@dataclass(frozen=True)
class Evaluate:
    """The script with these arguments, in a process of its own."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        sys.argv = ["evaluate.py", *self.arguments]
        run_command(evaluate.main)


@dataclass(frozen=True)
class Setup:
    run: Path
    data: Path
    root: Path

    def arguments(self, out: Path, *more: str) -> tuple[str, ...]:
        named = ("--weights", str(self.run), "--data", str(self.data), "--out", str(out))
        return (*named, "--set", f"chunk={CHUNK}", "--across-cameras", *more)


@pytest.fixture(scope="module")
def setup(miniature: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = tmp_path_factory.mktemp("evaluate")
    write_search_set(miniature[0], "prw", root / "prw", shard_bytes=60_000)
    # so many boxes all over the image that some are around people
    model = trained_model(
        anchor_sizes=(12, 16, 24), nms_iou=0.9, proposals=150, proposals_before_nms=2000
    )
    with torch.no_grad():
        model.box_regressor[1].weight.zero_()
    return Setup(write_run(root, model), root / "prw", root)


@pytest.fixture(scope="module")
def out(setup: Setup) -> Path:
    """Of one rank that was left alone."""
    folder = setup.root / "out"
    launch(1, Evaluate(setup.arguments(folder)), setup.root / "one")
    return folder


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def written(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_two_ranks_write_what_one_writes(setup: Setup, out: Path, tmp_path: Path) -> None:
    launch(2, Evaluate(setup.arguments(tmp_path / "out")), tmp_path / "ranks")
    assert written(tmp_path / "out") == written(out)


@dataclass(frozen=True)
class Differing:
    """Ranks that do not load the same weights, as when a checkpoint is written while they start."""

    first: Evaluate
    second: Evaluate

    def __call__(self) -> None:
        (self.second if os.environ["RANK"] == "1" else self.first)()


def test_ranks_that_loaded_other_weights_are_named(setup: Setup, tmp_path: Path) -> None:
    other = Setup(write_run(tmp_path, trained_model()), setup.data, tmp_path)
    arguments = [one.arguments(tmp_path / "out") for one in (setup, other)]
    with ranks(2, Differing(*map(Evaluate, arguments)), tmp_path / "ranks") as launched:
        assert launched.wait()[0] == 2
        said = launched.output(0)
    assert re.search(r"rank 1 would evaluate \w+, with run at step 7, and rank 0 ", said)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_ranks_meet_past_what_killed_ones_left(tmp_path: Path) -> None:
    """A leader that had greeted, a follower that had answered it, and one of a larger launch."""
    folder = tmp_path / "meeting"
    folder.mkdir()
    old = {"0": ("a", "old", ["b", "c"]), "1-b": ("b", "old", ["a"]), "7-c": ("c", "old", ["a"])}
    for rank, (name, says, to) in old.items():
        word = json.dumps({"name": name, "says": says, "to": to})
        (folder / f"{rank}.json").write_text(word)
    with ThreadPoolExecutor(3) as pool:
        followers = [pool.submit(meet, folder, rank, 3, f"new {rank}") for rank in (1, 2)]
        time.sleep(0.5)
        assert not any(one.done() for one in followers)
        leader = meet(folder, 0, 3, "new 0")
        assert leader.said == {0: "new 0", 1: "new 1", 2: "new 2"}
        assert [one.result().said for one in followers] == [
            {0: "new 0", 1: "new 1"},
            {0: "new 0", 2: "new 2"},
        ]
    leader.close()
    assert not folder.exists()


def test_a_rank_is_let_in_after_an_orphan_of_the_same_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.evaluation.meeting.SPEAK_EVERY_S", 0.1)
    folder = tmp_path / "meeting"
    with ThreadPoolExecutor(2) as pool:
        orphan = pool.submit(meet, folder, 1, 2, "before")
        time.sleep(0.5)
        assert (
            f"rank 1 waits for rank 0 to start and to let it in, in {folder}"
            in capsys.readouterr().out
        )
        leader = meet(folder, 0, 2, "now")
        assert leader.said == {0: "now", 1: "before"}
        assert orphan.result().said == {0: "now", 1: "before"}
        late = pool.submit(meet, folder, 1, 2, "now")
        while not late.done():
            leader.greet()
            time.sleep(0.05)
        assert late.result().said == {0: "now", 1: "now"}
    leader.close()
    assert not folder.exists()


def test_a_killed_evaluation_goes_on_with_other_ranks(
    setup: Setup, out: Path, tmp_path: Path
) -> None:
    arguments, folder = setup.arguments(tmp_path / "out"), tmp_path / "out/detections"
    whole = len(list((out / "detections").rglob("*.parquet")))
    with ranks(1, Evaluate(arguments), tmp_path / "killed") as launched:
        while not (before := list(folder.rglob("[0-9]*.parquet"))):
            assert launched.processes[0].is_alive(), launched.output()
            time.sleep(0.001)
        os.kill(launched.processes[0].pid or 0, signal.SIGKILL)
    times = {path: path.stat().st_mtime_ns for path in before}
    assert 0 < len(times) < whole
    before[0].with_name(".000099.parquet.4711").write_bytes(b"of a writer that was killed")
    launch(2, Evaluate(arguments), tmp_path / "again")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert written(tmp_path / "out") == written(out)  # also no temporary file is left


def gathered(setup: Setup, out: Path) -> Gathered:
    (folder,) = (out / "detections").iterdir()
    slots = SampleReader(ShardSet(str(setup.data))).slots
    places = tuple((s, n) for s, k in enumerate(slots) for n in range(k))
    return gather(Plan(places, CHUNK, folder), WIDTH)


Answers = list[tuple[list[float], float, np.ndarray]]
"""Box, score and embedding of whoever is searched in an image."""


def detected(found: Gathered) -> list[Answers]:
    d = found.detections
    rows = [range(*d.first[image : image + 2]) for image in range(len(found.keys))]
    return [
        [(d.boxes[r].tolist(), d.scores[r], d.embeddings[r]) for r in some if d.scores[r] >= 0.5]
        for some in rows
    ]


def annotated(found: Gathered, people: list[list[list[int]]]) -> list[Answers]:
    """Every annotated box, as if it had surely been found."""
    return [
        [(list(map(float, box)), 1.0, vector) for box, vector in zip(boxes, known)]
        for boxes, known in zip(people, found.known)
    ]


def test_the_numbers_are_the_protocol_in_loops(
    setup: Setup, out: Path, miniature: tuple[Path, object]
) -> None:
    """From the stored embeddings and the release's own query list, image by image."""
    found = gathered(setup, out)
    ids, people = [], []
    for record in found.annotations:
        rows = np.array([person.extra["row"] for person in record.persons])
        boxes = np.clip(rows[:, 1:], 0, None)
        boxes[:, 2:] += boxes[:, :2]
        ids.append(rows[:, 0].astype(int).tolist())
        people.append(boxes.astype(int).tolist())
    lines = (miniature[0] / "prw/PRW-v16.04.20/query_info.txt").read_text().splitlines()
    for name, across in (("PRW", False), ("PRW, across cameras", True)):
        one = results(out)["search"][name]
        aps, first = literal(detected(found), found, ids, people, lines, across)
        assert one["queries"] == len(aps) > 10
        assert one["mAP"] == pytest.approx(np.mean(aps), rel=1e-6)
        assert one["top1"] == pytest.approx(np.mean(first))
        alone = one["annotated_boxes"]
        aps, first = literal(annotated(found, people), found, ids, people, lines, across)
        assert alone["mAP"] == pytest.approx(np.mean(aps), rel=1e-6)
        assert alone["top1"] == pytest.approx(np.mean(first))
        assert 0.002 < one["mAP"] < alone["mAP"] < 0.9  # or nothing was compared


def literal(
    searched: list[Answers],
    found: Gathered,
    ids: list[list[int]],
    people: list[list[list[int]]],
    lines: list[str],
    across: bool,
) -> tuple[list[float], list[bool]]:
    """AP of each query that has a place, and whether a right one comes first."""
    aps, first = [], []
    for line in lines:
        person, *_, frame = line.split()
        own = f"prw/test/{frame}"
        asked = embedding(found, own, sorted_queries(lines, frame).index(line))
        truth, similar, places, right = [], [], 0, 0
        for image, key in enumerate(found.keys):
            if key == own or (across and key[10] == own[10]):
                continue
            scores = [float(vector @ asked * score) for _, score, vector in searched[image]]
            labels = [0] * len(scores)
            if int(person) in ids[image]:
                places += 1
                box = people[image][ids[image].index(int(person))]
                w, h = box[2] - box[0], box[3] - box[1]
                least = min(0.5, w * h / ((w + 10) * (h + 10)))
                for place in np.argsort(-np.array(scores), kind="stable"):
                    if literal_iou(searched[image][place][0], box) >= least:
                        labels[place], right = 1, right + 1
                        break
            truth += labels
            similar += scores
        if places:
            ap = average_precision_score(truth, similar) * right / places if right else 0.0
            aps.append(ap)
            first.append(right > 0 and bool(truth[int(np.argmax(similar))]))
    return aps, first


def embedding(found: Gathered, key: str, place: int) -> np.ndarray:
    """Of an image's query box, which the miniature's PRW writes to other digits than its annotation."""
    image = found.keys.index(key)
    return found.known[image][len(found.annotations[image].persons) :][place]


def test_every_annotated_box_is_embedded_in_its_scene(setup: Setup, out: Path) -> None:
    """As it is if it is asked for alone."""
    found, weights = gathered(setup, out), load_weights(setup.run)
    reader = SampleReader(ShardSet(str(setup.data)))
    finder = Finder(weights.model, InferenceConfig())
    for slot in range(3):
        record, image, image_type = reader.read(0, 0, slot)
        place = found.keys.index(record.key)
        for person, vector in zip(record.persons, found.known[place]):
            box = np.array([person.box], np.float64)
            scene = decode_scene(image, image_type, weights.trained.scene_size, box)
            (alone,) = find_people(finder, [scene], 1)
            np.testing.assert_allclose(vector, alone.asked[0].numpy(), atol=1e-5)
        spread = np.linalg.norm(np.diff(found.known[place], axis=0), axis=1)
        assert spread.min() > 1e-3  # or any order would do


def test_annotated_boxes_rank_where_nobody_is_detected(
    setup: Setup,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = load_weights(setup.run).model
    with torch.no_grad():
        model.classifier.rescaler.bias.fill_(-50.0)
    shy = Setup(write_run(tmp_path, model), setup.data, tmp_path)
    run_here(monkeypatch, *shy.arguments(tmp_path / "out"))
    one, whole = results(tmp_path / "out")["search"]["PRW"], results(out)["search"]["PRW"]
    assert (one["mAP"], one["top1"], one["recall"]) == (0, 0, 0)
    assert one["annotated_boxes"] == whole["annotated_boxes"]
    said = capsys.readouterr().out
    assert re.search(r"^PRW +\d+ +0\.00", said, re.M)
    shown = f"{100 * whole['annotated_boxes']['mAP']:.2f}"
    assert re.search(rf"^  annotated boxes +{shown} ", said, re.M)
    assert "PRW, annotated boxes" in (tmp_path / "out/report.html").read_text()


def sorted_queries(lines: list[str], frame: str) -> list[str]:
    """Those in a frame, in the order of their boxes, as they are embedded."""
    inside = [line for line in lines if line.split()[-1] == frame]
    return sorted(inside, key=lambda line: [float(number) for number in line.split()[1:3]])


def test_results_say_what_was_evaluated(setup: Setup, out: Path) -> None:
    found = results(out)
    weights, data = found["weights"], found["data"]
    assert (weights["run"], weights["step"]) == ("run", 7)
    assert weights["sha256"] == load_weights(setup.run).trained.sha256
    assert (data["dataset"], data["split"], data["samples"]) == ("prw", "test", 14)
    assert {one["what"] for one in data["differs_from_published"]} >= {"images", "queries"}
    assert found["images"] == {"read": 14, "unreadable": []}
    assert found["detection"]["all"]["people"] == 70
    assert found["settings"]["size"] == [64, 96]
    rows = pq.read_table(out / "queries/PRW.parquet").to_pylist()
    assert len(rows) == found["search"]["PRW"]["queries"]
    assert np.mean([row["ap"] for row in rows]) == pytest.approx(found["search"]["PRW"]["mAP"])


def test_the_page_shows_queries_with_their_answers(out: Path) -> None:
    text = (out / "report.html").read_text()
    for expected in ("Worst queries", "Best queries", "PRW, across cameras", "is here", "Numbers"):
        assert expected in text
    assert re.search(r"right 0\.\d\d", text) and re.search(r"wrong 0\.\d\d", text)
    assert not re.search(r"https?://", text)


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", *arguments])
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    evaluate.main()


def test_convolutions_are_whole_fp32_ones(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not PyTorch's default, TF32, which counts on a GPU alone."""
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run_here(monkeypatch, *setup.arguments(tmp_path / "out"))
    assert not torch.backends.cudnn.allow_tf32
    environment = results(tmp_path / "out")["environment"]
    assert (environment["device"], environment["precision"]) == ("cpu", "fp32")


def test_what_cpus_and_gpus_find_is_not_mixed(setup: Setup, tmp_path: Path) -> None:
    reader, weights = SampleReader(ShardSet(str(setup.data))), load_weights(setup.run)
    cpu, first, second = (
        make_plan(reader, weights, EvaluationConfig(), {}, torch.device(name), tmp_path).folder
        for name in ("cpu", "cuda:0", "cuda:1")
    )
    assert cpu != first == second


def test_embeddings_are_those_of_whom_is_searched(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch, *setup.arguments(tmp_path / "out", "--set", "search_score=0.954"))
    whole, fewer = gathered(setup, out), gathered(setup, tmp_path / "out")
    searched = whole.found.scores >= 0.954
    assert 50 < searched.sum() < len(searched) - 50
    assert fewer.found.scores.tolist() == whole.found.scores.tolist()
    expected = whole.detections.where(searched)
    for name in ("first", "boxes", "scores", "embeddings"):
        np.testing.assert_array_equal(getattr(fewer.detections, name), getattr(expected, name))


def test_what_does_not_change_detections_uses_them_again(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    before = set(copy.rglob("detections/*/*"))
    run_here(monkeypatch, *setup.arguments(copy, "--set", "weigh=false", "--protocol", "PRW"))
    assert set(copy.rglob("detections/*/*")) == before
    assert results(copy)["search"] != results(out)["search"]
    run_here(monkeypatch, *setup.arguments(copy, "--set", "size=[48, 80]"))
    assert len(list((copy / "detections").iterdir())) == 2


def test_a_damaged_image_is_named_and_its_people_are_missed(
    setup: Setup,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody is found there, whoever is asked for there is not found, and nobody is left out of the count."""
    shutil.copytree(setup.data, tmp_path / "prw")
    shard_set = ShardSet(str(tmp_path / "prw"))
    key = shard_set.protocol("PRW")["key"][0].as_py()
    damage(shard_set, key)
    damaged = Setup(setup.run, tmp_path / "prw", tmp_path)
    run_here(monkeypatch, *damaged.arguments(tmp_path / "out"))
    found, whole = results(tmp_path / "out"), results(out)
    assert [one["key"] for one in found["images"]["unreadable"]] == [key]
    assert "damaged JPEG" in found["images"]["unreadable"][0]["reason"]
    one, other = found["search"]["PRW"], whole["search"]["PRW"]
    assert (one["queries"], one["places"]) == (other["queries"], other["places"])
    assert one["queries_unreadable"]
    rows = pq.read_table(tmp_path / "out/queries/PRW.parquet").to_pylist()
    assert one["annotated_boxes"]["mAP"] < other["annotated_boxes"]["mAP"]
    lost = [row for row in rows if row["query"] in one["queries_unreadable"]]
    assert [(row["ap"], row["rank"]) for row in lost] == [(0, 0)] * len(lost)
    assert found["detection"]["all"]["people"] == whole["detection"]["all"]["people"]
    assert f"1 images could not be read, {key}" in capsys.readouterr().out
    assert "Images that could not be read" in (tmp_path / "out/report.html").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("0*.parquet")}
    shutil.rmtree(tmp_path / "prw")
    shutil.copytree(setup.data, tmp_path / "prw")  # it had been the disk
    run_here(monkeypatch, *damaged.arguments(tmp_path / "out"))
    assert results(tmp_path / "out") == whole
    assert sum(path.stat().st_mtime_ns != then for path, then in kept.items()) == 1


def test_a_quarantined_image_is_named_and_its_people_are_said_not_to_count(
    setup: Setup,
    out: Path,
    miniature: tuple[Path, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(miniature[0] / "prw", tmp_path / "release/prw")
    key = ShardSet(str(setup.data)).protocol("PRW")["key"][0].as_py()
    (image,) = (tmp_path / "release").rglob(f"{key.split('/')[-1]}.jpg")
    image.write_bytes(image.read_bytes()[:200])
    write_search_set(tmp_path / "release", "prw", tmp_path / "prw", shard_bytes=60_000)
    run_here(monkeypatch, *Setup(setup.run, tmp_path / "prw", tmp_path).arguments(tmp_path / "out"))
    found, whole = results(tmp_path / "out"), results(out)
    (lost,) = found["images"]["unreadable"]
    assert (lost["key"], lost["annotated"], found["images"]["read"]) == (key, False, 13)
    assert re.match("quarantined when the shards were written: .*JPEG", lost["reason"])
    one, other = found["search"]["PRW"], whole["search"]["PRW"]
    assert one["places_from"] == "annotations"
    assert one["places"] < other["places"] and one["queries_unreadable"]
    assert found["detection"]["all"]["people"] < whole["detection"]["all"]["people"]
    said = capsys.readouterr().out
    assert f"1 images could not be read, {key}" in said
    assert "not count in detection, nor in PRW; PRW, across cameras, whose places are" in said
    assert key in (tmp_path / "out/report.html").read_text()
    (tmp_path / "prw/quarantine.parquet").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"quarantine\.parquet is not the list that manifest\.json names"
    ):
        run_here(monkeypatch, *Setup(setup.run, tmp_path / "prw", tmp_path).arguments(tmp_path))


def damage(shard_set: ShardSet, key: str) -> None:
    """Zeros in the middle of an image's coded bytes."""
    for shard in shard_set.shards():
        for row in shard_set.index(shard).to_pylist():
            if row["key"] == key:
                path = Path(shard_set.tar(shard).path)
                data = bytearray(path.read_bytes())
                start = row["image_offset"] + row["image_size"] // 2
                data[start : start + 400] = bytes(400)
                path.write_bytes(data)
                return
    raise AssertionError(key)


def test_a_set_in_a_store_gives_the_same_bytes(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(setup.data, tmp_path / "stores/bucket/prw")
    arguments = setup.arguments(tmp_path / "out", "--data", "s3://bucket/prw")
    with s3_server(tmp_path / "stores") as port, s3_environment(port):
        run_here(monkeypatch, *arguments)
    assert written(tmp_path / "out") == written(out)


def test_a_checkpoint_may_be_named(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same weights, so the same detections."""
    shutil.copytree(out, tmp_path / "out")
    checkpoint = setup.run / "checkpoints/step-00000007"
    named = Setup(checkpoint, setup.data, tmp_path)
    run_here(monkeypatch, *named.arguments(tmp_path / "out"))
    assert results(tmp_path / "out") == results(out)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"--weights": "/nowhere"}, "expected a run folder"),
        ({"--out": "/dev/null/out"}, "cannot make the folder /dev/null/out"),
        ({"--out": "/proc"}, "cannot make the folder /proc/|cannot write into /proc"),
        ({"--data": "/nowhere"}, "no shard set at /nowhere"),
        ({"--data": "DETECTION"}, "has no protocol: it holds crowd/train"),
        ({"--protocol": "TestG100"}, "has no protocol `TestG100`; it has PRW"),
        ({"--set": "batches=2"}, "did you mean `batch`"),
        ({"--set": "inference.nms_iou=0"}, "greater than 0"),
        ({"--set": "search_score=0.001"}, "must not be below `inference.min_score`"),
        ({"--set": "size=[0, 64]"}, "greater than 0"),
    ],
)
def test_what_cannot_be_evaluated(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, complaint: str
) -> None:
    named = {"--weights": str(setup.run), "--data": str(setup.data), "--out": str(tmp_path)}
    named |= {k: str(setup.root / "data") if v == "DETECTION" else v for k, v in changes.items()}
    with pytest.raises(UserError, match=complaint):
        run_here(monkeypatch, *(word for pair in named.items() for word in pair))


@pytest.mark.parametrize(
    ("taken", "complaint"),
    [
        ("detections", "cannot make the folder .*/detections: File exists"),
        ("queries", "cannot make the folder .*/queries: File exists"),
        ("results.json/", "results.json is a folder"),
        ("report.html/", "report.html is a folder"),
    ],
)
def test_what_lies_in_the_way_is_named_before_anything_is_computed(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str, complaint: str
) -> None:
    way = tmp_path / taken
    way.mkdir() if taken.endswith("/") else way.write_text("")
    with pytest.raises(UserError, match=complaint):
        run_here(monkeypatch, *setup.arguments(tmp_path))
    assert not list(tmp_path.rglob("*.parquet"))


def test_tables_of_other_protocols_do_not_stay(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be of other weights."""
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "queries/.PRW.parquet.4711").write_bytes(b"of a writer that was killed")
    (copy / ".gitignore").write_text("*")
    before = sorted(path.name for path in (copy / "queries").glob("[!.]*"))
    assert before == ["PRW-across-cameras.parquet", "PRW.parquet"]
    named = ("--weights", str(setup.run), "--data", str(setup.data), "--out", str(copy))
    run_here(monkeypatch, *named, "--set", f"chunk={CHUNK}")
    assert [path.name for path in (copy / "queries").iterdir()] == ["PRW.parquet"]
    assert (copy / ".gitignore").exists()


def test_a_damaged_file_of_detections_is_named(
    setup: Setup, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out, tmp_path / "out")
    file = sorted((tmp_path / "out").rglob("detections/*/*.parquet"))[1]
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{file.name} cannot be read"):
        run_here(monkeypatch, *setup.arguments(tmp_path / "out"))
