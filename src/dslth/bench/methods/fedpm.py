"""FedPM by gossip: probabilities of a mask, learned from samples of it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dslth.bench.codings import Estimate, KlmsCoding, Layout, Sample, SampleCoding, Sent
from dslth.bench.methods.base import Sgd, State
from dslth.config import Init
from dslth.engines.base import PeerJob
from dslth.seeds import Stream

__all__ = ["FedPm", "Klms"]

S = TypeVar("S", bound=Sent)

LEAST = 1e-4
"""The least probability with which a weight is kept or dropped, so that its score stays finite."""


class Probabilities(Sgd[S]):
    """Frozen signed weights, each kept with a probability ``sigmoid(x)``."""

    lr = 100.0
    prior: float = 4.0
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"lr": (10.0, 30.0, 100.0, 300.0), "prior": (1.0, 4.0, 16.0)}
    init = Init.SIGNED

    def __init__(self, job: PeerJob, values: Mapping[str, float] = MappingProxyType({})) -> None:
        super().__init__(job, values)
        self._seed, self._peer, layout = self._experiment.seed, job.peer, self.net.layout
        self.x = torch.logit(self._lot("first", 0), LEAST)
        self._masked = torch.from_numpy(np.repeat(layout.is_weight, layout.lengths))
        self._layout = Layout(self.sizes, (True,) * len(self.sizes))

    def _lot(self, purpose: str, *where: int) -> Tensor:
        return torch.from_numpy(Stream(self._seed, "fedpm", purpose, *where).uniform(self.net.layout.total))

    def _step(self, number: int, images: Tensor, labels: Tensor) -> float:
        x = self.x.clone().requires_grad_()
        probability = torch.sigmoid(x)
        drawn = (self._lot("step", self._peer, number) < probability).float() + probability - probability.detach()
        loss = F.cross_entropy(self.net(self.net.first * drawn, images), labels)
        self._descend(torch.autograd.grad(loss, x)[0])
        return loss.item()

    def _personal(self) -> Tensor:
        return self.net.first * (self.x > 0)

    def _mix(self, received: Mapping[int, S]) -> None:
        if received:
            masks = sum(torch.from_numpy(message.values) for _, message in sorted(received.items()))
            own = torch.sigmoid(self.x[self._masked])
            self.x = self.x.clone()  # the old one may be in a state to restore
            self.x[self._masked] = torch.logit((self.prior * own + masks) / (self.prior + len(received)), LEAST)


class FedPm(Probabilities[Sample]):
    """FedPM (Isik et al. 2023) by gossip: frozen signed weights, each kept with a probability ``sigmoid(x)``.

    A step draws a mask and sends its gradient straight through to the probabilities. A peer sends one more mask, drawn
    anew, and then has ``(prior * own + sum of received) / (prior + received)``: the mean of a Beta distribution, to
    which its own probabilities count as ``prior`` masks. FedPM's server knows only masks, of many clients. What is
    evaluated keeps the weights that are more likely kept than not. Steps have momentum, where FedPM has Adam or SGD.
    """

    name = "fedpm"

    def __init__(self, job: PeerJob, values: Mapping[str, float] = MappingProxyType({})) -> None:
        super().__init__(job, values)
        self.coding = SampleCoding(self._layout)

    def _message(self) -> Sample:
        return Sample.of((self.x > 0)[self._masked].numpy(), self._layout)

    def _say(self, round_: int) -> Sample:
        drawn = self._lot("mask", self._peer, round_) < torch.sigmoid(self.x)
        return Sample.of(drawn[self._masked].numpy(), self._layout)


class Klms(Probabilities[Estimate]):
    """FedPM with KLMS (Isik et al. 2024): a mask is one of few that both ends draw alike, from what they know already.

    In KLMS that is the server's last model. Here it is a running mean of the masks that the peer sent, from the
    probabilities that all begin with, see ``KlmsCoding``. Simplified: the blocks of a layer have one size, which is
    chosen anew each round by their mean information, where theirs may differ and are kept for some rounds.
    """

    name = "fedpm-klms"
    coding: KlmsCoding

    def __init__(self, job: PeerJob, values: Mapping[str, float] = MappingProxyType({})) -> None:
        super().__init__(job, values)
        common = torch.sigmoid(self.x.double())[self._masked].numpy()
        self.coding = KlmsCoding((common * (1 << 16)).astype(np.int64), self._seed, self._layout)
        self._said = self.coding.last(self.coding.first(job.peer, self.ones))

    def _message(self) -> Estimate:
        return Estimate.of((self.x > 0)[self._masked].numpy(), self._said.guess, self._layout)

    def _say(self, round_: int) -> Estimate:
        probability = torch.sigmoid(self.x.double())[self._masked].clamp(LEAST, 1 - LEAST).numpy()
        self._said = self.coding.drawn(self._said, probability, Stream(self._seed, "klms choice", self._peer, round_))
        return self._said

    def state(self) -> State:
        """Return what was learned between two rounds, and what was said last."""
        return {**super().state(), "said": np.frombuffer(self._said.raw, np.uint8)}

    def restore(self, state: State) -> None:
        """Take up a state; raises KeyError or ValueError if it is not one of this method."""
        super().restore(state)
        self._said = Estimate(state["said"].tobytes(), self._layout)
