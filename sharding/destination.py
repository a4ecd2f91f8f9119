"""Whether one can write to a destination, asked before hours go into it."""

import os
from pathlib import Path

from pipeline.errors import UserError
from pipeline.stores.store import Location


def check_destination(out: Location) -> None:
    """Raises UserError if nothing can be written below `out`, before hours went into it."""
    if out.is_local:
        nearest = next(p for p in (Path(out.path), *Path(out.path).parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                f"cannot write to {out.url}: {nearest} is not a folder one may write to."
            )
    elif out.url.startswith("memory://"):
        raise UserError(
            f"cannot write to {out.url}: workers are processes of their own and share no memory. Name a "
            "folder or an object store."
        )
    else:
        _check_bucket(out)


def _check_bucket(out: Location) -> None:
    bucket = out.url.partition("://")[2].split("/")[0]
    if not bucket:
        raise UserError(
            f"{out.url} names no bucket; write {out.url.partition('://')[0]}://BUCKET/..."
        )
    try:
        _look(out, bucket)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"cannot write to {out.url}: there is no bucket {bucket!r}. Create it first."
        ) from None
    except PermissionError as error:
        raise UserError(
            f"cannot write to {out.url}: not allowed to use the bucket {bucket!r}, nor to list what lies "
            f"there ({error}). Check the store's environment variables or credential file."
        ) from None
    except Exception as error:  # each store's client has errors of its own
        raise UserError(f"cannot reach {out.url}: {type(error).__name__}: {error}") from None


def _look(out: Location, bucket: str) -> None:
    """Raises what the store's client does. With rights on a prefix alone, only that can be looked at."""
    try:
        out.fs.info(bucket)
    except PermissionError:
        out.list_names()
    except FileNotFoundError:
        if not out.list_names():
            raise
