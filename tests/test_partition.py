"""Who holds which samples and is tested on which: what each partition promises, on any labels, and what is refused."""

import re
import shlex
import time
from fractions import Fraction
from typing import NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from dslth_jax import partition
from dslth_jax.label_shares import label_skew
from dslth_jax.study.config.spellings import PARTITIONS, partition_of
from dslth_jax.study.data.lists import read_classes, read_owners

CLASSES = 5
NAMES = ("classes", "dirichlet", "quantity", "iid")
# A concentration is 10 to one of these. Smaller ones of an allowed range of -6 to 6 seldom leave everybody a sample.
MILD = st.just(6.0) | st.floats(-0.7, 2)
ANY = st.sampled_from([-6.0, 6.0]) | st.floats(-2, 2)

# All that may be wrong with a request that is spelled well.
REFUSALS = (
    r"--partition \S+: (class \d+: )?\d+ training samples for \d+ agents at a data fraction of \S+ are too few, "
    r"each must get one: take fewer agents or more data",
    r"--partition \S+: class \d+ has no training samples, and agents [\d, ]+( and others)? hold it: name other "
    r"classes, or more data",
    r"--partition \S+: none of \d+ draws at alpha \S+ gave each of \d+ agents a training sample: "
    r"take a larger alpha or fewer agents",
    r"--partition \S+: agent \d+ has no test samples of its classes \[[\d, ]+\]: take (other classes or )?more data",
)


class Request(NamedTuple):
    spelling: str
    train_labels: np.ndarray
    test_labels: np.ndarray
    agents: int
    fraction: float
    seed: int


