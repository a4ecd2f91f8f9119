"""Errors that a user can act on, and how a command reports them."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """One paragraph that says what is wrong, where, and what to do about it."""


def run_command(main: Callable[[], None], speaks: Callable[[], bool] = lambda: True) -> None:
    """Runs a command-line entry point: a `UserError` prints its paragraph and exits with 2.

    Of many processes that fail alike, those that do not speak keep quiet.
    """
    try:
        main()
    except UserError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
