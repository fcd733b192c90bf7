"""A table of all peers that is updated while a run goes on."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from statistics import fmean

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from dslth.runs.events import Event, RoundReport
from dslth.show.console import err, out
from dslth.show.tables import Fitted, Row, where_unlike
from dslth.show.words import amount, decimal, duration, percent, some, spark

__all__ = ["LiveTable", "follow"]

SILENT_ROUNDS, SILENT_SECONDS = 4, 10.0
"""A peer is stuck that says nothing for so many mean rounds, and at least for so long."""


class LiveTable:
    """A table of all peers that follows their reports.

    On a screen that has no room for all of them it shows those that are stuck, the worst and the best, and in any case
    how far the run is. ``clock`` tells seconds.
    """

    def __init__(self, peers: int, rounds: int, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._rounds, self._title, self._clock = rounds, title, clock
        self._peers = {peer: Row() for peer in range(peers)}
        self._sent: Counter[int] = Counter()
        self._ended = Counter({0: peers})
        self._heard: dict[int, float] = {}
        self._start = self._moved = clock()
        self._skipped = rounds  # those that were played before a run was resumed

    def take(self, event: Event) -> None:
        """Follow a report."""
        if event.peer in self._peers and not (isinstance(event, RoundReport) and event.round >= self._rounds):
            now = self._clock()
            if not self._heard:
                self._start = now
            self._heard[event.peer] = now
            row, done = self._peers[event.peer], self.done
            before = _ended(row)
            row.take(event)
            self._sent[event.peer] += sum(link.message_sent for link in event.links.values())
            if isinstance(event, RoundReport):
                self._skipped = min(self._skipped, event.round)
            if (ended := _ended(row)) != before:
                self._ended[ended] += 1
                self._ended[before] -= 1
                if not self._ended[before]:
                    del self._ended[before]
            if self.done != done:
                self._moved = now

    @property
    def done(self) -> int:
        """Number of rounds that all peers have ended."""
        return min(self._ended)

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the seconds until all peers have ended all rounds; None before they have ended the first one."""
        played = self.done - self._skipped
        if played <= 0:
            return None
        a_round = (self._moved - self._start) / played
        since = min(self._clock() - self._moved, a_round)  # while the run stands still, so does the estimate
        return max(0.0, a_round * (self._rounds - self.done) - since)

    def line(self) -> str:
        """Return in one line how far the run is."""
        known = [row.personal[-1] for row in self._peers.values() if row.personal]
        mean, sent = percent(fmean(known) if known else None), amount(sum(self._sent.values()))
        spread = f" ({100 * min(known):.1f} to {100 * max(known):.1f})" if known else ""
        left = self.seconds_left
        until = "time left unknown" if left is None else f"{duration(left)} left"
        return f"round {self.done}/{self._rounds}, personal accuracy {mean}{spread}, sent {sent}, {until}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or on a screen the part of it that fits, and the line."""
        if not console.is_terminal:
            yield self._shown(len(self._peers))
            return
        most = options.max_height - 1  # the last line is the cursor's
        room = min(most, len(self._peers))
        while room > 0:
            shown = self._shown(room)
            if (excess := len(console.render_lines(shown, options)) - most) <= 0:
                yield shown
                return
            room -= excess
        yield Text(self.line(), style="dim")

    def _shown(self, room: int) -> Group:
        """Return the table of at most ``room`` peers, how many they are, and the line."""
        why = self._chosen(room)
        table = self._table(why)
        counts = ", ".join(f"{count} {reason or 'others'}" for reason, count in Counter(why.values()).items())
        of = [f"shown of {len(self._peers):,} peers: {counts}"] if len(why) < len(self._peers) else []
        return Group(table, *(Text(line, style="dim") for line in (*of, self.line())))

    def _chosen(self, room: int) -> Mapping[int, str]:
        """Return at most ``room`` peers to show, and why: what happened to it, stuck, worst, best; or all of them."""
        trouble = dict(self._in_trouble())
        if room >= len(self._peers):
            return {peer: trouble.get(peer, "") for peer in self._peers}
        slowest = sorted(trouble, key=lambda peer: _ended(self._peers[peer]))[: (room + 1) // 2]
        last = {peer: row.personal[-1] for peer, row in self._peers.items() if row.personal and peer not in slowest}
        order = sorted(last, key=lambda peer: last[peer])
        rest = min(room - len(slowest), len(order))
        worst, best = order[: (rest + 1) // 2], order[len(order) - rest // 2 :]
        chosen = {peer: trouble[peer] for peer in slowest} | dict.fromkeys(worst, "worst") | dict.fromkeys(best, "best")
        others = (peer for peer in self._peers if peer not in chosen)
        return chosen | dict.fromkeys(islice(others, room - len(chosen)), "")

    def _in_trouble(self) -> Iterator[tuple[int, str]]:
        """Yield the peers that died, and those of which nothing is heard while the run goes on."""
        now, front = self._clock(), max(self._ended)
        patience = max(SILENT_SECONDS, SILENT_ROUNDS * (now - self._start) / max(1, front - self._skipped))
        for peer, row in self._peers.items():
            if row.trouble:
                yield peer, row.trouble
            elif front and not row.done and now - self._heard.get(peer, self._start) > patience:
                yield peer, "stuck"

    def _table(self, why: Mapping[int, str]) -> Fitted:
        rows = [self._peers[peer] for peer in why]
        return Fitted(
            self._title,
            {
                "peer": [f"{peer}{' ✓' if row.done else ''}" for peer, row in zip(why, rows, strict=True)],
                "why": list(why.values()),
                "device": where_unlike(row.device for row in rows),
                "round": [f"{row.rounds}/{self._rounds}" for row in rows],
                "loss": [decimal(row.last.loss) if row.last else "–" for row in rows],
                "personal": [percent(row.personal[-1] if row.personal else None) for row in rows],
                "by round": [Text(spark(row.personal), style="green") for row in rows],
                "global": [percent(row.common) for row in rows],
                "sent": [amount(self._sent[peer]) for peer in why],
                "missing": [some(row.last.missing) if row.last else "" for row in rows],
            },
            spare=("loss", "round", "global", "by round", "device"),
        )


def _ended(row: Row) -> int:
    return row.last.round + 1 if row.last else 0


@contextmanager
def follow(table: LiveTable, *, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Follow a run: the table on a screen, a line every now and then elsewhere, such as in a notebook.

    Ctrl-C must raise KeyboardInterrupt: a table that is left drawn spoils the screen.
    """
    if quiet:
        yield table.take
    elif out.is_terminal and not out.is_jupyter:
        with Live(table, console=out, refresh_per_second=2, transient=True):
            yield table.take
    else:
        shown: int | None = None

        def take(event: Event) -> None:
            nonlocal shown
            table.take(event)
            if table.done != shown:
                shown = table.done
                err.print(table.line())

        yield take