def shuffled(sizes, seed=0):
    """Labels in any order, `sizes` of each class."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)


@st.composite
def requests(draw, name, least=0, most=40, exponents=MILD):
    """Any request of one partition, met or not: classes of `least` to `most` samples, numbers of 10 to `exponents`."""
    number = ""
    if name == "classes":
        number = f":{draw(st.integers(1, CLASSES))}"
    elif name != "iid":
        number = f":{10 ** draw(exponents)!r}"
    seed = draw(st.integers(0, 2**32 - 1))
    train, tests = (
        draw(st.lists(st.integers(low, high), min_size=CLASSES, max_size=CLASSES))
        for low, high in ((least, most), (least // 4, 12))
    )
    fraction = draw(st.just(1.0) | st.floats(0.05, 1))
    return Request(name + number, shuffled(train, seed), shuffled(tests, seed), draw(st.integers(1, 8)), fraction, seed)


def answer(request, fraction=None):
    return partition_of(
        request.spelling,
        labels=request.train_labels,
        agents=request.agents,
        seed=request.seed,
        test_labels=request.test_labels,
        fraction=request.fraction if fraction is None else fraction,
        among=CLASSES,
    )


def attempt(request, fraction=None):
    """The partition and no refusal, or none and why it is refused."""
    try:
        return answer(request, fraction), ""
    except ValueError as error:
        return None, str(error)


def met(request, fraction=None):
    """The partition of a request that can be met; others are tried no further."""
    made, _ = attempt(request, fraction)
    hypothesis.assume(made is not None)
    return made


def arrays(made):
    """The arrays of a partition, one after another."""
    return [array for part in made for array in part]


def by_name(spelling, agents, sizes=(200,) * CLASSES, seed=0, fraction=1.0):
    """A partition of shuffled labels of these sizes, with a tenth of them as tests."""
    request = Request(spelling, shuffled(sizes), shuffled([size // 10 for size in sizes]), agents, fraction, seed)
    return answer(request)


def counts_of(labels, own):
    """How many samples of each class every agent has: (agents, classes)."""
    return np.stack([np.bincount(labels[mine], minlength=CLASSES) for mine in own])


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_a_request_is_met_or_refused_in_one_sentence(name, data):
    request = data.draw(requests(name, most=12, exponents=ANY))
    made, refusal = attempt(request)
    if made is None:
        assert any(re.fullmatch(sentence, refusal) for sentence in REFUSALS), refusal
    else:
        assert len(made.train) == len(made.tests) == len(made.ranks) == request.agents
    if name != "classes":
        # Only the others need no look at the classes drawn.
        too_few = int(len(request.train_labels) // request.agents * request.fraction) < 1
        assert ("are too few" in refusal) == too_few
    if name in ("quantity", "iid"):
        assert made is None or request.test_labels.size


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_training_samples_are_disjoint_and_everybody_has_some(name, data):
    request = data.draw(requests(name))
    made = met(request)
    together = np.concatenate(made.train)
    assert len(np.unique(together)) == len(together)
    assert set(together.tolist()) <= set(range(len(request.train_labels)))
    for mine in made.train:
        assert mine.dtype == np.int32
        assert len(mine) >= 1


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_no_sample_of_a_class_that_is_held_is_left_over(name, data):
    request = data.draw(requests(name))
    labels = request.train_labels
    together = np.concatenate(met(request, fraction=1.0).train)
    # Of the other partitions, everybody may hold every class.
    held = np.unique(labels[together]) if name == "classes" else np.arange(CLASSES)
    np.testing.assert_array_equal(np.sort(together), np.flatnonzero(np.isin(labels, held)))


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_a_fraction_is_part_of_the_whole_share(name, data):
    request = data.draw(requests(name, least=10))
    whole = met(request, fraction=1.0).train
    # Random shares too small for the fraction are drawn anew: then there is no whole to compare with.
    hypothesis.assume(min(len(mine) for mine in whole) * request.fraction >= 1)
    for all_mine, used in zip(whole, met(request).train, strict=True):
        assert set(used.tolist()) <= set(all_mine.tolist())
        if name == "classes":
            sizes = np.bincount(request.train_labels[all_mine], minlength=CLASSES)
            expected = [int(size * request.fraction) for size in sizes]
            assert np.bincount(request.train_labels[used], minlength=CLASSES).tolist() == expected
        else:
            assert len(used) == int(len(all_mine) * request.fraction)


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_tests_are_of_classes_trained_on_and_none_comes_twice(name, data):
    request = data.draw(requests(name))
    made = met(request)
    for mine, tests in zip(made.train, made.tests, strict=True):
        assert tests.dtype == np.int32
        assert len(np.unique(tests)) == len(tests) >= 1
        # Where labels are alike, everybody is tested on everything.
        trained = range(CLASSES) if name in ("quantity", "iid") else request.train_labels[mine]
        available = np.flatnonzero(np.isin(request.test_labels, trained))
        if name == "dirichlet":
            assert set(tests.tolist()) <= set(available.tolist())
        else:
            np.testing.assert_array_equal(np.sort(tests), available)


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(data=st.data())
def test_tests_below_a_rank_are_a_fair_prefix(name, data):
    request = data.draw(requests(name))
    made = met(request)
    for tests, ranks in zip(made.tests, made.ranks, strict=True):
        assert len(tests) == len(ranks)
        assert ranks[0] == 0
        assert (np.diff(ranks) >= 0).all()
        counts = np.bincount(request.test_labels[tests], minlength=CLASSES)
        for first in range(1, counts.max() + 2):
            prefix = np.bincount(request.test_labels[tests[ranks < first]], minlength=CLASSES)
            assert prefix[counts.argmax()] == min(first, counts.max())
            if name == "dirichlet":
                fair = np.ceil(np.minimum(first, counts.max()) * counts / counts.max())
                assert (np.abs(prefix - fair) <= 1).all()
            else:
                np.testing.assert_array_equal(prefix, np.minimum(first, counts))


@pytest.mark.parametrize("spelling", ["classes:3", "dirichlet:0.5", "quantity:2", "iid"])
def test_a_partition_depends_on_its_generator_alone(spelling):
    first, again, other = (by_name(spelling, 4, seed=seed) for seed in (1, 1, 2))
    for mine, same in zip(arrays(first), arrays(again), strict=True):
        np.testing.assert_array_equal(mine, same)
    assert any(
        set(mine.tolist()) != set(others.tolist()) for mine, others in zip(first.train, other.train, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "spelling"), [("classes", "classes:4"), ("dirichlet", "dirichlet:0.5"), ("quantity", "quantity:0.50")]
)
def test_a_number_left_out_is_a_usual_one(name, spelling):
    for mine, same in zip(by_name(name, 4).train, by_name(spelling, 4).train, strict=True):
        np.testing.assert_array_equal(mine, same)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.data(), st.integers(1, CLASSES))
def test_by_classes_an_agent_trains_on_as_many_as_asked(data, wanted):
    request = data.draw(requests("classes", least=10))._replace(spelling=f"classes:{wanted}")
    counts = counts_of(request.train_labels, met(request, fraction=1.0).train)
    assert ((counts > 0).sum(axis=1) == wanted).all()
    for shares in counts.T:
        holders = shares[shares > 0]
        assert holders.size == 0 or np.ptp(holders) <= 1


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(requests("dirichlet"))
def test_dirichlet_tests_are_in_the_proportions_of_training(request):
    made = met(request)
    available = np.bincount(request.test_labels, minlength=CLASSES)
    trained = counts_of(request.train_labels, made.train)
    tested = counts_of(request.test_labels, made.tests)
    for mine, tests in zip(trained, tested, strict=True):
        # As many as there are: one more, and some class would have to give more than it has.
        scale = min(Fraction(int(a), int(m)) for a, m in zip(available, mine, strict=True) if a and m)
        for there, size, count in zip(available, mine, tests, strict=True):
            expected = size * scale if there else Fraction(0)
            assert abs(count - expected) <= Fraction(1, 2) + Fraction(1, 10**6)
        assert ((tests == available) & (tests > 0)).any()


def largest_shares(spelling):
    """How much of its samples an agent has of its most frequent class: the mean of five times twenty agents."""
    shares = []
    for seed in range(5):
        counts = counts_of(shuffled((2_000,) * CLASSES), by_name(spelling, 20, (2_000,) * CLASSES, seed).train)
        shares.extend(counts.max(axis=1) / counts.sum(axis=1))
    return np.mean(shares)


def test_dirichlet_is_more_skewed_the_smaller_its_number():
    most, more, less, least = (largest_shares(f"dirichlet:{alpha}") for alpha in (0.03, 0.3, 3, 1_000))
    # One class in the end, and all five alike in the other.
    assert most > 0.8
    assert most - 0.1 > more > less + 0.1
    assert less - 0.05 > least
    assert 1 / CLASSES <= least < 0.25


@pytest.mark.parametrize("spelling", ["dirichlet:0.5", "quantity:0.5"])
def test_random_shares_favour_nobody(spelling):
    agents, draws = 4, 150
    sizes = np.array([[len(mine) for mine in by_name(spelling, agents, seed=seed).train] for seed in range(draws)])
    error = sizes.std(axis=0) / np.sqrt(draws)
    assert (np.abs(sizes.mean(axis=0) - 200 * CLASSES / agents) < 5 * error).all()
    # Nor is anything shared evenly.
    assert (sizes.std(axis=0) > 50).all()


@pytest.mark.parametrize("seed", range(3))
def test_quantity_makes_sizes_unequal_and_labels_alike(seed):
    sizes = np.array([1_000, 2_000, 3_000, 2_000, 2_000])
    counts = counts_of(shuffled(sizes), by_name("quantity:0.5", 6, sizes, seed).train)
    totals = counts.sum(axis=1, keepdims=True)
    assert totals.max() > 2 * totals.min()
    expected = sizes / sizes.sum()
    assert (np.abs(counts / totals - expected) < 5 * np.sqrt(expected * (1 - expected) / totals)).all()


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(requests("iid"))
def test_iid_shares_are_even(request):
    fewest = len(request.train_labels) // request.agents
    assert {len(mine) for mine in met(request, fraction=1.0).train} <= {fewest, fewest + 1}
    used = int(fewest * request.fraction)
    assert {len(mine) for mine in met(request).train} <= {used, used + 1}


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("spelling", ["dirichlet:1e6", "quantity:1e6", "iid"])
def test_labels_in_order_are_mixed_and_so_is_a_fraction(spelling, fraction):
    labels = np.repeat(np.arange(CLASSES), 200).astype(np.int32)
    made = partition_of(spelling, labels=labels, agents=5, seed=0, test_labels=labels, fraction=fraction)
    # On average 40 samples of each class at fraction 1, and hardly less than a quarter of that.
    assert (counts_of(labels, made.train) > 10 * fraction).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_dirichlet_gives_a_class_to_one_agent(seed):
    counts = counts_of(shuffled((200,) * CLASSES), by_name("dirichlet:1e-6", 3, seed=seed).train)
    np.testing.assert_array_equal(counts.max(axis=0), 200)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["dirichlet", "quantity"])
def test_the_largest_concentration_shares_evenly(name, seed):
    sizes = [len(mine) for mine in by_name(f"{name}:1e6", 8, seed=seed).train]
    assert np.ptp(sizes) <= 10
    if name == "dirichlet":
        assert np.ptp(counts_of(shuffled((200,) * CLASSES), by_name("dirichlet:1e6", 8, seed=seed).train)) <= 2


@pytest.mark.parametrize("spelling", ["dirichlet:1e-06", "quantity:1e-06", "quantity:0.01"])
def test_shares_that_leave_somebody_without_are_given_up_soon(spelling):
    # Five classes, or the whole data, in as many pieces: never enough for twelve.
    start = time.perf_counter()
    drawn = f"none of {partition.DRAWS} draws at alpha {spelling.partition(':')[2]}"
    message = f"{drawn} gave each of 12 agents a training sample: take a larger alpha"
    with pytest.raises(ValueError, match=re.escape(message)):
        by_name(spelling, 12)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("spelling", ["classes:5", "dirichlet:1e-6", "dirichlet:1e6", "quantity:1e-6", "iid"])
def test_a_single_agent_has_everything(spelling):
    made = by_name(spelling, 1)
    np.testing.assert_array_equal(np.sort(made.train[0]), np.arange(200 * CLASSES))
    np.testing.assert_array_equal(np.sort(made.tests[0]), np.arange(20 * CLASSES))


KNOWN = "classes[:PER_AGENT], overlapping[:OVERLAP[:PER_AGENT]], dirichlet[:ALPHA], quantity[:ALPHA], iid, owner"


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("class:4", f"must be one of {KNOWN}, got 'class:4'; did you mean classes?"),
        ("IID", f"must be one of {KNOWN}, got 'IID'; did you mean iid?"),
        ("zipf:2", f"must be one of {KNOWN}, got 'zipf:2'"),
        ("", f"must be one of {KNOWN}, got ''"),
        ("classes:0", "classes:0: per_agent must lie in 1..5, the classes that there are, got 0"),
        ("classes:6", "classes:6: per_agent must lie in 1..5, the classes that there are, got 6"),
        ("classes:2.5", "classes takes a whole number for PER_AGENT, got '2.5'"),
        ("classes:nan", "classes takes a whole number for PER_AGENT, got 'nan'"),
        ("classes:inf", "classes takes a whole number for PER_AGENT, got 'inf'"),
        ("classes:", "classes takes a whole number for PER_AGENT, got ''"),
        ("classes:1:2", "classes is spelled classes[:PER_AGENT], got classes:1:2"),
        ("dirichlet:x", "dirichlet takes a number for ALPHA, got 'x'"),
        ("dirichlet:0", "dirichlet:0: alpha must lie in 1e-06..1e+06, got 0"),
        ("dirichlet:1e7", "dirichlet:1e7: alpha must lie in 1e-06..1e+06, got 1e+07"),
        ("quantity:1e-7", "quantity:1e-7: alpha must lie in 1e-06..1e+06, got 1e-07"),
        ("quantity:inf", "quantity:inf: alpha must lie in 1e-06..1e+06, got inf"),
        ("iid:3", "iid takes no number, got iid:3"),
    ],
)
def test_bad_spellings_are_refused_by_what_is_wrong(spelling, message):
    with pytest.raises(ValueError, match=f"^--partition {re.escape(message)}$"):
        by_name(spelling, 4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"agents": 0}, "agents must be at least 1, got 0"),
        ({"agents": 2, "fraction": 0.0}, r"fraction must lie in \(0, 1\], got 0.0"),
        ({"agents": 2, "fraction": 1.01}, r"fraction must lie in \(0, 1\], got 1.01"),
        ({"agents": 2, "fraction": float("nan")}, r"fraction must lie in \(0, 1\], got nan"),
    ],
)
def test_the_library_speaks_of_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        getattr(partition, name)(shuffled((9,) * CLASSES), **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_without_test_labels_nobody_is_tested_and_training_is_the_same(name):
    labels = shuffled((40,) * CLASSES)
    made, tested = (getattr(partition, name)(labels, 3, seed=2, test_labels=tests) for tests in (None, labels))
    jax.tree.map(np.testing.assert_array_equal, made.train, tested.train)
    assert (made.tests, made.ranks) == ([], [])


def test_a_seed_is_whatever_numpy_takes_and_a_generator_goes_on_from_where_it_stands():
    labels, rng = shuffled((40,) * CLASSES), np.random.default_rng([3, 1])
    first, second = (partition.iid(labels, 2, rng) for _ in range(2))
    np.testing.assert_array_equal(first.train[0], partition.iid(labels, 2, seed=[3, 1]).train[0])
    assert (first.train[0] != second.train[0]).any()


def test_a_partition_of_ones_own_is_spelled_after_one_line(monkeypatch):
    def first_come(labels, agents: int, size: int = 3) -> partition.Partition:
        return partition.Partition(np.split(np.arange(agents * size, dtype=np.int32), agents), [], [])

    monkeypatch.setitem(PARTITIONS, "first-come", first_come)
    made = partition_of("first-come:2", labels=shuffled((9,)), agents=2, seed=0, fraction=1.0)
    assert [own.tolist() for own in made.train] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("spelling", "agents", "fraction", "beginning"),
    [
        ("classes:5", 21, 1.0, "class 0: 20 training samples for 21 agents at a data fraction of 1"),
        ("classes:5", 4, 0.19, "class 0: 20 training samples for 4 agents at a data fraction of 0.19"),
        ("dirichlet:0.5", 101, 1.0, "100 training samples for 101 agents at a data fraction of 1"),
        ("dirichlet:1e6", 4, 0.03, "100 training samples for 4 agents at a data fraction of 0.03"),
        ("quantity:0.5", 101, 1.0, "100 training samples for 101 agents at a data fraction of 1"),
        ("quantity:0.5", 51, 0.75, "100 training samples for 51 agents at a data fraction of 0.75"),
        ("iid", 101, 1.0, "100 training samples for 101 agents at a data fraction of 1"),
        ("iid", 50, 0.49, "100 training samples for 50 agents at a data fraction of 0.49"),
    ],
)
def test_more_agents_than_samples_are_refused(spelling, agents, fraction, beginning):
    message = f"--partition {spelling}: {beginning} are too few, each must get one: take fewer agents or more data"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        by_name(spelling, agents, (20,) * CLASSES, fraction=fraction)


@pytest.mark.parametrize(("agents", "fraction"), [(100, 1.0), (50, 0.5)])
def test_as_many_agents_as_samples_have_one_each(agents, fraction):
    assert [len(mine) for mine in by_name("iid", agents, (20,) * CLASSES, fraction=fraction).train] == [1] * agents


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("classes:5", "agent 0 has no test samples of its classes [0, 1, 2, 3, 4]: take other classes or more data"),
        ("dirichlet:1e6", "agent 0 has no test samples of its classes [0, 1, 2, 3, 4]: take more data"),
        ("quantity:1", "agent 0 has no test samples of its classes [0, 1, 2, 3, 4]: take other classes or more data"),
        ("iid", "agent 0 has no test samples of its classes [0, 1, 2, 3, 4]: take other classes or more data"),
    ],
)
def test_agents_without_any_tests_are_refused(spelling, message):
    with pytest.raises(ValueError, match=f"^--partition {spelling}: {re.escape(message)}$"):
        by_name(spelling, 2, sizes=(9,) * CLASSES)


@st.composite
def populations(draw):
    """Labels of unequal classes in any order, each large enough for all agents, and the classes of some agents."""
    agents = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(12, 40), min_size=CLASSES, max_size=CLASSES))
    row = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=CLASSES, unique=True)
    classes_of = draw(st.lists(row, min_size=agents, max_size=agents))
    seed = draw(st.integers(0, 2**32 - 1))
    return shuffled(sizes, seed), classes_of, seed


def split(population, fraction=1.0):
    labels, classes_of, seed = population
    return partition.split_by_class(labels, classes_of, np.random.default_rng(seed), fraction)


def shares_of_class(population, own, label):
    """How many samples of one class each of its holders has."""
    labels, classes_of, _ = population
    return [int((labels[mine] == label).sum()) for mine, row in zip(own, classes_of, strict=True) if label in row]


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(populations(), st.sampled_from([1.0, 0.5, 0.2 + 0.3]))
def test_training_samples_are_disjoint_and_of_ones_own_classes(population, fraction):
    labels, classes_of, _ = population
    own = split(population, fraction)
    together = np.concatenate(own)
    assert len(np.unique(together)) == len(together)
    for mine, row in zip(own, classes_of, strict=True):
        assert mine.dtype == np.int32
        assert set(labels[mine].tolist()) == set(row)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(populations())
def test_a_whole_class_is_shared_out_evenly(population):
    labels, classes_of, _ = population
    own = split(population)
    for label in {label for row in classes_of for label in row}:
        shares = shares_of_class(population, own, label)
        assert sum(shares) == (labels == label).sum()
        assert max(shares) - min(shares) <= 1


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(populations(), st.floats(0.5, 1))
def test_a_fraction_of_every_share_is_used(population, fraction):
    _, classes_of, _ = population
    whole, part = split(population), split(population, fraction)
    for label in {label for row in classes_of for label in row}:
        expected = [int(size * fraction) for size in shares_of_class(population, whole, label)]
        assert shares_of_class(population, part, label) == expected
    for mine, used in zip(whole, part, strict=True):
        assert set(used.tolist()) <= set(mine.tolist())


def test_shares_are_drawn_and_depend_on_the_generator_alone():
    labels = np.zeros(100, np.int32)
    first, again, other = (
        partition.split_by_class(labels, [[0], [0]], np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()
    assert (np.sort(first[0]) != np.arange(50)).any()


@pytest.mark.parametrize(("samples", "agents", "fraction"), [(2, 3, 1.0), (9, 3, 0.3)])
def test_every_agent_must_get_a_sample_of_each_class(samples, agents, fraction):
    labels = np.repeat([0, 1], [50, samples]).astype(np.int32)
    message = (
        f"class 1: {samples} training samples for {agents} agents at a data fraction of {fraction:g} are too few, "
        f"each must get one: take fewer agents or more data"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        partition.split_by_class(labels, [[0, 1]] * agents, np.random.default_rng(0), fraction)


def test_an_agent_without_classes_is_refused():
    with pytest.raises(ValueError, match=r"^agent 1 must have at least one class, got none$"):
        partition.split_by_class(np.zeros(9, np.int32), [[0], []], np.random.default_rng(0))


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(populations(), st.floats(0.5, 1))
def test_classes_that_are_given_are_split_and_tested(population, fraction):
    labels, classes_of, seed = population
    tests = shuffled([3, 1, 4, 1, 5], seed)
    made = partition.of_classes(labels, classes_of, seed, test_labels=tests, fraction=fraction)
    expected = (split(population, fraction), *partition.tests_by_class(tests, classes_of))
    for mine, same in zip(arrays(made), arrays(expected), strict=True):
        np.testing.assert_array_equal(mine, same)


@pytest.mark.parametrize("classes_per_agent", [1, 3, 10])
def test_drawn_classes_differ_within_an_agent(classes_per_agent):
    drawn = partition.draw_classes(40, 10, classes_per_agent, np.random.default_rng(0))
    assert len(drawn) == 40
    for row in drawn:
        assert row == sorted(set(row))
        assert len(row) == classes_per_agent
        assert set(row) <= set(range(10))
    assert {label for row in drawn for label in row} == set(range(10))


@pytest.mark.parametrize(("per_agent", "shared"), [(4, 0), (4, 1), (4, 2), (4, 3), (4, 4), (5, 1), (1, 0), (6, 2)])
def test_the_next_agent_holds_as_many_of_ones_classes_as_was_asked_for(per_agent, shared):
    """On a ring of 20 agents each two neighbours, the last and the first too; and everybody has as many samples, and
    the same ones of a class whoever else holds it."""
    held = partition.window_classes(20, 10, per_agent, shared / per_agent, np.random.default_rng(0))
    assert {len(set(row)) for row in held} == {per_agent}
    assert {len({*own} & {*other}) for own, other in zip(held, held[1:] + held[:1], strict=True)} == {shared}
    labels = shuffled([60] * 10)
    given = {"test_labels": shuffled([3] * 10), "fraction": 0.7}
    made = partition.overlapping(labels, 20, shared / per_agent, per_agent, 0, **given)
    assert {len(own) for own in made.train} == {2 * per_agent}  # 0.7 of a twentieth of 60, a class
    assert len(np.unique(np.concatenate(made.train))) == 20 * 2 * per_agent
    classes_of = [sorted(set(labels[own].tolist())) for own in made.train]
    assert classes_of == held
    assert [sorted(set(given["test_labels"][own].tolist())) for own in made.tests] == held


def test_windows_differ_by_the_seed_and_are_refused_where_they_cannot_be():
    drawn = [partition.window_classes(3, 10, 4, 1.0, np.random.default_rng(seed))[0] for seed in range(4)]
    assert len({tuple(row) for row in drawn}) == 4
    for per_agent, overlap, said in (
        (4, 0.3, "overlap must be a share of the 4 classes, one of 0, 0.25, 0.5, 0.75, 1, got 0.3"),
        (4, float("nan"), "overlap must be a share of the 4 classes, one of 0, 0.25, 0.5, 0.75, 1, got nan"),
        (6, 0.0, "overlap must be at least 0.3333, as two agents of 6 classes each share that of 10 in any case"),
        (11, 0.0, "per_agent must lie in 1..10, the classes that there are, got 11"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
            partition.window_classes(3, 10, per_agent, overlap, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^class \d: 5 training samples for 6 agents .* too few"):
        partition.overlapping(shuffled([5] * 10), 6, 1.0)


def test_classes_are_read_line_by_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("6 9 4\n\n 0\t1  # two alone\n02\n# and one more\n3,7, 5\n")
    assert read_classes(path, 4, 10) == [[6, 9, 4], [0, 1], [2], [3, 7, 5]]


def test_class_files_speak_the_datas_own_labels(tmp_path):
    """As agents.csv writes them: a label with a blank in it stands in quotes."""
    path, own = tmp_path / "classes.txt", ("a b", "cat", "dog#1", "it's")
    path.write_text("cat, 'a b'\n" + shlex.join(["it's", "dog#1", "cat"]))
    assert read_classes(path, 2, 4, own) == [[1, 0], [3, 2, 1]]
    path.write_text("7\n3 200")
    assert read_classes(path, 2, 3, (3, 7, 200)) == [[1], [0, 2]]
    path.write_text("None\ncta")  # a word that is no number names no class, not even this one
    with pytest.raises(ValueError, match="got 'cta' in line 2"):
        read_classes(path, 2, 2, ("None", "cat"))
    path.write_text("cat\nbird")
    message = (
        "must hold classes in a b, cat, dog#1, it's, separated by blanks, in quotes where they hold some, got 'bird'"
    )
    with pytest.raises(ValueError, match=message):
        read_classes(path, 2, 4, own)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("0\n1\n1\n0", [0, 1, 1, 0]),
        ("owner\nme\nyou\nme\nme", ["me", "you", "me", "me"]),
        ("sample,owner\n3,1\n0,0  # the last two are nobody's\n", [0, -1, -1, 1]),
        ("2 'a b'\n1 c", ["", "c", "a b", ""]),
        ("0,John Smith\n1,O'Brien\n2,\n3,007", ["John Smith", "O'Brien", "", "007"]),
    ],
)
def test_owners_are_read_line_by_line(tmp_path, content, expected):
    path = tmp_path / "owners.csv"
    path.write_text(content)
    assert read_owners(path, 4).tolist() == expected


def test_owners_as_numpy_writes_them(tmp_path):
    np.save(tmp_path / "owners.npy", np.array([2.0, 0, 1]))
    assert read_owners(tmp_path / "owners.npy", 3).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match=r"must be a .npy of one owner a sample, and is not \(.* must be 4 whole"):
        read_owners(tmp_path / "owners.npy", 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\n1", r"must hold one owner for each of 4 training samples, .*, got 2 lines of \[1\] words$"),
        ("0 1\n1", r"must hold one owner for each .*, got 2 lines of \[1, 2\] words$"),
        ("0 1\n4 1", r"must number samples in 0..3, got '4'$"),
        ("x 1\n4 1", r"must number samples in 0..3, got 'x'$"),
        ("0 1\n0 2", r"must name an owner of each sample once, got two of sample 0$"),
        ("it's", r"cannot be read in line 1: no closing quotation$"),
    ],
)
def test_bad_owner_files_are_refused(tmp_path, content, message):
    path = tmp_path / "owners.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^the owner file {re.escape(str(path))} {message}"):
        read_owners(path, 4)


def test_a_quick_evaluation_takes_as_many_of_every_owners_samples():
    """Ranks are counted among an agent's own samples: others have theirs."""
    test_labels, test_owner = np.zeros(300, int), np.repeat([0, 1, 2], 100)
    held = partition.owned(np.zeros(3, int), 3, owner=np.arange(3), test_labels=test_labels, test_owner=test_owner)
    assert [(ranks.min(), ranks.max(), len(ranks)) for ranks in held.ranks] == [(0, 99, 100)] * 3


