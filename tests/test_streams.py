import pytest

from dslth import wire
from dslth.codecs import BY_NAME
from dslth.streams import Incoming, Outgoing
from dslth.wire import Hello, Refusal, Refused
from test_codecs import SIZES, drawn, flipped, forecast_of, walk

DIGEST = bytes(16)
NAMES = ["auto", *BY_NAME]


class Pair:
    """A sender with neighbours 1 and 2, and their ends."""

    def __init__(self, codec="auto", keep=2):
        forecast = forecast_of(SIZES, 1)
        self.outgoing = Outgoing(DIGEST, 0, codec, forecast, keep)
        self.ends = {n: Incoming(lambda peer, hello: forecast, fewer=True) for n in (1, 2)}
        self.hello = Hello(DIGEST, SIZES, SIZES)

    def send(self, round_, mask):
        return dict(self.outgoing.messages(round_, mask, dict.fromkeys(self.ends)))

    def take(self, neighbour, frames):
        header = wire.read_header(frames, SIZES)
        return self.ends[neighbour].read(header, frames[1], self.hello)

    def again(self, neighbour, needs):
        frames = self.outgoing.again(neighbour, needs, self.ends[neighbour].held(0), None)
        return [self.take(neighbour, one) for one in list(frames)]

    def refusal(self, neighbour, frames):
        with pytest.raises(Refused) as caught:
            self.take(neighbour, frames)
        return caught.value.reason


@pytest.mark.parametrize("codec", NAMES)
def test_a_stream_of_masks_comes_through(codec):
    pair = Pair(codec)
    for round_, mask in enumerate(walk(1, 20)):
        for neighbour, frames in pair.send(round_, mask).items():
            assert pair.take(neighbour, frames) == mask
            assert pair.ends[neighbour].held(0) == round_


def test_neighbours_that_hold_the_same_get_the_same_payload_object():
    pair = Pair("context")
    for round_, mask in enumerate(walk(2, 3)):
        messages = pair.send(round_, mask)
        assert messages[1][1] is messages[2][1]


def test_after_a_loss_a_key_frame_puts_one_neighbour_right_and_leaves_the_other_alone():
    pair, masks = Pair("context"), walk(3, 12)
    for round_, mask in enumerate(masks):
        messages = pair.send(round_, mask)
        assert pair.take(2, messages[2]) == mask
        if round_ == 5:
            continue  # lost on its way to neighbour 1
        if round_ == 6:
            assert pair.refusal(1, messages[1]) is Refusal.UNKNOWN_BASE
            assert pair.again(2, 6) == []
            assert pair.again(1, 6) == [mask]
            assert pair.again(1, 6) == []
        else:
            assert pair.take(1, messages[1]) == mask


def test_a_neighbour_that_is_a_round_behind_gets_both_masks_that_it_lost():
    pair, masks = Pair("context"), walk(8, 6)
    for round_ in range(4):
        messages = pair.send(round_, masks[round_])
        if round_ < 2:
            pair.take(1, messages[1])
    assert pair.again(1, 2) == masks[2:4]
    assert pair.take(1, pair.send(4, masks[4])[1]) == masks[4]


def test_a_key_frame_that_was_not_needed_keeps_both_ends_together():
    pair, masks = Pair("context"), walk(4, 6)
    for round_, mask in enumerate(masks):
        assert pair.take(1, pair.send(round_, mask)[1]) == mask
        if round_ == 3:
            frames = list(pair.outgoing.again(1, round_, round_ - 1, None))
            assert [pair.take(1, one) for one in frames] == [mask]


def test_old_masks_are_duplicates_and_change_nothing():
    pair, masks = Pair(), walk(5, 5)
    sent = [pair.send(round_, mask)[1] for round_, mask in enumerate(masks)]
    for round_, frames in enumerate(sent):
        assert pair.take(1, frames) == masks[round_]
        for old in sent[1 : round_ + 1]:
            assert pair.refusal(1, old) is Refusal.DUPLICATE


def test_a_mask_of_another_sequence_is_refused_and_forgotten():
    pair, other, masks = Pair("context"), Pair("context"), walk(6, 4)
    for round_, mask in enumerate(masks[:3]):
        pair.take(1, pair.send(round_, mask)[1])
        other.send(round_, flipped(drawn(9, 0.5), round_, 0.1))
    foreign = other.send(3, masks[3])[1]
    assert pair.refusal(1, foreign) is Refusal.CORRUPT
    assert pair.take(1, pair.send(3, masks[3])[1]) == masks[3]


def test_a_lost_neighbour_begins_anew():
    pair, masks = Pair("context"), walk(7, 3)
    pair.take(1, pair.send(0, masks[0])[1])
    pair.outgoing.lost(1)
    pair.ends[1].lost(0)
    frames = pair.send(1, masks[1])[1]
    assert wire.read_header(frames, SIZES).depth == 0
    assert pair.take(1, frames) == masks[1]
