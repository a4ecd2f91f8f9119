"""The HTML helper: what it escapes, where boxes land, what its plots draw."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.annotation import Annotation, Person
from pipeline.pages import page, plot
from pipeline.rendering.decode import DecodeError

VOID = {"meta", "img"}


def picture_bytes(width: int = 40, height: int = 80, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 150)).save(out, kind)
    return out.getvalue()


def annotation(*persons: Person) -> Annotation:
    return Annotation(
        version=1,
        key="crowdhuman/train/273271,1a0d",
        dataset="crowdhuman",
        domain="crowdhuman",
        split="train",
        task="detection",
        width=400,
        height=800,
        persons=persons,
        source="a.jpg",
    )


class Balance(HTMLParser):
    """Fails on a tag that closes another than the innermost open one; collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def everything(hostile: str) -> str:
    person = Person(box=(10, 20, 110, 220), identity=hostile)
    series = plot.Series(hostile, [0, 1, 2], [1, 2, 3])
    return page.document(
        hostile,
        hostile,
        [
            page.section(
                hostile,
                page.key_figures([page.Figure(hostile, hostile, hostile)]),
                page.callout(hostile),
                page.details(hostile, page.paragraph(hostile)),
                page.table([hostile], [[hostile]]),
                page.mark_legend(),
                page.contact_sheet(
                    [page.sample_picture(annotation(person), picture_bytes(), "jpg")]
                ),
                page.side_by_side(
                    [
                        page.sample_picture(annotation(person), picture_bytes(), "jpg"),
                        page.Picture(
                            b"", 8, 8, (page.Mark((0, 0, 4, 4), "match", hostile, 0),), hostile
                        ),
                    ],
                    100,
                    page.chip(0, hostile, hostile),
                ),
                page.columns(
                    plot.line_plot(
                        hostile, [series, series], hostile, hostile, 2, True, (hostile, 1)
                    ),
                    plot.scatter_plot(hostile, {hostile: [[0, 1], [2, 3]]}),
                    plot.bar_chart(hostile, [hostile], {hostile: [1.0]}, (hostile, 0.5)),
                    plot.histogram(hostile, {hostile: [1, 2], "b": [2]}, hostile, (hostile, 1.5)),
                ),
                page.block(hostile, lead=hostile),
                lead=hostile,
            )
        ],
    )


def test_a_page_escapes_all_text_and_is_balanced() -> None:
    hostile = "<script src='http://x'>\"&'"
    text = everything(hostile)
    parser = Balance()
    parser.feed(text)
    assert not parser.open
    assert "<script" not in text
    assert text.count("&lt;script") > 20


def test_a_page_needs_nothing_from_outside() -> None:
    parser = Balance()
    text = everything("plain")
    parser.feed(text)
    assert parser.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in parser.addresses)
    assert "url(" not in text
    assert "@import" not in text


def test_boxes_are_placed_in_percent_of_the_annotated_size_and_cut_at_the_edge() -> None:
    inside = Person(box=(100, 200, 300, 600), identity="train:0007")
    leaving = Person(box=(-100, 400, 100, 1200), ignore=True)
    outside = Person(box=(-50, 0, -10, 100))
    sheet = page.contact_sheet(
        [page.sample_picture(annotation(inside, leaving, outside), picture_bytes(), "jpg")]
    )
    places = re.findall(
        r'class="mark (\w+)" style="left:(.*?)%;top:(.*?)%;width:(.*?)%;height:(.*?)%', sheet
    )
    assert places == [
        ("identity", "25.00", "25.00", "50.00", "50.00"),
        ("ignore", "0.00", "50.00", "25.00", "50.00"),
    ]
    assert "train:0007" in sheet
    assert "273271,1a0d" in sheet


def test_thumbnails_are_small_and_refuse_what_is_no_picture() -> None:
    for size, expected in (((900, 600), (150, 100)), ((40, 80), (40, 80)), ((401, 3), (401, 3))):
        for kind, name in (("PNG", "png"), ("JPEG", "jpg")):
            small = Image.open(io.BytesIO(page.thumbnail(picture_bytes(*size, kind), name, 100)))
            assert small.size == expected
    with pytest.raises(DecodeError):
        page.thumbnail(picture_bytes(kind="GIF"), "jpg", 100)
    with pytest.raises(DecodeError):
        page.thumbnail(picture_bytes()[:200], "jpg", 100)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (3.0, "3"),
        (0.123456, "0.1235"),
        (12345.678, "12,345.7"),
        (None, "-"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert page.number(value) == text


def test_numeric_columns_stand_to_the_right() -> None:
    text = page.table(["name", "count"], [["a", 1], ["b", None]])
    assert text.count('class="number"') == 3


def test_ticks_are_round_and_inside() -> None:
    assert plot.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert plot.ticks(-0.013, 0.021) == [-0.01, 0, 0.01, 0.02]


def test_the_running_mean_is_the_mean_of_the_neighbours() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(30)]
    np.testing.assert_allclose(plot.running_mean(values, 5), expected)


