"""The pictures of runs, as Vega-Lite specifications beside the rows that they show.

Colours are told apart by the colour-blind: the palette of Okabe and Ito, and viridis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dslth.report import figures
from dslth.report.figures import Opened, Rows

__all__ = ["PALETTE", "Picture", "compared", "of_run"]

PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]
WIDTH, HEIGHT = 440, 260
MOST = 200
"""Peers whose masks are compared, the first ones: each is compared with each."""
BELOW = {"orient": "bottom"}
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True)
class Picture:
    """A picture: its title, what to see in it, the rows that it shows, and how (a Vega-Lite specification).

    ``named`` are further rows that the specification names.
    """

    title: str
    words: str
    rows: Rows
    spec: Mapping[str, Any]
    named: Mapping[str, Rows] | None = None

    def whole(self) -> dict[str, Any]:
        """Return the specification with its data."""
        more = {"datasets": dict(self.named)} if self.named else {}
        return {"$schema": SCHEMA, "data": {"values": self.rows}, **more, **self.spec}


def of_run(run: Opened) -> list[Picture]:
    """Return the pictures of a run; those for which there is nothing yet are left out."""
    rounds, masks = run.rounds(), run.masks()
    made = [
        _graph(run),
        _lines("Accuracy", "accuracy", "personal accuracy, %", rounds, "Each peer on test samples of its own classes."),
        _lines("Loss", "loss", "training loss", rounds, "The mean of a round's steps; each peer a line."),
        _by_bytes([run]),
        _bits(rounds),
        _similarity(figures.similarities(dict(list(masks.items())[:MOST]))),
        _layers(figures.layers(masks)),
        _seconds(run.seconds()),
        _happenings(run.happenings()),
    ]
    return [picture for picture in made if picture.rows]


def compared(runs: Sequence[Opened]) -> list[Picture]:
    """Return the pictures that show several runs side by side."""
    return [_by_rounds(runs), _by_bytes(runs)]


def _axis(field: str, title: str = "", **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title or field, **more}


def _colour(field: str) -> dict[str, Any]:
    legend = BELOW | {"labelLimit": 400, "symbolOpacity": 1}
    return {"field": field, "type": "nominal", "title": None, "scale": {"range": PALETTE}, "legend": legend}


def _sized(**spec: Any) -> dict[str, Any]:
    return {"width": WIDTH, "height": HEIGHT, **spec}


def _graph(run: Opened) -> Picture:
    peers = run.peers()
    nowhere = {"axis": None, "scale": {"zero": False, "nice": False, "padding": 20}}
    place = {axis: _axis(axis) | nowhere for axis in ("x", "y")}
    several = len(peers) <= 60  # else numbers would hide the peers
    told = ["peer", "accuracy", "accuracy on all classes", "rounds", "sent, kB", "missed", "refused", "device"]
    layer: list[dict[str, Any]] = [
        {
            "data": {"name": "links"},
            "mark": {"type": "rule", "color": "#888", "opacity": 0.6},
            "encoding": place
            | {
                "x2": {"field": "x2"},
                "y2": {"field": "y2"},
                "strokeWidth": _axis("messages, kB", scale={"range": [0.5, 4], "zero": True}, legend=BELOW),
                "tooltip": [{"field": "link"}, _axis("messages, kB", format=",.1f")],
            },
        },
        {
            "mark": {"type": "circle", "size": 420 if several else 120, "opacity": 1, "stroke": "#888"},
            "encoding": place
            | {
                "color": _axis("accuracy", "accuracy, %", scale={"scheme": "viridis"}, legend=BELOW),
                "tooltip": [{"field": name} for name in told],
            },
        },
    ]
    if several:
        text = {"test": f"datum.accuracy > {_middle(peers)}", "value": "black"}
        label = {"text": {"field": "peer"}, "color": {"condition": text, "value": "white"}}
        layer.append({"mark": {"type": "text", "fontSize": 11}, "encoding": place | label})
    words = "Peers coloured by their personal accuracy, links as thick as the bytes of their messages, both directions."
    return Picture("Graph", words, peers, _sized(layer=layer) | {"height": WIDTH}, {"links": run.links()})


def _middle(peers: Rows) -> float:
    """Return the accuracy above which viridis is so light that black is easier to read on it."""
    known = [row["accuracy"] for row in peers if row["accuracy"] is not None] or [0.0]
    return float(min(known) + 0.6 * (max(known) - min(known)))


def _lines(title: str, field: str, axis: str, rows: Rows, words: str) -> Picture:
    """Draw a thin line for each peer, and a thick one for their mean."""
    shown = [row for row in rows if row[field] is not None]
    x, y = _axis("round", axis={"tickMinStep": 1}), _axis(field, axis, scale={"zero": False})
    layer = [
        {
            "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.45, "color": PALETTE[0], "point": _dots(shown)},
            "encoding": {"x": x, "y": y, "detail": {"field": "peer"}, "tooltip": [{"field": n} for n in _TOLD]},
        },
        {
            "mark": {"type": "line", "strokeWidth": 3, "color": PALETTE[5], "point": _dots(shown)},
            "encoding": {"x": x, "y": y | {"aggregate": "mean"}},
        },
    ]
    return Picture(title, f"{words} The thick line is the mean.", shown, _sized(layer=layer))


_TOLD = ("peer", "round", "accuracy", "accuracy on all classes", "loss", "bits per weight", "sent so far, kB")


def _dots(rows: Rows) -> bool:
    return len({row["round"] for row in rows}) < 30


def _by_rounds(runs: Sequence[Opened]) -> Picture:
    return _means(runs, "Accuracy by round", _axis("round", axis={"tickMinStep": 1}), "")


def _by_bytes(runs: Sequence[Opened]) -> Picture:
    title = "message bytes sent by all peers, kB"
    x = _axis("sent by all, kB", title, scale={"type": "log", "nice": False})
    more = " On the left is better: as accurate for fewer bytes; runs that send nothing are missing."
    return _means(runs, "Accuracy against bytes", x, more)


def _means(runs: Sequence[Opened], title: str, x: Mapping[str, Any], more: str) -> Picture:
    rows = [row for run in runs for row in run.means() if row["sent by all, kB"] > 0 or "scale" not in x]
    color = _colour("run")
    y = {"scale": {"zero": False}, "type": "quantitative", "title": "personal accuracy, %"}
    told = ["run", "round", "mean", "worst", "best", "sent by all, kB"]
    layer = [
        {
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": {"x": x, "y": {"field": "worst"} | y, "y2": {"field": "best"}, "color": color},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2.5, "point": _dots(rows)},
            "encoding": {
                "x": x,
                "y": {"field": "mean"} | y,
                "color": color,
                "tooltip": [{"field": name} for name in told],
            },
        },
    ]
    words = f"The mean of the peers' personal accuracies; the band goes from the worst to the best peer.{more}"
    return Picture(title, words, rows, _sized(layer=layer))


def _bits(rows: Rows) -> Picture:
    shown = [row for row in rows if row["bits per weight"] is not None]
    which = ["bits per weight", "entropy"]
    color = _colour("of")
    spec = _sized(
        transform=[{"fold": which, "as": ["of", "bits"]}, {"filter": "datum.bits != null && datum.bits > 0"}],
        mark={"type": "line", "point": _dots(shown)},
        encoding={
            "x": _axis("round", axis={"tickMinStep": 1}),
            "y": _axis("bits", "payload bits per weight and link", aggregate="mean", scale={"type": "log"}),
            "color": color,
        },
    )
    words = (
        "What a mask costs, the mean of all peers, beside the entropy of its flips if they were spread evenly within "
        "each layer. Coding that knows more goes below it. The first round is a key frame, which has no flips."
    )
    return Picture("Bits per weight", words, shown, spec)


def _similarity(rows: Rows) -> Picture:
    apart = [row for row in rows if row["peer"] != row["other"]]  # with themselves they are all alike: no news
    spec = _sized(
        mark="rect",
        encoding={
            "x": {"field": "peer", "type": "ordinal", "axis": {"labelOverlap": True}},
            "y": {"field": "other", "type": "ordinal", "title": "peer", "axis": {"labelOverlap": True}},
            "color": _axis("alike", "alike, %", scale={"scheme": "viridis", "zero": False}, legend=BELOW),
            "tooltip": [{"field": name} for name in ("peer", "other", "alike")],
        },
    ) | {"height": WIDTH}
    words = "The share of weights that both of two peers keep or both drop: who learns the same."
    return Picture("Alike masks", words, apart, spec)


def _layers(rows: Rows) -> Picture:
    which = ["weights kept, %", "filters left, %"]
    spec = {
        "transform": [{"fold": which, "as": ["of", "share"]}],
        "facet": {"column": {"field": "of", "type": "nominal", "title": None}},
        "spec": {
            "width": WIDTH // 2 - 50,
            "height": {"step": 28},
            "layer": [
                {
                    "mark": {"type": "bar", "color": PALETTE[0]},
                    "encoding": {"x": _axis("share", "%", aggregate="mean")},
                },
                {
                    "mark": {"type": "rule", "color": PALETTE[1], "strokeWidth": 3},
                    "encoding": {
                        "x": _axis("share", "%", aggregate="min"),
                        "x2": {"field": "share", "aggregate": "max"},
                    },
                },
            ],
            "encoding": {"y": {"field": "layer", "type": "nominal", "sort": None, "title": None}},
        },
    }
    words = (
        "What the masks keep, layer by layer: weights, and filters (convolution output channels, linear rows) that "
        "keep one at least. Bars are the mean of all peers, the line in them goes from the least to the most."
    )
    return Picture("Layers", words, rows, spec)


def _seconds(rows: Rows) -> Picture:
    color = _colour("phase") | {"sort": None}
    spec = _sized(
        mark="bar",
        encoding={
            "x": {"field": "peer", "type": "ordinal", "axis": {"labelOverlap": True}},
            "y": _axis("seconds", "seconds in all rounds", stack="zero"),
            "color": color,
            "tooltip": [{"field": name} for name in ("peer", "phase", "seconds")],
        },
    )
    return Picture("Where the time went", "Of each peer. To wait for neighbours costs no processor.", rows, spec)


def _happenings(rows: Rows) -> Picture:
    color = _colour("what")
    spec = _sized(
        mark={"type": "point", "filled": True, "size": 70},
        encoding={
            "x": _axis("second", "seconds since the first report"),
            "y": {"field": "peer", "type": "ordinal", "axis": {"labelOverlap": True}},
            "color": color,
            "shape": {"field": "what", "type": "nominal"},
            "tooltip": [{"field": name} for name in ("second", "peer", "what", "neighbour", "detail")],
        },
    )
    return Picture("What was unusual", "Faults as peers and the launcher noticed them.", rows, spec)
