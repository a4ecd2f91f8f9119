"""A page about a run, finished or not: python launch/report.py RUN"""

import argparse
import json
from pathlib import Path
from typing import Any

from launch.reporting.curves import how_training_went
from launch.reporting.data import active, what_went_in
from launch.reporting.domains import SAMPLES, DomainImages, feature_domains, read_images
from pipeline import page
from pipeline.errors import UserError, run_command
from pipeline.page import Figure, Html
from pipeline.samples import SampleReader
from pipeline.shards import ShardSet
from pipeline.stream import StreamConfig
from training.checkpoint import write_atomically
from training.metrics import METRICS_FILE
from training.run import Run, load_run

Readers = dict[str, SampleReader | UserError]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--out", help="default: RUN/report.html")
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        help="images a dataset for the feature domains; 0: none",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    run = load_run(arguments.run)
    lines = read_lines(run.folder.path / METRICS_FILE)
    status = _read_json(run.folder.path / "status.json")
    readers = open_shard_sets(run.config.stream)
    sections = [
        in_short(run, lines, status, readers),
        what_went_in(run.config.stream, readers, sorted(run.folder.path.glob("ledger-*.jsonl"))),
        how_training_went(lines, run.domains),
        before_and_after(run, readers, arguments.samples),
        what_came_out(run.folder.path),
    ]
    out = Path(arguments.out) if arguments.out else run.folder.path / "report.html"
    title = f"Hybrid pre-training: {run.folder.path.name}"
    write_atomically(out, page.document(title, str(run.folder.path), sections))
    print(out)


def open_shard_sets(config: StreamConfig) -> Readers:
    """A set that has moved away since must not keep the rest of the page from being made."""
    readers: Readers = {}
    for entry in (*config.scenes, *config.canvases):
        try:
            readers[entry.shards] = SampleReader(ShardSet(entry.shards))
        except UserError as error:
            readers[entry.shards] = error
    return readers


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of the metrics; the last one may be half-written while the run goes on."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def in_short(
    run: Run, lines: list[dict[str, Any]], status: dict[str, Any], readers: Readers
) -> Html:
    steps, done = run.config.steps, lines[-1]["step"] if lines else 0
    rates = sorted(line["images_per_s"] for line in lines)
    samples = sum(r.manifest.samples for r in readers.values() if isinstance(r, SampleReader))
    figures = [
        Figure(done, "steps", f"of {steps:,}"),
        Figure(lines[-1]["images"] if lines else 0, "images seen", "each in two views"),
        Figure(samples, "samples in shards", f"{len(readers)} shard sets"),
        Figure(round(rates[len(rates) // 2], 1) if rates else None, "images a second", "median"),
        Figure(run.config.hybrid.model.backbone.name, "backbone", _start(run)),
    ]
    parts = [page.key_figures(figures)]
    state = status.get("state", "not started")
    if state != "finished":
        parts.insert(
            0,
            page.callout(
                f"This run is not finished ({state}): {done:,} of {steps:,} steps are logged."
            ),
        )
    return page.section("In short", *parts, _environment(run.folder.path))


def _start(run: Run) -> str:
    weights = run.config.hybrid.model.backbone.weights
    return "from random weights" if weights == "random" else f"from {Path(weights).name}"


def _environment(folder: Path) -> Html:
    found = _read_json(folder / "environment.json")
    flat = {**found.pop("packages", {}), **found}
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value)] for key, value in flat.items()
    ]
    return page.details("Versions and machine", page.table(["", ""], rows))


def before_and_after(run: Run, readers: Readers, samples: int) -> Html:
    title, config = "Feature domains, before and after", run.config.stream
    if samples == 0:
        return page.section(title, page.paragraph("Left out (--samples 0)."))
    sets: list[DomainImages] = []
    for entry in active(config.scenes, config.scene_batch):
        reader = readers[entry.shards]
        if isinstance(reader, SampleReader):
            sets.append(read_images(reader, "scenes", config.scene_size, samples))
    for entry in active(config.canvases, config.canvas_batch):
        reader = readers[entry.shards]
        if isinstance(reader, SampleReader):
            sets.append(read_images(reader, "canvases", config.canvas_size, samples))
    try:
        return feature_domains(run, sets)
    except UserError as error:
        return page.section(title, page.callout(f"Nothing to compare: {error}"))


def what_came_out(folder: Path) -> Html:
    """The checkpoints and the accounts that `launch/export.py` left."""
    rows = []
    for path in sorted((folder / "export").glob("*.json")):
        account = _read_json(path)
        counts = [len(account[kind]) for kind in ("mapped", "added", "dropped")]
        rows.append(
            [path.stem, account["target"], account["step"], *counts, ", ".join(account["missing"])]
        )
    header = ["files", "target", "step", "mapped", "added", "dropped", "left to the target"]
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    return page.section(
        "What came out",
        page.paragraph("Checkpoints kept: " + (", ".join(kept) or "none")),
        page.table(header, rows)
        if rows
        else page.paragraph(f"Nothing was exported yet: python launch/export.py {folder}"),
        lead="Counts are tensors. Every one of the target's is either mapped or named here; the JSON beside "
        "each file has the full list.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    run_command(main)
