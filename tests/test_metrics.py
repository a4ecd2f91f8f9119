"""What a run writes about itself, and the digest of the samples it saw."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from pipeline.batch import Batch, Images, View
from pipeline.digest import SampleDigest
from pipeline.ledger import Ledger
from pipeline.stats import StreamStats
from training.hybrid import StepOutput
from training.metrics import LogConfig, Metrics, console_line, truncate_lines

CPU = torch.device("cpu")


def images(positions: list[int], prefix: str = "key") -> Images:
    n = len(positions)
    empty = torch.zeros(0, dtype=torch.int64)
    view = View(torch.zeros(n, 2, 2, 3), torch.zeros(n, 2), torch.zeros(0, 4), empty)
    keys = tuple(f"{prefix}/{p}" for p in positions)
    return Images((view, view), torch.tensor(positions), empty, empty, empty, empty, keys)


def digest_of(*parts: Batch, text: str = "") -> str:
    """As if every part was a rank's."""
    digest = SampleDigest(text)
    shares = []
    for part in parts:
        local = SampleDigest()
        local.add(part)
        shares.append(local.take())
    digest.absorb([sum(limbs) for limbs in zip(*shares)])
    return digest.hex()


def test_digest_is_blind_to_ranks_and_to_resuming() -> None:
    whole = digest_of(Batch(0, images([0, 1, 2, 3]), images([0, 1])))
    ranks = digest_of(Batch(0, images([0, 1]), images([1])), Batch(0, images([2, 3]), images([0])))
    first = digest_of(Batch(0, images([0, 1]), None))
    resumed = digest_of(Batch(1, images([2, 3]), images([0, 1])), text=first)
    assert whole == ranks == resumed


@pytest.mark.parametrize(
    "other",
    [
        Batch(0, images([0, 2]), None),
        Batch(0, images([0, 1], prefix="other"), None),
        Batch(0, None, images([0, 1])),
        Batch(0, images([0, 1, 1]), None),
    ],
)
def test_digest_tells_samples_apart(other: Batch) -> None:
    assert digest_of(Batch(0, images([0, 1]), None)) != digest_of(other)


def test_digest_is_sensitive_to_order() -> None:
    swapped = images([0, 1])
    swapped = Images(swapped.views, *(swapped.position,) * 5, keys=swapped.keys[::-1])
    assert digest_of(Batch(0, images([0, 1]), None)) != digest_of(Batch(0, swapped, None))


@dataclass
class Output:
    losses: dict[str, Tensor]
    weighted: dict[str, Tensor]
    counts: dict[str, Tensor]


def output(loss: float) -> StepOutput:
    value = torch.tensor(loss)
    counts = {"accuracy": torch.tensor([loss, 4.0]), "unused": torch.zeros(2)}
    return cast(StepOutput, Output({"oim": value}, {"oim": 2 * value}, counts))


def metrics(folder: Path, **changes: Any) -> Metrics:
    settings: dict[str, Any] = {
        "config": LogConfig(every=2, console_every=2),
        "steps": 10,
        "start": 0,
        "images": 0,
        "digest": SampleDigest(),
    }
    return Metrics(folder, device=CPU, **(settings | changes))


def stream_stats(ok: int = 6, bad: int = 1, **reads: int) -> StreamStats:
    ledger = Ledger(most_bad=1.0, longest_run=100)
    ledger.decoded["crowd/train"], ledger.bad["crowd/train"] = ok, bad
    stats = StreamStats(("crowd/train", "msmt17/train"), ledger, wait_s=0.0)
    stats.reads.update(reads)
    stats.positions = {"detection": 2, "reid": 4}
    return stats


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_two_steps(
    folder: Path, micro_steps: list[list[float]], grad_norm: float = 3.0, **changes: Any
) -> dict[str, Any]:
    with metrics(folder, **changes) as m:
        for step, losses in enumerate(micro_steps):
            m.add(
                [Batch(step, images([step]), images([2 * step, 2 * step + 1]))],
                list(map(output, losses)),
            )
        m.log(2, 0.1, torch.tensor(grad_norm), stream_stats(), statistics={"lut_fill": 0.5})
    return read_lines(folder)[-1]


