"""Text for a terminal: what others wrote never controls it, and what it cannot show never ends a command."""

import codecs
import io
import sys

__all__ = ["bear_all", "say", "visible"]

PLAIN = str.maketrans("▁▂▃▄▅▆▇█–→·…✓×", "12345678->.~*x")
"""What replaces dslth's own signs, one for one, where the terminal's encoding lacks them."""


def visible(text: str) -> str:
    r"""Write out what a terminal interprets or hides, as in ``\x1b``: control characters, line breaks, bidi marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """Print one line on stderr."""
    print(visible(line), file=sys.stderr)  # noqa: T201


def bear_all() -> None:
    """Let stdout and stderr accept every text: what their encoding lacks is written in ASCII or as an escape."""
    codecs.register_error("dslth", _plainer)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dslth")


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end
