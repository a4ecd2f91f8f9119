"""What a run says of itself, each statistic against plain loops."""

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import launch

from pipeline.batch import Images, Use
from tests.batches import hybrid_batch, make_images
from tests.by_hand import jittered_config, train_by_hand
from tests.models import DOMAINS, tiny_config, tiny_model
from training.engine import EngineConfig, close_distributed, init_distributed
from training.losses.domain import AlignmentModule, DomainInput, told_by_domain
from training.losses.oim import OimConfig, OimTables, TableRows
from training.statistics import (
    GRADIENT_PARTS,
    RECALL_IOU,
    Parts,
    count_persons,
    covered,
    ratios,
)

SEEDS = st.integers(0, 10_000)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, images=st.integers(1, 3), persons=st.integers(0, 6), number=st.integers(1, 8))
def test_a_person_is_covered_by_a_real_proposal_of_its_image(
    seed: int, images: int, persons: int, number: int
) -> None:
    draw = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        corner = torch.randint(0, 8, (*shape, 2), generator=draw)
        size = torch.randint(2, 8, (*shape, 2), generator=draw)
        return torch.cat([corner, corner + size], -1).double()

    persons_, proposals = boxes(persons), boxes(images, number)
    real = torch.rand(images, number, generator=draw) < 0.7
    image = torch.randint(0, images, (persons,), generator=draw)
    expected = [
        any(
            overlap(box, proposal) >= RECALL_IOU
            for proposal, is_real in zip(proposals[i].tolist(), real[i].tolist())
            if is_real
        )
        for box, i in zip(persons_.tolist(), image.tolist())
    ]
    assert covered(persons_, image, proposals, real).tolist() == expected


def with_uses(images: Images, uses: Sequence[int]) -> Images:
    for view in images.views:
        view.use.copy_(torch.tensor(uses))
    return images


def test_persons_are_counted_a_view_of_an_image() -> None:
    parts = Parts()
    uses = [Use.ABSENT, Use.IGNORE, Use.DETECT, Use.MATCH, Use.MATCH]
    count_persons(parts, with_uses(make_images((64, 96), [4, 0, 1]), uses), "scenes")
    count_persons(parts, make_images((64, 96), [2]), "scenes")
    found = {name: pair.tolist() for name, pair in parts.counts.items()}
    assert found == {
        "persons_scenes/boxes": [2 * (4 + 2), 2 * 4],
        "persons_scenes/detect": [2 * (3 + 2), 2 * 4],
        "persons_scenes/match": [2 * (2 + 2), 2 * 4],
    }


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, rows=st.integers(0, 12), domains=st.integers(2, 4))
def test_accuracy_and_chance_by_domain(seed: int, rows: int, domains: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, domains, generator=draw)
    domain = torch.randint(0, domains, (rows,), generator=draw)
    weights = (torch.rand(rows, generator=draw) < 0.8).double()
    found = told_by_domain(scores, domain, weights).tolist()
    guesses = [max(range(domains), key=row.__getitem__) for row in scores.tolist()]
    kept = [(d, g) for d, g, w in zip(domain.tolist(), guesses, weights.tolist()) if w]
    expected = [
        [sum(d == g == m for d, g in kept), sum(d == m for d, _ in kept)] for m in range(domains)
    ]
    assert found == expected

    pairs = {f"domain_x_accuracy/{m}": tuple(pair) for m, pair in enumerate(expected)}
    pairs["domain_x_accuracy"] = tuple(map(sum, zip(*expected)))
    shares = ratios(pairs)
    if kept:  # always naming the domain that there is most of
        commonest = max(range(domains), key=lambda m: expected[m][1])
        assert shares["domain_x_chance"] == sum(d == commonest for d, _ in kept) / len(kept)
    else:
        assert "domain_x_chance" not in shares
        assert math.isnan(shares["domain_x_accuracy"])


def test_an_image_is_told_by_its_pixels_mean_probabilities() -> None:
    torch.manual_seed(0)
    module = AlignmentModule((4, 5), 3).double()
    pixels = (torch.rand(6, 2, 3) < 0.6).double()
    pixels[:, 0, 0] = 1
    domain = torch.tensor([0, 1, 2, 0, 1, 2])
    instances = torch.zeros(0, 5).double()
    none = torch.zeros(0, dtype=torch.int64)
    maps = 3 * torch.randn(6, 4, 2, 3).double()
    _, told = module(DomainInput(maps, pixels, domain, instances, none, instances[:, 0]), 0.1)
    expected = [[0.0, 0.0] for _ in range(3)]
    probabilities = module.image_head(maps).softmax(1)
    for b in range(6):
        cells = [(i, j) for i in range(2) for j in range(3) if pixels[b, i, j]]
        mean = [sum(float(probabilities[b, m, i, j].detach()) for i, j in cells) for m in range(3)]
        expected[int(domain[b])][0] += mean.index(max(mean)) == int(domain[b])
        expected[int(domain[b])][1] += 1
    assert told.images.tolist() == expected
    assert told.instances.tolist() == [[0, 0]] * 3


def test_a_step_counts_each_dataset_and_they_add_up() -> None:
    model, batch = tiny_model(), hybrid_batch()
    counts = model(batch, model.denominators([batch]), step=5).counts
    for task, names in DOMAINS.items():
        for stem in (f"domain_{task}_accuracy", f"domain_{task}_image_accuracy"):
            parts = [counts[f"{stem}/{name}"] for name in names]
            assert counts[stem].tolist() == torch.stack(parts).sum(0).tolist()
    # canvases of 0, 1 and 2: four, one and three, in two views
    seen = [counts[f"domain_reid_accuracy/{name}"][1].item() for name in DOMAINS["reid"]]
    assert seen == [8, 2, 6]
    assert counts["proposal_recall_scenes"][1].item() == 2 * 6
    assert counts["proposals_canvases"][1].item() == 2 * 8
    assert 0 < counts["proposals_scenes"][0] <= 2 * 4 * tiny_config().model.detector.proposals