def test_a_line_holds_means_over_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = run_two_steps(tmp_path, [[1.0, 2.0], [4.0, 1.0]])
    assert line["losses"] == {"oim": 4.0}  # micro-steps are added, steps averaged
    assert line["weighted"] == {"oim": 8.0}
    assert line["total"] == 8.0
    assert line["statistics"] == {"accuracy": 0.5, "unused": None, "lut_fill": 0.5}
    assert (line["step"], line["images"], line["lr"], line["grad_norm"]) == (2, 6, 0.1, 3.0)
    assert line["data_wait"] == 0
    assert line["sample_digest"] == digest_of(Batch(0, images([0, 1]), images([0, 1, 2, 3])))
    assert "step  2/10  loss  8.000 = oim  8.000  |" in capsys.readouterr().out
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_line_says_what_the_data_came_from(tmp_path: Path) -> None:
    """Rates are of what was added since the last line, counts and the share of hits since the start."""
    with metrics(tmp_path) as m:
        for step, stats in (
            (2, stream_stats(ok=6, bad=1, bytes_read=1000)),
            (4, stream_stats(ok=9, bad=3, bytes_read=4000, cache_hits=3, cache_misses=1)),
        ):
            stats.wait_s = step / 1000
            m.add([Batch(step, images([step]), None)], [output(1.0)])
            m.log(step, 0.1, torch.tensor(1.0), stats, {})
    first, second = (line["data"] for line in read_lines(tmp_path))
    assert "cache_hit_share" not in first
    assert second["cache_hit_share"] == 0.75
    assert second["bad_samples"] == {"crowd/train": 3, "msmt17/train": 0}
    assert second["position"] == {"detection": 2, "reid": 4}
    rates = second["images_per_s"]
    assert rates["msmt17/train"] == 0
    assert second["bytes_read_per_s"] / rates["crowd/train"] == pytest.approx(1000)
    wait = read_lines(tmp_path)[1]["data_wait"]
    assert wait / rates["crowd/train"] == pytest.approx(0.002 / 3)


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    first = run_two_steps(tmp_path, [[1.0], [1.0]])
    digest = SampleDigest(first["sample_digest"])
    second = run_two_steps(tmp_path, [[1.0], [1.0]], images=first["images"], digest=digest, start=1)
    assert second["images"] == 12
    assert second["sample_digest"] != first["sample_digest"]


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_skipped_steps_are_no_part_of_the_means(tmp_path: Path) -> None:
    line = run_two_steps(tmp_path, [[], [3.0]])
    assert (line["losses"], line["total"], line["images"]) == ({"oim": 3.0}, 6.0, 6)


def test_a_line_of_skipped_steps_alone_has_no_losses(tmp_path: Path) -> None:
    line = run_two_steps(tmp_path, [[], []], grad_norm=math.inf)
    assert (line["losses"], line["total"], line["grad_norm"], line["images"]) == ({}, None, None, 6)


def test_console_line_adds_losses_by_part() -> None:
    weighted = {
        "oim": 4.1,
        "rpn_box": 0.5,
        "roi_class": 1.0,
        "similarity": -0.5,
        "domain_reid_image": 0.25,
    }
    line = {
        "step": 20,
        "total": 5.35,
        "weighted": weighted,
        "images_per_s": 12.34,
        "data_wait": 0.021,
    }
    assert console_line(line, 200, 3725.0) == (
        "step  20/200  loss  5.350 = detection  1.500  domain  0.250  oim  4.100  similarity -0.500  "
        "| 12.3 images/s  data wait 2 %  ETA 1:02:05"
    )