OWNERS = [[0, 0, 1, 1, -1, 1, 0, 1], [7, 7, 9, 9, -1, 9, 7, 9], ["me", "me", "you", "you", "", "you", "me", "you"]]


@pytest.mark.parametrize("owner", OWNERS, ids=["agents", "numbers", "words"])
@pytest.mark.parametrize("tested", ["in proportion", "by owner"])
def test_everybody_has_what_is_its_own(owner, tested):
    """And is tested on its own test samples, or in the proportions of its training samples."""
    labels, test_labels = np.array([0, 1, 1, 1, 0, 0, 0, 1]), np.array([0, 0, 1, 1])
    given = {"test_labels": test_labels, "owner": np.array(owner)}
    if tested == "by owner":
        given["test_owner"] = np.array([owner[0], owner[2], owner[4], owner[2]])
    held = partition.owned(labels, 2, seed=1, **given)
    assert [sorted(own.tolist()) for own in held.train] == [[0, 1, 6], [2, 3, 5, 7]]
    if tested == "by owner":
        assert [sorted(own.tolist()) for own in held.tests] == [[0], [1, 3]]
    else:
        # Two to one, and one to three.
        assert [np.bincount(test_labels[own], minlength=2).tolist() for own in held.tests] == [[2, 1], [1, 2]]
    assert all((np.diff(ranks) >= 0).all() for ranks in held.ranks)
    half = partition.owned(labels, 2, seed=1, fraction=0.5, owner=np.array(owner))
    assert [len(own) for own in half.train] == [1, 2]
    assert all(set(some.tolist()) <= set(own.tolist()) for some, own in zip(half.train, held.train, strict=True))


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (None, "owner must say whose each training sample is, and the data has none"),
        ([0, 2, 2, 0], r"owner must name 3 agents, got 2 owners|agent 1 owns too few training samples"),
        ([5, 6, 7, 8], "owner must name 3 agents, got 4 owners: take as many agents"),
    ],
)
def test_owners_that_cannot_be_are_refused(owner, message):
    with pytest.raises(ValueError, match=message):
        partition.owned(np.array([0, 1, 0, 1]), 3, owner=None if owner is None else np.array(owner))


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ([0, 1], r"^owner must say whose each of 4 samples is, got \(2,\) owners"),
        ([0.0, 1.0, 0.0, 1.0], "^owner must be whole numbers or words, got float64"),
        ([b"me", b"you", b"me", b"you"], r"^owner must be whole numbers or words, got \|S3"),
    ],
)
def test_owners_that_are_not_those_of_the_labels_are_refused(owner, message):
    """Of training samples and of test samples."""
    labels, each = np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=message):
        partition.owned(labels, 2, owner=np.array(owner))
    with pytest.raises(ValueError, match=message.replace("owner must", "test_owner must")):
        partition.owned(labels, 2, owner=each, test_labels=labels, test_owner=np.array(owner))


