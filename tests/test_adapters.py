"""All adapters: what every one of them reads from its generated release is what was drawn."""

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from releases import list_samples, read
from small_miniature import SMALL

from pipeline.errors import UserError
from sharding.datasets import ADAPTERS
from sharding.datasets.base import WHOLE_CROP, Listing, SourceSample
from sharding.miniature import TruthImage, TruthPerson
from sharding.miniature import write as write_miniature

SPLITS = [(name, split) for name, adapter in ADAPTERS.items() for split in adapter.splits]
Miniature = tuple[Path, list[TruthImage]]


def truth_of(miniature: Miniature, name: str, split: str) -> dict[str, TruthImage]:
    """What was drawn for a split, by the name that the release gives each image."""
    parts = {"msmt17/train_val": ("train", "val")}.get(f"{name}/{split}")
    parts = parts or (split.replace("labelled", "labeled"),)
    images = [image for image in miniature[1] if image.dataset == name and image.split in parts]
    assert images, "the miniature drew nothing for this split"
    return {image.name: image for image in images}


def release_name(name: str, sample: SourceSample) -> str:
    if name == "cuhk03":
        return str(sample.extra["name"])
    return sample.origin if name.startswith("luperson") else sample.locator


def listed(miniature: Miniature, name: str, split: str) -> tuple[Listing, dict[str, SourceSample]]:
    listing = list_samples(name, miniature[0] / name, split)
    return listing, {release_name(name, sample): sample for sample in listing.samples}


def has_area(person: TruthPerson) -> bool:
    return person.box[2] > person.box[0] and person.box[3] > person.box[1]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_every_drawn_image_is_listed_or_left_out_by_a_rule(
    miniature: Miniature, name: str, split: str
) -> None:
    truth = truth_of(miniature, name, split)
    listing, samples = listed(miniature, name, split)
    left_out = truth.keys() - samples.keys()
    assert samples.keys() <= truth.keys()
    assert len(left_out) == sum(listing.excluded.values())
    assert listing.faulty == ()
    assert listing.total == len(truth)
    for image in left_out:
        assert all(person.ignore for person in truth[image].persons)
    assert listing.found["images"] == len(truth)


@pytest.mark.parametrize(
    ("name", "split"), [(n, s) for n, s in SPLITS if ADAPTERS[n].task != "reid"]
)
def test_people_of_scenes_are_those_drawn(miniature: Miniature, name: str, split: str) -> None:
    """Of person-search sets the identities and cameras too; elsewhere nobody has one."""
    truth = truth_of(miniature, name, split)
    _, samples = listed(miniature, name, split)
    namespace = "search" if name == "posetrack21" else "person"
    for image, sample in samples.items():
        drawn = Counter(
            (p.box, p.kind, p.ignore, p.tags, p.identity and f"{namespace}:{p.identity}", p.camera)
            for p in truth[image].persons
            if has_area(p)
        )
        listed_people = Counter(
            (p.box, p.category, p.ignore, p.tags, p.identity, p.camera) for p in sample.persons
        )
        assert listed_people == drawn
        size = (truth[image].width, truth[image].height)
        assert sample.expected_size in (None, size)
        if name == "crowdhuman":
            visible = [person.visible_box for person in truth[image].persons if has_area(person)]
            assert [person.visible_box for person in sample.persons] == visible


@pytest.mark.parametrize(
    ("name", "split"), [(n, s) for n, s in SPLITS if ADAPTERS[n].task == "reid"]
)
def test_crops_hold_one_person_with_the_drawn_camera(
    miniature: Miniature, name: str, split: str
) -> None:
    truth = truth_of(miniature, name, split)
    _, samples = listed(miniature, name, split)
    for image, sample in samples.items():
        (person,) = sample.persons
        (drawn,) = truth[image].persons
        assert person.box == WHOLE_CROP
        assert (person.identity is None) == (drawn.identity is None)
        camera = str(person.extra["view"]) if name == "cuhk03" else person.camera
        assert camera == drawn.camera


@pytest.mark.parametrize(("name", "namespaces"), [("msmt17", 2), ("cuhk03", 1)])
def test_identities_are_equal_where_the_person_is(
    miniature: Miniature, name: str, namespaces: int
) -> None:
    """MSMT17 numbers the people of its halves from 0 each; CUHK03 numbers all of them once."""
    pairs = set()
    for split in ADAPTERS[name].splits:
        truth = truth_of(miniature, name, split)
        for image, sample in listed(miniature, name, split)[1].items():
            half = "test" if namespaces == 2 and split in ("query", "gallery") else "train"
            pairs.add(((half, truth[image].persons[0].identity), sample.persons[0].identity))
    assert len({drawn for drawn, _ in pairs}) == len({read for _, read in pairs}) == len(pairs) > 2


@pytest.mark.parametrize("name", ADAPTERS)
def test_keys_differ_between_splits(miniature: Miniature, name: str) -> None:
    samples = [
        sample
        for split in ADAPTERS[name].splits
        for sample in list_samples(name, miniature[0] / name, split).samples
    ]
    assert len({sample.key for sample in samples}) == len(samples)


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_bytes_are_an_image_of_the_drawn_size(miniature: Miniature, name: str, split: str) -> None:
    truth = truth_of(miniature, name, split)
    for image, sample in listed(miniature, name, split)[1].items():
        data = read(name, miniature[0] / name, sample.locator)
        if name != "cuhk03":
            assert len(data) == sample.size_bytes
        if not truth[image].corrupt:
            with Image.open(io.BytesIO(data)) as decoded:
                decoded.load()
                assert decoded.size == (truth[image].width, truth[image].height)


def test_cuhk03_is_the_same_in_folders(miniature: Miniature, tmp_path: Path) -> None:
    """Both forms of the release hold the same pictures of the same people in the same splits."""
    folders = SMALL.model_copy(update={"datasets": ("cuhk03",), "cuhk03_folders": True})
    write_miniature(tmp_path, folders)

    def pictures(root: Path, split: str) -> list[tuple[object, ...]]:
        found = []
        for sample in list_samples("cuhk03", root / "cuhk03", split).samples:
            (person,) = sample.persons
            with Image.open(io.BytesIO(read("cuhk03", root / "cuhk03", sample.locator))) as image:
                found.append((person.identity, person.extra["view"], image.tobytes()))
        return sorted(found)

    for split in ADAPTERS["cuhk03"].splits:
        assert pictures(tmp_path, split) == pictures(miniature[0], split)


@pytest.mark.parametrize("name", ADAPTERS)
def test_unknown_split_and_absent_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="has no split 'tset'; its splits are"):
        list_samples(name, tmp_path, "tset")
    for split in ADAPTERS[name].splits:
        with pytest.raises(UserError, match="does not exist"):
            list_samples(name, tmp_path / "nowhere", split)


@pytest.mark.parametrize("name", ADAPTERS)
def test_published_figures_are_of_known_kinds(miniature: Miniature, name: str) -> None:
    """Each is compared with what a listing counts under the same name."""
    assert ADAPTERS[name].name == name
    for split, published in ADAPTERS[name].splits.items():
        found = list_samples(name, miniature[0] / name, split).found
        assert {figure.what for figure in published} <= found.keys()
        assert {figure.evidence for figure in published} <= {"V", "S", "R"}