def test_line_plots_keep_spikes_and_say_what_they_leave_out() -> None:
    y = np.zeros(50_000)
    y[31_234] = 1.0
    y[7] = np.nan
    drawn = plot.line_plot("loss", [plot.Series("loss", np.arange(50_000), y)], smooth=10)
    raw = re.search(r'class="raw".*?d="(.*?)"', drawn)
    assert raw is not None
    heights = [float(point.split(",")[1]) for point in re.split("[ML]", raw[1]) if point]
    assert len(heights) <= plot.MAX_POINTS
    assert min(heights) < 30, "the spike of one point in 50,000 must reach the top"
    assert "1 values left out" in drawn


TAIL = np.random.default_rng(0).lognormal(4, 2, 5000)


@pytest.mark.parametrize(
    ("values", "bars", "wide"),
    [
        ([3, 3, 5, 0], 6, False),
        ([7.0], 1, False),
        (np.arange(900), 30, False),
        ([0.25, 0.5], 30, False),
        (TAIL, 30, True),
        (np.append(TAIL, 0), 30, False),
    ],
)
def test_a_histogram_counts_every_value_once(values: object, bars: int, wide: bool) -> None:
    every = np.asarray(values, float)
    edges, by_ratio = plot.bins(every)
    assert (len(edges) - 1, by_ratio) == (bars, wide)
    drawn = plot.histogram("sizes", [*every, float("inf")])
    counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", drawn)]
    assert sum(counts) == len(every)
    assert "1 that are not finite were left out" in drawn


def test_groups_of_a_histogram_stand_on_one_another() -> None:
    drawn = plot.histogram("heights", {"MATCH": [1, 1, 2], "DETECT": [1], "IGNORE": []})
    bars = re.findall(
        r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" fill="([^"]+)"><title>(\w+), 0.5 to', drawn
    )
    (match_top, _, blue, first), (top, height, orange, second) = bars
    assert (first, second) == ("MATCH", "DETECT")
    assert blue != orange
    assert float(top) + float(height) == pytest.approx(float(match_top), abs=0.11)
    assert "IGNORE (0)" in drawn


def test_padding_is_hatched_right_of_the_content_and_below() -> None:
    padded = page.Picture(b"", 100, 80, content=(60, 40))
    places = re.findall(r'class="padding" style="(.*?)"', page.side_by_side([padded] * 2, 100))
    assert places[:2] == [
        "left:60.00%;top:0;right:0;bottom:0",
        "left:0;top:50.00%;width:60.00%;bottom:0",
    ]
    whole = page.Picture(b"", 100, 80, content=(100, 80))
    assert "padding" not in page.side_by_side([whole], 100)


def test_whole_numbers_are_not_split_unevenly_between_bars() -> None:
    """100 each of 0 ... 89: bars of 3, none of 2 or 4 for a comb that is not in the values."""
    edges, _ = plot.bins(np.repeat(np.arange(90.0), 100))
    assert set(np.histogram(np.repeat(np.arange(90.0), 100), edges)[0]) == {300}


def test_a_single_value_among_many_shows() -> None:
    drawn = plot.histogram("sizes", np.append(np.zeros(1_000_000), 20))
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill', drawn)]
    assert len(heights) == 2
    assert min(heights) >= 1


def test_plots_of_nothing_say_so() -> None:
    for empty in (
        plot.line_plot("a", [plot.Series("x", [], [])]),
        plot.line_plot("a", []),
        plot.scatter_plot("a", {}),
        plot.bar_chart("a", [], {"x": []}),
        plot.histogram("a", [float("nan")]),
    ):
        assert "nothing was recorded" in empty


def test_flat_and_single_point_series_are_drawn() -> None:
    for y in ([2.0], [5.0, 5.0, 5.0], [0.0, 0.0]):
        drawn = plot.line_plot("a", [plot.Series("x", range(len(y)), y)])
        assert "nan" not in drawn
        assert 'class="line"' in drawn