def test_a_class_that_nobody_can_have_is_said_to_be_missing():
    with pytest.raises(ValueError, match=r"^class 2 has no training samples, and agents 0, 2 hold it: name other"):
        partition.of_classes(np.array([0, 1, 0, 1]), [[0, 2], [1], [2]])


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(hnp.arrays(int, (3, 4), elements=st.integers(0, 9)))
def test_label_skew_is_the_mean_distance_from_everybodys_shares(counts):
    """Half the sum of absolute differences of shares; 0 of agents alike."""
    counts[:, 0] += 1
    common = counts.sum(axis=0) / counts.sum()
    distances = [sum(abs(row[label] / row.sum() - common[label]) for label in range(4)) / 2 for row in counts]
    assert label_skew(counts) == pytest.approx(np.mean(distances), abs=1e-12)
    assert label_skew(np.tile(counts[:1], (3, 1))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1\n2 x", "must hold classes in 0..4, separated by blanks, got 'x' in line 2"),
        ("\n0 1\n\n2.5 1", "must hold classes in 0..4, separated by blanks, got '2.5' in line 4"),
        ("0 5\n2 3", "must hold classes in 0..4, separated by blanks, got '5' in line 1"),
        ("0 1\n-1 3", "must hold classes in 0..4, separated by blanks, got '-1' in line 2"),
        ("0 1\n+1 3", "must hold classes in 0..4, separated by blanks, got '+1' in line 2"),
        ("0 1\n1_0", "must hold classes in 0..4, separated by blanks, got '1_0' in line 2"),
        ("\u0663\n1", "must hold classes in 0..4, separated by blanks, got '\u0663' in line 1"),
        ("\u00b2\n1", "must hold classes in 0..4, separated by blanks, got '\u00b2' in line 1"),
        # Longer than Python makes a number of.
        ("0\n" + "9" * 5_000, "must hold classes in 0..4, separated by blanks, got '99"),
        ("0\n\0", "must hold classes in 0..4, separated by blanks, got '\\x00' in line 2"),
        ("0 1\n\n2 02", "must name a class once a line, got ['2', '02'] in line 3"),
        ("0 1", "must have one line for each of 2 agents, got 1: mend it, or say --agents 1"),
        ("0\n1\n\n2", "must have one line for each of 2 agents, got 3: mend it, or say --agents 3"),
        ("\n \n", "must hold one line of classes an agent, and it is empty"),
    ],
)  # fmt: skip
def test_bad_class_files_are_refused_by_line_and_word(tmp_path, content, message):
    path = tmp_path / "classes.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(f'the class file {path} {message}')}"):
        read_classes(path, 2, CLASSES)


