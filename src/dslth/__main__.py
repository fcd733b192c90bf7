"""Where the commands start, ``python -m dslth`` among them: Ctrl-C is handled before anything heavy is imported.

From here on Ctrl-C ends a command at once, with 130 and no message; an exception during an import would show a
traceback, or be swallowed. Code that must clean up first says so: ``options.orderly``, ``end_on_signals``.
"""

import gc
import importlib
import os
import signal
import sys
from contextlib import suppress
from typing import Any


def _end(number: int, frame: object) -> None:
    if server := sys.modules.get("dslth.engines.server"):
        with suppress(Exception):
            server.leave_nothing()
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # SIGINT that the parent ignores stays ignored
    signal.signal(signal.SIGINT, _end)


def main() -> None:
    """Run ``dslth``."""
    from dslth.engines import server

    server.start_early(sys.argv)
    try:
        _imported("main").main()
    finally:
        server.end_unused()


def peer_main() -> None:
    """Run ``dslth-peer``, without what other commands load: a peer may have little memory."""
    _imported("peer").main()


def _imported(commands: str) -> Any:
    gc.disable()  # imports make no garbage, and take a tenth less time without a search for it
    cli = importlib.import_module(f"dslth.cli.{commands}")
    gc.freeze()
    gc.enable()
    return cli


if __name__ == "__main__":
    main()
