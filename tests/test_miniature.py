"""The generated releases: their bytes, layouts and traps, and that there is something to learn."""

import hashlib
import json
import pickle
import re
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import h5py
import lmdb
import numpy as np
import pytest
from scipy.io import loadmat
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.errors import UserError
from sharding.miniature import MiniatureConfig, TruthImage, write

TINY = MiniatureConfig(
    crowdhuman_train=5,
    crowdhuman_val=2,
    ecp_day_train=3,
    ecp_day_val=2,
    ecp_night_train=2,
    ecp_night_val=1,
    ecp_empty=1,
    msmt17_train_identities=3,
    msmt17_test_identities=2,
    cuhk03_train_identities=4,
    cuhk03_test_identities=3,
    luperson_crops=12,
    luperson_identities=9,
    luperson_nl_crops=5,
    posetrack21_train=3,
    posetrack21_val=5,
    prw_train=3,
    prw_test=4,
    cuhk_sysu_train=3,
    cuhk_sysu_test=4,
)
SAMPLE = MiniatureConfig(
    crowdhuman_train=44,
    crowdhuman_val=4,
    ecp_day_train=36,
    ecp_day_val=4,
    ecp_night_train=6,
    ecp_night_val=2,
    ecp_empty=4,
    luperson_crops=160,
    luperson_identities=80,
    luperson_nl_crops=10,
    posetrack21_train=4,
    posetrack21_val=8,
    prw_train=8,
    prw_test=14,
    cuhk_sysu_train=8,
    cuhk_sysu_test=12,
)
Rgb = np.ndarray


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TruthImage]]:
    root = tmp_path_factory.mktemp("miniature")
    return root, write(root, SAMPLE)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def decode(data: bytes) -> Rgb | None:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if image is None else image[..., ::-1]


def of(truth: list[TruthImage], dataset: str, *splits: str) -> list[TruthImage]:
    return [i for i in truth if i.dataset == dataset and (not splits or i.split in splits)]


# --- bytes ----------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a", TINY), write(tmp_path / "b", TINY)
    assert first == again
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    write(tmp_path / "c", TINY.model_copy(update={"seed": 1}))
    mine, others = digests(tmp_path / "a"), set(digests(tmp_path / "c").values())
    lock = hashlib.sha256(bytes(8192)).hexdigest()
    assert set(mine.values()) & others == {lock}


def test_one_dataset_does_not_depend_on_the_others(tmp_path: Path) -> None:
    write(tmp_path / "all", TINY.model_copy(update={"datasets": ("luperson", "msmt17")}))
    write(tmp_path / "one", TINY.model_copy(update={"datasets": ("msmt17",)}))
    assert digests(tmp_path / "all" / "msmt17") == digests(tmp_path / "one" / "msmt17")


def test_a_folder_in_use_and_an_unknown_dataset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ecp").mkdir()
    (tmp_path / "ecp" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="ecp is not empty"):
        write(tmp_path, TINY)
    with pytest.raises(UserError, match=r"`market`; there are crowdhuman"):
        write(tmp_path, MiniatureConfig(datasets=("market",)))
    assert digests(tmp_path) == {"ecp/mine.txt": hashlib.sha256(b"keep").hexdigest()}


def test_images_are_as_large_as_the_truth_says_and_only_the_marked_are_broken(
    world: tuple[Path, list[TruthImage]],
) -> None:
    root, truth = world
    for dataset, ending in (("crowdhuman", b"\xff\xd9"), ("ecp", b"IEND"), ("msmt17", b"\xff\xd9")):
        images = of(truth, dataset)
        assert sum(image.corrupt for image in images) == SAMPLE.corrupt
        for image in images:
            data = (root / dataset / image.name).read_bytes()
            assert image.corrupt != (ending in data[-8:]), image.name
            if not image.corrupt:
                pixels = decode(data)
                assert pixels is not None
                assert pixels.shape == (image.height, image.width, 3)


# --- CrowdHuman -----------------------------------------------------------------------------------


