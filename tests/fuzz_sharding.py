"""Damaged releases through every adapter, from listing to shards: refused in a sentence, or accounted for.

    .venv/bin/python tests/fuzz_sharding.py --samples 5000 --seed 0 [--dataset NAME] [--case N]

Not collected by pytest. Each case runs in a process of its own: a crash, a hang or a heap of memory is
reported with the numbers that bring it back, and the run goes on. Ends with 1 if anything was found.
"""

import argparse
import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import cv2

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from accounted import write_all  # noqa: E402
from mutations import copy_release, damage_folder, pack  # noqa: E402
from small_miniature import SMALL  # noqa: E402

from pipeline.annotation import check_key  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.shards import OK  # noqa: E402
from pipeline.stores import store  # noqa: E402
from sharding.canvas import CanvasConfig  # noqa: E402
from sharding.datasets import ADAPTERS  # noqa: E402
from sharding.miniature import WRITERS, write  # noqa: E402
from sharding.source import Source  # noqa: E402

LIMIT_S = 60
MOST_FOUND = 10
"""In one dataset: the rest would be the same again."""
MOST_MEMORY = 1 << 30
"""Resident, beyond what the parent had."""
SCENES = (
    {"shard_bytes": 200_000},
    {"shard_bytes": 50_000, "keep_metadata": True},
    {"shard_bytes": 100_000, "recode": "jpeg:90", "max_side": 200},
)
CROPS = ({"shard_crops": 15, "canvas": CanvasConfig(size=(48, 32), variants=1)},)


@dataclass
class Tally:
    samples: int = 0
    """Files and records damaged."""
    outcomes: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)


def make_corpus(root: Path, datasets: list[str], made: Path | None) -> dict[str, list[Path]]:
    """Generated releases of each dataset, unless they are `made`, and of CUHK03 in both forms."""
    if made is None:
        write(root, SMALL.model_copy(update={"datasets": tuple(datasets)}))
    corpus = {name: [(made or root) / name] for name in datasets}
    if "cuhk03" in datasets:
        folders = {"datasets": ("cuhk03",), "cuhk03_folders": True}
        write(root / "folders", SMALL.model_copy(update=folders))
        corpus["cuhk03"].append(root / "folders/cuhk03")
    return corpus


def run_case(
    dataset: str, releases: list[Path], seed: int, number: int, folder: Path
) -> dict[str, int]:
    """Raises whatever went wrong; else what became of the samples."""
    rng = Random(f"{seed} {dataset} {number}")
    root = folder / "release"
    copy_release(rng.choice(releases), root)
    touched = damage_folder(rng, root) if rng.random() < 0.9 else 0
    if not touched or rng.random() < 0.3:
        touched += pack(rng, root, folder / "packed")
        root = folder / "packed"
    adapter, source = ADAPTERS[dataset], Source(str(root))
    split = rng.choice(list(adapter.splits))
    settings = rng.choice(CROPS if adapter.task == "reid" else SCENES)
    try:
        listing = adapter.list_samples(source, split)
        for sample in (*listing.samples, *listing.faulty):
            check_key(sample.key)
        rows = write_all(adapter, source, listing, split, folder / "out", **settings)
    except UserError as error:
        str(error).encode()  # it can be printed
        return {"damaged": 1, "refused": 1}  # no other damage was looked at
    ok = sum(row["status"] == OK for row in rows.values())
    return {"damaged": touched, "ok": ok, "quarantined": len(rows) - ok}


def run_child(dataset: str, releases: list[Path], seed: int, number: int, folder: Path) -> int:
    """In a forked process: writes `result`, or a traceback into `log`."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    faulthandler.enable()
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        outcome = run_case(dataset, releases, seed, number, folder)
    except BaseException:
        traceback.print_exc()
        return 1
    (folder / "result").write_text(json.dumps(outcome))
    return 0


def fork_case(
    tally: Tally, dataset: str, releases: list[Path], seed: int, number: int, root: Path
) -> None:
    folder = root / f"{dataset}-{number}"
    folder.mkdir()
    before = resident()
    child = os.fork()
    if child == 0:
        os._exit(run_child(dataset, releases, seed, number, folder))
    _, status, usage = os.wait4(child, 0)
    taken = max(0, usage.ru_maxrss * 1024 - before)
    lines = (folder / "log").read_text(errors="replace").splitlines()
    log = "\n".join(line for line in lines[-25:] if not line.startswith("libpng"))
    if status == 0 and taken < MOST_MEMORY:
        outcome = json.loads((folder / "result").read_text())
        tally.samples += outcome.pop("damaged")
        tally.outcomes.update(outcome)
    else:
        what = f"status {status}" if status else f"{taken >> 20} MiB"
        again = f"--dataset {dataset} --seed {seed} --case {number}"
        tally.found.append(f"{again}: {what}\n{log}")
    shutil.rmtree(folder, ignore_errors=True)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def fuzz_dataset(
    dataset: str, releases: list[Path], samples: int, options: argparse.Namespace, root: Path
) -> Tally:
    """Damages `samples` samples, or runs the one case that is asked for; prints what became of them."""
    tally, begin, number = Tally(), time.monotonic(), 0
    for number in count() if options.case is None else [options.case]:
        fork_case(tally, dataset, releases, options.seed, number, root)
        if tally.samples >= samples or len(tally.found) >= MOST_FOUND:
            break
    outcomes = ", ".join(f"{n:,} {what}" for what, n in sorted(tally.outcomes.items()))
    print(
        f"{dataset}: {tally.samples:,} damaged in {number + 1:,} cases, {outcomes}; "
        f"{len(tally.found)} found, {time.monotonic() - begin:.0f} s",
        *(f"!! {found}" for found in tally.found),
        sep="\n",
        flush=True,
    )
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=5000, help="of all datasets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dataset", action="append", choices=ADAPTERS)
    parser.add_argument("--case", type=int, help="run this one again")
    parser.add_argument("--releases", type=Path, help="a miniature that is there already")
    options = parser.parse_args()
    missing = ADAPTERS.keys() - WRITERS.keys()
    assert not missing, f"no miniature of {missing}: their adapters would not be tried"
    cv2.setNumThreads(0)  # its threads do not survive a fork
    store.FIRST_WAIT_S = 0
    datasets = options.dataset or list(ADAPTERS)
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus", datasets, options.releases)
        share = -(-options.samples // len(datasets))
        tallies = [fuzz_dataset(d, corpus[d], share, options, Path(folder)) for d in datasets]
    sys.exit(any(tally.found for tally in tallies))


if __name__ == "__main__":
    main()
