"""The terminal as a rich console without markup; ``out`` is stdout, ``err`` stderr."""

from typing import Any

from rich.console import Console
from rich.text import Text

from dslth.terminal import visible

__all__ = ["Terminal", "err", "out"]


class Terminal(Console):
    """A console that interprets nothing: no markup, no names of emojis, and no control characters but line breaks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a Text of a str that is printed, alone or in a table; see Console."""
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)


out = Terminal()
err = Terminal(stderr=True)
