"""dslth: decentralised learning in which peers exchange nothing but binary masks.

Every peer holds the same frozen random network, learns a personal binary mask over it, and sends that mask to its
graph neighbours (MCE-PL, the Distributed Strong Lottery Ticket Hypothesis, arXiv 2504.17520).

From Python: ``run`` runs peers, ``load`` opens a run's folder, both return a ``Run``; see docs/python.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslth.api import Model, Run, load, run
    from dslth.errors import DslthError
    from dslth.topology import Topology

__all__ = ["DslthError", "Model", "Run", "Topology", "__version__", "load", "run"]

__version__: str


def __getattr__(name: str) -> Any:
    """Look a name up when it is asked for: a command imports this before it handles Ctrl-C, and a peer needs little."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dslth")
    if name in __all__:
        from dslth import api, errors

        return getattr(errors if name == "DslthError" else api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
