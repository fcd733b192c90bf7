"""How figures are written for people."""

from collections.abc import Sequence

from dslth.runs.summary import Summary
from dslth.wire import Refusal

__all__ = ["amount", "decimal", "duration", "percent", "refusal", "some", "spark", "thousands", "unlike"]

REFUSED = {
    Refusal.MALFORMED: "no message of dslth; somebody else connects, or scans ports",
    Refusal.OVERSIZED: "longer than any mask of this run; no neighbour sends that",
    Refusal.WRONG_VERSION: "of another version of dslth; install the same one everywhere",
    Refusal.WRONG_RUN: "of another run; compare seeds and topology files",
    Refusal.WRONG_ADDRESS: "a neighbour said to be where it is not; see --advertise",
    Refusal.STRANGER: "from no graph neighbour; harmless, unless a topology file is outdated",
    Refusal.IMPOSTOR: "in the name of another peer; with keys an attack, without them two peers with one id",
    Refusal.NO_HELLO: "before a hello; harmless, a neighbour that was cut off says hello again",
    Refusal.UNKNOWN_BASE: "built on a mask that never came; harmless, it is sent again",
    Refusal.STALE: "too late for its round; harmless, unless there are many: raise the deadline",
    Refusal.FUTURE: "too many rounds ahead; a neighbour that lies, or one that is far ahead after a crash",
    Refusal.DUPLICATE: "came twice; harmless, it was sent again and the first one came after all",
    Refusal.UNKNOWN_CODEC: "of a codec that is not known here; install the same dslth everywhere",
    Refusal.WRONG_DENSITY: "with another number of ones than its sender announced; a neighbour that lies, or is broken",
    Refusal.CORRUPT: "damaged on the way; harmless, it is sent again, unless there are many: a neighbour that lies",
}
"""What to think of the messages that were refused."""

if REFUSED.keys() != set(Refusal):
    raise AssertionError("refusals and what to think of them differ")

BARS = "▁▂▃▄▅▆▇█"


def amount(n: float | None) -> str:
    """Write a number of bytes for people: ``13.2 kB``."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000 or unit == "GB":
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def decimal(loss: float) -> str:
    """Write a loss, which may be huge or not a number, in few characters."""
    return f"{loss:.3f}" if abs(loss) < 1e6 else f"{loss:.3g}"


def duration(seconds: float) -> str:
    """Write a time in a few digits and a unit: ``12 min``."""
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 99.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def thousands(n: int | None) -> str:
    """Write a count in full: ``13,204``."""
    return "–" if n is None else f"{n:,}"


def percent(share: float | None) -> str:
    """Write a share in 0 .. 1: ``97.6 %``."""
    return "–" if share is None else f"{100 * share:.1f} %"


def spark(values: Sequence[float], width: int = 9) -> str:
    """Draw shares in 0 .. 1 as a row of bars, the last one on the right."""
    step = max(1, len(values) / width)
    points = [values[min(len(values) - 1, int((i + 1) * step) - 1)] for i in range(min(width, len(values)))]
    return "".join(BARS[min(7, int(8 * value))] if 0 <= value <= 1 else "?" for value in points)


def refusal(reason: str, count: int) -> str:
    """Say how many messages were refused for a reason, and what to think of them."""
    meaning = next((words for known, words in REFUSED.items() if known == reason), "")
    return f"{reason} {count:,}" + (f": {meaning}" if meaning else "")


def some(peers: Sequence[int]) -> str:
    """Name up to three peers, or say how many there are."""
    return ", ".join(map(str, peers)) if len(peers) <= 3 else f"{len(peers)} peers"


def unlike(summary: Summary) -> str:
    """Return a line that says that a run's peers computed with unlike processors; empty if they did not."""
    if len(summary.processors) < 2:
        return ""
    who = "; ".join(f"{name}: {some(peers)}" for name, peers in summary.processors.items())
    return f"peers ran on unlike processors ({who}): their masks are not bit for bit those of a run on like ones"