def test_class_files_that_cannot_be_read_are_refused(tmp_path):
    binary = tmp_path / "binary.npy"
    binary.write_bytes(b"\x93NUMPY\xff\xfe")
    for path, reason in (
        (tmp_path / "missing.txt", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (binary, "it is no text"),
    ):
        message = f"the class file {path} must hold one line of classes an agent, and cannot be read: {reason}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_classes(path, 2, CLASSES)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(populations(), st.integers(1, 12))
def test_agents_are_tested_on_all_of_their_classes(population, first):
    labels, classes_of, _ = population
    indices, ranks = partition.tests_by_class(labels, classes_of)
    for mine, rank, row in zip(indices, ranks, classes_of, strict=True):
        assert mine.dtype == np.int32
        assert sorted(mine.tolist()) == [sample for sample, label in enumerate(labels) if label in row]
        for sample, place in zip(mine, rank, strict=True):
            assert place == (labels[:sample] == labels[sample]).sum()
        # The first of every class are a prefix: evaluating on few samples reads no further.
        prefix = mine[: first * len(row)]
        assert (rank[: first * len(row)] < first).all()
        expected = np.concatenate([np.flatnonzero(labels == label)[:first] for label in row])
        assert set(prefix.tolist()) == set(expected.tolist())


def test_an_agent_without_tests_is_refused():
    message = "agent 1 has no test samples of its classes [2, 3]: take other classes or more data"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        partition.tests_by_class(np.array([0, 1, 1], np.int32), [[0], [2, 3]])


def test_tests_in_proportion_by_hand():
    """Two thirds of class 0: four of its tests to two of class 1, which come with every second one."""
    labels = np.repeat([0, 1, 2], [4, 9, 9]).astype(np.int32)
    held = np.array([[20, 10, 0], [0, 0, 7]], np.int32)
    (first, second), ranks = partition.tests_in_proportion(labels, held, np.random.default_rng(0))
    assert labels[first].tolist() == [0, 1, 0, 0, 1, 0]
    np.testing.assert_array_equal(ranks[0], [0, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(np.sort(second), np.arange(13, 22))
    np.testing.assert_array_equal(ranks[1], np.arange(9))


def test_a_class_without_tests_is_left_out_unless_it_is_the_only_one():
    labels = np.zeros(8, np.int32)
    (tests,), _ = partition.tests_in_proportion(labels, np.array([[3, 1]], np.int32), np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(tests), np.arange(8))
    with pytest.raises(ValueError, match=r"^agent 1 has no test samples of its classes \[1\]: take more data$"):
        partition.tests_in_proportion(labels, np.array([[3, 1], [0, 4]], np.int32), np.random.default_rng(0))


def test_stacking_pads_with_zero_and_tells_the_sizes():
    own = [np.array(row, np.int32) for row in ([5, 6, 7], [8], [9, 1])]
    # Ask often: the check of annotations looks at one list, by chance.
    for _ in range(20):
        stacked, sizes = partition.stack(own)
        np.testing.assert_array_equal(stacked, [[5, 6, 7], [8, 0, 0], [9, 1, 0]])
        np.testing.assert_array_equal(sizes, [3, 1, 2])
        assert stacked.dtype == sizes.dtype == np.int32


def test_the_papers_setup(shared):
    """Twenty agents of four classes, a fifth of each share: 499 images an agent on average, none of them twice."""
    labels = shuffled((5_000,) * 10)
    classes_of = read_classes(shared / "paper_setup" / "classes_per_agent_4.txt", 20, 10)
    assert all(len(row) == 4 for row in classes_of)
    made = partition.of_classes(labels, classes_of, test_labels=shuffled((1_000,) * 10), fraction=0.2)
    together = np.concatenate(made.train)
    assert round(len(together) / 20) == 499
    assert len(np.unique(together)) == len(together)
    assert {len(mine) for mine in made.tests} == {4_000}
