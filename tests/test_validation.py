"""Samples that are held back: nobody trains on them, agents are evaluated on them, and sweeps rank by what comes."""

import csv
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import use_fakes
from test_resume import FLAGS, stop_after
from tiny import assert_same_numbers, rows_of, use_tiny_network

from dslth_jax import masks, partition
from dslth_jax.keys import key_of
from dslth_jax.population import draw_weights
from dslth_jax.skew import Skew, see
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import points
from dslth_jax.study.results.points import summary
from dslth_jax.study.training import memory
from dslth_jax.study.training.plan import fingerprints, plan
from dslth_jax.study.training.prepare import prepare
from dslth_jax.study.training.programs import compile_programs
from experiments import cifar, sweep

TINY = {"dataset": "digits", "model": "tiny", "agents": 4, "topology": "ring", "rounds": 4, "eval_every": 2}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.fixture
def fakes(monkeypatch):
    """Runs, sweeps and searches are of fakes of compiled programs."""
    use_fakes(monkeypatch)


def table_in(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


# Who holds what back.


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(share=st.floats(0.1, 0.9), seed=st.integers(0, 99), apart=st.booleans())
def test_nobody_trains_on_what_anybody_holds_back(share, seed, apart):
    """Of agents that hold samples of their own, or many of others' too; each sample stays with whoever holds it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 120)
    held = np.split(rng.permutation(120).astype(np.int32), [20, 50])
    if not apart:
        held = [rng.choice(120, size, replace=False).astype(np.int32) for size in (20, 60, 60)]
    try:
        train, validation = partition.hold_back(held, labels, share, seed)
    except ValueError:
        hypothesis.assume(apart)  # others' draws may leave an agent nothing, and only where it holds their samples
        raise
    assert np.intersect1d(np.concatenate(train), np.concatenate(validation)).size == 0
    for own, trained, back in zip(held, train, validation, strict=True):
        assert trained.tolist() == [sample for sample in own.tolist() if sample in trained]
        assert back.tolist() == [sample for sample in own.tolist() if sample in back]
        assert len(trained) + len(back) == len(own)
        assert len(trained) > 0
        assert len(back) == round(share * len(own)) if apart else len(back) >= round(share * len(own))
    assert str(partition.hold_back(held, labels, share, seed)) == str((train, validation))


def test_each_class_gives_its_part_and_agents_that_hold_the_same_hold_back_the_same():
    """Exactly where the parts are whole numbers, else by less than one sample more or less."""
    labels = np.repeat(np.arange(4), 40)
    everything, half = np.arange(160, dtype=np.int32), np.arange(0, 160, 2, dtype=np.int32)
    for seed in range(20):
        _, (alone,) = partition.hold_back([everything], labels, 0.2, seed)
        assert np.bincount(labels[alone]).tolist() == [8] * 4
        _, (few,) = partition.hold_back([half], labels, 0.23, seed)
        assert len(few) == 18
        assert set(np.bincount(labels[few])) <= {4, 5}
        _, (one, other) = partition.hold_back([everything] * 2, labels, 0.2, seed)
        assert one.tolist() == other.tolist()
        assert len(one) == 32
    some = [set(partition.hold_back([everything], labels, 0.2, seed)[1][0].tolist()) for seed in range(20)]
    assert set.union(*some) > set.intersection(*some)
    assert len({frozenset(own) for own in some}) == 20


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.1, "share of 0.1 would hold back 0 of the 3 training samples of agent 1, and at least one must stay"),
        (0.9, "share of 0.9 would hold back 3 of the 3 training samples of agent 1, and at least one must stay"),
        (1.0, "share must lie in (0, 1), got 1"),
        (0.0, "share must lie in (0, 1), got 0"),
    ],
)
def test_a_share_that_leaves_somebody_nothing_is_refused(share, said):
    held = [np.arange(10, dtype=np.int32), np.arange(10, 13, dtype=np.int32)]
    with pytest.raises(ValueError, match=re.escape(said)):
        partition.hold_back(held, np.zeros(13, int), share)


def test_what_is_held_back_changes_nothing_else():
    """Training samples, tests and the graph are drawn as without it; what is held back names the data."""
    flags = {**TINY, "topology": "erdos-renyi:0.5", "dirichlet_alpha": 1.0, "feature_skew": "rotation:90"}
    without, with_ = prepare(Settings(**flags)), prepare(Settings(**flags, validation=0.2))
    assert without.validation is None
    assert with_.validation.images is with_.train.images
    for agent in range(4):
        own, trained, back = (
            set(shares.indices[agent, : shares.sizes[agent]].tolist())
            for shares in (without.train, with_.train, with_.validation)
        )
        assert trained | back == own
        assert len(back) == round(0.2 * len(own)) == len(own) - len(trained)
    prints = [fingerprints([one])[0] for one in (without, with_, prepare(Settings(**flags, validation=0.3)))]
    assert len({own["the validation samples"] for own in prints}) == 3
    assert [len({own[name] for own in prints}) for name in ("the test samples", "the graph")] == [1, 1]


def test_lists_of_what_is_held_back_take_memory_and_its_images_count_once():
    """On one device, in each member of a sweep."""
    one = prepare(Settings(**TINY, validation=0.2))
    lists = memory.bytes_of(one.validation[2:])
    assert lists == 4 * 4 * (one.validation.indices.shape[1] + 1)
    for members in (1, 3):
        held, none = (plan([own] * members).footprint["data"] for own in (one, one._replace(validation=None)))
        assert held - none == members * lists


# What agents come to on it.


def accuracies(prepared, packed) -> list[float]:
    """What networks of these masks label right of the images held back, as each agent sees them, one by one."""
    weights, frozen = draw_weights(prepared.network, key_of(prepared.settings.seed))
    held, right = prepared.validation, []

    @jax.jit
    def labelled(bits, degrees):
        own = jax.tree.map(lambda bits, w: w * masks.unpack(bits, w.shape), bits, weights)
        images = see(jnp.asarray(held.images), jnp.arange(len(held.images)), Skew(degrees))
        return jnp.argmax(prepared.network.apply({"params": own, "frozen": frozen}, images), axis=-1)

    for agent, size in enumerate(held.sizes):
        samples = np.asarray(held.indices[agent, :size])
        guesses = labelled(jax.tree.map(lambda bits, agent=agent: bits[agent], packed), held.skew.degrees[agent])
        right.append(np.mean((guesses == held.labels)[samples], dtype=np.float32))
    return right


def test_accuracies_are_those_of_the_masks_in_use_on_the_images_held_back():
    """In a sweep of two members, the samples of one of which are padded to those of the other."""
    flags = {**TINY, "agents": 2, "batch_size": 16, "feature_skew": "rotation:90"}
    members = [prepare(Settings(**flags, seed=seed, validation=share)) for seed, share in ((0, 0.2), (1, 0.6))]
    assert members[0].validation.indices.shape != members[1].validation.indices.shape
    programs = compile_programs(plan(members))
    state = programs.start()
    for _ in range(4):
        state, _ = programs.step(state)
    came = programs.validate(state)
    evaluation = programs.evaluate(state, np.stack([one.tests.sizes for one in members]))
    for number, member in enumerate(members):
        packed = jax.tree.map(lambda bits, number=number: jnp.asarray(bits[number]), evaluation.masks)
        np.testing.assert_allclose(came[number], accuracies(member, packed), rtol=1e-6)
    assert len(set(came.ravel().tolist())) == 4


def test_rows_and_agents_have_columns_of_it_only_where_there_is_any(tmp_path, fakes, capsys):
    """On the screen too; the rest of a row stays as it is."""
    for name, share in (("with", 0.25), ("without", 0.0)):
        cifar.run(Settings(**TINY, validation=share, out=tmp_path / name))
    said = capsys.readouterr().out
    own, other = rows_of(tmp_path / "with"), rows_of(tmp_path / "without")
    agents, fewer = (table_in(tmp_path / name / "agents.csv") for name in ("with", "without"))
    assert own[0].keys() - other[0].keys() == {"validation_mean", "validation_worst"}
    assert agents[0].keys() - fewer[0].keys() == {"validation_samples", "validation_accuracy"}
    for row in own:
        # The fakes validate by the opposite of their tests.
        assert row["validation_mean"] == pytest.approx(1 - row["accuracy_mean"])
        assert row["validation_worst"] == pytest.approx(1 - row["accuracy_best"])
    for agent, alone in zip(agents, fewer, strict=True):
        assert int(agent["samples"]) + int(agent["validation_samples"]) == int(alone["samples"])
        assert float(agent["validation_accuracy"]) == pytest.approx(1 - float(agent["accuracy"]), abs=2e-6)
    assert said.count("validation samples an agent") == 1
    assert said.count("validation accuracy, mean and worst agent") == 1


def test_a_run_that_holds_samples_back_goes_on_with_the_same(tmp_path, fakes, capsys):
    flags = ["--validation", "0.2"]
    assert cifar.main([*FLAGS, *flags, "--out", str(tmp_path / "whole")]) == 0
    stop_after(4, tmp_path / "cut", *flags)
    assert cifar.main([*FLAGS, "--validation", "0.3", "--out", str(tmp_path / "cut"), "--resume"]) == 2
    assert "--validation was 0.2 and is 0.3" in capsys.readouterr().err
    assert cifar.main([*FLAGS, *flags, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_numbers(tmp_path / "whole", tmp_path / "cut")


# Who is chosen by it.


def ranks(results) -> list[float]:
    return [float(row["validation_mean"]) for row in results]


def test_a_sweep_ranks_by_it(tmp_path, fakes, capsys):
    """The fakes validate best what they test worst. A sweep of which some hold nothing back ranks by tests."""
    flags = {**TINY, "grid": ("lr=0.1,3,1e38",), "seeds": 2}
    results = sweep.sweep(sweep.Sweep(**flags, validation=0.2, out=tmp_path / "held"))
    assert table_in(tmp_path / "held" / "results.csv")[0].keys() == {"lr", *summary([], [], validated=True)}
    assert results[0]["validation_mean"] == pytest.approx(1 - results[0]["accuracy_mean"])
    assert ranks(results[:2]) == sorted(ranks(results[:2]), reverse=True)
    assert results[0]["accuracy_mean"] < results[1]["accuracy_mean"]
    assert results[2]["lr"] == 1e38
    assert results[2]["validation_mean"] is None
    assert "best first by validation accuracy" in capsys.readouterr().out
    found = points.read(tmp_path / "held", "held")
    assert [point.result["validation_mean"] for point in found.points[:2]] == pytest.approx(ranks(results[:2]))
    mixed = sweep.sweep(sweep.Sweep(**{**flags, "grid": ("validation=0,0.2", "lr=0.1,3")}, out=tmp_path / "mixed"))
    accuracies = [row["accuracy_mean"] for row in mixed]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {row["validation"]: row["validation_mean"] is None for row in mixed} == {0: True, 0.2: False}
    without = sweep.sweep(sweep.Sweep(**flags, out=tmp_path / "without"))
    assert without[0].keys() == {"lr", *summary([], [])}


def test_a_search_is_told_it(tmp_path, fakes):
    optuna = pytest.importorskip("optuna", reason="only a search needs Optuna")
    flags = {**TINY, "trials": 3, "ask": 3, "validation": 0.2}
    results = sweep.sweep(sweep.Sweep(**flags, search="lr=1:100:log", out=tmp_path / "search"))
    study = optuna.load_study(study_name="dslth_jax", storage=f"sqlite:///{tmp_path / 'search' / 'study.db'}")
    assert {trial.params["lr"]: trial.value for trial in study.trials} == {
        row["lr"]: pytest.approx(row["validation_mean"]) for row in results
    }
    assert study.best_trial.params["lr"] == results[0]["lr"]
    with pytest.raises(ValueError, match=r"^--search takes no validation, which ranks the points"):
        sweep.sweep(sweep.Sweep(**TINY, search="validation=0.1:0.5"))
