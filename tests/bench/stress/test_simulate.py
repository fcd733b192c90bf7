"""``dslth bench simulate``: what must hold holds in every run, and defects planted in the protocol are found."""

import pytest

from dslth.bench.stress import simulate
from dslth.bench.stress.simulate import Invariant
from dslth.exchange import protocol
from dslth.exchange.protocol import Exchange
from dslth.exchange.streams import Incoming

SEEDS, CHUNK = 200, 20


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_what_must_hold_holds_in_every_run(first):
    outcomes = [simulate.simulate(seed) for seed in range(first, first + CHUNK)]
    assert [str(outcome) for outcome in outcomes if outcome.violated] == []
    assert all(outcome.masks for outcome in outcomes)


def test_a_seed_always_gives_the_same_run():
    first, second = [], []
    assert simulate.simulate(7, say=first.append) == simulate.simulate(7, say=second.append)
    assert first == second
    assert len(first) > 100


def test_runs_of_many_seeds_are_those_of_each():
    alone = {seed: simulate.simulate(seed) for seed in range(12)}
    assert {outcome.seed: outcome for outcome in simulate.simulate_all(range(12))} == alone


# --- defects planted by hand ----------------------------------------------------------------------------------------


def violated(exchange=Exchange, seeds=range(300)):
    """Return the first invariant that does not hold with a planted defect."""
    return next((outcome.violated for seed in seeds if (outcome := simulate.simulate(seed, exchange)).violated), None)


class GreetsOnce(Exchange):
    """Says hello once on each connection, whether or not a welcome comes."""

    def connections(self, connected, opened):
        self.greets = set(opened)
        super().connections(connected, opened)

    def _say_hello(self, neighbour):
        if neighbour.id in self.greets:
            self.greets.remove(neighbour.id)
            super()._say_hello(neighbour)


def test_a_lost_welcome_that_is_not_repeated_is_found():
    assert violated(GreetsOnce) is Invariant.ENDS


class Gullible(Incoming):
    """Reads a mask with what is held, whatever the header says that it builds on."""

    def read(self, header, payload, sender):
        chain = self._held.get(header.sender)
        if chain is None or header.depth == 0:
            chain = self._coding.first(header.sender, sender.ones)
        mask = self._coding.decode(header, payload, sender, chain)
        self._held[header.sender] = self._coding.after(chain, mask, header.round)
        return mask


def test_a_stale_base_that_is_accepted_is_found(monkeypatch):
    monkeypatch.setattr(protocol, "Incoming", Gullible)
    assert violated() is Invariant.CHAIN


class LeavesOnce(Exchange):
    """Says bye to each neighbour once, and once that it has heard its own."""

    def _say_bye(self, neighbour):
        said = self.__dict__.setdefault("said", set())
        if (neighbour.id, neighbour.said_bye) not in said:
            said.add((neighbour.id, neighbour.said_bye))
            super()._say_bye(neighbour)


def test_a_bye_that_is_not_repeated_is_found():
    assert violated(LeavesOnce) is Invariant.ENDS


class AsksForAll(Exchange):
    """Takes every mask that is late for one that is lost."""

    def _look_for_losses(self, neighbour, header):
        self._say_lost(neighbour)


def test_a_late_mask_that_is_sent_twice_is_found():
    assert violated(AsksForAll) is Invariant.PACE


class Dawdles(Exchange):
    """Waits longer than the deadline."""

    def gather(self):
        super().gather()
        self._until += 1


def test_a_deadline_that_is_not_kept_is_found():
    assert violated(Dawdles) is Invariant.DEADLINE


class Forgets(Exchange):
    """Resumes from a checkpoint without what it had sent."""

    def restore(self, round_, sent):
        super().restore(round_, ())


def test_masks_that_are_forgotten_in_a_restart_are_found():
    assert violated(Forgets) is Invariant.ENDS


class GreetsNobodyAgain(Exchange):
    """Says nothing on a connection that opened again, and asks for nothing that is refused."""

    def connections(self, connected, opened):
        known = self.__dict__.setdefault("known", set())
        super().connections(connected, [neighbour for neighbour in opened if neighbour not in known])
        known.update(opened)

    def _lately(self, neighbour, what):
        return True


def test_a_neighbour_that_is_heard_no_more_after_a_cut_is_found():
    assert Invariant.HEARD in {violated(GreetsNobodyAgain, [seed]) for seed in range(30)}
