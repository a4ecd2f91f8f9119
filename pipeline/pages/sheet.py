"""Samples spread evenly over a shard set, and the contact sheet that people look at."""

from collections.abc import Iterator

import numpy as np

from pipeline.pages.page import Html, contact_sheet, sample_picture
from pipeline.rendering.decode import DecodeError
from pipeline.samples import BadSample, Sample, SampleReader


def spread_samples(reader: SampleReader, count: int) -> Iterator[Sample]:
    """Up to `count` samples of the first variant; unusable ones
    are passed over. The same ones in every call.
    """
    starts = np.concatenate([[0], np.cumsum(reader.slots)])
    total = int(starts[-1])
    places = np.unique(((np.arange(count) + 0.5) * total / max(count, 1)).astype(np.int64))
    for place in places[:total]:
        shard = int(np.searchsorted(starts, place, side="right")) - 1
        try:
            yield reader.read(0, shard, int(place - starts[shard]))
        except BadSample:
            continue


def sample_sheet(reader: SampleReader, count: int = 12, row_height_px: int = 150) -> Html:
    pictures = []
    for annotation, image, image_type in spread_samples(reader, count):
        try:
            pictures.append(sample_picture(annotation, image, image_type))
        except DecodeError:
            continue
    return contact_sheet(pictures, row_height_px)
