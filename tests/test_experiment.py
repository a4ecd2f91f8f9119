"""The experiment: what is run, in which order, what is kept of it, and what the tables make of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launch.experiment import claimed
from launch.experiments.jobs import Job, needed, run_jobs
from launch.experiments.numbers import Numbers
from launch.experiments.plan import Planner
from launch.experiments.records import Key, Records, step_seconds
from launch.experiments.results import compare, write_results
from launch.experiments.settings import CONFIGS, NOT_DECISIVE, ClaimConfig, Experiment
from pipeline.config import dump_config
from pipeline.errors import UserError
from pipeline.identities import Identities
from training.changes import is_free
from training.run_config import RunConfig

SLOTS = [{"SLOT": "0"}, {"SLOT": "1"}]
NUMBERS = {
    "top1": 0.5,
    "annotated_mAP": 0.6,
    "detection_ap": 0.7,
    "searched_recall": 0.8,
}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.read()


def script(folder: Path, name: str, code: str, *needs: str) -> Job:
    """A job that is done when its file is there; `code` may write it."""
    path = folder / name
    command = (
        sys.executable,
        "-c",
        f"from pathlib import Path\npath = Path({str(path)!r})\n{code}",
    )
    return Job(name, command, folder, path.exists, needs)


def writes(folder: Path, name: str, *needs: str) -> Job:
    return script(folder, name, "path.write_text('')", *needs)


def test_jobs_wait_for_what_they_need_and_run_side_by_side(tmp_path: Path) -> None:
    met = "while not Path('{}').exists(): pass\npath.write_text('')"
    jobs = [
        writes(tmp_path, "first"),
        script(tmp_path, "left", f"(path.parent / 'l').touch()\n{met.format('r')}", "first"),
        script(tmp_path, "right", f"(path.parent / 'r').touch()\n{met.format('l')}", "first"),
        script(tmp_path, "last", "assert Path('left').exists() and Path('right').exists(); path.touch()",
               "left", "right"),
    ]  # fmt: skip
    run_jobs(jobs, SLOTS)
    assert not needed(jobs)


def test_only_what_is_missing_is_done(tmp_path: Path) -> None:
    drawn, trained = writes(tmp_path, "drawn"), writes(tmp_path, "trained", "drawn")
    scored, other = writes(tmp_path, "scored", "trained"), writes(tmp_path, "other", "trained")
    jobs = [drawn, trained, scored, other]
    assert needed(jobs) == jobs
    (tmp_path / "trained").touch()
    assert needed(jobs) == [scored, other]
    (tmp_path / "trained").unlink()
    for done in ("scored", "other"):
        (tmp_path / done).touch()
    assert needed(jobs) == []


def test_a_failure_takes_along_what_needs_it_alone(tmp_path: Path) -> None:
    jobs = [
        script(tmp_path, "bad", "raise SystemExit('no room left')"),
        writes(tmp_path, "hopeless", "bad"),
        writes(tmp_path, "hopeless too", "hopeless"),
        writes(tmp_path, "good"),
        script(tmp_path, "empty", "pass"),
    ]
    with pytest.raises(UserError, match=r"2 jobs failed(.|\n)*no room left"):
        run_jobs(jobs, SLOTS[:1])
    assert {p.name for p in tmp_path.iterdir()} == {"good", "logs"}


def test_an_interruption_ends_what_runs(tmp_path: Path) -> None:
    """As by ctrl-C or SIGTERM: what runs is told to stop, and waited for."""
    stops = (
        "import signal, time\nsignal.signal(15, signal.default_int_handler)\n"
        "try:\n    path.with_name('began').touch()\n    time.sleep(60)\nfinally:\n    path.touch()"
    )

    def interrupt() -> bool:
        if (tmp_path / "began").exists():
            raise KeyboardInterrupt
        return False

    waits = "import time\nwhile not path.with_name('began').exists(): time.sleep(0.1)"
    jobs = [
        script(tmp_path, "stopped", stops),
        replace(script(tmp_path, "waits", waits), is_done=interrupt),
    ]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, SLOTS)
    assert (tmp_path / "stopped").exists()


def test_a_folder_is_one_experiment_s_also_while_its_orphans_live(tmp_path: Path) -> None:
    wait = (sys.executable, "-c", "import time; time.sleep(60)")
    with claimed(tmp_path):
        orphan = subprocess.Popen(wait, close_fds=False)  # as `run_jobs` starts them
    try:
        with pytest.raises(UserError, match="wait for its end"), claimed(tmp_path):
            pass
    finally:
        orphan.kill()
        orphan.wait()
    with claimed(tmp_path):
        pass


def test_settings_decide_and_names_do_not(experiment: Experiment) -> None:
    arms = experiment.config.arms
    settings = [
        json.dumps(experiment.deciding_settings(arm, world)) for arm in arms for world in (0, 1)
    ]
    assert len(set(settings)) == len(settings)
    renamed = arms | {"whole": arms["whole"].model_copy(update={"says": "ours"})}
    other = replace(experiment, config=experiment.config.model_copy(update={"arms": renamed}))
    assert other.deciding_settings("whole", 0) == experiment.deciding_settings("whole", 0)


def test_what_a_run_may_change_on_its_way_does_not_decide() -> None:
    free = ["run", "log.every", "checkpoint.every", "engine.speed.compile"]
    for section in ("engine", "stream"):
        free += [f"{section}.{name}" for name in NOT_DECISIVE[section] - {"speed"}]
    assert all(is_free(name, same_stream=False, same_schedule=False) for name in free)


def test_half_time_needs_a_checkpoint(experiment: Experiment) -> None:
    long = experiment.config.arms["random"].model_copy(update={"set": ("steps=600",)})
    arms = experiment.config.arms | {"random": long}
    other = replace(experiment, config=experiment.config.model_copy(update={"arms": arms}))
    with pytest.raises(UserError, match="one after half of its 600 steps"):
        other.judged_steps("random")


def test_an_unknown_setting_is_found_before_anything_runs(tmp_path: Path) -> None:
    for path in CONFIGS.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    tree = yaml.safe_load((tmp_path / "experiment.yaml").read_text())
    tree["recipes"]["instance"]["set"] = ["hybrid.oim.unlabeled=instance"]
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="did you mean `unlabelled`"):
        Experiment.read(tmp_path)


def record(records: Records, key: Key, mean_ap: float) -> None:
    path = records.file(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    origins = {
        "runs": {
            "finetune-x": {"commit": "a" * 40 + "+", "gpus": [], "step_s": 0.5},
            "pretrain-x": {"commit": "b" * 40, "gpus": [], "step_s": mean_ap},
        },
        "evaluation": {"commit": "b" * 40},
    }
    numbers = {**NUMBERS, "mAP": mean_ap}
    path.write_text(json.dumps({**vars(key), "numbers": numbers, "processor": "a CPU", **origins}))


def test_records_spare_work_and_stale_ones_are_refused(
    experiment: Experiment, tmp_path: Path
) -> None:
    records = Records(tmp_path / "records")
    planner = Planner(experiment, tmp_path / "worlds", records)

    def names(*arms: str) -> Iterator[str]:
        return (job.name.split("/")[1] for job in needed(planner.jobs(arms, [1])))

    assert list(names("random", "whole_60")) == [
        "draw",
        "shards.yaml",
        "finetune-random",
        "evaluate-random-200",
        "evaluate-random-400",
        "pretrain-hybrid",
        "prw-0.6.selection",
        "finetune-whole_60",
        "evaluate-whole_60-200",
        "evaluate-whole_60-400",
    ]
    for step in (200, 400):
        record(records, Key(1, "random", step, experiment.deciding_settings("random", 1)), 0.2)
    assert not list(names("random"))
    record(records, Key(1, "random", 400, experiment.deciding_settings("random_long", 1)), 0.2)
    wrong = r"random-400\.json was made with other settings: finetune.steps 1000 -> 400"
    with pytest.raises(UserError, match=wrong):
        list(names("random"))


def test_a_changed_pre_training_is_not_taken_for_its_successor(
    experiment: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    planner = Planner(Experiment.read(folder), tmp_path / "worlds", Records(tmp_path / "records"))
    place = tmp_path / "worlds" / experiment.place(0)
    for run, config in (
        ("pretrain-hybrid", experiment.pretraining("hybrid", 0)),
        ("finetune-whole", experiment.finetuning("whole", 0)),
    ):
        finished(place / run, config)
    done = {job.name.split("/")[1] for job in planner.jobs(["whole"], [0]) if job.is_done()}
    assert done == {"pretrain-hybrid", "finetune-whole"}
    pretrain = folder / "pretrain.yaml"
    pretrain.write_text(pretrain.read_text().replace("steps: 600", "steps: 500"))
    changed = Planner(Experiment.read(folder), planner.folder, planner.records)
    for job in changed.jobs(["whole"], [0]):
        if job.name.endswith(("pretrain-hybrid", "finetune-whole")):
            with pytest.raises(UserError, match="was made with other settings: steps 600 -> 500"):
                job.is_done()


def finished(run: Path, config: RunConfig) -> None:
    """What of a run's folder says that it is finished."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    (run / "stream.json").write_text(json.dumps({"domains": {}}))
    (run / "identities.json").write_bytes(Identities().to_json())
    (run / "environment.json").write_text("{}")
    (run / "status.json").write_text(json.dumps({"state": "finished"}))