def rows_of(unlabelled: int, labelled: int) -> TableRows:
    count = unlabelled + labelled
    identity = torch.tensor([-1] * unlabelled + [0] * labelled, dtype=torch.int64)
    numbers = torch.arange(count)
    unit = torch.nn.functional.normalize(torch.ones(count, 3), dim=1)
    return TableRows(unit, identity, numbers, numbers[:, None].expand(-1, 3))


def test_the_age_of_an_empty_queue_is_unknown() -> None:
    for size in (0, 3):
        tables = OimTables(OimConfig(queue=size), 1, 3)
        tables.update(rows_of(0, 2))
        said = tables.statistics()
        assert (said["lut_fill"], said["queue_fill"], said["active_rows"]) == (1, 0, 1)
        assert math.isnan(said["queue_age_mean"]) and math.isnan(said["queue_age_max"])


@settings(max_examples=40, deadline=None)
@given(pushes=st.lists(st.integers(0, 9), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_the_queues_age_is_steps_since_each_push_also_across_a_resume(
    pushes: list[int], cut: int
) -> None:
    tables = OimTables(OimConfig(queue=7), 1, 3)
    born: deque[int] = deque(maxlen=7)  # the step that each slot was filled in, oldest first
    for step, count in enumerate(pushes):
        if step == cut:
            resumed = OimTables(OimConfig(queue=7), 1, 3)
            resumed.load_state_dict(tables.state_dict())
            tables = resumed
        tables.update(rows_of(count, labelled=1))
        born.extend([step] * count)
        said = tables.statistics()
        assert said["queue_fill"] == len(born) / 7
        if born:
            ages = [step - start for start in born]
            assert said["queue_age_mean"] == pytest.approx(sum(ages) / len(ages))
            assert said["queue_age_max"] == max(ages)


def test_ages_count_from_the_resume_where_a_checkpoint_has_none() -> None:
    tables = OimTables(OimConfig(queue=4), 1, 3)
    for _ in range(3):
        tables.update(rows_of(1, 0))
    older = {name: value for name, value in tables.state_dict().items() if name != "queue_age"}
    tables.load_state_dict(older)
    assert "queue_age" not in older
    tables.update(rows_of(1, 0))
    assert tables.queue_age.tolist() == [1, 1, 1, 0]
    with pytest.raises(RuntimeError, match="queue_head"):
        tables.load_state_dict({k: v for k, v in older.items() if k != "queue_head"})


def test_every_parameter_is_in_one_part() -> None:
    inter = tiny_config().alignment.model_copy(update={"tasks": ("reid", "inter_task")})
    for config in (tiny_config(), tiny_config(alignment=inter)):
        for name, _ in tiny_model(config).named_parameters():
            parts = [part for part, starts in GRADIENT_PARTS.items() if name.startswith(starts)]
            assert len(parts) == 1, name


@dataclass(frozen=True)
class AtBothStages:
    """Trains two steps at ZeRO 0 and at ZeRO 1, in a process that is free to join a process group."""

    folder: Path

    def __call__(self) -> None:
        device = init_distributed(EngineConfig(threads=1, timeout_s=60))
        batches = [hybrid_batch(step) for step in range(2)]
        for stage in (0, 1):
            engine = {"zero_stage": stage, "threads": 1, "timeout_s": 60, "clip": 1.0}
            changes = {"engine": engine, "checkpoint": {"every": 100}}
            train_by_hand(self.folder / str(stage), batches, device, **changes)
        close_distributed()


def gradient_norms_in_plain_loops() -> dict[str, float]:
    """Of the first step, on one rank without DeepSpeed."""
    model, batch = tiny_model(jittered_config()), hybrid_batch()
    model(batch, model.denominators([batch]), step=0).total.backward()
    squares = dict.fromkeys(GRADIENT_PARTS, 0.0)
    for name, parameter in model.named_parameters():
        (part,) = (p for p, starts in GRADIENT_PARTS.items() if name.startswith(starts))
        squares[part] += sum(value * value for value in parameter.grad.flatten().tolist())
    return {f"grad_norm/{part}": math.sqrt(square) for part, square in squares.items()}


@pytest.mark.launched
def test_two_ranks_say_what_one_says_at_any_stage(tmp_path: Path) -> None:
    """Statistics add up over ranks, gradient norms of the parts are of the whole gradient."""
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        launch(world_size, AtBothStages(folder), folder / "ranks")
        for stage in (0, 1):
            text = (folder / str(stage) / "metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            for line in lines:
                parts = [line["statistics"][f"grad_norm/{part}"] for part in GRADIENT_PARTS]
                assert math.hypot(*parts) == pytest.approx(line["grad_norm"], rel=1e-5)
            first[world_size, stage] = lines[0]["statistics"]
    said = {k: v for k, v in first[1, 0].items() if not k.startswith("collapse_")}
    for found in first.values():  # pairs of persons are formed on a rank
        now = {name: value for name, value in found.items() if not name.startswith("collapse_")}
        assert now == pytest.approx(said, rel=1e-3, abs=1e-6)
    by_hand = gradient_norms_in_plain_loops()
    assert {name: said[name] for name in by_hand} == pytest.approx(by_hand, rel=1e-3)
    assert {"persons_scenes/match", "proposal_recall_canvases", "domain_reid_chance"} < said.keys()
