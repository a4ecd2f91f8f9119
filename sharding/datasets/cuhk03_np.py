"""CUHK03-NP: the crops of the 767/700 protocol as files, in folders like those of Market-1501."""

import re

from pipeline.annotation import Person, sample_key
from pipeline.errors import UserError
from sharding.datasets.base import WHOLE_CROP, Listing, SourceSample, count_identities
from sharding.source import Source, SourceFile

ROOTS = ("", "cuhk03-np", "CUHK03-NP", "cuhk03_np")
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(\d{1,6})_c([12])_\d+\.(?:png|jpg)")
"""identity, view, number. The identities are the labels of the protocol's config files."""
MISNAMED = "not named as CUHK03-NP names its images"


def list_folder(source: Source, variant_folder: str, split: str) -> Listing:
    """`split` from `labeled/` or `detected/`. Raises UserError if there is no image in its folder."""
    part = FOLDERS[split.split("_")[1]]
    folder = f"{variant_folder}/{part}"
    files = {
        name: file
        for path, file in sorted(source.files(folder).items())
        if (name := path.removeprefix(f"{folder}/")).endswith((".png", ".jpg")) and "/" not in name
    }
    matches = {name: match for name in files if (match := NAME.fullmatch(name))}
    if not matches:
        raise UserError(
            f"{source.at(folder)} {source.describe(folder)}: no image as 0001_c1_1.png there; expected "
            f"{', '.join(FOLDERS.values())} of CUHK03-NP in {source.at(variant_folder)}."
        )
    origin = f"{variant_folder.rpartition('/')[2]}/{part}"
    samples = [_sample(match, files[name], split, origin) for name, match in matches.items()]
    misnamed = len(files) - len(samples)
    return Listing(
        samples,
        len(files),
        excluded={MISNAMED: misnamed} if misnamed else {},
        found={"images": len(samples), "identities": count_identities(samples)},
    )


def _sample(match: re.Match[str], file: SourceFile, split: str, folder: str) -> SourceSample:
    """The release's names do not say which pair of cameras it was: the camera is the view alone."""
    identity, view = int(match[1]), int(match[2])
    person = Person(
        box=WHOLE_CROP, identity=f"person:{identity:04d}", camera=str(view), extra={"view": view}
    )
    return SourceSample(
        key=sample_key("cuhk03", split, match[0]),
        locator=file.locator,
        origin=f"{folder}/{match[0]}",
        size_bytes=file.size,
        persons=(person,),
        extra={"name": match[0]},
    )
