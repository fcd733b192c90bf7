"""What the compared methods put on the wire: read back as it was, or refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslth import wire
from dslth.bench import codings
from dslth.bench.codings import (
    BodyCoding,
    ChangesCoding,
    KlmsCoding,
    Layout,
    Model,
    RepeatCoding,
    Sample,
    SampleCoding,
    SparseCoding,
    SparseModel,
    WaveletCoding,
    WholeCoding,
)
from dslth.exchange.streams import Incoming, Outgoing
from dslth.seeds import Stream
from dslth.wire import Hello, Refusal, Refused

LAYOUT = Layout((20, 5, 12, 2), (True, False, True, False))
N = LAYOUT.total
COUNT = 4
DIGEST = bytes(range(16))


def numbers(seed=0, number="<f4"):
    return np.random.default_rng(seed).normal(size=N).astype(number)


def model(seed=0, number="<f4"):
    return Model(numbers(seed, number).tobytes(), LAYOUT, number)


def sparse(seed=0, kept=(10, 6)):
    mask = np.ones(N, bool)
    mask[:20], mask[25:37] = np.arange(20) < kept[0], np.arange(12) < kept[1]
    return SparseModel.of(mask, numbers(seed), LAYOUT)


BODY = 25


def body():
    return Model(numbers()[:BODY].tobytes() + bytes(4 * (N - BODY)), LAYOUT)


WEIGHTS = Layout((20, 12), (True, True))


def sample(seed=0, kept=0.5):
    return Sample.of(np.random.default_rng(seed).random(WEIGHTS.total) < kept, WEIGHTS)


def waves(seed=0, kept=0.3):
    return SparseModel.of(np.random.default_rng(seed).random(WEIGHTS.total) < kept, numbers()[: WEIGHTS.total], WEIGHTS)


GUESS = np.random.default_rng(5).integers(1000, 60000, WEIGHTS.total)
klms = KlmsCoding(GUESS, 7, WEIGHTS)


def drawn(seed=0, before=None, layout_coding=klms):
    before = before or layout_coding.last(layout_coding.first(1, ()))
    probability = np.random.default_rng(seed).uniform(1e-4, 1 - 1e-4, before.layout.total)
    return layout_coding.drawn(before, probability, Stream(seed, "test"))


CODINGS = {
    "klms": (klms, drawn()),
    "waves": (WaveletCoding(WEIGHTS), waves()),
    "sample": (SampleCoding(WEIGHTS), sample()),
    "body": (BodyCoding(LAYOUT, BODY), body()),
    "float32": (WholeCoding(codings.FLOAT32, lambda packed: Model(packed, LAYOUT), 4 * N), model()),
    "float16": (WholeCoding(codings.FLOAT16, lambda packed: Model(packed, LAYOUT, "<f2"), 2 * N), model(0, "<f2")),
    "changes": (changing := ChangesCoding(model(), COUNT), changing.changed(model(), numbers(1))),
    "sparse": (SparseCoding(LAYOUT), sparse()),
    "repeat": (RepeatCoding(codings.FLOAT32, lambda packed: Model(packed, LAYOUT), 4 * N), model()),
}
coded = pytest.mark.parametrize("name", CODINGS)


def hello(ones=(10, 6)):
    return Hello(DIGEST, (20, 12), ones)


def read(coding, codec, payload, packed, *, ones=(10, 6), chain=None, round_=0):
    header = wire.mask_header(DIGEST, 1, round_, packed, codec, 0, None)
    header = wire.read_header((header, payload), coding.largest)
    return coding.decode(header, payload, hello(ones), chain or coding.first(1, ones))


@coded
def test_a_message_is_read_back_as_it_was(name):
    coding, message = CODINGS[name]
    codec, payload = coding.encode(message, coding.first(1, ()))
    assert len(payload) <= coding.largest
    found = read(coding, codec, payload, message.pack())
    assert found == message
    assert found.digest == message.digest
    assert np.array_equal(found.values, message.values)
    assert coding.unpack(message.pack()) == message
    assert coding.last(coding.after(coding.first(1, ()), message, 0)) is message


def test_how_long_payloads_are_and_what_they_keep():
    lengths = {name: len(coding.encode(message, coding.first(1, ()))[1]) for name, (coding, message) in CODINGS.items()}
    whole = {
        "float32": 4 * N,
        "float16": 2 * N,
        "repeat": 4 * N,
        "body": 4 * BODY,
        "sample": 5,
        "waves": 4 + 4 * 9 + 4,
        "klms": 2 + 4,
    }
    assert lengths == {**whole, "changes": 2 + 4 * 4 + 3, "sparse": 5 + 4 * (10 + 5 + 6 + 2)}
    assert sparse().density == (0.5, 0.5)
    assert model().density == (1.0, 1.0)
    assert sparse().flips(sparse(1)) is None


@coded
def test_a_payload_that_is_none_is_refused_by_name(name):
    coding, message = CODINGS[name]
    codec, payload = coding.encode(message, coding.first(1, ()))
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2]):
        with pytest.raises(Refused, match="corrupt"):
            read(coding, codec, wrong, message.pack())
    damaged = bytes([payload[0] ^ 1]) + payload[1:]
    with pytest.raises(Refused, match="corrupt"):
        read(coding, codec, damaged, message.pack())
    with pytest.raises(Refused, match="unknown-codec"):
        read(coding, 0, payload, message.pack())
    with pytest.raises(ValueError, match="wrong"):
        coding.unpack(message.pack()[:-1])


@given(st.integers(0, 2**32), st.sampled_from([0, 0.01, 0.3, 0.5, 0.99, 1]))
def test_any_sample_is_read_back_given_any_other(seed, kept):
    coding, message = SampleCoding(WEIGHTS), sample(seed, kept)
    for chain in (coding.first(1, ()), coding.after(coding.first(1, ()), sample(seed + 1), 0)):
        codec, payload = coding.encode(message, chain)
        assert read(coding, codec, payload, message.pack(), chain=chain) == message


@given(st.integers(0, 2**32), st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
def test_any_coefficients_are_read_back(seed, kept):
    coding, message = WaveletCoding(WEIGHTS), waves(seed, kept)
    codec, payload = coding.encode(message, coding.first(1, ()))
    assert len(payload) <= 4 + 4 * 32 + 4 + 16
    assert read(coding, codec, payload, message.pack()) == message


@pytest.mark.parametrize("count", [0, 8, 10, 32, 33, 2**32 - 1])
def test_coefficients_that_are_more_or_fewer_than_said_are_refused(count):
    coding, message = CODINGS["waves"]
    payload = count.to_bytes(4, "little") + coding.encode(message, coding.first(1, ()))[1][4:]
    with pytest.raises(Refused, match="corrupt"):
        read(coding, codings.WAVELETS, payload, message.pack())


def test_a_sample_like_the_last_one_is_short():
    layout = Layout((5000, 3000), (True, True))
    coding, mask = SampleCoding(layout), np.random.default_rng(1).random(layout.total) < 0.5
    first, mask[:40] = Sample.of(mask, layout), ~mask[:40]
    lengths = [len(coding.encode(Sample.of(mask, layout), chain)[1])
               for chain in (coding.first(1, ()), coding.after(coding.first(1, ()), first, 0))]  # fmt: skip
    assert lengths[1] < 80 < 990 < lengths[0] < 1010


@given(st.integers(0, 2**32), st.integers(1, 9000), st.integers(1, 50), st.sampled_from([0.5, 0.1, 0.02, 0.002]))
@settings(max_examples=25)
def test_any_mask_of_candidates_is_read_back_in_a_chain(seed, n, m, far):
    layout, generator = Layout((n, m), (True, True)), np.random.default_rng(seed)
    coding = KlmsCoding(generator.integers(0, 1 << 16, layout.total), seed, layout)
    chain = coding.first(3, ())
    for round_ in range(3):
        noise = generator.normal(size=layout.total) * far
        probability = (coding.last(chain).guess / (1 << 16) + noise).clip(1e-4, 1 - 1e-4)
        message = coding.drawn(coding.last(chain), probability, Stream(seed, "test", round_))
        codec, payload = coding.encode(message, chain)
        assert codec == codings.KLMS
        assert len(payload) <= 2 + 6 * (n // 8 + m // 8 + 2) / 8 + 1
        assert read(coding, codec, payload, message.pack(), chain=chain) == message
        chain = coding.after(chain, message, round_)
    assert coding.encode(message, coding.first(4, ())) == (codings.ESTIMATE, message.raw)


def test_candidates_are_taken_as_the_senders_probabilities_say_and_the_guess_follows_them():
    layout = Layout((4000,), (True,))
    coding, wanted = KlmsCoding(np.full(4000, 1 << 15), 1, layout), np.repeat([0.3, 0.5, 0.7, 0.5], 1000)
    message, kept, sizes = coding.last(coding.first(0, ())), [], []
    for round_ in range(40):
        message = coding.drawn(message, wanted, Stream(1, "test", round_))
        kept.append(message.mask.reshape(4, -1).mean(1))
        sizes.append(len(message.changes))
    assert np.mean(kept, 0) == pytest.approx([0.3, 0.5, 0.7, 0.5], abs=0.03)
    assert (message.guess / (1 << 16)).reshape(4, -1).mean(1) == pytest.approx([0.3, 0.5, 0.7, 0.5], abs=0.05)
    assert max(sizes) < 4000 / 8 / 2
    alike = [
        coding.drawn(coding.last(coding.first(peer, ())), np.full(4000, 0.502), Stream(peer)) for peer in range(40)
    ]
    assert np.mean([each.mask for each in alike]) == pytest.approx(0.502, abs=0.006)  # not the likeliest candidate
    sure = np.where(np.arange(4000) % 2, 0.999, 0.001)
    for round_ in range(40):
        message = coding.drawn(message, sure, Stream(1, "test", round_))
    assert np.mean(message.mask == (sure > 0.5)) > 0.97


def test_candidates_are_told_by_number_to_the_last_bit():
    coding, message = CODINGS["klms"]
    sizes, numbers = message.changes[:2], message.changes[2:]
    assert (list(sizes), len(numbers)) == ([0, 0], 4)  # 20 and 12 weights in blocks of 8: 5 times 6 bits
    padded = numbers[:-1] + bytes([numbers[-1] | 1])
    larger, endless = b"\x01" + sizes[1:], b"\x0a" + sizes[1:]
    chain = coding.first(1, ())
    for wrong in (endless + numbers, larger + numbers, sizes + numbers + b"\0", sizes + numbers[:-1], sizes + padded):
        with pytest.raises(Refused, match="corrupt"):
            read(coding, codings.KLMS, wrong, message.pack(), chain=chain)
    with pytest.raises(Refused, match="corrupt"):  # of another peer: its candidates are others
        read(coding, codings.KLMS, message.changes, message.pack(), chain=coding.first(2, ()))
    with pytest.raises(Refused, match="corrupt"):
        read(coding, codings.KLMS, sizes[:1], message.pack(), chain=chain)
    with pytest.raises(ValueError, match="too sure"):
        coding.unpack(message.pack()[:-2] + b"\0\0")


def test_what_was_said_before_is_repeated_for_nothing():
    coding, message = CODINGS["repeat"]
    chain = coding.after(coding.first(1, ()), message, 0)
    assert coding.encode(message, chain) == (codings.SAME, b"")
    assert read(coding, codings.SAME, b"", message.pack(), chain=chain) is message
    assert coding.encode(model(1), chain) == (codings.FLOAT32, model(1).raw)
    for payload, known in ((b"", coding.first(1, ())), (b"\0", chain)):
        with pytest.raises(Refused, match="corrupt"):
            read(coding, codings.SAME, payload, message.pack(), chain=known)


@given(st.sampled_from(sorted(CODINGS)), st.integers(0, 110), st.binary(max_size=4 * N + 5))
def test_arbitrary_bytes_are_refused(name, codec, payload):
    coding, message = CODINGS[name]
    with pytest.raises(Refused) as refused:
        read(coding, codec, payload, message.pack())
    assert refused.value.reason in (Refusal.CORRUPT, Refusal.UNKNOWN_CODEC)


def test_changes_that_lie_are_refused():
    coding, message = CODINGS["changes"]
    steps, scales, places = (part := message.changes)[:2], part[2:18], part[18:]
    unchanged = np.flatnonzero(np.frombuffer(scales, "<f4") == 0)
    assert len(unchanged) == 2  # of the four layers
    lying = np.frombuffer(scales, "<f4").copy()
    lying[unchanged] = 1
    for wrong in (b"\xff" + steps[1:] + scales + places, steps + lying.tobytes() + places, steps + scales):
        with pytest.raises(Refused, match="corrupt"):
            read(coding, codings.CHANGES, wrong, message.pack())
    odd = ChangesCoding(model(), 3)
    message = odd.changed(model(), numbers(1))
    padded = bytes([message.changes[0], message.changes[1] | 1])
    assert read(odd, codings.CHANGES, message.changes, message.pack()) == message
    with pytest.raises(Refused, match="corrupt"):
        read(odd, codings.CHANGES, padded + message.changes[2:], message.pack())


@given(st.integers(0, 2**32), st.integers(1, N))
def test_any_changes_are_read_back(seed, count):
    coding, generator = ChangesCoding(model(), count), np.random.default_rng(seed)
    wanted = numbers() + np.where(
        generator.random(N) < 0.5, 0, generator.normal(size=N) * 10.0 ** generator.integers(-9, 9)
    )
    message = coding.changed(model(), wanted.astype(np.float32))
    assert read(coding, codings.CHANGES, message.changes, message.pack()) == message


@pytest.mark.parametrize("wanted", [np.nan, np.inf, -np.inf, 3.4e38])
def test_a_model_that_diverges_is_still_said(wanted):
    coding, _ = CODINGS["changes"]
    message = coding.changed(model(), np.full(N, wanted, np.float32))
    assert read(coding, codings.CHANGES, message.changes, message.pack()).raw == message.raw


def test_sparse_models_that_lie_are_refused():
    coding, message = CODINGS["sparse"]
    padded = bytearray(message.pack())
    padded[4] |= 1  # past the last parameter
    with pytest.raises(Refused, match="corrupt"):
        read(coding, codings.SPARSE, bytes(padded), bytes(padded))
    with pytest.raises(Refused, match="wrong-density"):
        read(coding, codings.SPARSE, message.pack(), message.pack(), ones=(9, 7))


@pytest.mark.parametrize(("ones", "reason"), [((11, 6), None), ((10, 12), None), ((9, 12), "wrong-density")])
def test_a_model_that_became_sparser_is_read_where_that_is_meant(ones, reason):
    message, coding = sparse(), SparseCoding(LAYOUT, fewer=True)
    if reason is None:
        assert read(coding, codings.SPARSE, message.pack(), message.pack(), ones=ones) == message
        coding = SparseCoding(LAYOUT)
    with pytest.raises(Refused, match="wrong-density"):
        read(coding, codings.SPARSE, message.pack(), message.pack(), ones=ones)


def test_the_largest_changes_are_said_and_the_rest_adds_up():
    coding, _ = CODINGS["changes"]
    said, wanted = model(), numbers(1)
    first = coding.changed(said, wanted)
    difference = np.abs(wanted - said.values)
    moved = np.flatnonzero(first.values != said.values)
    assert set(moved) == set(np.argsort(difference)[-COUNT:])
    assert np.allclose(first.values[moved], wanted[moved], atol=difference.max() / 14)
    for _ in range(4 * N // COUNT):
        first = coding.changed(first, wanted)
    assert np.allclose(first.values, wanted, atol=1e-3)


def streams():
    coding = ChangesCoding(model(), COUNT)
    messages = [coding.changed(model(), numbers(1))]
    for seed in range(2, 7):
        messages.append(coding.changed(messages[-1], numbers(seed)))
    return coding, messages, Outgoing(DIGEST, 1, coding, (), 10), Incoming(coding)


def take(incoming, frames):
    header = wire.read_header(frames, 4 * N)
    return header, incoming.read(header, frames[1], hello())


def test_changes_build_on_each_other_and_what_is_lost_comes_again_as_it_was():
    _, messages, outgoing, incoming = streams()
    for round_, message in enumerate(messages):
        ((_, frames),) = outgoing.messages(round_, message, {0: None})
        assert len(frames[1]) <= 2 + 4 * 4 + 5
        if round_ in (2, 3):
            continue  # lost
        if round_ == 4:
            with pytest.raises(Refused, match="unknown-base"):
                take(incoming, frames)
            again = list(outgoing.again(0, 4, 1, incoming.depth(0) or 2, None))
            assert [len(payload) for _, payload in again] == [22, 21, 21]
            assert [take(incoming, lacking)[1] for lacking in again] == messages[2:5]
        else:
            assert take(incoming, frames)[1] == message


@pytest.mark.parametrize("restarted", [False, True])
def test_a_new_chain_begins_with_all_that_was_said(restarted):
    coding, messages, outgoing, incoming = streams()
    if restarted:  # of what was sent before, the checkpoint has the packed form alone
        outgoing.restore((round_, coding.unpack(message.pack())) for round_, message in enumerate(messages[:3]))
    else:
        for round_, message in enumerate(messages[:3]):
            list(outgoing.messages(round_, message, {}))
    chain = list(outgoing.again(0, 1, 0, 1, None))
    codecs = []
    for frames, message in zip(chain, messages[1:3], strict=True):
        header, found = take(incoming, frames)
        codecs.append(header.codec)
        assert found == message
    assert codecs == [codings.FLOAT32, codings.FLOAT32 if restarted else codings.CHANGES]
    ((_, frames),) = outgoing.messages(3, messages[3], {0: 2})
    header, found = take(incoming, frames)
    assert (header.codec, header.depth, found) == (codings.CHANGES, 3 - 1, messages[3])
