"""Every run file resolves, and an ablation differs from what it is an ablation of as it says, and no more."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Config, load_config
from sharding.recipe import load_recipe
from training.run_config import RunConfig

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "launch/configs"
RUN_FILES = sorted((CONFIGS / "pretrain").rglob("*.yaml"))
VARIANTS = [path for path in RUN_FILES if "base" in yaml.safe_load(path.read_text())]


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Settings by their full names; a list is one setting."""
    if not isinstance(tree, dict):
        return {name: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{name}.{key}" if name else key)
    return found


def settings(config: Config) -> dict[str, Any]:
    return leaves(config.model_dump(mode="json"))


@pytest.mark.parametrize("path", VARIANTS, ids=lambda p: str(p.relative_to(CONFIGS / "pretrain")))
def test_a_variant_changes_what_it_names_and_no_more(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    base = settings(load_config(RunConfig, path.parent / own.pop("base")))
    changed = {
        name
        for name, value in settings(load_config(RunConfig, path)).items()
        if base[name] != value
    }
    assert changed == set(leaves(own))


def test_every_run_has_a_folder_named_like_its_file() -> None:
    for path in RUN_FILES:
        run = load_config(RunConfig, path).run
        named = path.relative_to(CONFIGS / "pretrain").with_suffix("")
        assert run == f"runs/{named}" or path.stem == "demo"


def test_run_files_read_what_the_recipes_write() -> None:
    recipes = [load_recipe(str(path), ()) for path in (CONFIGS / "sharding").glob("*.yaml")]
    made = {f"{r.out}/{s.dataset}/{s.split}" for r in recipes for s in r.sets.values()}
    for path in RUN_FILES:
        stream = load_config(RunConfig, path).stream
        assert {entry.shards for entry in (*stream.scenes, *stream.canvases)} <= made
        assert bool(stream.scenes) == bool(stream.scene_batch)
        assert bool(stream.canvases) == bool(stream.canvas_batch)


def test_the_page_on_the_method_names_settings_and_files_that_exist() -> None:
    page = (ROOT / "docs/method.md").read_text()
    known = settings(load_config(RunConfig, CONFIGS / "pretrain/paper_resnet50.yaml"))
    named = set(re.findall(r"`((?:hybrid|stream|engine|optimiser)(?:\.[a-z_]+)+)", page))
    assert len(named) >= 20
    assert not [n for n in named if not any(f"{key}.".startswith(f"{n}.") for key in known)]
    files = {Path(name).name for name in re.findall(r"`([a-z0-9_/]+\.yaml)`", page)}
    assert files - {path.name for path in CONFIGS.rglob("*.yaml")} == {"config.yaml"}
