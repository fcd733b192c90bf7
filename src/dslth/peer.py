"""The round loop of one peer: learn, send the mask, gather the neighbours' masks, fine-tune, report.

What a newcomer should know: a peer is one thread; ``exchange`` deals with its neighbours and their messages. A round is
evaluated, reported and saved once the next round's mask is sent, so that no neighbour waits for that. After a restart
a peer resumes from its last checkpoint. How it learns is a Method: the paper's is in ``learner``, those that it is
compared with are in ``bench``; all of them learn, send, wait and report in this one loop.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import numpy as np
from numpy.typing import NDArray

from dslth.config import Phase
from dslth.exchange.ledger import Ledger
from dslth.exchange.neighbours import Neighbours
from dslth.exchange.protocol import Place
from dslth.exchange.streams import C, Coding, M
from dslth.learner import processor
from dslth.runs import tickets
from dslth.runs.checkpoint import Checkpoint, Checkpoints
from dslth.runs.events import Accuracies, Finished, RoundReport
from dslth.runs.sinks import Sink
from dslth.stop import Stop
from dslth.terminal import say
from dslth.transport import Transport

__all__ = ["Method", "Peer"]

State = Mapping[str, NDArray[np.generic]]


class Method(Protocol[M, C]):
    """What a peer learns, and what it sends: masks, or the messages of a compared method."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What peers must share to understand each other, besides the run's settings."""

    @property
    def coding(self) -> Coding[M, C]:
        """How its messages go on the wire."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each layer."""

    @property
    def ones(self) -> tuple[int, ...]:
        """Number of weights of each layer that are kept."""

    @property
    def training_samples(self) -> int:
        """Number of samples that it learns from."""

    @property
    def evaluate_every(self) -> int:
        """Number of rounds from one evaluation to the next; the last round is always evaluated."""

    def local_update(self, round_: int) -> tuple[M, float]:
        """Take a round's local steps; return the message to send and the mean loss."""

    def fine_tune(self, received: Mapping[int, M]) -> None:
        """Use the messages that came from neighbours."""

    def evaluation(self) -> Callable[[], Accuracies]:
        """Return what classifies the test samples with what was learned so far, even when called in a later round."""

    def state(self) -> State:
        """Return what was learned between two rounds; later rounds leave it as it is."""

    def restore(self, state: State) -> None:
        """Take up a state; raises KeyError or ValueError if it is not one of this method."""

    def result(self) -> tuple[M, tickets.Ticket | None]:
        """Return what was learned as a message, and as a ticket if the method has one."""


@dataclass(frozen=True)
class _Played:
    """A round that is over and not yet reported: ``state`` is what was learned, ``evaluation`` None if none is due."""

    report: RoundReport
    evaluation: Callable[[], Accuracies] | None
    state: State


