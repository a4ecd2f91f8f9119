"""`python -m pipeline index`: tars of other tools become a shard set where they lie."""

import argparse
import os

from pipeline.errors import UserError
from pipeline.foreign.fields import FieldMap
from pipeline.options import positive, share


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Indexes the tars below URL, which stay as they are, and makes a shard set of them. Without "
        "--boxes or --whole-image their JSON has to be this project's annotation."
    )
    parser.add_argument("url", metavar="URL", help="folder of the tars; they stay as they are")
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--split", required=True, metavar="S")
    parser.add_argument("--task", required=True, choices=("detection", "reid"))
    parser.add_argument("--domain", metavar="D", help="default: the dataset")
    parser.add_argument("--licence", default="not stated", metavar="TEXT")
    parser.add_argument("--out", metavar="URL", help="of the shard set (default: beside the tars)")
    parser.add_argument("--boxes", metavar="FIELD", help="of another tool's JSON, objects.bbox say")
    parser.add_argument("--box-format", choices=("xyxy", "xywh"), default="xyxy")
    parser.add_argument("--identity", metavar="FIELD", help="of the JSON: whom the boxes show")
    parser.add_argument("--whole-image", action="store_true", help="each image is one crop")
    parser.add_argument(
        "--group",
        type=positive,
        default=1,
        metavar="K",
        help="so many neighbours of one identity stay together (default: 1)",
    )
    parser.add_argument(
        "--check",
        choices=("header", "full"),
        default="header",
        help="full: decode every image once",
    )
    parser.add_argument(
        "--max-bad",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="stop when more of the samples cannot be used (default: 0.05)",
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="default: every core")
    parser.set_defaults(command=_index)


def _index(options: argparse.Namespace) -> None:
    from pipeline.foreign.indexing import index_set  # brings webdataset and with it torch
    from pipeline.foreign.tar_index import Labels

    labels = Labels(
        dataset=options.dataset,
        split=options.split,
        task=options.task,
        domain=options.domain or options.dataset,
        licence=options.licence,
        fields=_fields(options),
        check=options.check,
        group=options.group,
    )
    workers = options.workers or len(os.sched_getaffinity(0))
    out = options.out or options.url
    try:
        manifest, tally = index_set(options.url, out, labels, options.max_bad, workers)
    except OSError as error:
        raise UserError(
            f"cannot index {options.url} into {out} ({error}). Check both URLs, the network and the rights "
            "of this process; what was done stays."
        ) from None
    print(
        f"{labels.dataset} {labels.split} at {out}: {tally.tars:,} tars "
        f"({tally.tars_kept:,} indexed before), {manifest.samples:,} samples, {manifest.persons:,} persons, "
        f"{len(manifest.identities):,} identities, {manifest.quarantined:,} quarantined"
    )
    if tally.bad:
        print(f"quarantined: {tally.shown()}")
    if tally.others:
        counts = (f"{count:,} .{name}" for name, count in sorted(tally.others.items()))
        print(f"left alone: {', '.join(counts)}")


def _fields(options: argparse.Namespace) -> FieldMap | None:
    """How to read JSON that is not ours; None if nothing was said about it. Raises UserError."""
    if options.whole_image and (options.boxes or options.task != "reid"):
        raise UserError("--whole-image is for re-ID crops, instead of --boxes.")
    if not options.boxes and not options.whole_image:
        if options.identity:
            raise UserError("--identity needs --boxes FIELD, or --whole-image for crops.")
        return None
    return FieldMap(boxes=options.boxes, box_format=options.box_format, identity=options.identity)
