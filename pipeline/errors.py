"""Errors that a user can act on, and how a command reports them."""

import sys
import time
from collections.abc import Callable

SPEAKING_TIME_S = 60


class UserError(Exception):
    """One paragraph that says what is wrong, where, and what to do about it."""


def run_command(main: Callable[[], None], speaks: Callable[[], bool] = lambda: True) -> None:
    """Runs a command-line entry point: a `UserError` prints its paragraph and exits with 2.

    Of many processes that fail alike, those that do not speak give the one that does the time to: a
    launcher ends the whole job with the first that exits. Who is then still there fails alone, and says so.
    """
    try:
        main()
    except UserError as error:
        if not speaks():
            time.sleep(SPEAKING_TIME_S)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
