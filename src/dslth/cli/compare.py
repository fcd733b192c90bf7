"""``dslth compare``: runs side by side, in the terminal."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dslth.cli.options import JsonOption
from dslth.errors import ConfigError
from dslth.report.figures import Opened, differing, facts
from dslth.show.console import out
from dslth.show.tables import new_table
from dslth.show.words import percent

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, two at least.")],
    as_json: JsonOption = False,
) -> None:
    """Compare runs: figures, settings that differ, each peer's accuracy, and whose masks are the same."""
    if len(runs) < 2:
        raise ConfigError("dslth compare takes two run folders at least; one alone: dslth inspect")
    opened = [Opened.of(folder) for folder in runs]
    names = [str(folder) for folder in runs]
    by_peer = [{peer.id: peer for peer in run.summary.peers} for run in opened]
    peers = sorted(set().union(*by_peer))
    same = [len({found[peer].mask_digest for found in by_peer if peer in found}) == 1 for peer in peers]
    if as_json:
        settings = differing(opened)["rows"]
        record = {
            "runs": [json.loads(run.summary.to_json()) for run in opened],
            "settings": {key: dict(zip(names, values, strict=True)) for key, *values in settings},
            "same_masks": dict(zip(map(str, peers), same, strict=True)),
        }
        print(json.dumps(record))  # noqa: T201
        return
    for title, found in (("figures", facts(opened)), ("settings that differ", differing(opened))):
        table = new_table(title, "", *names)
        for row in found["rows"]:
            table.add_row(*row)
        out.print(table if found["rows"] else f"{title}: none")
    table = new_table("personal accuracy of each peer", "peer", *names, "same mask")
    for peer, alike in zip(peers, same, strict=True):
        shares = [percent(found[peer].accuracy_personal) if peer in found else "–" for found in by_peer]
        table.add_row(str(peer), *shares, "yes" if alike else "no")
    out.print(table)
