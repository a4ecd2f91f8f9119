"""Settings -> jobs: every command is one that a user could type in the folder of its world."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launch.experiments.jobs import Job
from launch.experiments.records import Key, Records, checkpoint
from launch.experiments.settings import (
    SHARDS,
    SOURCES,
    TARGET,
    TARGET_SHARDS,
    Experiment,
    decisive,
    selection_name,
)
from pipeline.config import read_yaml
from pipeline.errors import UserError
from pipeline.shards import MANIFEST
from training.changes import compare, spell
from training.run import load_run
from training.run_config import RunConfig

LAUNCH = Path(__file__).parents[1]


@dataclass(frozen=True)
class Planner:
    """The jobs of some arms on some worlds."""

    experiment: Experiment
    folder: Path
    """Takes all worlds, each with native/, shards/, pretrain-RECIPE/, finetune-ARM/, evaluate-ARM-STEP/."""
    records: Records

    def jobs(self, arms: Sequence[str], worlds: Sequence[int]) -> list[Job]:
        """World by world: what it needs, then its arms."""
        return [job for world in worlds for job in self._world(arms, world)]

    def _world(self, arms: Sequence[str], world: int) -> Iterator[Job]:
        place = (self.folder / self.experiment.place(world)).resolve()
        yield self._draw(place, world)
        recipes = [self.experiment.config.arms[arm].recipe for arm in arms]
        named = [name for name in dict.fromkeys(recipes) if name is not None]
        more = [self.experiment.config.recipes[name].shards for name in named]
        for file in dict.fromkeys([SHARDS, *filter(None, more)]):
            yield self._shard(place, file)
        for recipe in named:
            yield self._pretrain(place, recipe, world)
        fractions = {self.experiment.config.arms[arm].fraction for arm in arms}
        for fraction in sorted(fractions - {1.0}):
            yield self._select(place, fraction)
        for arm in arms:
            yield self._finetune(place, arm, world)
            for step in self.experiment.judged_steps(arm):
                yield self._evaluate(place, arm, world, step)

    def _draw(self, place: Path, world: int) -> Job:
        settings = self.experiment.miniature(world).model_dump(mode="json", exclude_defaults=True)
        said = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        command = (sys.executable, "-m", "sharding", "miniature", "native", *_set(said))
        drawn = [place / "native" / name for name in (*SOURCES, TARGET)]
        return Job(f"{place.name}/draw", command, place, partial(_all_there, drawn))

    def _shard(self, place: Path, file: str) -> Job:
        recipe = self.experiment.folder / file
        tree = read_yaml(recipe)
        sets = tree["sets"].values()
        written = [place / tree["out"] / s["dataset"] / s["split"] / MANIFEST for s in sets]
        options = ("--config", str(recipe), "--workers", "1")
        command = (sys.executable, "-m", "sharding", "write", *options)
        name, needs = f"{place.name}/{file}", (f"{place.name}/draw",)
        return Job(name, command, place, partial(_all_there, written), needs)

    def _pretrain(self, place: Path, recipe: str, world: int) -> Job:
        run = f"pretrain-{recipe}"
        settings = self.experiment.pretrain_settings(recipe, world)
        command = self._training("pretrain", run, settings)
        more = self.experiment.config.recipes[recipe].shards
        files = (SHARDS, more) if more else (SHARDS,)
        name, needs = f"{place.name}/{run}", tuple(f"{place.name}/{file}" for file in files)
        return Job(
            name,
            command,
            place,
            partial(_are_finished, self._pretrained(place, recipe, world)),
            needs,
        )

    def _select(self, place: Path, fraction: float) -> Job:
        out, asked = selection_name(fraction), _set([f"fraction={fraction}"])
        command = (sys.executable, "-m", "pipeline", "select", TARGET_SHARDS, "--out", out, *asked)
        name, needs = f"{place.name}/{out}", (f"{place.name}/{SHARDS}",)
        return Job(name, command, place, (place / out).exists, needs)

    def _finetune(self, place: Path, arm: str, world: int) -> Job:
        config, run = self.experiment.config.arms[arm], f"finetune-{arm}"
        needs, runs = [SHARDS], {place / run: self.experiment.finetuning(arm, world)}
        if config.recipe is not None:
            needs.append(f"pretrain-{config.recipe}")
            runs |= self._pretrained(place, config.recipe, world)
        if config.fraction < 1:
            needs.append(selection_name(config.fraction))
        needed = tuple(f"{place.name}/{need}" for need in needs)
        command = self._training("finetune", run, self.experiment.finetune_settings(arm, world))
        return Job(f"{place.name}/{run}", command, place, partial(_are_finished, runs), needed)

    def _pretrained(self, place: Path, recipe: str, world: int) -> dict[Path, RunConfig]:
        return {place / f"pretrain-{recipe}": self.experiment.pretraining(recipe, world)}

    def _training(self, script: str, run: str, settings: Sequence[str]) -> tuple[str, ...]:
        config = str(self.experiment.folder / f"{script}.yaml")
        said = _set([f"run={run}", *settings])
        return (sys.executable, str(LAUNCH / f"{script}.py"), "--config", config, *said, "--resume")

    def _evaluate(self, place: Path, arm: str, world: int, step: int) -> Job:
        run, out = f"finetune-{arm}", f"evaluate-{arm}-{step}"
        weights = str(checkpoint(Path(run), step))
        script = str(LAUNCH / "evaluate.py")
        data = ("--weights", weights, "--data", f"shards/{TARGET}/test", "--out", out)
        runs = {place / run: step}
        if recipe := self.experiment.config.arms[arm].recipe:
            runs[place / f"pretrain-{recipe}"] = self.experiment.pretraining(recipe, world).steps
        key = Key(world, arm, step, self.experiment.deciding_settings(arm, world))
        return Job(
            f"{place.name}/{out}",
            (sys.executable, script, *data),
            place,
            partial(self.records.has, key),
            (f"{place.name}/{run}",),
            lambda: self.records.add(key, place / out, runs),
        )


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _all_there(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)


def _are_finished(runs: Mapping[Path, RunConfig]) -> bool:
    """Raises UserError if one of them began with other settings: its folder is not what it would be now."""
    return all(_is_finished(run, config) for run, config in runs.items())


def _is_finished(run: Path, config: RunConfig) -> bool:
    status = run / "status.json"
    if not status.exists():
        return False
    before, now = decisive(load_run(run).config), decisive(config)
    if before != now:
        raise UserError(
            f"{run} was made with other settings: {'; '.join(spell(compare(before, now)))}. Take the change "
            "back, or delete the folder."
        )
    return bool(json.loads(status.read_text())["state"] == "finished")
