"""Figures of a training step: against the way reference code writes it, and of the hardware's ceiling.

An image is a scene or a canvas, in its two views. No data and no DeepSpeed but in the last rows, which say
where a package for them is absent.
"""

import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch

from launch.benchmarks.measure import Cost, Row, exactly, in_turns, per_second, ratio, spread
from launch.benchmarks.training_parts import flops, part_rows, wait_rows
from launch.benchmarks.training_step import (
    OURS,
    PLAIN,
    Trainer,
    Variant,
    ceilings,
    variants,
)
from launch.benchmarks.training_work import PAPER, SMALL, Scale
from training.speed import choose_kernels

ON_CPU_OVER_PLAIN, ON_GPU_OVER_PLAIN = 1.5, 3.0
MOST_DIFFERENCE = 1e-4
SMALLEST_LOSS = 0.1
"""Differences of smaller losses are taken against this: some are near 0."""


def run(folder: Path, scale: Scale | None = None, sets: Path | None = None) -> list[Row]:
    """scale: default by the device. sets: a folder with shard sets, instead of generated ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    scale = scale or (PAPER if on_gpu else SMALL)
    rows = [Row("measured on", None, remark=hardware()), Row("a step", None, remark=shapes(scale))]
    rows.append(difference_row(folder, scale, device))
    engine = _or_absent(  # first, while the memory is its own
        "DeepSpeed's engine", lambda: engine_rows(folder, scale, variants(device)[-1], device)
    )
    trainers, broken = _trainers(folder, scale, variants(device), device)
    costs = in_turns({t.variant.name: t.turn for t in trainers}, scale.rounds)
    rows += [*speed_rows(trainers, costs, device), *broken]
    rows += peak_rows(trainers)
    for trainer in _explained(trainers):
        choose_kernels(trainer.variant.speed)
        rows += [*part_rows(trainer, scale.rounds), *wait_rows(trainer)]
    ours = [trainer for trainer in trainers if not trainer.variant.plain]
    fastest = max(ours, key=lambda t: spread(per_second(costs[t.variant.name])).median)
    choose_kernels(fastest.variant.speed)

    def waiting() -> list[Row]:
        from launch.benchmarks import training_data  # and with it OpenCV and the like

        return training_data.wait_rows(
            sets or training_data.write_sets(folder / "data", scale), fastest
        )

    return [*rows, *_or_absent("the stream", waiting), *engine]


def hardware() -> str:
    """The names of what was measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(": ", 1)[1] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}; {cpu}, {torch.get_num_threads()} threads; PyTorch {torch.__version__}"


def shapes(scale: Scale) -> str:
    scene, canvas = ("x".join(map(str, s)) for s in (scale.scene_size, scale.canvas_size))
    return (
        f"{scale.backbone}, {scale.scenes} scenes of {scene} and {scale.canvases} canvases of {canvas} "
        f"a step, two views each, {scale.rois} RoIs a view"
    )


def difference_row(folder: Path, scale: Scale, device: torch.device) -> Row:
    """Of the losses of a step, fp32; proposals are drawn, since rounding reorders ranked ones."""
    choose_kernels(OURS.speed)
    losses = []
    for variant in (PLAIN, OURS):
        trainer = Trainer(folder, scale, variant, device, proposal_source="jitter")
        with torch.no_grad():
            found = trainer.forward(trainer.batches[0]).losses
        losses.append({name: value.item() for name, value in found.items()})
    plain, ours = losses
    worst = max(abs(ours[n] - plain[n]) / max(abs(plain[n]), SMALLEST_LOSS) for n in plain)
    what = f"largest difference of {len(plain)} losses, ours to plain, fp32"
    return Row(what, exactly(worst), "relative", MOST_DIFFERENCE, "lower")


