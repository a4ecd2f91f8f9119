"""The order: an exact mixture, whole epochs, runs kept together, and no state anywhere."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.keyed import Draws, permutation
from pipeline.mixture import Mixture, assign_turns, quantise, shake_turns
from pipeline.order import Order, Place, Segment, Source, default_lanes, shuffle_block


def source(name: str, slots: list[int], run_length: int = 1) -> Source:
    return Source(
        name, tuple(slots), lambda shard: np.arange(slots[shard], dtype=np.int32) // run_length
    )


def mixed(*weights: float) -> list[Segment]:
    """One mixture for ever."""
    return [Segment(0, dict(enumerate(weights)))]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_no_count_is_ever_off_by_more_than_tijdeman_allows(counts: list[int]) -> None:
    turns = assign_turns(counts)
    cycle, bound = sum(counts), 1 - Fraction(1, max(1, 2 * len(counts) - 2))
    assert Counter(turns.tolist()) == dict(enumerate(counts))
    for dataset, count in enumerate(counts):
        served = np.cumsum(turns == dataset)
        for turn in range(1, cycle + 1):
            assert abs(Fraction(count * turn, cycle) - int(served[turn - 1])) <= bound


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(0, 9))
def test_shaken_turns_are_never_off_by_more_than_one(counts: list[int], seed: int) -> None:
    turns = shake_turns(assign_turns(counts), counts, seed)
    assert Counter(turns.tolist()) == dict(enumerate(counts))
    for dataset, count in enumerate(counts):
        lag = count * np.arange(1, sum(counts) + 1) - sum(counts) * np.cumsum(turns == dataset)
        assert abs(lag).max() <= sum(counts)


@pytest.mark.parametrize(("weights", "batch"), [([1, 1], 2), ([1, 1, 2], 4), ([4, 3, 2], 9)])
def test_a_place_of_the_batch_soon_meets_every_dataset_at_its_rate(
    weights: list[int], batch: int
) -> None:
    """Tijdeman's turns alone beat with these batches: a place meets one dataset for 400 steps."""
    mixture = Mixture(weights, batch, 0)
    met = np.zeros((batch, len(weights)))
    for turn in range(400 * batch):
        met[turn % batch, mixture.dataset(turn)] += 1
    share = np.array(weights) / sum(weights)
    assert abs(met / 400 - share).max() < 0.15


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=8))
def test_quantised_weights_fill_the_cycle_and_forget_nobody(weights: list[float]) -> None:
    counts = quantise(weights, 4097)
    assert sum(counts) == 4097
    assert min(counts) >= 1
    small = [w for w in weights if w / sum(weights) * 4097 < 1]
    for weight, count in zip(weights, counts, strict=True):
        if not small:
            assert abs(count - weight / sum(weights) * 4097) <= 1 + 1e-6


@settings(max_examples=10, deadline=None)
@given(
    lane_turns=st.integers(1, 3),
    lanes=st.sampled_from([1, 2, 4, 6]),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    start=st.integers(0, 100_000),
)
def test_counts_in_closed_form_are_those_of_walking(
    lane_turns: int, lanes: int, weights: list[int], start: int
) -> None:
    mixture = Mixture(weights, lanes * lane_turns)

    def lane(turn: int) -> int:
        return turn % mixture.batch // lane_turns

    drawn = {d: mixture.drawn(d, start) for d in range(len(weights))}
    in_lane: dict[tuple[int, int], int] = {}
    for turn in range(start, start + 3 * mixture.batch):
        dataset = mixture.dataset(turn)
        assert mixture.drawn(dataset, turn) == drawn[dataset]
        drawn[dataset] += 1
        key = (dataset, lane(turn))
        count = mixture.drawn_in_lane(dataset, turn, lane_turns)
        assert in_lane.get(key, count) == count
        in_lane[key] = count + 1


def test_lane_counts_start_at_zero_and_add_up() -> None:
    mixture = Mixture([3, 1], 8)
    turns = [t for t in range(800) if mixture.dataset(t) == 1]
    seen: Counter[int] = Counter()
    for turn in turns:
        lane = turn % 8 // 2
        assert mixture.drawn_in_lane(1, turn, 2) == seen[lane]
        seen[lane] += 1


def test_over_a_cycle_of_batches_every_place_meets_exactly_its_rate() -> None:
    mixture = Mixture([5, 2], 6)
    steps = mixture.cycle
    for turn in range(steps * 6, steps * 6 + 6):
        dataset = mixture.dataset(turn)
        assert mixture.drawn_in_lane(dataset, turn, 1) == mixture.counts[dataset]


def walk(order: Order, positions: range) -> list[Place]:
    return [order.at(position) for position in positions]


def test_an_epoch_is_every_slot_once() -> None:
    order = Order(1, 4, [source("a", [3, 0, 5, 4, 2])], mixed(1), lanes=1, block=2)
    for epoch in range(3):
        places = walk(order, range(epoch * 14, (epoch + 1) * 14))
        assert {place.epoch for place in places} == {epoch}
        assert len({(place.shard, place.slot) for place in places}) == 14
    first, second = walk(order, range(14)), walk(order, range(14, 28))
    assert [p[2:] for p in first] != [p[2:] for p in second]


