"""Protocols of person-search sets, cut down to the samples that a shard set holds."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards import PROTOCOL_SCHEMA


def restrict(protocol: pa.Table, known: pa.Array) -> pa.Table:
    """`protocol` without queries, gallery samples and positives whose key is not in `known`."""
    table = protocol.filter(pc.is_in(protocol["key"], known)).combine_chunks()
    gallery, positives = (_array(table[name]) for name in ("gallery", "positives"))
    in_gallery = pc.is_in(gallery.flatten().cast(pa.string()), known)
    in_positives = pc.is_in(positives.flatten().field("key"), known)
    columns = {name: table[name] for name in PROTOCOL_SCHEMA.names}
    columns["gallery"] = _keep(gallery, in_gallery)
    columns["positives"] = _keep(positives, in_positives)
    return pa.table(columns, schema=PROTOCOL_SCHEMA)


def _array(column: pa.ChunkedArray) -> pa.ListArray:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _keep(lists: pa.ListArray, mask: pa.BooleanArray) -> pa.ListArray:
    """The lists with those of their elements that `mask`, over all of them, keeps."""
    if not len(lists):
        return lists
    kept = mask.to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    before = np.concatenate([[0], np.cumsum(kept)])
    offsets = before[np.concatenate([[0], np.cumsum(lengths)])]
    values = lists.flatten().filter(mask)
    if pa.types.is_dictionary(values.type):  # its dictionary still names what was left out
        values = values.dictionary_decode().dictionary_encode()
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), values, mask=pc.is_null(lists)
    ).cast(lists.type)
