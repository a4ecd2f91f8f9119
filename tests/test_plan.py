"""The plan: a pure function of listing and settings whose hash stands for everything in it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeAdapter, fake_crops, fake_scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotation import Person
from pipeline.errors import UserError
from sharding.canvas import CanvasConfig
from sharding.datasets.base import FaultySample, Listing
from sharding.plan import Plan, PlanConfig, PlannedSample, differences, make_plan
from sharding.source import Source


def plan(adapter: FakeAdapter, **config: object) -> Plan:
    return make_plan(
        adapter, "train", adapter.list_samples(Source("nowhere"), "train"), PlanConfig(**config)
    )


def planned(plan: Plan) -> list[PlannedSample]:
    return [sample for shard in plan.shards for sample in shard.samples]


def keys(plan: Plan) -> list[str]:
    return [sample.source.key for sample in planned(plan)]


def test_order_of_the_listing_does_not_matter_and_the_seed_does() -> None:
    crops = fake_crops(40, 6)
    backwards = replace(crops, samples=crops.samples[::-1])
    assert plan(crops, group=2).hash == plan(backwards, group=2).hash
    assert planned(plan(crops, group=2)) == planned(plan(backwards, group=2))
    assert keys(plan(crops)) != sorted(keys(plan(crops)))
    assert keys(plan(crops, seed=1)) != keys(plan(crops))
    assert sorted(keys(plan(crops, seed=1))) == sorted(keys(plan(crops)))


@settings(max_examples=60, deadline=None)
@given(
    identities=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    group=st.integers(1, 4),
    shard_crops=st.integers(1, 20),
)
def test_runs_hold_one_identity_and_lose_nobody(
    identities: list[int], group: int, shard_crops: int
) -> None:
    template = fake_crops(1, 1).samples[0]
    samples = [
        replace(
            template,
            key=f"fake/train/{number}",
            persons=(template.persons[0].model_copy(update={"identity": f"t:{i}" if i else None}),),
        )
        for number, i in enumerate(identities)
    ]
    made = plan(FakeAdapter("reid", {}, samples), group=group, shard_crops=shard_crops)
    assert sorted(keys(made)) == sorted(sample.key for sample in samples)
    runs: Counter[str | None] = Counter()
    for shard in made.shards:
        assert 0 < len(shard.samples) < shard_crops + group
        numbers = [sample.run for sample in shard.samples]
        assert numbers == sorted(numbers)
        for number in set(numbers):
            run = [s.source.persons[0].identity for s in shard.samples if s.run == number]
            assert len(run) <= group
            assert len(set(run)) == 1
            assert run[0] is not None or len(run) == 1
            runs[run[0]] += 1
    for identity, number in Counter(f"t:{i}" for i in identities if i).items():
        assert runs[identity] == -(-number // group)


def test_shards_of_scenes_have_about_the_target_size() -> None:
    scenes = fake_scenes(60)
    total = sum(sample.size_bytes for sample in scenes.samples)
    made = plan(scenes, shard_bytes=total // 6)
    sizes = [sum(s.source.size_bytes for s in shard.samples) for shard in made.shards]
    assert len(sizes) == 7
    assert max(sizes) < 1.5 * min(sizes)
    assert [shard.name for shard in made.shards] == [f"{number:06d}" for number in range(7)]


def test_one_huge_scene_makes_no_empty_shard() -> None:
    scenes = fake_scenes(5)
    scenes.samples[2] = replace(scenes.samples[2], size_bytes=10**9)
    made = plan(scenes, shard_bytes=10_000)
    assert all(shard.samples for shard in made.shards)
    assert made.samples == 5


def test_a_larger_subset_holds_the_smaller_one_and_the_rest_is_counted() -> None:
    crops = fake_crops(50, 5)
    small, large = set(keys(plan(crops, subset=10))), set(keys(plan(crops, subset=30)))
    assert (len(small), len(large)) == (10, 30)
    assert small < large
    assert small == set(keys(plan(crops, subset=10, seed=9)))
    assert plan(crops, subset=10).excluded == {"too dull": 3, "outside of the subset of 10": 40}


def test_faulty_samples_are_planned_and_repeated_keys_counted() -> None:
    scenes = fake_scenes(4)
    scenes.faulty = (FaultySample("fake/train/lost", "Images/lost.jpg", "lost at sea"),)
    scenes.samples.append(scenes.samples[0])
    made = plan(scenes)
    (lost,) = [sample for sample in planned(made) if sample.fault]
    assert (lost.source.key, lost.source.origin) == ("fake/train/lost", "Images/lost.jpg")
    assert lost.fault == "lost at sea"
    assert made.samples == 5
    assert made.excluded["repeated key"] == 1
    assert made.source_samples == made.samples + sum(made.excluded.values())


def test_a_subset_does_not_depend_on_which_files_are_there() -> None:
    crops = fake_crops(50, 5)
    lost = tuple(FaultySample(sample.key, sample.origin) for sample in crops.samples[:25])
    half = replace(crops, samples=crops.samples[25:], faulty=lost)
    assert set(keys(plan(half, subset=10))) == set(keys(plan(crops, subset=10)))


def test_hash_covers_what_decides_bytes_and_nothing_else() -> None:
    crops, scenes = fake_crops(12, 3), fake_scenes(6)
    base = plan(crops)
    changed = [
        plan(crops, seed=1),
        plan(crops, shard_crops=5),
        plan(crops, check="header"),
        plan(crops, canvas=CanvasConfig(quality=80)),
        plan(replace(crops, name="other")),
    ]
    for field, value in {"origin": "x", "size_bytes": 1, "tags": ("t",), "persons": ()}.items():
        samples = [replace(crops.samples[0], **{field: value}), *crops.samples[1:]]
        changed.append(plan(replace(crops, samples=samples)))
    assert len({base.hash, *(other.hash for other in changed)}) == 1 + len(changed)
    elsewhere = [replace(sample, locator="moved/" + sample.locator) for sample in crops.samples]
    assert plan(replace(crops, samples=elsewhere)).hash == base.hash
    assert plan(scenes, canvas=CanvasConfig(quality=80)).hash == plan(scenes).hash
    assert plan(crops, max_missing=1).hash == base.hash
    assert plan(crops, recode="jpeg:90").hash == base.hash
    assert plan(scenes, recode="jpeg:90").hash != plan(scenes).hash


def wide(adapter: FakeAdapter, number: int, *boxes: tuple[float, float, float, float]) -> None:
    """Gives a sample other people: (height, visible share) by box and visible box."""
    persons = tuple(
        Person(box=box, visible_box=(box[0], box[1], box[2], box[1] + 10)) for box in boxes
    )
    adapter.samples[number] = replace(adapter.samples[number], persons=persons)


def test_filters_choose_samples_and_each_rule_counts_what_it_leaves_out(tmp_path: Path) -> None:
    scenes = fake_scenes(6)
    wide(scenes, 0, (0, 0, 10, 100))
    wide(scenes, 1, (0, 0, 10, 100), (0, 0, 10, 12))
    wide(scenes, 2, (0, 0, 10, 12))
    scenes.samples[3] = replace(scenes.samples[3], expected_size=(40, 20))
    lost = scenes.samples.pop(5)
    scenes.faulty = (FaultySample(lost.key, lost.origin),)
    (tmp_path / "keys").write_text(f"# not these\n\n{scenes.samples[4].key}\n")

    def left(**filters: object) -> tuple[set[str], dict[str, int]]:
        made = plan(scenes, filters=filters)
        assert made.source_samples == made.samples + sum(made.excluded.values())
        return {key[-1] for key in keys(made)}, {
            rule: number for rule, number in made.excluded.items() if rule != "too dull"
        }

    # A sample that the release lacks cannot be judged by what it shows: it stays, quarantined.
    rule = "fewer than 1 persons as asked for"
    assert left(min_person_height=80) == ({"0", "1", "5"}, {rule: 3})
    assert left(min_visible=0.5) == ({"1", "2", "3", "4", "5"}, {rule: 1})
    assert left(min_visible=0.5, min_person_height=12)[0] == {"1", "2", "3", "4", "5"}
    with pytest.raises(UserError, match=r"no sample to write \(.*persons as asked for: 5"):
        left(min_visible=0.5, min_person_height=80)
    assert left(min_persons=2)[0] == {"1", "5"}
    assert left(min_size=(30, 60)) == (
        {"0", "1", "2", "4", "5"},
        {"smaller than 60x30 pixels": 1},
    )
    excluded = {"in the list of excluded keys": 1}
    assert left(exclude_keys=str(tmp_path / "keys")) == ({"0", "1", "2", "3", "5"}, excluded)
    assert left(keys=str(tmp_path / "keys")) == ({"4"}, {"not in the list of keys": 5})
    with pytest.raises(UserError, match="cannot read the names in"):
        plan(scenes, filters={"keys": str(tmp_path / "nowhere")})


def test_a_list_of_keys_decides_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    scenes = fake_scenes(4)
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{scenes.samples[1].key}\n")
    made = [plan(scenes, filters={"exclude_keys": str(tmp_path / name)}) for name in ("one", "two")]
    assert made[0].hash == made[1].hash
    (tmp_path / "two").write_text("nobody\n")
    assert plan(scenes, filters={"exclude_keys": str(tmp_path / "two")}).hash != made[0].hash


def test_the_difference_of_two_plans_is_named() -> None:
    crops = fake_crops(12, 3)
    before = plan(crops).description()
    after = plan(crops, seed=4, subset=10, canvas=CanvasConfig(variants=2)).description()
    named = list(differences(before, after))
    assert "settings.seed: 0 -> 4" in named
    assert "settings.canvas.variants: 4 -> 2" in named
    assert "samples: 12 -> 10" in named


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="group"):
        plan(fake_scenes(3), group=2)
    benchmark = replace(fake_scenes(3), task="search")
    with pytest.raises(UserError, match="a benchmark keeps its size"):
        plan(benchmark, recode="jpeg:90", max_side=64)
    with pytest.raises(ValueError, match="max_side needs recode"):
        PlanConfig(max_side=640)
    with pytest.raises(UserError, match="no sample"):
        make_plan(fake_scenes(0), "train", Listing([], 0), PlanConfig())
    gone = Listing([], 1, faulty=(FaultySample("fake/train/gone", "gone"),))
    with pytest.raises(UserError, match="no sample"):
        make_plan(fake_scenes(0), "train", gone, PlanConfig())