def test_a_step_s_time_is_that_of_the_steps_judged(tmp_path: Path) -> None:
    lines = [
        {"step": step, "step_s_p50": s} for step, s in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 9.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert step_seconds(tmp_path, 30) == 2.0 and step_seconds(tmp_path, 10) == 3.0


def test_claims_are_paired_by_world() -> None:
    values = {"a": {0: 31.0, 1: 22.0, 2: 27.0}, "b": {0: 21.0, 1: 10.0, 2: 18.0, 3: 90.0}}

    def judged(worlds: int, better: str = "a", than: str = "b") -> list[str]:
        claim = ClaimConfig(better=better, than=than, worlds=worlds)
        return list(
            compare(claim, lambda arm, _, n: {w: values[arm][w] for w in list(values[arm])[:n]})
        )

    # differences 10, 12, 9: mean 10.33, deviation 1.53, t(0.975, 2) = 4.303, so +- 3.79
    assert judged(3) == ["3 of 3", "+10.3 (+6.5 to +14.1)", "+63%", "holds"]
    assert judged(5)[-1] == "too few worlds"
    assert judged(2)[0] == "2 of 2"  # further ones do not count
    assert judged(3, "b", "a")[-1] == "contradicted"
    values["a"][0] = 1.0
    assert judged(3)[-1] == "not shown"
    values["a"] = {0: 31.0}
    assert judged(2) == ["1 of 2", "-", "-", "too few worlds"]


def test_the_page_shows_records_of_today_s_settings(experiment: Experiment, tmp_path: Path) -> None:
    records = Records(tmp_path / "results")
    for world, (low, high) in enumerate([(0.21, 0.31), (0.10, 0.22), (0.18, 0.27)]):
        for arm, value in (("random", low), ("whole", high)):
            for step, share in ((200, 0.5), (400, 1.0)):
                key = Key(world, arm, step, experiment.deciding_settings(arm, world))
                record(records, key, value * share)
    record(records, Key(4, "whole", 400, experiment.deciding_settings("whole", 4)), 0.9)
    record(records, Key(3, "random", 400, experiment.deciding_settings("whole", 3)), 0.9)
    record(records, Key(9, "random", 400, experiment.deciding_settings("random", 9)), 0.9)
    names = [*experiment.config.tiers, "fractions"]
    page = tmp_path / "results.md"
    page.write_text("".join(f"Said.\n<!-- {n} begins -->old<!-- {n} ends -->\n" for n in names))
    write_results(experiment, records, tmp_path)
    text = page.read_text()
    assert "| `random`: random | 3 | 8.2 ± 2.8 | 16.3 ± 5.7 | -10.3 | 50.0 ± 0.0 |" in text
    assert "| `whole`: pre-trained model | 4 | 13.3 ± 2.3 | 42.5 ± 31.9 | - |" in text
    assert "| `whole` > `random` | 3 of 3 | +10.3 (+6.5 to +14.1) | +63% | holds |" in text
    assert "Not run yet: `backbone`, `random_long`," in text and "| `backbone`:" not in text
    assert text.count("Said.") == len(names) and "Nothing of tier B has run yet." in text
    assert (tmp_path / "results/A.svg").exists() and not (tmp_path / "results/B.svg").exists()
    first = (tmp_path / "results/A.svg").read_bytes()
    write_results(experiment, records, tmp_path)
    assert page.read_text() == text and (tmp_path / "results/A.svg").read_bytes() == first
    found = Numbers.read(experiment, records)
    assert found.stale == 1 and found.of("random", "mAP", 5).keys() == {0, 1, 2}
    assert (
        "13 records; commits aaaaaaa+, bbbbbbb; on a CPU. A step took 0.29 s in pre-training and 0.50 s in "
        "fine-tuning (medians over runs, not alone on the machine). 1 records of other settings are left out."
        in text
    )
    later = next(line for line in text.splitlines() if line.startswith("Added after numbers"))
    assert (
        "`whole_long` > `random_long`: with `whole_long`" in later
        and "`whole` > `random`:" not in later
    )
    page.write_text("")
    with pytest.raises(UserError, match="put them back"):
        write_results(experiment, records, tmp_path)
