"""What every command runs in: an error that a person can fix is one line and an exit code."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from dslth.errors import DslthError, OutputError
from dslth.terminal import bear_all, say

__all__ = ["guarded"]


def guarded(command: Callable[..., Any]) -> None:
    """Run a command, and end the process."""
    bear_all()
    try:
        code = command(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except _UsageError as error:
        for line in _usage(error).splitlines():
            say(line)
        sys.exit(2)
    except DslthError as error:
        say(f"dslth: {error}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # which typer takes for Ctrl-D
            raise error.__cause__ from None
        sys.exit(130)
    except MemoryError:
        say("dslth: there is not enough memory; see ulimit -v, and what else runs here")
        sys.exit(DslthError.exit_code)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO):
            raise
        say(f"dslth: cannot print the result: {error.strerror}")
        sys.stderr.flush()
        os._exit(OutputError.exit_code)  # the rest of the output has nowhere to go


# typer brings its own copy of click, or click itself, depending on its version
_UsageError: Any = typer.BadParameter.__base__


def _usage(error: Any) -> str:
    """Return one line for a misspelt command line, with what to type; a group without its command shows its help."""
    text = error.format_message()
    if text.startswith("Usage:"):
        return str(text)
    words = " ".join(text.split()).replace("Value error, ", "").rstrip(".")
    command = error.ctx.command_path if error.ctx else Path(sys.argv[0]).name
    return f"dslth: {words[0].lower()}{words[1:]}; see {command} --help"
