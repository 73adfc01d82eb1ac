"""What crosses the links: against real messages, each sent and received, and closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import FakePrograms, draw_nothing, use_fakes
from tiny import use_tiny_network

from dslth_jax import population
from dslth_jax.algorithm import Message
from dslth_jax.codec import Receiver, Sender, SentMask, encode
from dslth_jax.codec.entropy import PAST
from dslth_jax.study.training.ledger import Course, Ledger, lengths_of
from dslth_jax.study.training.plan import plan
from dslth_jax.study.training.prepare import prepare
from dslth_jax.study.training.programs import compile_programs
from experiments.cifar import Settings, run

TINY = {"dataset": "digits", "model": "tiny", "agents": 3, "topology": "ring", "batch_size": 16, "rounds": 9}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)
    draw_nothing(monkeypatch)


@pytest.mark.parametrize(
    "case", [pytest.param({}, marks=pytest.mark.slow), {"rounds": 13, "exchange_every": 2, "key_every": 5}], ids=str
)
def test_coded_bits_are_the_length_of_real_messages_and_what_comes_trains_on(case, tmp_path):
    """Every mask takes the trip, is put in the place of the one that was sent, and is what the next round goes on
    from; the run, which sends none, comes to the same numbers."""
    settings = Settings(**TINY | case, code_every=1, eval_every=20, out=tmp_path / "run")
    planned = plan([prepare(settings)])
    (member,), programs = planned.members, compile_programs(planned)
    weights, _ = jax.eval_shape(member.network.init, jax.random.key(0))
    shapes = [leaf.shape for leaf in jax.tree.leaves(weights)]
    senders = [Sender(agent, shapes, case.get("key_every", 0) * settings.exchange_every) for agent in range(3)]
    receivers = [Receiver(agent, shapes) for agent in range(3)]
    state, bits, exchange = programs.start(), 0, jax.jit(population.exchange)
    told = [jax.tree.leaves(message) for message in programs.sent(state)]
    takes: set[int] = set()
    assert len(told) == 1 + PAST
    for number in range(1, settings.rounds + 1):
        state, info = programs.step(state)
        if number % settings.exchange_every:
            continue
        layers, structure = jax.tree.flatten(programs.sent(state)[0])
        # What a state remembers of the past is what went over the links, and then the start.
        told = [layers, *told]
        for own, before in zip(programs.sent(state), told, strict=False):
            jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(own), before)
        came = [np.zeros_like(leaf) for leaf in layers]
        for agent in range(3):
            senders[agent], message = senders[agent].send(number, [leaf[0, agent] for leaf in layers])
            receivers[agent], mask = receivers[agent].receive(message)
            takes.add(message[11])
            for leaf, received in zip(came, mask.layers, strict=True):
                leaf[0, agent] = received
            bits += 8 * len(message) * int(info["listeners"][0, agent])
        received = jax.tree.unflatten(structure, came)
        state = state._replace(sent=jax.device_put(received, jax.tree.map(lambda leaf: leaf.sharding, state.sent)))
        heard = exchange(
            jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), received),
            member.topology.graph,
            jnp.arange(3),
            jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), jax.device_get(state.heard)),
        )
        jax.tree.map(lambda own, there: np.testing.assert_array_equal(own, there[0]), heard, state.heard)
    assert max(takes) > 1
    row = run(settings).metrics[-1]
    assert row["coded_bits"] == bits
    assert row["coded_rounds"] == settings.rounds // settings.exchange_every
    evaluation = programs.evaluate(state, np.asarray(member.tests.sizes)[None])
    assert row["accuracy_mean"] == evaluation.accuracy.mean(dtype=np.float64)
    assert row["density"] == evaluation.density.mean(dtype=np.float64)


@pytest.mark.parametrize("links", [{"topology": "changing-regular:1"}, {"hear": 1}, {"link_drop": 0.5}], ids=str)
def test_where_a_listener_may_lack_the_last_message_each_can_be_read_alone(links, tmp_path, monkeypatch):
    """Of fakes, whose messages are as good as any."""
    use_fakes(monkeypatch)
    settings = Settings(
        **TINY | {"agents": 4, "rounds": 4} | links,
        code_every=1,
        eval_every=4,
        out=tmp_path / "run",
    )
    planned = plan([prepare(settings)])
    programs = FakePrograms.of(planned)
    weights, _ = jax.eval_shape(planned.members[0].network.init, jax.random.key(0))
    shapes = [leaf.shape for leaf in jax.tree.leaves(weights)]
    state, bits = programs.start(), 0
    for number in range(1, settings.rounds + 1):
        state, info = programs.step(state)
        layers = jax.tree.leaves(programs.sent(state)[0])
        for agent, listeners in enumerate(info["listeners"][0].tolist()):
            _, message = Sender(agent, shapes).send(number, [leaf[0, agent] for leaf in layers])
            Receiver(agent, shapes).receive(message)
            bits += 8 * len(message) * listeners
    assert run(settings).metrics[-1]["coded_bits"] == bits


def test_between_encoded_rounds_lengths_change_evenly():
    """Where they really do, over links that change, the sum is exact; and a key frame stands for itself alone."""
    listeners = np.random.default_rng(0).integers(0, 5, (12, 3))
    lengths = [[1000 - 10 * number, 400 + 8 * number, 96] for number in range(12)]
    sparse, exact = Ledger({"layer": 100}), Ledger({"layer": 100})
    for number, (links, own) in enumerate(zip(listeners, lengths, strict=True)):
        key_frame = number in (0, 6)
        own = [2000, 2000, 1600] if key_frame else own
        exact.add_coded(links, own, PAST * (not key_frame))
        sparse.add_coded(links, own if key_frame or number in (1, 5, 11) else None, PAST * (not key_frame))
    assert exact.row()["coded_bits"] == sum(
        int(np.dot([2000, 2000, 1600] if number in (0, 6) else own, links))
        for number, (links, own) in enumerate(zip(listeners, lengths, strict=True))
    )
    # What stands apart is no part of the even change: from number 5 to number 11 five messages of flips pass.
    assert sparse.row()["coded_bits"] == pytest.approx(exact.row()["coded_bits"], rel=0.01)
    assert (sparse.coded_rounds, exact.coded_rounds) == (5, 12)


def test_what_is_interpolated_is_near_what_is_encoded(tmp_path, monkeypatch):
    """Of fakes, whose masks settle as real ones do."""
    use_fakes(monkeypatch)
    rows = [
        run(Settings(**TINY | {"rounds": 40}, eval_every=10, code_every=every, out=tmp_path / str(every))).metrics
        for every in (None, 1)
    ]
    for some, every in zip(*rows, strict=True):
        assert some["coded_bits"] == pytest.approx(every["coded_bits"], rel=0.1)
    assert [row["coded_rounds"] for row in rows[0]] == [0, 7, 9, 10, 12]
    assert [row["coded_rounds"] for row in rows[1]] == [row["exchanges"] for row in rows[0]] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("key_every", [0, 10, 40])
def test_messages_that_know_little_of_a_past_do_not_lengthen_those_between(key_every):
    """Of masks of which some entries are unsteady, so that a whole past shortens messages by much: what some encoded
    exchanges come to is near what all do."""
    random, like, size = np.random.default_rng(0), Message({"layer": jnp.zeros(10_000, bool)}), (2, 10_000)
    often, layer = random.choice([0.5, 0.002], size, p=[0.05, 0.95]), random.random(size) < 0.3
    some = Course(200, eval_every=200, exchange_every=1, exchange_from=1, key_every=key_every)
    ledgers, sent = {course: Ledger({"layer": 10_000}) for course in (some, some._replace(code_every=1))}, []
    for round in range(1, 201):
        layer = layer ^ (random.random(size) < often)
        sent = [Message({"layer": np.packbits(layer, axis=1)}), *sent[:PAST]]
        known = some.since_key_frame(round)
        lengths = lengths_of(sent[: 1 + known], like, round)
        for course, ledger in ledgers.items():
            ledger.add_coded(np.ones(2), lengths if course.is_encoded(round) else None, known)
    few, every = ledgers.values()
    assert few.row()["coded_bits"] == pytest.approx(every.row()["coded_bits"], rel=0.01)
    assert few.coded_rounds < 0.6 * every.coded_rounds == 0.6 * 200


def test_a_message_takes_masks_as_far_back_as_they_have_its_layers():
    """Of three agents the first has both layers at all times; the second's b came lately; the third lacks b again."""
    random, like = np.random.default_rng(0), Message({"a": jnp.zeros(4000, bool), "b": jnp.zeros(800, bool)})
    holds = np.array([[True, True, False], [True, True, True], [True, False, True], [True, True, True]])
    often, masks = {name: random.choice([0.5, 0.01], (3, leaf.size)) for name, leaf in like.masks.items()}, []
    for _ in holds:
        old = masks[0] if masks else dict.fromkeys(often, False)
        masks = [{name: old[name] ^ (random.random(own.shape) < own) for name, own in often.items()}, *masks]
    packed = [{name: np.packbits(layer, axis=1) for name, layer in one.items()} for one in masks]
    everybody = np.ones(3, bool)
    sent = [Message(bits, has={"a": everybody, "b": own}) for bits, own in zip(packed, holds, strict=True)]
    for agent, (names, back) in enumerate([("ab", 3), ("ab", 1), ("a", 3)]):
        shapes = [like.masks[name].shape for name in names]
        first, *past = [
            SentMask(agent, 9 - age, [bits[name][agent] for name in names]) for age, bits in enumerate(packed)
        ]
        length = 8 * len(encode(first, shapes, past=past[:back]))
        assert lengths_of(sent, like, 9)[agent] == length
        assert length != 8 * len(encode(first, shapes, past=past[: back - 1]))


