"""Pictures of runs, by matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dslth.errors import DslthError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["accuracy"]


def accuracy(runs: "Sequence[tuple[str, pd.DataFrame]]") -> "Figure":
    """Draw the personal accuracy of runs by round and by message bytes: the mean of all peers, and their range.

    A run is a name, and a table with a row for each peer and round, with the columns ``peer``, ``round``,
    ``accuracy_personal`` and ``message_sent``.

    Raises DslthError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DslthError("pictures take matplotlib: pip install 'dslth[plot]'") from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_round, by_bytes = figure.subplots(1, 2, sharey=True)
    for name, rounds in runs:
        sent = rounds.groupby("round")["message_sent"].sum().cumsum() / 1e3
        shares = rounds.dropna(subset="accuracy_personal").groupby("round")["accuracy_personal"]
        mean, worst, best = 100 * shares.mean(), 100 * shares.min(), 100 * shares.max()
        for axes, x in ((by_round, mean.index + 1), (by_bytes, sent[mean.index])):
            (line,) = axes.plot(x, mean, marker="." if len(mean) < 30 else "", label=name)
            axes.fill_between(x, worst, best, color=line.get_color(), alpha=0.15, linewidth=0)
    by_round.set(xlabel="round", ylabel="personal accuracy, % (mean; worst to best peer)")
    by_bytes.set(xlabel="message bytes sent by all peers, kB", xscale="log")
    for axes in (by_round, by_bytes):
        axes.grid(alpha=0.3)
    by_round.legend()
    return figure
