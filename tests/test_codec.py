"""Messages of masks: what comes out is bit for bit what went in, or a clear error, whatever a link does to it."""

import math
import random
import struct
import sys
from hashlib import blake2b
from typing import NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dslth_jax import masks
from dslth_jax.codec import CodecError, MissingPastError, Receiver, Sender, SentMask, decode, encode, entropy

HEADER, CHECKSUM = 32, 8
DIGEST = slice(24, 32)
NUMBERS = st.integers(0, 2**32 - 1)

# AlexNet's layers on CIFAR-10, and how much of each a mask keeps.
ALEXNET = [(4_800,), (204_800,), (819_200,), (196_608,), (1_920,)]
DENSITIES = (0.3, 0.3, 0.3, 0.9, 0.9)

settings = hypothesis.settings(max_examples=200, deadline=None)


def packed(mask):
    """The oracle of `masks.pack`: entry k is bit k // bytes of byte k % bytes."""
    flat = mask.reshape(-1)
    bits = np.zeros(-(-flat.size // 8), np.uint8)
    for entry in np.flatnonzero(flat):
        bits[entry % bits.size] |= 1 << entry // bits.size
    return bits


def quickly_packed(mask):
    return np.asarray(masks.pack(jnp.asarray(mask)))


def with_ones(size, ones, seed=0):
    mask = np.zeros(size, bool)
    mask[np.random.default_rng(seed).choice(size, ones, replace=False)] = True
    return mask


def sent(round, layers, sender=3):
    return SentMask(sender, round, [packed(layer) for layer in layers])


def shapes_of(layers):
    return [layer.shape for layer in layers]


def assert_same(mask, expected):
    assert (mask.sender, mask.round) == (expected.sender, expected.round)
    assert [bits.tolist() for bits in mask.layers] == [bits.tolist() for bits in expected.layers]
    assert all(bits.dtype == np.uint8 for bits in mask.layers)


@st.composite
def drawn_layers(draw, shape):
    """A layer of any bits; or of any density, those where a form of its own begins among them."""
    if draw(st.booleans()):
        return draw(hnp.arrays(bool, shape))
    size = math.prod(shape)
    ones = draw(st.sampled_from([0, 1, size // 2, size - 1, size]) | st.integers(0, size))
    return with_ones(size, min(max(ones, 0), size), draw(st.integers(0, 99))).reshape(shape)


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9) | st.tuples(st.integers(0, 4000))


@st.composite
def drawn_masks(draw, number=1):
    """So many masks of the same shapes."""
    shapes = draw(st.lists(SHAPES, max_size=4))
    return [[draw(drawn_layers(shape)) for shape in shapes] for _ in range(number)]


# Round trips.


@settings
@hypothesis.given(drawn_masks(), NUMBERS, NUMBERS, st.booleans())
def test_any_mask_comes_back(drawn, sender, round, coded):
    (layers,) = drawn
    mask = sent(round, layers, sender)
    came = decode(encode(mask, shapes_of(layers), coded=coded), shapes_of(layers))
    assert_same(came, mask)
    assert not any(bits.flags.writeable for bits in came.layers)


@settings
@hypothesis.given(drawn_masks(number=2), st.floats(0, 1), st.booleans())
def test_any_mask_comes_back_by_its_flips(drawn, rate, coded):
    """Flips of any number: of independent masks, and of masks that differ in few entries."""
    before, layers = drawn
    flips = np.random.default_rng(0)
    for after in (layers, [layer ^ (flips.random(layer.shape) < rate / 10) for layer in before]):
        past, mask, shapes = [sent(4, before)], sent(9, after), shapes_of(before)
        message = encode(mask, shapes, past=past, coded=coded)
        assert_same(decode(message, shapes, past=past), mask)
        alone = encode(mask, shapes, coded=coded)
        # A word of the coder's is the most that its estimate of a length can be off.
        assert len(message) <= len(alone) + 4
        assert len(alone) <= len(encode(mask, shapes, coded=False)) + 4


@settings
@hypothesis.given(drawn_masks(number=6), st.lists(st.floats(0, 1), min_size=6, max_size=6), st.integers(0, 5))
def test_any_mask_comes_back_by_the_masks_before(drawn, shares, known):
    """Each mask takes some share of its entries from the one before. Four of these help, more change nothing."""
    random, masks = np.random.default_rng(0), drawn[:1]
    for layers, share in zip(drawn[1:], shares[1:], strict=True):
        new = [np.where(random.random(old.shape) < share, old, own) for old, own in zip(masks[-1], layers, strict=True)]
        masks.append(new)
    *past, mask = [sent(number, layers) for number, layers in enumerate(masks)]
    past, shapes = past[::-1][:known], shapes_of(drawn[0])
    message = encode(mask, shapes, past=past)
    assert_same(decode(message, shapes, past=past), mask)
    assert message == encode(mask, shapes, past=past[: entropy.PAST])
    assert message[11] <= min(known, entropy.PAST)
    assert len(message) <= len(encode(mask, shapes, past=past[:1])) + 4


def planes_of(signs):
    """The two planes of each layer of a ternary mask."""
    return [plane for layer in signs for plane in (layer < 0, layer > 0)]


@settings
@hypothesis.given(drawn_masks(number=4), st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 3))
def test_any_ternary_mask_comes_back_by_the_masks_before(drawn, shares, known):
    """Two planes a layer, of which the second tells nothing where the first has entries; signs turn, too."""
    random, signs = np.random.default_rng(0), [np.zeros(layer.shape, int) for layer in drawn[0]]
    masks = []
    for layers, share in zip(drawn, shares, strict=True):
        new = [np.where(layer, random.choice([-1, 1], layer.shape), 0) for layer in layers]
        signs = [np.where(random.random(old.shape) < share, old, own) for old, own in zip(signs, new, strict=True)]
        masks.append(sent(len(masks), planes_of(signs)))
    *past, mask = masks
    past, shapes = past[::-1][:known], [layer.shape for layer in drawn[0] for _ in range(2)]
    message = encode(mask, shapes, past=past)
    assert_same(decode(message, shapes, past=past), mask)
    assert len(message) <= len(encode(mask, shapes)) + 4
    assert len(encode(mask, shapes)) <= len(encode(mask, shapes, coded=False)) + 4


@hypothesis.settings(max_examples=10, deadline=None)  # each compiles anew
@hypothesis.given(drawn_masks())
def test_the_bits_are_those_of_pack(drawn):
    (layers,) = drawn
    shapes = shapes_of(layers)
    for bits, layer in zip(jax.jit(lambda layers: list(map(masks.pack, layers)))(layers), layers, strict=True):
        np.testing.assert_array_equal(bits, packed(layer))
    came = decode(encode(sent(0, layers), shapes), shapes)
    unpacked = jax.jit(lambda many: [masks.unpack(bits, shape) for bits, shape in zip(many, shapes, strict=True)])
    for back, layer in zip(unpacked(list(came.layers)), layers, strict=True):
        np.testing.assert_array_equal(back, layer)


FORMS = {
    "zeros": (with_ones(803, 0), entropy.EMPTY),
    "ones": (with_ones(803, 803), entropy.EMPTY | entropy.INVERTED),
    "as before": (with_ones(803, 300, seed=1), entropy.EMPTY | entropy.FLIPS),
    "all turned": (~with_ones(803, 300, seed=1), entropy.EMPTY | entropy.FLIPS | entropy.INVERTED),
    "even": (with_ones(803, 401), entropy.BITMAP),
    "above even": (with_ones(803, 402), entropy.BITMAP | entropy.INVERTED),
    "sparse": (with_ones(803, 20), entropy.CODED),
    "dense": (with_ones(803, 783), entropy.CODED | entropy.INVERTED),
    "few flips": (with_ones(803, 300, seed=1) ^ with_ones(803, 9), entropy.CODED | entropy.FLIPS),
    "many flips": (~with_ones(803, 300, seed=1) ^ with_ones(803, 9), entropy.CODED | entropy.FLIPS | entropy.INVERTED),
    "few of the kept flip": (
        with_ones(803, 300, seed=1) & ~with_ones(803, 160),
        entropy.SPLIT | entropy.FLIPS,
    ),
    "most of the kept flip": (
        with_ones(803, 300, seed=1) & ~with_ones(803, 670, seed=2)
        | ~with_ones(803, 300, seed=1) & with_ones(803, 400, seed=3),
        entropy.SPLIT | entropy.FLIPS,
    ),
    "no entry": (with_ones(0, 0), entropy.EMPTY),
    "an entry": (with_ones(1, 1), entropy.EMPTY | entropy.INVERTED),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_layer_takes_its_form(name):
    layer, form = FORMS[name]
    past = [sent(0, [with_ones(803, 300, seed=1) if layer.size == 803 else ~layer])]
    message = encode(sent(1, [layer]), [layer.shape], past=past)
    assert message[HEADER] == form
    assert_same(decode(message, [layer.shape], past=past), sent(1, [layer]))
    if not form & entropy.FLIPS:
        assert message == encode(sent(1, [layer]), [layer.shape])


@pytest.mark.parametrize(("known", "form"), [(0, 0), (1, entropy.FLIPS), (2, entropy.FLIPS | entropy.FURTHER)])
def test_a_plane_beside_another_takes_its_form(known, form):
    """What the first plane lacks goes by what the second had in as many masks before: rarely as in the last alone."""
    random, size = np.random.default_rng(0), 4000
    first, last, earlier = with_ones(size, 2000), random.random(size) < 0.5, random.random(size) < 0.5
    turns = random.random(size) < (0.5 if known == 0 else np.where((last == earlier) & (known == 2), 0.5, 0.02))
    past = [sent(1, [first, last]), sent(0, [first, earlier])][:known]
    mask, shapes = sent(2, [first, ~first & (last ^ turns)]), [(size,)] * 2
    message = encode(mask, shapes, past=past)
    assert_same(decode(message, shapes, past=past), mask)
    at = HEADER + (1 + size // 8 if known == 0 else 1)  # after the first plane: a bitmap, or as before
    assert message[at] == entropy.SPLIT | entropy.BESIDE | form


@pytest.mark.parametrize("size", [1, 7, 8, 9, 17, 803])
def test_padding_does_not_matter(size):
    layers = [with_ones(size, size // 2)]
    clean = sent(2, layers)
    dirty = clean._replace(layers=[clean.layers[0] | ~packed(np.ones(size, bool))])
    past = [clean._replace(round=1)]
    for coded in (False, True):
        message = encode(dirty, [(size,)], coded=coded)
        assert message == encode(clean, [(size,)], coded=coded)
        assert_same(decode(message, [(size,)]), clean)
        message = encode(clean, [(size,)], past=past, coded=coded)
        assert_same(decode(message, [(size,)], past=[dirty._replace(round=1)]), clean)


def test_the_format_is_what_version_4_wrote():
    """A change that writes or reads other bytes must be seen, one of constriction too: the ends of a link are two."""
    shapes = [(30, 30), (10,)]
    mask = sent(2, [np.arange(900) % 10 == 0, np.arange(10) % 2 == 0])
    past = [sent(1, [(np.arange(900) % 10 == 0) ^ (np.arange(900) % 100 == 7), np.arange(10) % 3 == 0])]
    before_that = sent(0, [(np.arange(900) % 10 == 0) ^ (np.arange(900) % 300 == 8), np.arange(10) % 3 == 0])
    ternary = sent(2, [np.arange(900) % 3 == 0, np.arange(900) % 3 == 1])
    key_frame = (
        "444d0403000000020000000002000000c74de74c00000000d0cf1d1364471647025a00011f005a79a226efe6d64191519388ea3e3e83"
        "5deea9c62e84eab62360780376c8a18a87721d69ce1abc93dbe23bf3578aaca46c1d709272a9fb037fa0afd83265f564"
    )
    flips = (
        "444d0403000000020000000101000000c74de74c3fbb642fd0cf1d13644716470b000209011f006d3e4d580e04b86a5d8b6aa4e963f24b"
    )
    unsteady = "444d0403000000020000000201000000c74de74c23678722d0cf1d13644716471b00040000011f0059d372f8800f3716"
    planes = (
        "444d0403000000020000000002000000a4e4ddaf0000000014adaf13e39fa652022c0143022c010000d5aa55aa552ad52a55aa55aa55"
        "aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55aa55"
        "aa55aa65db5802482fc8dac135572cd6b5c784535b5995e4a6c84d3f5b8670c1fcc7a0d1f285a76eb057b80377859dc5d858517f2bc8"
        "6aac76593cdf62c85f0e1c8601cfb8c7611c13861a240a5846eb4f855773ad5718dcce8586355858903eb2c87c1d9357d579e3c7b948"
        "4785b412741f93da177886fe"
    )
    for message, own, sizes, against in (
        (key_frame, mask, shapes, []),
        (flips, mask, shapes, past),
        (unsteady, mask, shapes, [*past, before_that]),
        (planes, ternary, [(900,)] * 2, []),
    ):
        assert encode(own, sizes, past=against).hex() == message
        assert_same(decode(bytes.fromhex(message), sizes, past=against), own)


# Lengths.


def information(mask):
    """The oracle of a layer's length: its entropy, in bits, by numpy alone."""
    share = np.array([mask.mean(), 1 - mask.mean()]) if mask.size else np.zeros(2)
    return float(-mask.size * (share * np.log2(share, where=share > 0, out=np.zeros(2))).sum())


@settings
@hypothesis.given(st.integers(200, 40_000), st.floats(0, 1), st.integers(0, 99))
def test_a_coded_layer_has_the_length_of_its_entropy(size, share, seed):
    layer = with_ones(size, int(share * size), seed)
    body = len(encode(sent(0, [layer]), [(size,)])) - HEADER - CHECKSUM
    bitmap, limit = -(-size // 8), information(layer) / 8
    overhead = 1 + -(-size.bit_length() // 8)  # form and count
    assert min(0.999 * limit, bitmap) <= body <= min(1.001 * limit + overhead + 5, bitmap + 1)


@settings
@hypothesis.given(st.integers(200, 40_000), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_ternary_layer_has_the_length_of_its_entropy(size, share, positive, seed):
    """That of what it keeps, and of the signs of that; not of two planes that know nothing of each other."""
    kept = with_ones(size, int(share * size), seed)
    signs = np.where(kept, np.where(np.random.default_rng(seed).random(size) < positive, 1, -1), 0)
    body = len(encode(sent(0, planes_of([signs])), [(size,)] * 2)) - HEADER - CHECKSUM
    limit = (information(kept) + information(signs[kept] > 0)) / 8
    assert body <= 1.001 * limit + 3 + 2 * -(-size.bit_length() // 8) + 8


def test_padding_counts_in_what_a_layer_costs():
    """Five of 17 entries have 15 bits of information and a count of 8; coding seven zeros of padding takes 3 more."""
    mask, shapes = sent(0, [with_ones(17, 5, seed) for seed in range(100)]), [(17,)] * 100
    assert len(encode(mask, shapes)) <= len(encode(mask, shapes, coded=False))


@pytest.mark.parametrize("rate", [None, 0.05, 0.0005, 0.00001, 0])
def test_a_mask_of_alexnet_has_the_length_of_its_entropy(rate):
    """Fresh, within a thousandth; and flips, of what the mask before keeps and of the rest, within the header and 50
    bytes, of which layers' forms and counts are 49 at most."""
    sizes = [size for (size,) in ALEXNET]
    layers = [with_ones(size, int(share * size), seed=0) for size, share in zip(sizes, DENSITIES, strict=True)]
    flips = layers if rate is None else [with_ones(size, round(rate * size), seed=1) for size in sizes]
    mask = SentMask(0, 1, list(map(quickly_packed, layers)))
    past = [] if rate is None else [SentMask(0, 0, [quickly_packed(a ^ b) for a, b in zip(layers, flips, strict=True)])]
    message = encode(mask, ALEXNET, past=past)
    assert_same(decode(message, ALEXNET, past=past), mask)
    parts = flips
    if rate is not None:
        before = [a ^ b for a, b in zip(layers, flips, strict=True)]
        parts = [own[old == kept] for own, old in zip(flips, before, strict=True) for kept in (False, True)]
    limit = sum(map(information, parts)) / 8
    assert limit < len(message) < 1.001 * limit + HEADER + CHECKSUM + (30 if rate is None else 50)


@settings
@hypothesis.given(st.integers(200, 40_000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@hypothesis.example(3034, 0.9733025708635464, 0.9996704021094265, 0.7, 1)  # padding would cost much where all flip
def test_flips_take_no_more_than_their_entropy_given_the_past(size, share, lost, won, seed):
    """Whatever share of a layer a mask keeps, loses and wins."""
    random = np.random.default_rng(seed)
    before = with_ones(size, int(share * size), seed)
    flips = random.random(size) < np.where(before, lost, won)
    past, mask, shapes = [sent(0, [before])], sent(1, [before ^ flips]), [(size,)]
    message = encode(mask, shapes, past=past)
    assert_same(decode(message, shapes, past=past), mask)
    limit = (information(flips[before]) + information(flips[~before])) / 8
    overhead = HEADER + CHECKSUM + 3 + 2 * -(-size.bit_length() // 8)  # forms and counts
    assert len(message) <= 1.001 * limit + overhead + 8


@settings
@hypothesis.given(st.integers(3000, 40_000), st.integers(1, 5), st.integers(0, 99))
def test_what_turned_lately_and_turns_again_costs_its_entropy_given_that(size, known, seed):
    """Some entries are unsteady, most are not, and each mask shows which."""
    random = np.random.default_rng(seed)
    rates, masks = random.choice([0.5, 0.01], size, p=[0.1, 0.9]), [random.random(size) < 0.3]
    for _ in range(known):
        masks.append(masks[-1] ^ (random.random(size) < rates))
    *past, mask = [sent(number, [layer]) for number, layer in enumerate(masks)]
    message = encode(mask, [(size,)], past=past[::-1])
    assert_same(decode(message, [(size,)], past=past[::-1]), mask)
    history = sum(layer.astype(int) << place for place, layer in enumerate(masks[-2:-6:-1]))
    flips = masks[-1] ^ masks[-2]
    limit = sum(information(flips[history == group]) for group in np.unique(history)) / 8
    groups = 2 ** min(known, entropy.PAST)
    overhead = HEADER + CHECKSUM + 1 + groups * (2 + -(-size.bit_length() // 8))  # forms, counts and padding
    assert len(message) <= 1.001 * limit + overhead + 8
    assert message[11] <= min(known, entropy.PAST)
    assert known == 1 or size < 20_000 or len(message) < 0.9 * len(encode(mask, [(size,)], past=past[:-2:-1]))


# What both ends of a link remember.

SMALL = [(6, 7), (3,), (100,)]


def small_mask(seed):
    random = np.random.default_rng(seed)
    return [random.random(shape) < 0.2 for shape in SMALL]


def small_layers(seed):
    return [packed(layer) for layer in small_mask(seed)]


def is_key_frame(message):
    """It takes no earlier mask, and names its own round."""
    assert (message[11] == 0) == (message[7:11] == message[12:16])
    return message[11] == 0


def slowly_changing(rounds, seed=0):
    """The layers of one mask in each round, of which a few entries flip."""
    random, layers = np.random.default_rng(seed), small_mask(seed)
    for _ in range(rounds):
        layers = [layer ^ (random.random(layer.shape) < 0.02) for layer in layers]
        yield [packed(layer) for layer in layers]


@pytest.mark.parametrize(("key_every", "keys"), [(0, [0]), (1, range(10)), (4, [0, 4, 8]), (20, [0])])
def test_a_key_frame_goes_first_and_at_the_interval(key_every, keys):
    sender, receiver = Sender(5, SMALL, key_every), Receiver(5, SMALL)
    for round, layers in enumerate(slowly_changing(10)):
        sender, message = sender.send(round, layers)
        receiver, mask = receiver.receive(message)
        assert_same(mask, SentMask(5, round, layers))
        assert is_key_frame(message) == (round in keys)


def test_the_interval_is_of_rounds_not_of_messages():
    sender = Sender(5, SMALL, key_every=4)
    keys = []
    for round, layers in zip([3, 5, 6, 7, 20, 23, 24], slowly_changing(7), strict=True):
        sender, message = sender.send(round, layers)
        keys += [round] * is_key_frame(message)
    assert keys == [3, 7, 20, 24]


def test_after_a_loss_a_key_frame_is_asked_for():
    sender, receiver = Sender(5, SMALL), Receiver(5, SMALL)
    messages = []
    for round, layers in enumerate(slowly_changing(4)):
        sender, message = sender.send(round, layers)
        messages.append(message)
    receiver, first = receiver.receive(messages[0])
    for lost in (messages[2], messages[3]):
        with pytest.raises(MissingPastError, match=r"agent 5's mask of round \d need that mask.*ask for a key frame"):
            receiver.receive(lost)
    # What was refused has changed nothing: the message that was only late is still good, and those after it.
    late = receiver
    for message in messages[1:]:
        late, _ = late.receive(message)
    layers = small_layers(9)
    sender, message = sender.resynchronised().send(7, layers)
    receiver, mask = receiver.receive(message)
    assert_same(mask, SentMask(5, 7, layers))
    sender, message = sender.send(8, layers)
    assert not is_key_frame(message)
    assert_same(receiver.receive(message)[1], SentMask(5, 8, layers))
    assert first.round == 0


def test_who_joins_late_lacks_the_past():
    sender = Sender(5, SMALL)
    for round, layers in enumerate(slowly_changing(2)):
        sender, message = sender.send(round, layers)
    with pytest.raises(MissingPastError, match="got none: ask for a key frame"):
        Receiver(5, SMALL).receive(message)


def test_old_and_foreign_messages_are_refused():
    sender, receiver = Sender(5, SMALL, key_every=1), Receiver(5, SMALL)
    messages = []
    for round, layers in enumerate(slowly_changing(3)):
        sender, message = sender.send(round, layers)
        messages.append(message)
    receiver, _ = receiver.receive(messages[1])
    for old in messages[:2]:
        with pytest.raises(
            CodecError, match="a later mask than agent 5's mask of round 1 was expected, got agent 5's mask"
        ):
            receiver.receive(old)
    _, foreign = Sender(6, SMALL).send(2, small_layers(0))
    with pytest.raises(CodecError, match="a mask of agent 5 was expected, got agent 6's mask of round 2: drop it"):
        receiver.receive(foreign)
    receiver, mask = receiver.receive(messages[2])
    assert mask.round == 2


@settings
@hypothesis.given(
    st.lists(st.sampled_from(["arrives", "lost", "late", "twice", "damaged"]), max_size=30), st.integers(0, 5)
)
def test_whatever_a_link_does_masks_are_right_or_refused(fates, key_every):
    sender, receiver = Sender(5, SMALL, key_every), Receiver(5, SMALL)
    truth, late = {}, []
    for round, (fate, layers) in enumerate(
        zip([*fates, "arrives", "arrives"], slowly_changing(len(fates) + 2), strict=True)
    ):
        truth[round] = SentMask(5, round, layers)
        sender, message = sender.send(round, layers)
        arriving = {"lost": [], "late": [], "twice": [message] * 2, "damaged": [message[:-1] + b"\0\0"]}.get(
            fate, [message]
        )
        newest = -1
        for arrived in arriving + late:
            try:
                receiver, mask = receiver.receive(arrived)
            except MissingPastError:
                sender = sender.resynchronised()
            except CodecError:
                assert arrived is not message or fate in ("twice", "damaged")
            else:
                assert_same(mask, truth[mask.round])
                newest = mask.round
        late = [message] if fate == "late" else []
    assert newest == round


def test_any_link_gets_by_without_an_entropy_coder(monkeypatch):
    layers = [packed(with_ones(803, 20))]
    coded = encode(SentMask(5, 0, layers), [(803,)])
    monkeypatch.setitem(sys.modules, "constriction", None)
    sender, receiver = Sender(5, [(803,)], coded=False), Receiver(5, [(803,)])
    for round in range(2):
        sender, message = sender.send(round, layers)
        receiver, mask = receiver.receive(message)
        assert_same(mask, SentMask(5, round, layers))
    for attempt in (
        lambda: encode(SentMask(5, 0, layers), [(803,)]),
        lambda: decode(coded, [(803,)]),
        lambda: Sender(5, [(803,)]).send(0, layers),
        lambda: Receiver(5, [(803,)]).receive(coded),
    ):
        with pytest.raises(ImportError, match=r"entropy coding needs constriction: pip install 'dslth-jax\[codec\]'"):
            attempt()


# What is refused.


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"round": -1}, "sender and round from 0 to 2.*got agent 3's mask of round -1"),
        ({"sender": 2**32}, "sender and round from 0 to 2.*got agent 4294967296's"),
        ({"layers": []}, "1 layers were expected, got 0"),
        ({"layers": [np.zeros(2, np.uint8)] * 2}, "1 layers were expected, got 2"),
        ({"layers": [np.zeros(3, np.uint8)]}, r"2 bytes of uint8 .* 10 entries of layer 0, got uint8 of \(3,\): pack"),
        ({"layers": [np.zeros(2, bool)]}, r"got bool of \(2,\): pack the mask"),
        ({"layers": [np.zeros((1, 2), np.uint8)]}, r"got uint8 of \(1, 2\): pack the mask"),
    ],
)
def test_what_is_no_mask_is_not_sent(changes, said):
    good = SentMask(3, 1, [np.zeros(2, np.uint8)])
    bad = good._replace(**changes)
    with pytest.raises(CodecError, match=said):
        encode(bad, [(10,)])
    with pytest.raises(CodecError, match=said):
        encode(good._replace(round=2), [(10,)], past=[bad])


def test_a_sender_remembers_no_mask_that_it_refused():
    sender, _ = Sender(3, SMALL).send(1, small_layers(0))
    with pytest.raises(CodecError, match="3 layers were expected, got 2"):
        sender.send(2, small_layers(0)[:2])
    sender, message = sender.send(2, small_layers(1))
    assert_same(decode(message, SMALL, past=[SentMask(3, 1, small_layers(0))]), SentMask(3, 2, small_layers(1)))


def test_what_a_sender_remembers_is_its_own():
    """A buffer that is written again is no past with other bits."""
    buffers = small_layers(0)
    sender, first = Sender(3, SMALL).send(1, buffers)
    for buffer, bits in zip(buffers, small_layers(1), strict=True):
        buffer[:] = bits
    _, second = sender.send(2, buffers)
    receiver, _ = Receiver(3, SMALL).receive(first)
    assert_same(receiver.receive(second)[1], SentMask(3, 2, small_layers(1)))


@pytest.mark.parametrize(
    ("past", "later"),
    [
        ([SentMask(4, 0, [])], 2),
        ([SentMask(3, 2, [])], 2),
        ([SentMask(3, 3, [])], 2),
        ([SentMask(3, 1, []), SentMask(3, 1, [])], 1),
        ([SentMask(3, 0, []), SentMask(3, 1, [])], 0),
    ],
)
def test_flips_are_only_against_ever_earlier_masks_of_the_sender(past, later):
    with pytest.raises(CodecError, match=rf"an earlier mask than agent 3's mask of round {later} was .* got agent"):
        encode(SentMask(3, 2, []), [], past=past)


@pytest.mark.parametrize("round", [0, 1])
def test_a_sender_goes_forward(round):
    sender, _ = Sender(3, SMALL).send(1, small_layers(0))
    with pytest.raises(CodecError, match=f"a round after 1, which was sent, was expected, got {round}"):
        sender.send(round, small_layers(1))


def test_numbers_of_every_kind_are_written_alike():
    layers = small_layers(0)
    message = encode(SentMask(1, 1, layers), SMALL)
    assert encode(SentMask(np.uint16(1), True, layers), SMALL) == message
    assert encode(SentMask(1, jnp.int32(1), layers), SMALL) == message
    for numbers in ((1, 1.5), (1.5, 1)):
        with pytest.raises(TypeError, match="integer"):
            encode(SentMask(*numbers, layers), SMALL)


def forged(message):
    """The message with a checksum that agrees, as only a liar or a faulty program makes it."""
    return message[:-CHECKSUM] + blake2b(message[:-CHECKSUM], digest_size=CHECKSUM).digest()


def rewritten(message, at, new):
    return forged(message[:at] + new + message[at + len(new) :])


@pytest.mark.parametrize(
    ("at", "new", "said"),
    [
        (0, b"XX", "starts with b'DM' was expected, got b'XX'"),
        (2, b"\x03", "a message of format 4 was expected, got 3: both ends need one release"),
        (16, bytes(4), r"layers of shapes \[\(6, 7\), \(3,\), \(100,\)\] were expected, got others"),
        (
            3,
            b"\x09",
            "flips since round 4 of agent 9's mask of round 5 need that mask, got agent 3's mask of round 4",
        ),
        (7, b"\x06", "the decoded mask is not the one sent"),
        (11, b"\x00", r"layers were expected, got other bytes \(layer 0 needs 1 past masks, got 0\)"),
        (11, b"\x05", "a message that takes up to 4 masks was expected, got one of 5: drop it"),
        (11, b"\x02", "flips since round 4 of agent 3's mask of round 5 need the last 2 masks, got 1: ask for a key"),
        (
            12,
            b"\x03",
            "flips since round 3 of agent 3's mask of round 5 need that mask, got agent 3's mask of round 4",
        ),
        (20, bytes(4), "the masks until then, got others: ask for a key frame"),
        (24, bytes(8), "the decoded mask is not the one sent"),
    ],
)
def test_a_header_of_another_message_is_refused(at, new, said):
    before, after = slowly_changing(2)
    past, mask = [SentMask(3, 4, before)], SentMask(3, 5, after)
    message = encode(mask, SMALL, past=past)
    assert_same(decode(forged(message), SMALL, past=past), mask)
    with pytest.raises(CodecError, match=said):
        decode(rewritten(message, at, new), SMALL, past=past)


def unsteady(rounds, size=4000):
    """Masks of one layer in which a tenth of the entries turn half of the time, by which the last masks help."""
    random = np.random.default_rng(0)
    rates, layer = random.choice([0.5, 0.01], size, p=[0.1, 0.9]), random.random(size) < 0.3
    for round in range(rounds):
        layer = layer ^ (random.random(size) < rates)
        yield sent(round, [layer])


def test_a_past_of_other_bits_is_seen():
    """In any of the masks that it takes to read a message, and in no other."""
    *past, mask = unsteady(6)
    past = past[::-1]
    message = encode(mask, [(4000,)], past=past)
    takes = message[11]
    assert takes > 1
    for number, wrong in enumerate(past):
        turned = [*past[:number], wrong._replace(layers=[wrong.layers[0] ^ 1]), *past[number + 1 :]]
        if number >= takes:
            assert_same(decode(message, [(4000,)], past=turned), mask)
            continue
        with pytest.raises(MissingPastError, match="the masks until then, got others: ask for a key frame"):
            decode(message, [(4000,)], past=turned)
    with pytest.raises(MissingPastError, match=f"need the last {takes} masks, got {takes - 1}: ask for a key frame"):
        decode(message, [(4000,)], past=past[: takes - 1])


def test_a_key_frame_forgets_on_both_ends_alike():
    """What follows takes no mask from before it: who has come with it reads on."""
    sender, first, late = Sender(3, [(4000,)], key_every=6), Receiver(3, [(4000,)]), Receiver(3, [(4000,)])
    taken = []
    for mask in unsteady(12):
        sender, message = sender.send(mask.round, mask.layers)
        first, came = first.receive(message)
        assert_same(came, mask)
        if mask.round >= 6:
            late, came = late.receive(message)
            assert_same(came, mask)
        taken.append(message[11])
    assert max(taken) > 1
    assert all(takes <= min(round % 6, entropy.PAST) for round, takes in enumerate(taken))
    assert [round for round, takes in enumerate(taken) if takes == 0] == [0, 6]


@pytest.mark.parametrize("shapes", [[], [(42,), (3,), (100,)], [(6, 7), (3,)], [(6, 7), (3,), (100,), ()]])
def test_masks_of_other_shapes_are_refused(shapes):
    message = encode(SentMask(3, 5, small_layers(0)), SMALL)
    with pytest.raises(CodecError, match="were expected, got others: both ends need one network"):
        decode(message, shapes)


def test_a_message_of_another_run_is_refused_and_leaves_the_receiver_as_it_was():
    layers = small_layers(0)
    sender, receiver = Sender(3, SMALL, run=b"second"), Receiver(3, SMALL, run=b"second")
    _, foreign = Sender(3, SMALL, run=b"first").send(300, layers)
    with pytest.raises(CodecError, match="both ends need one network, and one run's name"):
        receiver.receive(foreign)
    for number in (1, 2):
        sender, message = sender.send(number, layers)
        receiver, mask = receiver.receive(message)
        assert_same(mask, SentMask(3, number, layers))


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_of_any_kind_are_a_message(kind):
    mask = sent(1, [with_ones(5000, 500)])
    assert_same(decode(kind(encode(mask, [(5000,)])), [(5000,)]), mask)


def test_sides_may_be_numpy_numbers():
    mask = sent(1, [with_ones(5000, 500)])
    shapes = [(np.int32(50), np.int64(100))]
    assert_same(decode(encode(mask, shapes), shapes), mask)


COUNT = (40).to_bytes(2, "little")
OTHER = encode(sent(1, [with_ones(900, 90, seed=1), with_ones(10, 5)]), [(900,), (10,)])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "layer 0 of 2 is missing"),
        (b"\x00", "layer 1 of 2 is missing"),
        (b"\x00\x00\x00", "1 bytes are left over"),
        (b"\x03\x00", "layer 0 of 2 has the unknown form 3"),
        (b"\x00\x10", "layer 1 of 2 has the unknown form 16"),
        (b"\x00\x47", "layer 1 of 2 has the unknown form 71"),
        (b"\x43\x00", "layer 0 needs one of as many entries before it"),
        (b"\x00\x43\x00", "layer 1 needs one of as many entries before it"),
        (b"\x00\x4b\x00\x00", "layer 1 needs 1 past masks, got 0"),
        (b"\x00\xff", "layer 1 of 2 has the unknown form 255"),
        (b"\x08\x00", "layer 0 needs 1 past masks, got 0"),
        (b"\x0b\x00\x00\x00", "layer 0 needs 1 past masks, got 0"),
        (b"\x3b\x00\x00\x00", "layer 0 needs 4 past masks, got 0"),
        (b"\x00\x01", "buffer"),
        (b"\x00\x01\x03", "buffer is smaller"),
        (b"\x00\x02\x00", "a count of ones must lie from 1 to 5, got 0"),
        (b"\x00\x02\x06", "a count of ones must lie from 1 to 5, got 6"),
        (b"\x02\xff\xff\x00", "a count of ones must lie from 1 to 450, got 65535"),
        (b"\x02" + COUNT, "layer 1 of 2 is missing"),
        (b"\x02" + COUNT + b"\x00" + bytes(4), "zero word"),
        (b"\x02" + COUNT + b"\x00" + b"\xff" * 4000, "code is left over"),
        (b"\x00\x01\x01\x00", "the decoded mask is not the one sent"),
        (b"\x02" + COUNT + b"\x00" + b"\xff", "code is left over"),
        (OTHER[HEADER:-CHECKSUM], "the decoded mask is not the one sent"),
    ],
)
def test_a_body_that_is_none_is_refused_whatever_its_checksum(body, said):
    shapes = [(900,), (10,)]
    message = encode(sent(1, [with_ones(900, 90), with_ones(10, 5)]), shapes)
    assert_same(decode(forged(message), shapes), sent(1, [with_ones(900, 90), with_ones(10, 5)]))
    with pytest.raises(CodecError, match=said):
        decode(forged(message[:HEADER] + body + bytes(CHECKSUM)), shapes)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x0b", "a part of layer 0 is missing"),
        (b"\x0b\x00", "a part of layer 0 is missing"),
        (b"\x0b\x00\x08", "a part of layer 0 has the unknown form 8"),
        (b"\x0b\x0b\x00\x00\x00", "a part of layer 0 has the unknown form 11"),
        (b"\x0b\x00\x01\x00", "buffer is smaller"),
        (b"\x0b\x00\x02\xff", "a count of ones must lie from 1 to 45, got 255"),
        (b"\x0b\x00\x04", "the decoded mask is not the one sent"),
        (b"\x1b\x00\x00\x00\x00", "layer 0 needs 2 past masks, got 1"),
    ],
)
def test_parts_that_are_none_are_refused(body, said):
    """Of what differs from a mask of 90 entries."""
    shapes, past = [(900,)], [sent(0, [with_ones(900, 90)])]
    message = encode(sent(1, [with_ones(900, 90) & with_ones(900, 450, seed=2)]), shapes, past=past)
    assert message[HEADER] == entropy.SPLIT | entropy.FLIPS
    with pytest.raises(CodecError, match=said):
        decode(forged(message[:HEADER] + body + bytes(CHECKSUM)), shapes, past=past)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x43", "a part of layer 1 is missing"),
        (b"\x43\x01", "a part of layer 1 has the unknown form 1"),
        (b"\x43\x00\x00", "1 bytes are left over"),
        (b"\x43\x04", "the decoded mask is not the one sent"),
        (b"\x43\x02\xff\xff" + b"\x01" * 8, "a count of ones must lie from 1 to 200, got 65535"),
    ],
)
def test_a_plane_that_is_none_is_refused(body, said):
    """Beside one of which no entry is known before the code is read."""
    shapes, first = [(900,), (900,)], ~with_ones(900, 400)
    message = encode(sent(1, [np.ones(900, bool), np.zeros(900, bool)]), shapes)
    first = packed(first).tobytes()
    with pytest.raises(CodecError, match=said):
        decode(forged(message[:HEADER] + b"\x01" + first + body + bytes(CHECKSUM)), shapes)


def test_a_coder_that_rounds_otherwise_is_seen(monkeypatch):
    layer, shapes = with_ones(5000, 500), [(5000,)]
    message = encode(sent(1, [layer]), shapes)
    model = entropy._model
    monkeypatch.setattr(entropy, "_model", lambda ones, size: model(ones + 1, size))
    with pytest.raises(CodecError, match="give both ends one release of constriction"):
        decode(message, shapes)


def test_one_bit_or_byte_makes_any_message_no_message():
    before, after = slowly_changing(2)
    past = [SentMask(3, 4, before)]
    message = encode(SentMask(3, 5, after), SMALL, past=past)
    cut = [message[:length] for length in range(len(message))]
    flipped = [
        message[:at] + bytes([message[at] ^ 1 << bit]) + message[at + 1 :]
        for at in range(len(message))
        for bit in range(8)
    ]
    for damaged in [*cut, *flipped, message + b"\0", b"\0" + message, message * 2]:
        with pytest.raises(CodecError):
            decode(damaged, SMALL, past=past)


# Fuzzing.


class Link(NamedTuple):
    """What a message meets: the shapes and the past that its receiver has, and the mask that should come out."""

    shapes: list
    past: list[SentMask]
    mask: SentMask


NETWORKS = [[(64,)], [(9, 7), (5,)], [(1,), (0,), (150,)], [(200,), (30,), (8,)], [(900,), (9,)]]


def links(number, seed):
    """Messages of small masks, of all forms, and their links: few networks and pasts, so that much fits elsewhere."""
    draw = np.random.default_rng(seed)
    found = {}
    while len(found) < number:
        shapes = NETWORKS[draw.integers(len(NETWORKS))]
        sender, round = draw.integers(2, size=2).tolist()
        past = [[np.random.default_rng(10 * round + i).random(shape) < 0.3 for shape in shapes] for i in range(4)]
        lost, won = draw.choice([0, 0.03, 0.5, 1], size=2, p=[0.3, 0.3, 0.2, 0.2])
        after = [layer ^ (draw.random(layer.shape) < np.where(layer, lost, won)) for layer in past[0]]
        if draw.random() < 0.5:  # what turns is what an older mask had
            after = [layer ^ old for layer, old in zip(past[0], past[draw.integers(1, 4)], strict=True)]
        past = [sent(round + 3 - i, layers, sender) for i, layers in enumerate(past)]
        past = past[: draw.choice(5, p=[0.2, 0.1, 0.1, 0.1, 0.5])]
        mask = sent(round + 4, after, sender)
        found[encode(mask, shapes, past=past, coded=bool(draw.random() < 0.7))] = Link(shapes, past, mask)
    return found


def flip_bits(message, other, draw):
    damaged = bytearray(message)
    for _ in range(draw.choice([1, 1, 2, 5])):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def overwrite(message, other, draw):
    at, length = draw.randrange(len(message)), draw.randint(1, 8)
    return (
        message[:at] + draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)]) + message[at + length :]
    )


def truncate(message, other, draw):
    return message[: draw.randrange(len(message))]


def cut_out(message, other, draw):
    at = draw.randrange(len(message))
    return message[:at] + message[at + draw.randint(1, 8) :]


def extend(message, other, draw):
    at = draw.choice([len(message), len(message) - CHECKSUM, HEADER])
    return message[:at] + draw.choice([bytes(1), bytes(4), draw.randbytes(draw.randint(1, 9)), other]) + message[at:]


def splice(message, other, draw):
    return message[: draw.randrange(len(message))] + other[draw.randrange(len(other)) :]


def swap_headers(message, other, draw):
    return other[:HEADER] + message[HEADER:]


def swap_checksums(message, other, draw):
    return message[:-CHECKSUM] + other[-CHECKSUM:]


def swap_messages(message, other, draw):
    return other


def disorder_the_body(message, other, draw):
    body = list(message[HEADER:-CHECKSUM])
    draw.shuffle(body)
    return message[:HEADER] + bytes(body) + message[-CHECKSUM:]


DAMAGES = [
    flip_bits, overwrite, truncate, cut_out, extend, splice, swap_headers, swap_checksums, swap_messages,
    disorder_the_body,
]  # fmt: skip


REFUSALS = {
    "a message that takes up to 4 masks was expected",
    "a message of at least", "a message that starts with", "a message of format", "a whole message was expected",
    "layers of shapes", "layers were expected", "flips since", "the decoded mask is not the one sent",
}  # fmt: skip


def digest_of(mask, shapes):
    """The oracle of the digest that a message carries."""
    digest = blake2b(f"{mask.sender} {mask.round} {shapes}".encode(), digest_size=8)
    digest.update(b"".join(layer.tobytes() for layer in mask.layers))
    return digest.digest()


@pytest.mark.parametrize("times", [30_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_damaged_message_becomes_a_wrong_mask(times):
    """Many thousands, of which a third have a checksum that agrees: those must fail by what they say themselves."""
    draw, pool = random.Random(0), links(300, seed=0)
    messages = list(pool)
    for further in range(entropy.PAST):
        form = entropy.SPLIT | entropy.FLIPS | entropy.FURTHER * further
        assert sum(message[HEADER] == form for message in messages) > 5
    refused, came = set(), {True: 0, False: 0}
    for number in range(times):
        message, other = draw.choice(messages), draw.choice(messages)
        damaged, link = draw.choice(DAMAGES)(message, other, draw), pool[message]
        forge = number % 3 == 0 and len(damaged) >= CHECKSUM
        damaged = forged(damaged) if forge else damaged
        try:
            mask = decode(damaged, link.shapes, past=link.past)
        except CodecError as error:
            refused.add(next((refusal for refusal in REFUSALS if str(error).startswith(refusal)), str(error)))
            continue
        came[damaged in pool] += 1
        if damaged in pool:
            assert_same(mask, pool[damaged].mask)
        else:
            # A liar's own mask, of which all that is said agrees.
            assert forge
            assert digest_of(mask, link.shapes) == damaged[DIGEST]
            assert struct.unpack("<II", damaged[3:11]) == mask[:2]
    assert refused == REFUSALS
    assert min(came.values()) > 0
