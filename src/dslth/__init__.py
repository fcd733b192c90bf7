"""dslth: decentralised learning in which peers exchange nothing but binary masks.

Every peer holds the same frozen random network, learns a personal binary mask over it, and sends that mask to its
graph neighbours (MCE-PL, the Distributed Strong Lottery Ticket Hypothesis, arXiv 2504.17520).
"""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: a command imports this before it handles Ctrl-C."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dslth")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
