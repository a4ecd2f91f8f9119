"""The model card beside an export: data, their terms, how it was trained and loads, what was measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.checkpoint import Checkpoint
from training.export import measured
from training.export.exported import Exported
from training.export.measured import Evaluation
from training.export.targets import OWN
from training.metrics import METRICS_FILE
from training.provenance import data_sets, first_weights
from training.run import ENVIRONMENT_FILE, Run

TERMS = {
    "ecp": "EuroCity Persons forbids commercial use: a network trained on it may be passed on free of "
    "charge, for research only and with attribution, and is no part of a product.",
    "crowdhuman": "CrowdHuman is for non-commercial research.",
    "luperson": "LUPerson is for research.",
    "luperson_nl": "LUPerson-NL is for research.",
    "msmt17": "MSMT17 is for academic research, under its signed agreement.",
    "cuhk03": "CUHK03 is for academic research, given on request.",
    "prw": "PRW is for academic research.",
    "cuhk_sysu": "CUHK-SYSU is for academic research, given on request.",
    "posetrack21": "PoseTrack21 is for non-commercial research, given on a signed request.",
}
"""Data set -> what it means for weights, for short: the notes in the table come from the shard sets."""

MMDET_STYLE = """
Set `style='pytorch'` in `model.backbone` (and in `model.roi_head.shared_head`, where there is one): these
weights have the stride of a block in its 3x3 convolution, the published configurations, `style='caffe'`, in
its first 1x1. And normalise with
`img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)`, which is folded
into the first convolution. Whoever reports a gain runs the ImageNet baseline in the same style."""
INTO_MODEL = """
After `model = ...` in its training script:

    weights = torch.load("{file}.pth", map_location="cpu")["model"]
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    print(result.missing_keys)  # must be what the table below leaves to the target"""
LOADING = {
    "torchvision": """
    net = torchvision.models.{backbone}()
    net.load_state_dict(safetensors.torch.load_file("{file}.safetensors"), strict=False)""",
    "nae": INTO_MODEL,
    "seqnet": INTO_MODEL,
    "coat": INTO_MODEL,
    "alignps": "\nIn the configuration: `model = dict(pretrained='{file}.pth', ...)`."
    + MMDET_STYLE,
    "roi_alignps": "\nIn the configuration: {key}." + MMDET_STYLE,
    "person_search": """
    python launch/search.py --weights {file}.safetensors --query street.jpg:120,40,180,230 --gallery photos/
    deepspeed launch/finetune.py --config launch/configs/finetune/prw.yaml \\
        --set start.weights={file}.safetensors

Fine-tuning wants `hybrid.model` as it is in the configuration below: backbone, anchors, RoI size, heads.""",
}
ROI_ALIGNPS_KEYS = {
    "model": "`load_from = '{file}.pth'` and `model = dict(pretrained=None, ...)`",
    "backbone": "`model = dict(pretrained='{file}.pth', ...)`",
}


def write_card(
    exported: Exported,
    run: Run,
    checkpoint: Checkpoint,
    file: str,
    scenes: int = 0,
    evaluations: Sequence[Evaluation] = (),
) -> str:
    """Markdown. `file`: the export's name, no suffix; `scenes`: on how many statistics were re-estimated;
    `evaluations`: of `checkpoint`, so none where they were."""
    name = run.folder.path.name
    sections = [
        f"# {file}: step {checkpoint.state.step} of {name}",
        f"Weights of {_what(exported, run)}, trained for person search, under the names of "
        f"{exported.target}. `{file}.json` names every tensor.",
        "## Data and terms",
        *_data(run),
        "## How to load it",
        _loading(exported, run, file).strip("\n"),
        "## What it fills",
        _table(
            ["in the target", "from", "how", "tensors"],
            [
                [f"`{row.name}*`", f"`{row.source}*`", row.how, f"{row.given} of {row.wanted}"]
                for row in exported.coverage
            ],
        ),
        _table(
            ["left to the target", "why"],
            [[f"`{name}`", why] for name, why in exported.missing.items()],
        ),
        "Pixels: "
        + "; ".join(f"{name} {value}" for name, value in exported.spec.input.items())
        + ".",
        "## How it was trained",
        *_training(run, checkpoint),
        f"The norms' running statistics are {_statistics(run, scenes)}.",
        *_measured(evaluations),
        "## What is not known",
        _unknown(exported.target, evaluations),
    ]
    return "\n\n".join(sections) + "\n"


