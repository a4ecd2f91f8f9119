"""The run in a few figures at the top of its report, and what it left behind at the end."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.reporting.curves import Line
from launch.reporting.data import Input
from pipeline.pages import page
from pipeline.pages.page import Figure, Html
from training.provenance import WEIGHTS_FILE, first_weights
from training.run import ENVIRONMENT_FILE, Run


def read_lines(path: Path) -> list[Line]:
    """Lines of the metrics; the last one may be half-written while the run goes on."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def kind(folder: Path) -> str:
    """By the command that started it: settings cannot tell fine-tuning from pre-training a plain detector."""
    script, *_ = _read_json(folder / ENVIRONMENT_FILE).get("command") or [""]
    return "Fine-tuning" if Path(script).name == "finetune.py" else "Pre-training"


def in_short(run: Run, lines: Sequence[Line], inputs: Sequence[Input]) -> Html:
    steps, done = run.config.steps, lines[-1]["step"] if lines else 0
    shown = f"each in {run.config.stream.views.in_words}"
    rates = sorted(line["images_per_s"] for line in lines)
    samples = sum(one.samples for one in inputs)
    figures = [
        Figure(done, "steps", f"of {steps:,}"),
        Figure(lines[-1]["images"] if lines else 0, "images seen", shown),
        Figure(samples, "samples in shards", f"{len(inputs)} shard sets"),
        Figure(round(rates[len(rates) // 2], 1) if rates else None, "images a second", "median"),
        Figure(run.config.hybrid.model.backbone.name, "backbone", _start(run)),
    ]
    parts = [page.key_figures(figures)]
    state = _read_json(run.folder.path / "status.json").get("state", "not started")
    if state != "finished":
        parts.insert(
            0,
            page.callout(
                f"This run is not finished ({state}): {done:,} of {steps:,} steps are logged."
            ),
        )
    return page.section("In short", *parts, _environment(run.folder.path))


def _start(run: Run) -> str:
    """What it began with, as its folder says; as its settings say where that was not written yet."""
    folder, weights = run.folder.path, run.config.hybrid.model.backbone.weights
    if not (folder / WEIGHTS_FILE).exists():
        return (
            f"from {run.config.start.weights if run.config.start else Path(weights).name} weights"
        )
    found = first_weights(folder)
    if found is None:
        return "from random weights"
    if run.config.start is None:
        return f"from {Path(found['origin']).name}"
    origin, _, part = found["origin"].rpartition(", ")
    path = Path(origin)
    if path.suffix:
        return f"from {path.name}, {part}"
    return f"from {path.parent.parent.name}, {path.name}, {part}"


def _environment(folder: Path) -> Html:
    found = _read_json(folder / ENVIRONMENT_FILE)
    flat = {**found.pop("packages", {}), **found}
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value)] for key, value in flat.items()
    ]
    return page.details("Versions and machine", page.table(["", ""], rows))


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