def _trainers(
    folder: Path, scale: Scale, wanted: tuple[Variant, ...], device: torch.device
) -> tuple[list[Trainer], list[Row]]:
    """Those that can take a step here, and rows that say why the others cannot."""
    trainers, broken = [], []
    for variant in wanted:
        try:
            trainer = Trainer(folder, scale, variant, device)
            trainer.turn()
        except (
            Exception
        ) as error:  # no compiler, no memory: the other figures are wanted all the same
            if variant in (PLAIN, OURS):
                raise
            broken.append(_not_measured(variant.name, error))
            continue
        trainers.append(trainer)
    return trainers, broken


def speed_rows(
    trainers: list[Trainer], costs: dict[str, list[Cost]], device: torch.device
) -> list[Row]:
    """Images/s, their ratio to plain, and the share of the ceiling."""
    ceiling = ceilings(trainers[0].scale.matrix, device)
    work = flops(next(t for t in trainers if t.variant == PLAIN))
    rates = {name: per_second(each) for name, each in costs.items()}
    of_step = trainers[0].scale.images
    rows = [
        Row(
            "a step's products and convolutions, forward and backward", exactly(work / 1e9), "GFLOP"
        ),
        *(
            Row(
                f"product of two {trainers[0].scale.matrix} matrices, {name}",
                exactly(f / 1e9),
                "GFLOP/s",
            )
            for name, f in ceiling.items()
        ),
    ]
    fastest = max(rates, key=lambda name: spread(rates[name]).median)
    for trainer in trainers:
        variant = trainer.variant
        rate = rates[variant.name]
        rows.append(Row(variant.name, spread(rate), "images/s"))
        if variant != PLAIN:
            wanted = _wanted(variant.name, fastest, on_gpu=device.type == "cuda")
            over = ratio(rate, rates[PLAIN.name])
            rows.append(Row(f"{variant.name} over {PLAIN.name}", over, "x", wanted))
        share = spread([100 * r / of_step * work / ceiling[variant.ceiling] for r in rate])
        rows.append(Row(f"{variant.name}: MFU, of the {variant.ceiling} product", share, "%"))
    return rows


def _wanted(name: str, fastest: str, on_gpu: bool) -> float | None:
    if on_gpu:
        return ON_GPU_OVER_PLAIN if name == fastest else None
    return ON_CPU_OVER_PLAIN if name == OURS.name else None


def peak_rows(trainers: list[Trainer]) -> list[Row]:
    return [
        Row(
            f"{t.variant.name}: peak memory of a step above weights and state",
            exactly(t.peak()),
            "GB",
            better="lower",
        )
        for t in trainers
    ]


def _explained(trainers: list[Trainer]) -> list[Trainer]:
    """Whose step is taken apart: plain's, ours, and the fastest settings that are not compiled."""
    loose = [t for t in trainers if not (t.variant.plain or t.variant.speed.compile)]
    ours = [t for t in loose if t.variant == OURS]
    return list({t.variant.name: t for t in [*ours, loose[-1]]}.values())


def engine_rows(folder: Path, scale: Scale, variant: Variant, device: torch.device) -> list[Row]:
    """The same step through `training.engine`, in a process of its own: a process group stays its own."""
    if find_spec("deepspeed") is None:
        raise ModuleNotFoundError("deepspeed is not installed")
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        rates = processes.submit(_engine_rates, folder, scale, variant, device.type).result()
    return [Row(f"{variant.name}, through DeepSpeed's engine", spread(rates), "images/s")]


def _engine_rates(folder: Path, scale: Scale, variant: Variant, device: str) -> list[float]:
    import os

    from launch.benchmarks.training_engine import EngineTrainer

    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    trainer = EngineTrainer(folder, scale, variant)
    costs = in_turns({variant.name: trainer.turn}, scale.rounds)
    trainer.close()
    return per_second(costs[variant.name])


def _or_absent(what: str, rows: Callable[[], list[Row]]) -> list[Row]:
    try:
        return rows()
    except Exception as error:  # a package that is absent, most often; what was measured is kept
        return [_not_measured(what, error)]


def _not_measured(what: str, error: Exception) -> Row:
    kind = type(error).__name__
    reason = f"{kind}: {error}" if str(error) else kind
    remark = f"not measured: {' '.join(reason.split())[:200]}".replace("|", "/")
    return Row(what, None, remark=remark)