def _statistics(run: Run, scenes: int) -> str:
    if scenes:
        return f"means over {scenes:,} scenes"
    seen = "scenes" if run.config.stream.scene_batch else "canvases, as the run saw no scenes"
    return f"those of {seen}, as training left them"


def _what(exported: Exported, run: Run) -> str:
    backbone = run.config.hybrid.model.backbone.name
    return f"a {backbone}" if exported.part == "backbone" else f"a whole model with a {backbone}"


def _measured(evaluations: Sequence[Evaluation]) -> list[str]:
    if not evaluations:
        return []
    table = _table(measured.HEADER, measured.rows(evaluations))
    limits = measured.limits(evaluations)
    return ["## What was measured", measured.ABOUT, table, measured.COLUMNS, *limits]


def _unknown(target: str, evaluations: Sequence[Evaluation]) -> str:
    if target == OWN:
        elsewhere = " on other data, or with other settings, than above" if evaluations else ""
        return f"How well they search{elsewhere}: `launch/evaluate.py --weights` measures it on a benchmark."
    return (
        f"Whether {target} gains from these weights, on any benchmark: that was not measured when they were "
        "exported. `docs/export.md` has the commands that would tell."
    )


def _loading(exported: Exported, run: Run, file: str) -> str:
    text = LOADING[exported.target].replace("{key}", ROI_ALIGNPS_KEYS[exported.part])
    return text.replace("{file}", file).replace("{backbone}", run.config.hybrid.model.backbone.name)


def _data(run: Run) -> Iterator[str]:
    weights = first_weights(run.folder.path)
    sets = [asdict(one) for one in data_sets(run.folder.path, run.config.stream)]
    yield _data_table(sets)
    while weights and weights.get("run"):
        before = weights["run"]
        yield (
            f"It began with weights of {before['name']} ({weights['origin']}, sha256 "
            f"{weights['sha256'][:16]}), a run that was trained on"
        )
        yield _data_table(before["data"])
        sets += before["data"]
        weights = before["weights"]
    datasets = {one["name"].split("/")[0] for one in sets}
    terms = [text for dataset, text in TERMS.items() if dataset in datasets]
    yield " ".join(["All of these bind whoever uses or passes on the weights.", *terms])
    yield "The backbone began with " + (
        f"{weights['origin']} (sha256 {weights['sha256'][:16]}), whose own terms hold too."
        if weights
        else "random weights."
    )


def _data_table(sets: Sequence[Mapping[str, Any]]) -> str:
    return _table(["data set", "samples", "its licence note"], [_data_row(one) for one in sets])


def _data_row(one: Mapping[str, Any]) -> list[str]:
    if one["licence"] is None:
        return [one["name"], "", "not known: its shard set could not be read"]
    changed = " (read later; the set has changed since)" if one["changed"] else ""
    return [one["name"], f"{one['samples']:,}", one["licence"] + changed]


def _training(run: Run, checkpoint: Checkpoint) -> Iterator[str]:
    of = _read(run.folder.path / ENVIRONMENT_FILE)
    state = checkpoint.state
    yield (
        f"Commit {of.get('commit') or 'not known'}, {of.get('world_size')} ranks on {_hardware(of)}, PyTorch "
        f"{of.get('packages', {}).get('torch')}. {state.step:,} of {run.config.steps:,} steps, "
        f"{state.images:,} images in {run.config.stream.views.in_words} each; digest of their order "
        f"`{state.sample_digest[:16]}`."
    )
    line = _last_line(run.folder.path / METRICS_FILE, state.step)
    if line:
        losses = {"total": line["total"], **line["losses"]}
        yield f"Losses at step {line['step']:,}, of training, unweighted but for the total:"
        yield _table(["loss", "value"], [[name, _number(losses[name])] for name in losses])
    yield "Its whole configuration:"
    yield f"```yaml\n{(run.folder.path / 'config.yaml').read_text().strip()}\n```"


def _hardware(environment: dict[str, Any]) -> str:
    gpus = environment.get("gpus") or []
    return f"{len(gpus)} x {gpus[0]} a machine" if gpus else "CPUs"


def _last_line(path: Path, step: int) -> dict[str, Any] | None:
    """The last whole one that is not after `step`."""
    last = None
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] <= step:
            last = line
    return last


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _read(path: Path) -> dict[str, Any]:
    return (json.loads(path.read_text()) or {}) if path.exists() else {}