def test_lanes_have_their_own_shards_and_see_them_once_an_epoch() -> None:
    lanes, batch = 2, 4
    order = Order(5, batch, [source("a", [6] * 8), source("b", [4] * 3)], mixed(2, 1), lanes)
    by_lane: dict[int, list[Place]] = {0: [], 1: []}
    for position in range(600):
        place = order.at(position)
        if place.source == 0:
            by_lane[position % batch // 2].append(place)
    shards = [{place.shard for place in places} for places in by_lane.values()]
    assert shards[0] | shards[1] == set(range(8))
    assert not shards[0] & shards[1]
    for places in by_lane.values():
        assert len({p[2:] for p in places[:24]}) == 24
        assert [p.epoch for p in places[:48]] == [0] * 24 + [1] * 24


def test_a_dataset_of_few_shards_is_shared_by_all_lanes() -> None:
    order = Order(5, 8, [source("a", [6] * 7)], mixed(1), lanes=2)
    assert len({place[2:] for place in walk(order, range(42))}) == 42


def test_empty_shards_do_not_starve_a_lane() -> None:
    order = Order(5, 8, [source("a", [3, 0, 0, 0, 2, 0, 0, 0])], mixed(1), lanes=2)
    assert len({place[2:] for place in walk(order, range(5))}) == 5


def test_shards_of_a_block_come_together() -> None:
    order = Order(2, 1, [source("a", [10] * 8)], mixed(1), lanes=1, block=2)
    for block in range(4):
        assert len({p.shard for p in walk(order, range(block * 20, block * 20 + 20))}) == 2


def test_any_position_is_found_without_the_ones_before() -> None:
    def fresh() -> Order:
        return Order(7, 6, [source("a", [5] * 9), source("b", [7] * 2)], mixed(1, 2), 2)

    walked = walk(fresh(), range(300, 340))
    assert walked == [fresh().at(position) for position in range(300, 340)]
    far = 10**15
    assert fresh().at(far) == walk(fresh(), range(far - 2, far + 1))[-1]


def test_opening_looks_into_no_shard() -> None:
    def runs(shard: int) -> np.ndarray:
        looked.append(shard)
        return np.arange(1000, dtype=np.int32)

    looked: list[int] = []
    order = Order(0, 64, [Source("a", (1000,) * 2000, runs)], mixed(1), lanes=64, block=2)
    assert looked == []
    order.at(123_456_789)
    assert len(looked) == 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=4),
    group=st.integers(1, 4),
    phase=st.integers(0, 3),
    key=st.integers(0, 100),
)
def test_blocks_keep_every_row_and_fill_groups_with_one_run(
    lengths: list[list[int]], group: int, phase: int, key: int
) -> None:
    phase %= group
    shards = [
        (number, np.repeat(np.arange(len(runs)), runs).astype(np.int32))
        for number, runs in enumerate(lengths)
    ]
    rows = shuffle_block(shards, group, phase, (key,))
    expected = [(s, slot) for s, runs in shards for slot in range(len(runs))]
    assert sorted(map(tuple, rows.tolist())) == expected
    run_of = {(s, slot): (s, int(runs[slot])) for s, runs in shards for slot in range(len(runs))}
    start = -phase % group
    turns = [rows[i : i + group] for i in range(start, len(rows) - group + 1, group)]
    whole = sum(len({run_of[tuple(row)] for row in turn.tolist()}) == 1 for turn in turns)
    possible = sum(length // group for runs in lengths for length in runs)
    assert whole >= possible - (1 if start and group > 1 else 0)


def test_pairs_stay_in_their_turn_over_uneven_epochs() -> None:
    """Odd epochs shift the phase, which tears at most one of the six pairs in each of two blocks."""
    order = Order(0, 4, [source("a", [7, 6], run_length=2)], mixed(1), lanes=1, group=2, block=1)
    kept, epochs = 0, 20
    for turn in range(13 * epochs // 2):
        first, second = order.at(2 * turn), order.at(2 * turn + 1)
        kept += (first.shard, first.slot // 2) == (second.shard, second.slot // 2)
    assert kept >= (6 - 2) * epochs


def test_replacements_come_from_the_same_dataset_and_move_nobody() -> None:
    order = Order(3, 4, [source("a", [4] * 6), source("b", [9])], mixed(1, 1), lanes=1)
    before = walk(order, range(50))
    for position in range(20):
        places = [order.replacement(position, attempt) for attempt in range(12)]
        assert {place.source for place in places} == {before[position].source}
        assert len({place.slot for place in places}) > 1
        assert places == [order.replacement(position, attempt) for attempt in range(12)]
    assert walk(order, range(50)) == before


@pytest.mark.parametrize(("turns", "lanes"), [(64, 64), (100, 50), (6, 6), (67, 1), (256, 64)])
def test_default_lanes(turns: int, lanes: int) -> None:
    assert default_lanes(turns) == lanes


def test_keyed_draws_are_fixed_for_ever() -> None:
    """These values are in every digest's meaning: if they change, resumed runs see other data."""
    assert permutation(8, 1, "a").tolist() == [0, 2, 6, 4, 3, 5, 7, 1]
    draws = Draws("seed", 2)
    assert [round(draws.uniform(), 6) for _ in range(3)] == [0.459854, 0.795988, 0.930317]


def test_permutations_are_fair() -> None:
    firsts = Counter(int(permutation(5, seed, "fair")[0]) for seed in range(2000))
    assert all(330 < count < 470 for count in firsts.values())
