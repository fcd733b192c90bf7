"""Other ways to learn together: what MCE-PL is compared with. Each is a ``peer.Method``, in the same loop as MCE-PL.

Weights and biases are trained, from torch's own initialisation drawn from the run's seed, by SGD with a momentum that
is never sent; with FedPM, probabilities to keep signed weights. Peers start equal, so first models are never sent.
``codings`` has the wire format.
Each method has its own file; ``base`` has what they share.

The learning rates of SGD alone, D-PSGD and DisPFL are those of RATES with which they once ended best on the digits ring
(20 rounds, by the test set); for DisPFL the next lower one, which ended .002 lower there but much higher on
Fashion-MNIST. The values of the others come from a few short runs on a smaller ring. ``dslth bench study``, and
``dslth bench comm --tune``, find those that count, by held-out training samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dslth.bench.methods.base import Sgd, before_exchange
from dslth.bench.methods.choco import Choco
from dslth.bench.methods.dadpfl import DaDpfl
from dslth.bench.methods.dispfl import DisPfl
from dslth.bench.methods.ditto import Ditto
from dslth.bench.methods.dpsgd import Alone, Dpsgd, HalfDpsgd, TunedDpsgd
from dslth.bench.methods.fedpm import FedPm, Klms
from dslth.bench.methods.fedrep import FedRep
from dslth.bench.methods.jwins import Jwins
from dslth.engines.base import PeerJob

__all__ = ["METHODS", "Alone", "Compared", "before_exchange"]

METHODS: Mapping[str, type[Sgd[Any]]] = {
    method.name: method
    for method in (Alone, Dpsgd, HalfDpsgd, TunedDpsgd, Choco, DisPfl, DaDpfl, FedRep, Ditto, FedPm, Klms, Jwins)
}


@dataclass(frozen=True)
class Compared:
    """Makes one of METHODS for a peer, with its own values (learning rate and others) or these; see ``PeerJob``."""

    method: str
    values: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, job: PeerJob) -> Sgd[Any]:
        """Return the peer's method."""
        return METHODS[self.method](job, self.values)
