"""The house's import directions: launch -> training, sharding -> pipeline."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "sharding": {"sharding", "pipeline"},
    "training": {"training", "pipeline"},
    "launch": {"launch", "training", "sharding", "pipeline"},
}
ONLY_IN = {
    "deepspeed": {"training/engine.py", "launch/benchmark.py"},
    "ray": {"sharding/cluster.py", "launch/benchmarks/ray_data.py"},
}
FORBIDDEN = {"pickle", "cPickle", "dill", "marshal", "shelve"}
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute in this house"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    tops = {name.split(".")[0] for name in imported_modules(path)}
    wrong = (tops & set(MAY_IMPORT)) - MAY_IMPORT[room]
    assert not wrong, f"{room}/ may not import {wrong}"
    assert not tops & FORBIDDEN, "nothing is unpickled here"
    for library, places in ONLY_IN.items():
        if library in tops:
            assert path.relative_to(ROOT).as_posix() in places, f"{library} belongs in {places}"


def test_training_does_not_know_the_store_of_shards() -> None:
    for path in (ROOT / "training").rglob("*.py"):
        for module in imported_modules(path):
            assert not module.startswith("pipeline.stores"), f"{path} reads shards by itself"
