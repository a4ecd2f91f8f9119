"""Settings -> jobs: every command is one that a user could type in the folder of its world."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launch.experiments.jobs import Job
from launch.experiments.records import Key, Records
from launch.experiments.settings import SOURCES, TARGET, Experiment
from pipeline.config import read_yaml
from pipeline.shards import MANIFEST

LAUNCH = Path(__file__).parents[1]


@dataclass(frozen=True)
class Planner:
    """The jobs of some arms on some worlds."""

    experiment: Experiment
    folder: Path
    """Takes all worlds: world-0/ ..., each with native/, shards/, pretrain-RECIPE/, finetune-ARM/."""
    records: Records

    def jobs(self, arms: Sequence[str], worlds: Sequence[int]) -> list[Job]:
        """World by world: what it needs, then its arms."""
        return [job for world in worlds for job in self._world(arms, world)]

    def _world(self, arms: Sequence[str], world: int) -> Iterator[Job]:
        place = (self.folder / f"world-{world}").resolve()
        yield self._draw(place, world)
        yield self._shard(place)
        recipes = [self.experiment.config.arms[arm].recipe for arm in arms]
        for recipe in dict.fromkeys(recipes):
            if recipe is not None:
                yield self._pretrain(place, recipe, world)
        fractions = {self.experiment.config.arms[arm].fraction for arm in arms}
        for fraction in sorted(fractions - {1.0}):
            yield self._select(place, fraction)
        for arm in arms:
            yield self._finetune(place, arm, world)
            for step in self.experiment.moments(arm, world):
                yield self._evaluate(place, arm, world, step)

    def _draw(self, place: Path, world: int) -> Job:
        settings = self.experiment.miniature(world).model_dump(mode="json", exclude_defaults=True)
        said = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        command = (sys.executable, "-m", "sharding", "miniature", "native", *_set(said))
        drawn = [place / "native" / name for name in (*SOURCES, TARGET)]
        return Job(f"{place.name}/draw", command, place, partial(_all_there, drawn))

    def _shard(self, place: Path) -> Job:
        recipe = self.experiment.folder / "shards.yaml"
        sets = read_yaml(recipe)["sets"].values()
        written = [place / "shards" / s["dataset"] / s["split"] / MANIFEST for s in sets]
        command = (
            sys.executable,
            "-m",
            "sharding",
            "write",
            "--config",
            str(recipe),
            "--workers",
            "1",
        )
        name, needs = f"{place.name}/shard", (f"{place.name}/draw",)
        return Job(name, command, place, partial(_all_there, written), needs)

    def _pretrain(self, place: Path, recipe: str, world: int) -> Job:
        run = f"pretrain-{recipe}"
        settings = self.experiment.pretrain_settings(recipe, world)
        command = self._training("pretrain", run, settings)
        name, needs = f"{place.name}/{run}", (f"{place.name}/shard",)
        return Job(name, command, place, partial(_is_finished, place / run), needs)

    def _select(self, place: Path, fraction: float) -> Job:
        out = _selection(fraction)
        shards = f"shards/{TARGET}/train"
        asked = _set([f"fraction={fraction}"])
        command = (sys.executable, "-m", "pipeline", "select", shards, "--out", out, *asked)
        name, needs = f"{place.name}/{out}", (f"{place.name}/shard",)
        return Job(name, command, place, (place / out).exists, needs)

    def _finetune(self, place: Path, arm: str, world: int) -> Job:
        config, run = self.experiment.config.arms[arm], f"finetune-{arm}"
        settings = self.experiment.finetune_settings(arm, world)
        needs = ["shard"]
        if config.recipe is not None:
            needs.append(f"pretrain-{config.recipe}")
            settings += [f"start.weights=pretrain-{config.recipe}", f"start.part={config.part}"]
        if config.fraction < 1:
            needs.append(_selection(config.fraction))
            entry = {"shards": f"shards/{TARGET}/train", "weight": 1, "selection": needs[-1]}
            settings.append(f"stream.scenes={json.dumps([entry])}")
        command = self._training("finetune", run, settings)
        needed = tuple(f"{place.name}/{need}" for need in needs)
        return Job(
            f"{place.name}/{run}", command, place, partial(_is_finished, place / run), needed
        )

    def _training(self, script: str, run: str, settings: Sequence[str]) -> tuple[str, ...]:
        config = str(self.experiment.folder / f"{script}.yaml")
        said = _set([f"run={run}", *settings])
        return (sys.executable, str(LAUNCH / f"{script}.py"), "--config", config, *said, "--resume")

    def _evaluate(self, place: Path, arm: str, world: int, step: int) -> Job:
        run, out = f"finetune-{arm}", f"evaluate-{arm}-{step}"
        weights = f"{run}/checkpoints/step-{step:08d}"
        script = str(LAUNCH / "evaluate.py")
        data = ("--weights", weights, "--data", f"shards/{TARGET}/test", "--out", out)
        recipe = self.experiment.config.arms[arm].recipe
        runs = [place / run, *([place / f"pretrain-{recipe}"] if recipe else [])]
        decided = self.experiment.decides(arm, world)
        key = Key(world, arm, step, decided)
        return Job(
            f"{place.name}/{out}",
            (sys.executable, script, *data),
            place,
            partial(self.records.has, key),
            (f"{place.name}/{run}",),
            lambda _: self.records.add(key, place / out, runs),
        )


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _selection(fraction: float) -> str:
    return f"{TARGET}-{fraction}.selection"


def _all_there(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)


def _is_finished(run: Path) -> bool:
    status = run / "status.json"
    return status.exists() and json.loads(status.read_text())["state"] == "finished"
