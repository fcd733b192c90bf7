"""dslth: decentralised learning in which peers exchange nothing but binary masks.

Every peer holds the same frozen random network, learns a personal binary mask over it, and sends that mask to its
graph neighbours (MCE-PL, the Distributed Strong Lottery Ticket Hypothesis, arXiv 2504.17520).
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("dslth")
