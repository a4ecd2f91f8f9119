"""launch/search.py: a person in pictures of one's own."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from searchset import write_run
from shardset import picture
from test_inference import trained_model

from launch import search
from launch.evaluation.looking import read_picture
from launch.search import parse_query
from pipeline.errors import UserError

SIZE = (64, 96)


@dataclass(frozen=True)
class Place:
    run: Path
    gallery: Path
    query: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes are proposals as they are, so that one asked for is embedded as it was when it was found."""
    model = trained_model()
    with torch.no_grad():
        model.box_regressor[1].weight.zero_()
    return write_run(tmp_path_factory.mktemp("search"), model, SIZE)


@pytest.fixture
def place(run: Path, tmp_path: Path) -> Place:
    """Six pictures; the query is no part of them, but the fourth shows the same."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number in range(6):
        save(folder / "trip" / f"{number}.png", picture(*SIZE, number))
    query = tmp_path / "query.png"
    save(query, picture(*SIZE, 3))
    return Place(run, folder, query)


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)


def run_search(
    monkeypatch: pytest.MonkeyPatch, place: Place, query: str, *more: str
) -> tuple[str, str]:
    """The page, and its list of results alone."""
    out = place.gallery.parent / "page.html"
    named = ("--weights", str(place.run), "--gallery", str(place.gallery), "--out", str(out))
    monkeypatch.setattr("sys.argv", ["search.py", "--query", query, *named, *more])
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    search.main()
    text = out.read_text()
    return text, text[text.index("Found") :] if "Found" in text else ""


def test_the_most_confident_person_is_found_again(
    monkeypatch: pytest.MonkeyPatch, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    page, _ = run_search(monkeypatch, place, str(place.query))
    said = capsys.readouterr().out
    chosen = re.search(r"most confident person in .*query.png, at (\S+)", said)
    assert chosen is not None
    first = re.search(r"1\. (\S+)  (\S+)  (\S+)", said)
    assert first is not None
    assert (first[2], first[3]) == (str(place.gallery / "trip/3.png"), chosen[1])
    assert "6 pictures" in page and "at step 7" in page


def test_convolutions_are_whole_fp32_ones(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run_search(monkeypatch, place, str(place.query))
    assert not torch.backends.cudnn.allow_tf32


def test_a_box_says_whom(
    monkeypatch: pytest.MonkeyPatch, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run_search(monkeypatch, place, f"{place.query}:10,10,40,60")
    one = capsys.readouterr().out
    page, _ = run_search(monkeypatch, place, f"{place.query}:50,0,90,60", "--top", "3")
    other = capsys.readouterr().out
    assert "most confident" not in one
    assert re.findall(r"1\. (\S+)", one) != re.findall(r"1\. (\S+)", other)
    assert "query.png:50,0,90,60" in page
    assert page.count("<figure") == 4  # the query and three


def test_the_querys_own_file_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    own = place.gallery / "trip/3.png"
    _, found = run_search(monkeypatch, place, str(own), "--top", "1000")
    assert "trip/3.png" not in found
    assert "trip/2.png" in found and str(place.gallery) not in found


def test_pictures_that_cannot_be_read_are_named(
    monkeypatch: pytest.MonkeyPatch, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.gallery / "cut.png").write_bytes((place.gallery / "trip/1.png").read_bytes()[:200])
    (place.gallery / "text.jpg").write_text("not a picture")
    page, _ = run_search(monkeypatch, place, str(place.query))
    assert "Pictures that could not be read" in page
    said = capsys.readouterr().out
    for name in ("cut.png", "text.jpg"):
        assert name in page and f"not read: {place.gallery / name}" in said


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    upright = picture(40, 60, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    save(tmp_path / "a.png", np.rot90(upright).copy(), exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png"), upright)


def test_nobody_in_the_gallery(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    alone = Place(place.run, place.gallery.parent / "alone", place.query)
    alone.gallery.mkdir()
    save(alone.gallery / "own.png", picture(*SIZE, 3))
    page, _ = run_search(monkeypatch, alone, f"{alone.gallery / 'own.png'}:10,10,40,60")
    assert "Nobody was found in any of the pictures" in page


def test_nobody_in_the_query(monkeypatch: pytest.MonkeyPatch, place: Place, tmp_path: Path) -> None:
    model = trained_model()
    with torch.no_grad():
        model.classifier.rescaler.bias.fill_(-50.0)
    shy = Place(write_run(tmp_path / "shy", model, SIZE), place.gallery, place.query)
    with pytest.raises(UserError, match=r"nobody was found in .* in its 96 x 64 pixels"):
        run_search(monkeypatch, shy, str(place.query))


def test_a_page_that_cannot_be_written_is_refused_before_the_search(
    monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr(search, "load_weights", lambda _: pytest.fail("it was searched"))
    for out, complaint in (
        ("/dev/null/pages/a.html", "cannot make the folder /dev/null/pages"),
        ("/proc/a.html", "cannot write into /proc"),
        (str(place.gallery), "photos is a folder, and a file is to be written there"),
    ):
        with pytest.raises(UserError, match=complaint):
            run_search(monkeypatch, place, str(place.query), "--out", out)


@pytest.mark.parametrize("wrong", [("--top", "0"), ("--top=-3",), ("--size", "0", "0")])
def test_numbers_are_from_one(
    monkeypatch: pytest.MonkeyPatch, place: Place, wrong: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_search(monkeypatch, place, str(place.query), *wrong)


def test_names_that_are_no_text(
    monkeypatch: pytest.MonkeyPatch, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = os.fsencode(place.gallery)
    os.rename(folder + b"/trip/3.png", folder + b"/trip/\xe9t\xe9.png")
    Path(os.fsdecode(folder + b"/\xff.png")).write_text("not a picture")
    page, _ = run_search(monkeypatch, place, str(place.query))
    assert "trip/\ufffdt\ufffd.png" in page and "\ufffd.png: cannot" in capsys.readouterr().out


def test_grey_of_sixteen_bits_is_not_white(tmp_path: Path) -> None:
    grey = np.arange(0, 1 << 16, 64, np.uint16).reshape(32, 32)
    save(tmp_path / "a.png", grey)
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2)
    assert np.array_equal(read_picture(tmp_path / "a.png"), expected)


def test_names_with_colons(tmp_path: Path) -> None:
    file = tmp_path / "12:30:15,1.png"
    file.write_bytes(b"")
    assert parse_query(str(file)) == (file, None)
    assert parse_query(f"{file}:1,2.5,30,40") == (file, (1, 2.5, 30, 40))


@pytest.mark.parametrize(
    ("query", "gallery", "complaint"),
    [
        ("nothing.png", "", "there is no such file"),
        ("nothing.png:1,2,30,40", "", "there is no file nothing.png"),
        ("QUERY:1,2,3", "", "a box has four numbers, .*query.png:x1,y1,x2,y2"),
        ("QUERY:nan,2,30,40", "", "the box is nan wide"),
        ("QUERY:94,10,220,60", "", "all but a sliver"),
        ("QUERY:-90,-90,3,60", "", "all but a sliver"),
        ("QUERY:1,2,3.4.5,6", "", "not four numbers"),
        ("QUERY:50,10,20,30", "", "-30 wide and 20 high"),
        ("QUERY:200,10,220,30", "", "lies outside of .* 96 x 64 pixels"),
        ("QUERY", "/nowhere", "there is no such folder"),
        ("QUERY", "EMPTY", "no picture in it"),
        ("TEXT", "", "is no picture that can be read"),
    ],
)
def test_what_cannot_be_searched(
    monkeypatch: pytest.MonkeyPatch, place: Place, query: str, gallery: str, complaint: str
) -> None:
    empty, text = place.query.parent / "empty", place.query.parent / "text.jpg"
    empty.mkdir()
    text.write_text("no")
    named = query.replace("QUERY", str(place.query)).replace("TEXT", str(text))
    folder = empty if gallery == "EMPTY" else Path(gallery) if gallery else place.gallery
    with pytest.raises(UserError, match=complaint):
        run_search(monkeypatch, Place(place.run, folder, place.query), named)
