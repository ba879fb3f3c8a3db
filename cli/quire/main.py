"""What the `quire` program runs first. It imports little, so that Ctrl-C is quiet from the beginning."""

import os
import signal
import sys

USER_ERROR = 2
INTERRUPTED = 130


def main() -> None:
    """Run the command line; a mistake of the user's is one line on standard error and exit code 2."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heard:
        # An exception in the midst of an import is a traceback, or is swallowed.
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from quire.app import app
    from quire_api.errors import UserError

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except UserError as error:
        print(f"quire: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
