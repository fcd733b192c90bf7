"""The round loop of one peer: learn, send the mask, gather the neighbours' masks, fine-tune, report.

What a newcomer should know: a peer is one thread, and who its neighbours are and what they say is the business of
``exchange``. A peer that dies goes on from its last checkpoint.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dslth.config import Phase
from dslth.exchange.ledger import Ledger
from dslth.exchange.neighbours import Neighbours
from dslth.exchange.protocol import Place
from dslth.exchange.streams import MaskCoding
from dslth.learner import Learner, processor
from dslth.masks import BitMask
from dslth.run import tickets
from dslth.run.checkpoint import Checkpoint, Checkpoints
from dslth.run.events import Finished
from dslth.run.sinks import Sink
from dslth.terminal import say
from dslth.transport import Transport

__all__ = ["Peer"]


class Peer:
    """One peer of a run, from its first hello to its last bye. ``transport`` listens already.

    Where there are checkpoints of this run the peer goes on from the newest.
    """

    def __init__(
        self,
        place: Place,
        learner: Learner,
        transport: Transport,
        sinks: Sequence[Sink],
        stop: threading.Event,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._place, self._learner, self._stop, self._checkpoints = place, learner, stop, checkpoints
        self._experiment = place.run.experiment
        self._device = place.run.device(place.peer)
        self._ledger = Ledger(place.peer, place.neighbours, transport, sinks)
        coding = MaskCoding(
            learner.sizes,
            self._experiment.codec,
            learner.forecast,
            fewer=self._experiment.algorithm.min_filter_weights > 0,
            flip=self._experiment.algorithm.flip,
        )
        self._neighbours = Neighbours(place, learner.sizes, learner.ones, coding, transport, self._ledger, stop)
        self._exchange = self._neighbours.exchange
        self._run = self._exchange.me.digest.hex()
        self._saved = 0
        self._unsaved = False

    def run(self, ticket: Path | None = None) -> Finished:
        """Take part in the run; gives the final report, and writes the ticket where a path is given.

        Raises JoinError and WrongRunError before the first round, CheckpointError where there is one that cannot be
        used; never fails because of others after it.
        """
        exchange, rounds, every = self._exchange, self._experiment.rounds, self._experiment.checkpoint_every
        exchanges = self._experiment.algorithm.exchange
        resumed = self._resume()
        if exchanges and exchange.round < rounds:
            self._neighbours.join(resumed=resumed)
        if not self._stop.is_set():
            samples, device = self._learner.training_samples, self._device.device
            self._ledger.joined(self._experiment.model.name, self._learner.sizes, samples, device, processor())
        while exchange.round < rounds and not self._stop.is_set():
            exchange.catch_up()
            if self._play(exchange.round):
                exchange.end_round()
                if every and (exchange.round % every == 0 or exchange.round == rounds):
                    self._save()
        if self._stop.is_set():
            self._save()
        will_be_back = exchange.patient and exchange.round < rounds
        if exchanges and not will_be_back:  # a bye would let the others go on without it
            self._neighbours.leave()
        return self._finish(ticket)

    def _play(self, round_: int) -> bool:
        """Play one round; False where the peer was asked to end in its middle."""
        learner, ledger, experiment = self._learner, self._ledger, self._experiment
        before = learner.state()
        with ledger.phase(Phase.COMPUTE), self._slowed():
            mask, loss = learner.local_update(round_)
        masks: Mapping[int, BitMask] = {}
        if experiment.algorithm.exchange:
            with ledger.phase(Phase.ENCODE):
                self._neighbours.send(mask)
            masks = self._neighbours.gather()
            if self._stop.is_set():
                learner.restore(before)
                return False
            with ledger.phase(Phase.FINE_TUNE), self._slowed():
                learner.fine_tune(masks)
        accuracy = None
        if (round_ + 1) % experiment.evaluate_every == 0 or round_ + 1 == experiment.rounds:
            with ledger.phase(Phase.EVALUATE):
                accuracy = learner.evaluate()
        missing = set(self._place.neighbours) - masks.keys() if experiment.algorithm.exchange else ()
        ledger.round(round_, mask, loss, missing, accuracy)
        return True

    @contextmanager
    def _slowed(self) -> Iterator[None]:
        """Stretch the time of a computation to that of a device of the profile's speed."""
        start = time.perf_counter()
        yield
        speed = self._device.speed
        if speed < 1:
            self._stop.wait((time.perf_counter() - start) * (1 / speed - 1))

    def _finish(self, ticket: Path | None) -> Finished:
        mask = self._learner.mask()
        if ticket is not None and self._exchange.round:
            shapes = tuple(tuple(w.shape) for w in self._learner.net.weights)
            tickets.store(tickets.Ticket(self._place.peer, self._experiment, shapes, mask), ticket)
        return self._ledger.finished(self._exchange.round, mask)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; False where there is none."""
        if self._checkpoints is None:
            return False
        checkpoint, notes = self._checkpoints.load(self._run, self._learner.sizes)
        for note in notes:
            self._say(f"{note}; the one before it serves")
        if checkpoint is None:
            return False
        self._learner.restore(checkpoint.tensors)
        self._saved = min(checkpoint.round, self._experiment.rounds)
        self._exchange.restore(self._saved, checkpoint.sent)
        self._ledger.restore(checkpoint.refused, checkpoint.sent[-1][1] if checkpoint.sent else None)
        self._ledger.notice("resumed", self._exchange.round)
        return True

    def _save(self) -> None:
        """Write a checkpoint; where the disk does not take it, say so once and learn on."""
        if self._checkpoints is None or self._saved == self._exchange.round:
            return
        sent = [(round_, mask) for round_, mask in self._exchange.sent if round_ < self._exchange.round]
        state, refused = self._learner.state(), self._ledger.refused
        try:
            self._checkpoints.save(Checkpoint(self._run, self._exchange.round, state, sent, refused))
        except OSError as error:
            if not self._unsaved:
                self._unsaved = True
                self._ledger.notice("unsaved", self._exchange.round, detail=str(error.strerror))
                self._say(f"cannot write a checkpoint into {self._checkpoints.folder}: {error.strerror}; learning on")
        else:
            self._saved, self._unsaved = self._exchange.round, False

    def _say(self, text: str) -> None:
        say(f"dslth: peer {self._place.peer}: {text}")
