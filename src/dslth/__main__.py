"""Where the commands start, ``python -m dslth`` among them: Ctrl-C is handled before anything heavy is imported.

From here on Ctrl-C ends a command at once, with 130 and no message; an exception during an import would show a
traceback, or be swallowed. Code that must clean up first says so: ``options.orderly``, ``end_on_signals``.
"""

import os
import signal


def _end(number: int, frame: object) -> None:
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # SIGINT that the parent ignores stays ignored
    signal.signal(signal.SIGINT, _end)


def main() -> None:
    """Run ``dslth``."""
    from dslth.cli import main as cli

    cli.main()


def peer_main() -> None:
    """Run ``dslth-peer``."""
    from dslth.cli import main as cli

    cli.peer_main()


if __name__ == "__main__":
    main()