def odgt(root: Path, split: str) -> list[dict]:
    text = (root / "crowdhuman" / f"annotation_{split}.odgt").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_crowdhuman_layout_and_truth(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    for split, count in (("train", 44), ("val", 4)):
        rows, images = odgt(root, split), of(truth, "crowdhuman", split)
        assert len(rows) == len(images) == count
        for row, image in zip(rows, images, strict=True):
            assert re.fullmatch(r"\d+,[0-9a-f]{12,17}", row["ID"])
            assert image.name == f"Images/{row['ID']}.jpg"
            for box, person in zip(row["gtboxes"], image.persons, strict=True):
                x, y, w, h = box["fbox"]
                assert all(type(v) is int for v in (x, y, w, h))
                assert person.box == (x, y, x + w, y + h)
                assert person.kind == box["tag"]
                ignored = box["tag"] == "mask" or box["extra"].get("ignore") == 1
                assert person.ignore == ignored
    assert list(odgt(root, "train")[0]) != list(odgt(root, "val")[0])


def test_crowdhuman_quirks(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    images = of(truth, "crowdhuman", "train")
    boxes = [box for row in odgt(root, "train") for box in row["gtboxes"]]
    sizes = {(image.width, image.height) for image in images}
    assert len(sizes) > 3
    assert any(box["fbox"][2] <= 0 or box["fbox"][3] <= 0 for box in boxes)
    assert any(box["head_attr"] == {} for box in boxes)
    masks = [box for box in boxes if box["tag"] == "mask"]
    assert masks
    assert all(b["extra"] == {"ignore": 1} and b["fbox"] == b["vbox"] == b["hbox"] for b in masks)
    assert any(b["extra"].get("ignore") == 0 for b in boxes)
    leaving = Counter(
        side
        for image in images
        for x1, y1, x2, y2 in (p.box for p in image.persons)
        for side, out in (("left", x1 < 0), ("right", x2 > image.width), ("low", y2 > image.height))
        if out
    )
    assert set(leaving) == {"left", "right", "low"}
    turned = [i for i in images if b"Exif" in (root / "crowdhuman" / i.name).read_bytes()[:16]]
    assert turned, "an EXIF orientation must not turn the boxes"


def test_people_stand_where_their_boxes_say(tmp_path: Path) -> None:
    """Below the horizon, people are far richer in edges than the ground is."""
    truth = write(tmp_path, TINY.model_copy(update={"datasets": ("crowdhuman",), "corrupt": 0}))
    inside, outside = [], []
    for image in truth:
        pixels = decode((tmp_path / "crowdhuman" / image.name).read_bytes())
        assert pixels is not None
        edges = np.abs(cv2.Laplacian(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
        ground = slice(image.height // 2, None)
        marked = np.zeros(edges.shape, bool)
        for person in image.persons:
            x1, y1, x2, y2 = (max(round(v), 0) for v in person.visible_box or (0, 0, 0, 0))
            marked[y1:y2, x1:x2] = True
        inside.append(edges[ground][marked[ground]].mean())
        outside.append(edges[ground][~marked[ground]].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


# --- ECP ------------------------------------------------------------------------------------------


def frame_of(label: Path) -> dict:
    frame = json.loads(label.read_text())
    while frame["identity"] != "frame":
        assert frame["identity"] in ("@converter", "seqlist")
        frame = frame["children"][0]
    return frame


def objects_of(frame: dict) -> list[dict]:
    return [o for child in frame["children"] for o in (child, *objects_of(child))]


def test_ecp_layout_and_truth(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    images = of(truth, "ecp")
    assert Counter(i.split for i in images) == {
        "day_train": 40,
        "day_val": 4,
        "night_train": 6,
        "night_val": 2,
    }
    people = {
        "pedestrian",
        "rider",
        "co-rider",
        "person-group-far-away",
        "rider+vehicle-group-far-away",
        None,
    }
    for image in images:
        assert re.fullmatch(r"ECP/(day|night)/img/(train|val)/([a-z]+)/\3_\d{5}\.png", image.name)
        label = root / "ecp" / image.name.replace("/img/", "/labels/").replace(".png", ".json")
        frame = frame_of(label)
        assert (frame["imagewidth"], frame["imageheight"]) == (image.width, image.height)
        found = [o for o in objects_of(frame) if o["identity"] in people]
        boxes = sorted(
            (o["identity"] or "unknown", o["x0"], o["y0"], o["x1"], o["y1"]) for o in found
        )
        assert boxes == sorted((p.kind, *p.box) for p in image.persons)
        for x0, y0, x1, y1 in (b[1:] for b in boxes):
            assert 0 <= x0 < x1 <= image.width
            assert 0 <= y0 < y1 <= image.height


def test_ecp_quirks(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    labels = sorted((root / "ecp" / "ECP").rglob("*.json"))
    assert any(json.loads(label.read_text())["identity"] == "@converter" for label in labels)
    frames = [frame_of(label) for label in labels]
    assert sum(not frame["children"] for frame in frames) >= SAMPLE.ecp_empty
    riders = [o for f in frames for o in f["children"] if o["identity"] == "rider"]
    children = Counter(child["identity"] for rider in riders for child in rider["children"])
    assert children["bicycle"]
    assert children["co-rider"]
    kinds = Counter(o["identity"] for f in frames for o in f["children"])
    assert {
        "pedestrian",
        "person-group-far-away",
        "rider+vehicle-group-far-away",
        "bicycle-group",
        "buggy-group",
        "motorbike-group",
        "scooter-group",
        "tricycle-group",
        "wheelchair-group",
        None,
    } <= set(kinds)
    tags = {tag for f in frames for o in objects_of(f) for tag in o["tags"]}
    assert {"sitting-lying", "behind-glass", "depiction", "occluded>40", "truncated>10"} <= tags
    names = defaultdict(set)
    for image in of(truth, "ecp"):
        names[image.split].add(Path(image.name).name)
    assert names["day_train"] >= names["night_train"]
    assert not names["day_train"] & names["day_val"]


def test_ecp_nights_are_dark(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    level = {}
    for time in ("day", "night"):
        images = [i for i in of(truth, "ecp", f"{time}_train", f"{time}_val") if not i.corrupt]
        pixels = [decode((root / "ecp" / i.name).read_bytes()) for i in images]
        level[time] = np.mean([p.mean() for p in pixels if p is not None])
    assert level["night"] < 0.7 * level["day"]


# --- MSMT17 ---------------------------------------------------------------------------------------


def test_msmt17_lists_and_names(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    folder = root / "msmt17" / "MSMT17_V1"
    cameras = defaultdict(set)
    suffixed = 0
    for name, half in (
        ("train", "train"),
        ("val", "train"),
        ("query", "test"),
        ("gallery", "test"),
    ):
        lines = (folder / f"list_{name}.txt").read_bytes().decode().split("\n")[:-1]
        images = of(truth, "msmt17", name)
        assert len(lines) == len(images) > 0
        for line, image in zip(lines, images, strict=True):
            path, pid = line.split(" ")
            assert image.name == f"MSMT17_V1/{half}/{path}"
            match = re.fullmatch(
                r"(\d{4})/\1_(\d{3})_(\d\d)_(0113|0114|0302|0303)(morning|noon|afternoon)_\d{4}_\d{1,2}(_ex)?\.jpg",
                path,
            )
            assert match, path
            suffixed += match[6] is not None
            person = image.persons[0]
            assert (person.identity, person.camera) == (match[1], match[3])
            assert int(match[1]) == int(pid)
            assert person.box == (0, 0, image.width, image.height)
            assert 1 <= int(match[3]) <= 15
            cameras[half, match[1]].add(match[3])
    assert suffixed > 100
    assert len(cameras) == SAMPLE.msmt17_train_identities + SAMPLE.msmt17_test_identities
    assert min(len(seen) for seen in cameras.values()) >= 3
    trained = {i.persons[0].identity for i in of(truth, "msmt17", "train")}
    assert {i.persons[0].identity for i in of(truth, "msmt17", "val")} < trained


# --- CUHK03 ---------------------------------------------------------------------------------------


def pictures(root: Path, variant: str) -> dict[str, Rgb]:
    """By file name, read the way the release must be."""
    found = {}
    with h5py.File(root / "cuhk03" / "cuhk03_release" / "cuhk-03.mat") as file:
        for pair, reference in enumerate(file[variant][0], start=1):
            grid = file[reference][:].T
            for row, column in np.ndindex(grid.shape):
                cell = file[grid[row, column]]
                if "MATLAB_empty" in cell.attrs:
                    assert cell.size == 2, "an empty cell holds its dimensions"
                    continue
                view = 1 if column < 5 else 2
                found[f"{pair}_{row + 1:03d}_{view}_{column + 1:02d}.png"] = cell[:].T
    return found


def test_cuhk03_pictures(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    header = (root / "cuhk03" / "cuhk03_release" / "cuhk-03.mat").read_bytes()[:520]
    assert header.startswith(b"MATLAB 7.3 MAT-file")
    assert header[124:128] == b"\x00\x02IM"
    assert header[512:] == b"\x89HDF\r\n\x1a\n"
    labeled, detected = pictures(root, "labeled"), pictures(root, "detected")
    for variant, found in (("labeled", labeled), ("detected", detected)):
        images = [i for i in of(truth, "cuhk03") if i.split.startswith(variant)]
        shapes = {i.name: (i.height, i.width, 3) for i in images}
        assert {name: picture.shape for name, picture in found.items()} == shapes
    shared = labeled.keys() & detected.keys()
    assert labeled.keys() - shared
    assert detected.keys() - shared
    same = [n for n in shared if np.array_equal(labeled[n], detected[n])]
    assert not same
    with h5py.File(root / "cuhk03" / "cuhk03_release" / "cuhk-03.mat") as file:
        assert file["testsets"].shape == (1, 20)
        pairs = file[file["testsets"][0][0]][:].T
        assert pairs.shape == (SAMPLE.cuhk03_test_identities, 2)
        assert pairs.min() >= 1


@pytest.mark.parametrize("variant", ["labeled", "detected"])
def test_cuhk03_protocol(world: tuple[Path, list[TruthImage]], variant: str) -> None:
    root, truth = world
    config = loadmat(root / "cuhk03" / f"cuhk03_new_protocol_config_{variant}.mat")
    names = [str(name[0]) for name in config["filelist"][:, 0]]
    assert config["labels"].dtype == np.uint16
    assert config["camId"].dtype == np.uint8
    assert config["labels"].shape == config["camId"].shape == (len(names), 1)
    indices = [config[f"{part}_idx"] for part in ("train", "query", "gallery")]
    assert all(index.dtype == np.uint16 for index in indices)
    assert sorted(np.concatenate(indices).ravel()) == list(range(1, len(names) + 1))
    expected = {}
    for image in of(truth, "cuhk03"):
        if image.split.startswith(variant):
            person = image.persons[0]
            expected[image.name] = (image.split, person.identity, person.camera)
    for part, index in zip(("train", "query", "gallery"), indices, strict=True):
        for i in index.ravel().astype(int) - 1:
            label, view = str(config["labels"][i, 0]), str(config["camId"][i, 0])
            assert expected[names[i]] == (f"{variant}_{part}", label, view)
    people = {i.persons[0].identity for i in of(truth, "cuhk03", f"{variant}_train")}
    assert len(people) == SAMPLE.cuhk03_train_identities
    assert not people & {i.persons[0].identity for i in of(truth, "cuhk03", f"{variant}_query")}


def test_cuhk03_variants_differ_by_one_person(world: tuple[Path, list[TruthImage]]) -> None:
    _, truth = world
    labeled, detected = (
        {i.persons[0].identity for i in of(truth, "cuhk03", f"{variant}_train")}
        for variant in ("labeled", "detected")
    )
    assert len(labeled ^ detected) == 2


# --- LUPerson -------------------------------------------------------------------------------------


def test_luperson_database(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world
    folder = root / "luperson"
    keys = pickle.loads((folder / "keys.pkl").read_bytes())  # noqa: S301
    images = {image.name: image for image in of(truth, "luperson")}
    assert type(keys) is list
    assert sorted(keys) == sorted(images)
    assert all(re.fullmatch(r"\d{2}_\d{2}_\d{4}_\d{8}", key) for key in keys)
    assert len({key.rsplit("_", 1)[0] for key in keys}) > 5
    with (
        lmdb.open(str(folder / "lmdb"), readonly=True, lock=False) as database,
        database.begin() as t,
    ):
        values = {bytes(key).decode(): bytes(value) for key, value in t.cursor()}
    assert values.keys() == images.keys()
    for key, data in values.items():
        image = images[key]
        assert image.persons[0].identity is None
        assert image.corrupt != data.endswith(b"\xff\xd9")
        if not image.corrupt:
            pixels = decode(data)
            assert pixels is not None
            assert pixels.shape == (image.height, image.width, 3)
    assert sum(image.corrupt for image in images.values()) == SAMPLE.corrupt
    with lmdb.open(str(folder / "lmdb"), readonly=True, lock=True) as database:
        assert database.stat()["entries"] == len(keys)


# --- is there something to learn? -----------------------------------------------------------------


def colours(image: Rgb) -> np.ndarray:
    """Square roots of the colour histograms of three stripes of the middle of a crop."""
    height, width = image.shape[:2]
    middle = image[height // 12 : -height // 20, width * 7 // 25 : width * 18 // 25]
    stripes = np.array_split(np.ascontiguousarray(middle), 3)
    bins = [cv2.calcHist([s], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3).ravel() for s in stripes]
    return np.concatenate([np.sqrt(b / b.sum()) for b in bins])


def cross_camera_top1(crops: list[tuple[str, str, Rgb]]) -> float:
    """Share of crops whose nearest neighbour among those of other cameras shows the same person."""
    features = np.stack([colours(image) for _, _, image in crops])
    people = np.array([identity for identity, _, _ in crops])
    cameras = np.array([camera for _, camera, _ in crops])
    likeness = features @ features.T
    elsewhere = cameras[:, None] != cameras[None]
    findable = (elsewhere & (people[:, None] == people[None])).any(1)
    nearest = np.where(elsewhere, likeness, -1).argmax(1)
    return float((people[nearest] == people)[findable].mean())


def test_colour_alone_neither_solves_nor_fails_reidentification(
    world: tuple[Path, list[TruthImage]],
) -> None:
    root, truth = world
    crops = []
    for image in of(truth, "msmt17"):
        pixels = None if image.corrupt else decode((root / "msmt17" / image.name).read_bytes())
        if pixels is not None:
            half, person = image.name.split("/")[1], image.persons[0]
            crops.append((f"{half} {person.identity}", str(person.camera), pixels))
    assert 0.3 < cross_camera_top1(crops) < 0.7
    for variant in ("labeled", "detected"):
        found = pictures(root, variant)
        images = [i for i in of(truth, "cuhk03") if i.split.startswith(variant)]
        people = [
            (str(i.persons[0].identity), str(i.persons[0].camera), found[i.name]) for i in images
        ]
        assert 0.3 < cross_camera_top1(people) < 0.7


def simple_features(image: Rgb) -> np.ndarray:
    small = cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    hue = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    edges = np.abs(cv2.Laplacian(image.mean(2).astype(np.float32), cv2.CV_32F))
    spread = [small.std((0, 1)), hue[..., 1:].std((0, 1)), np.percentile(edges, (25, 50, 75, 95))]
    rows = small.reshape(4, 24, 96, 3).mean((1, 2)).ravel()
    return np.concatenate([rows, hue[..., 1:].mean((0, 1)), *spread])


def domain_accuracy(domains: dict[str, list[Rgb]]) -> float:
    features = np.stack([simple_features(i) for images in domains.values() for i in images])
    labels = np.repeat(list(domains), [len(images) for images in domains.values()])
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced")
    )
    return float(cross_val_score(probe, features, labels, cv=4, scoring="balanced_accuracy").mean())


def test_a_linear_probe_tells_the_domains_apart(world: tuple[Path, list[TruthImage]]) -> None:
    root, truth = world

    def images(dataset: str, *splits: str) -> list[Rgb]:
        whole = [i for i in of(truth, dataset, *splits) if not i.corrupt][:160]
        found = [decode((root / dataset / i.name).read_bytes()) for i in whole]
        return [image for image in found if image is not None]

    detection = {"crowdhuman": images("crowdhuman"), "ecp": images("ecp", "day_train", "day_val")}
    assert domain_accuracy(detection) >= 0.9
    with (
        lmdb.open(str(root / "luperson" / "lmdb"), readonly=True, lock=False) as database,
        database.begin() as t,
    ):
        crops = [decode(bytes(value)) for _, value in t.cursor()]
    reid = {
        "msmt17": images("msmt17", "train"),
        "cuhk03": list(pictures(root, "labeled").values())[:160],
        "luperson": [crop for crop in crops[:-1] if crop is not None],
    }
    assert domain_accuracy(reid) >= 0.9