class Peer(Generic[M, C]):
    """One peer of a run, from its first hello to its last bye. ``transport`` listens already.

    If there are checkpoints of this run, the peer resumes from the newest.
    """

    def __init__(
        self,
        place: Place,
        method: Method[M, C],
        transport: Transport,
        sinks: Sequence[Sink],
        stop: Stop,
        checkpoints: Checkpoints | None = None,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._place, self._method, self._stop, self._checkpoints = place, method, stop, checkpoints
        self._turn = turn
        self._experiment = place.run.experiment
        self._device = place.run.device(place.peer)
        self._ledger = Ledger(place.peer, place.neighbours, transport, sinks)
        self._coding = method.coding
        self._neighbours = Neighbours(
            place, method.sizes, method.ones, self._coding, transport, self._ledger, stop, method.settings
        )
        self._exchange = self._neighbours.exchange
        self._run = self._exchange.me.digest.hex()
        self._played: _Played | None = None
        self._saved = 0
        self._unsaved = False

    def run(self, ticket: Path | None = None) -> Finished:
        """Take part in the run; return the final report, and write the ticket if a path is given.

        Raises JoinError and WrongRunError before the first round, CheckpointError if no checkpoint can be used. After
        the first round others cannot make it fail.
        """
        exchange, rounds, exchanges = self._exchange, self._experiment.rounds, self._experiment.algorithm.exchange
        resumed = self._resume()
        if exchanges and exchange.round < rounds:
            self._neighbours.join(resumed=resumed)
        if not self._stop.is_set():
            samples, device = self._method.training_samples, self._device
            computing = processor(device.device)
            self._ledger.joined(self._experiment.model.title, self._method.sizes, samples, device.kind, computing)
        while exchange.round < rounds and not self._stop.is_set():
            self._neighbours.catch_up()
            self._play(exchange.round)
        self._conclude()
        if self._stop.is_set():
            self._save(exchange.round, self._method.state())
        will_be_back = exchange.patient and exchange.round < rounds
        if exchanges and not will_be_back:  # after a bye the others would not wait for it
            self._neighbours.leave()
        return self._finish(ticket)

    def _play(self, round_: int) -> None:
        """Play one round, unless the peer is asked to end while it waits."""
        method, ledger, experiment = self._method, self._ledger, self._experiment
        before = method.state()
        with self._computing(Phase.COMPUTE):
            message, loss = method.local_update(round_)
        received: Mapping[int, M] = {}
        if experiment.algorithm.exchange:
            with ledger.phase(Phase.ENCODE):
                self._neighbours.send(message)
        self._conclude()  # the round before
        if experiment.algorithm.exchange:
            received = self._neighbours.gather()
            if self._stop.is_set():
                method.restore(before)
                return
            with self._computing(Phase.FINE_TUNE):
                method.fine_tune(received)
        evaluation = None
        if (round_ + 1) % method.evaluate_every == 0 or round_ + 1 == experiment.rounds:
            with ledger.phase(Phase.EVALUATE):
                evaluation = method.evaluation()
        missing = set(self._place.neighbours) - received.keys() if experiment.algorithm.exchange else ()
        self._played = _Played(ledger.end_round(round_, message, loss, missing), evaluation, method.state())
        self._exchange.end_round()

    def _conclude(self) -> None:
        """Evaluate and report the round that was played last, and write a checkpoint if it is time."""
        played, self._played = self._played, None
        if played is None:
            return
        accuracy, seconds = None, 0.0
        if played.evaluation:
            with self._turn():
                start = time.perf_counter()
                accuracy = played.evaluation()
                seconds = time.perf_counter() - start
        self._ledger.report(played.report, accuracy, seconds)
        rounds, every = played.report.round + 1, self._experiment.checkpoint_every
        if every and (rounds % every == 0 or rounds == self._experiment.rounds):
            self._save(rounds, played.state)

    @contextmanager
    def _computing(self, phase: Phase) -> Iterator[None]:
        """Compute when it is this peer's turn, and stretch the time to that of a device with the profile's speed."""
        with ExitStack() as turn:
            with self._ledger.phase(Phase.WAIT):
                turn.enter_context(self._turn())
            start = time.perf_counter()
            with self._ledger.phase(phase):
                yield
            took = time.perf_counter() - start
        if (speed := self._device.speed) < 1:
            with self._ledger.phase(phase):
                self._stop.wait(took * (1 / speed - 1))

    def _finish(self, ticket: Path | None) -> Finished:
        message, learned = self._method.result()
        if ticket is not None and learned is not None and self._exchange.round:
            tickets.store(learned, ticket)
        return self._ledger.finished(self._exchange.round, message)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _resume(self) -> bool:
        """Resume from the newest checkpoint; False if there is none."""
        if self._checkpoints is None:
            return False
        checkpoint, notes = self._checkpoints.load(self._run, self._coding.unpack)
        for note in notes:
            self._say(f"{note}; using the one before it")
        if checkpoint is None:
            return False
        self._method.restore(checkpoint.tensors)
        self._saved = min(checkpoint.round, self._experiment.rounds)
        self._exchange.restore(self._saved, checkpoint.sent)
        self._ledger.restore(checkpoint.refused, checkpoint.sent[-1][1] if checkpoint.sent else None)
        self._ledger.notice("resumed", self._exchange.round)
        return True

    def _save(self, rounds: int, state: State) -> None:
        """Write a checkpoint of the first ``rounds`` rounds; if that fails, report it once and continue."""
        if self._checkpoints is None or self._saved == rounds:
            return
        sent = [(round_, message) for round_, message in self._exchange.sent if round_ < rounds]
        try:
            self._checkpoints.save(Checkpoint(self._run, rounds, state, sent, self._ledger.refused))
        except OSError as error:
            if not self._unsaved:
                self._unsaved = True
                self._ledger.notice("unsaved", rounds, detail=str(error.strerror))
                self._say(f"cannot write a checkpoint into {self._checkpoints.folder}: {error.strerror}; continuing")
        else:
            self._saved, self._unsaved = rounds, False

    def _say(self, text: str) -> None:
        say(f"dslth: peer {self._place.peer}: {text}")
