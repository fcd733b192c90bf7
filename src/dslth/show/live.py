"""A table of all peers that is updated while a run goes on."""

from collections import Counter
from statistics import fmean

from rich.console import Group, RenderableType
from rich.text import Text

from dslth.run.events import Event, RoundReport
from dslth.show.tables import Fitted, Row, where_unlike
from dslth.show.words import amount, decimal, percent, some, spark

__all__ = ["LiveTable"]


class LiveTable:
    """A table of all peers that follows their reports."""

    def __init__(self, peers: int, rounds: int, title: str) -> None:
        self._rounds, self._title = rounds, title
        self._peers = {peer: Row() for peer in range(peers)}
        self._sent: Counter[int] = Counter()

    def take(self, event: Event) -> None:
        """Follow a report."""
        if event.peer in self._peers and not (isinstance(event, RoundReport) and event.round >= self._rounds):
            self._peers[event.peer].take(event)
            self._sent[event.peer] += sum(link.message_sent for link in event.links.values())

    def line(self) -> str:
        """Return in one line how far the run is."""
        reports = [row.last for row in self._peers.values() if row.last]
        done = min((report.round + 1 for report in reports), default=0) if len(reports) == len(self._peers) else 0
        known = [row.personal[-1] for row in self._peers.values() if row.personal]
        mean, sent = percent(fmean(known) if known else None), amount(sum(self._sent.values()))
        return f"round {done}/{self._rounds}, personal accuracy {mean}, sent {sent}"

    def __rich__(self) -> RenderableType:
        rows = list(self._peers.values())
        table = Fitted(
            self._title,
            {
                "peer": [f"{peer}{' ✓' if row.done else ''}" for peer, row in zip(self._peers, rows, strict=True)],
                "device": where_unlike(row.device for row in rows),
                "round": [f"{row.rounds}/{self._rounds}" for row in rows],
                "loss": [decimal(row.last.loss) if row.last else "–" for row in rows],
                "personal": [percent(row.personal[-1] if row.personal else None) for row in rows],
                "by round": [Text(spark(row.personal), style="green") for row in rows],
                "global": [percent(row.common) for row in rows],
                "sent": [amount(sent) for sent in (self._sent[peer] for peer in self._peers)],
                "missing": [some(row.last.missing) if row.last else "" for row in rows],
            },
            spare=("loss", "round", "global", "by round", "device"),
        )
        return Group(table, Text(self.line(), style="dim"))