def test_the_busiest_agent_has_the_most_listeners(tmp_path, monkeypatch):
    use_fakes(monkeypatch)
    rows = run(Settings(**TINY | {"agents": 4, "topology": "star", "rounds": 2}, out=tmp_path / "run")).metrics
    entries = rows[-1]["bitmap_bits"] // (2 * 6)
    # The centre of a star sends to three others, each of which sends to it alone.
    assert rows[-1]["busiest_agent_bits"] == 2 * 3 * entries


def test_which_rounds_are_encoded():
    course = Course(rounds=22, eval_every=10, exchange_every=3, exchange_from=1, key_every=4)
    assert [number for number in range(1, 23) if course.is_encoded(number)] == [3, 6, 9, 12, 15, 18, 21]
    assert [number for number in range(3, 23, 3) if course.since_key_frame(number) == 0] == [3, 15]
    late = course._replace(rounds=40, exchange_from=8)
    assert [number for number in range(1, 41) if late.has_exchange(number)] == [*range(9, 41, 3)]
    assert [number for number in range(9, 41, 3) if late.since_key_frame(number) == 0] == [9, 21, 33]
    assert [late.exchanges(number) for number in (8, 9, 11, 12, 40)] == [0, 1, 1, 2, 11]


def test_scales_count_where_a_message_has_their_layer():
    """Of three agents who send signs and a float a layer one has both layers, one the first, and one sends nothing."""
    ledger = Ledger({"a": 10, "b": 6}, ["a", "b"])
    has = {"a": np.array([True, True, True]), "b": np.array([True, False, True])}
    ledger.add({"listeners": np.array([2, 3, 0]), "kept": {}, "has": has})
    assert ledger.sent_bits == [2 * (10 + 6 + 64), 3 * (10 + 32), 0]
    assert ledger.bitmap_bits == sum(ledger.sent_bits)
    assert ledger.row()["kept_bits"] is None  # signs keep nothing


def test_bits_go_through_a_checkpoint_as_they_are():
    ledger = Ledger({"a": 10, "b": 6})
    ledger.add(
        {
            "listeners": np.array([2, 1]),
            "kept": {"a": np.array([3, 4])},
            "has": {"a": np.array([True, True]), "b": np.array([False, True])},
        }
    )
    assert (ledger.kept_bits, ledger.bitmap_bits, ledger.sent_bits) == (10, 36, [20, 16])  # of b one sent its six bits
    ledger.add_coded(np.array([2, 1]), [800, 96], known=0)
    ledger.add_coded(np.array([2, 1]), None, known=PAST)
    again = Ledger(**json.loads(json.dumps(ledger.__dict__)))
    assert again == ledger
    assert again.row() == {
        "kept_bits": 10,
        "bitmap_bits": 36,
        "coded_bits": 1696,
        "float32_bits": 0,
        "busiest_agent_bits": 20,
        "exchanges": 2,
        "coded_rounds": 1,
    }
