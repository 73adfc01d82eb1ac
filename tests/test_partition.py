"""Who holds which samples: disjoint, even, of one's own classes; and every sample of a class in its tests."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dslth_jax import partition

CLASSES = 5


@st.composite
def populations(draw):
    """Labels of unequal classes in any order, each large enough for all agents, and the classes of some agents."""
    agents = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(12, 40), min_size=CLASSES, max_size=CLASSES))
    classes_of = draw(
        st.lists(
            st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=CLASSES, unique=True),
            min_size=agents,
            max_size=agents,
        )
    )
    seed = draw(st.integers(0, 2**32 - 1))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(CLASSES), sizes)).astype(np.int32)
    return labels, classes_of, seed


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


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_a_fraction_lies_between_none_and_all(fraction):
    with pytest.raises(ValueError, match=rf"data fraction must lie in \(0, 1\], got {fraction}"):
        partition.split_by_class(np.zeros(9, np.int32), [[0]], np.random.default_rng(0), fraction)


@pytest.mark.parametrize(("samples", "agents", "fraction"), [(2, 3, 1.0), (9, 3, 0.3), (0, 1, 1.0)])
def test_every_agent_must_get_a_sample_of_each_class(samples, agents, fraction):
    labels = np.repeat([0, 1], [50, samples]).astype(np.int32)
    message = f"class 1 has {samples} training samples for {agents} agents at a data fraction of {fraction:g}"
    with pytest.raises(ValueError, match=message):
        partition.split_by_class(labels, [[0, 1]] * agents, np.random.default_rng(0), fraction)


@pytest.mark.parametrize("classes_per_agent", [1, 3, 10])
def test_drawn_classes_differ_within_an_agent(classes_per_agent):
    drawn = partition.draw_classes(40, 10, classes_per_agent, np.random.default_rng(0))
    assert len(drawn) == 40
    for row in drawn:
        assert row == sorted(set(row))
        assert len(row) == classes_per_agent
        assert set(row) <= set(range(10))
    assert {label for row in drawn for label in row} == set(range(10))


@pytest.mark.parametrize("classes_per_agent", [0, 11])
def test_no_agent_has_more_classes_than_there_are(classes_per_agent):
    with pytest.raises(ValueError, match=rf"must lie in 1..10, the data's classes, got {classes_per_agent}"):
        partition.draw_classes(4, 10, classes_per_agent, np.random.default_rng(0))


def test_classes_are_read_line_by_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("6 9 4\n\n 0\t1\n2\n")
    assert partition.read_classes(path, 3, 10) == [[6, 9, 4], [0, 1], [2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1\n2 x", "must hold one line of class numbers an agent: invalid literal"),
        ("0 1\n2.5 1", "must hold one line of class numbers an agent"),
        ("0 1", "must have one line for each of 2 agents, got 1"),
        ("0\n1\n2", "must have one line for each of 2 agents, got 3"),
        ("0 1\n2 2", r"agent 1 in .* must have different classes in 0..4, got \[2, 2\]"),
        ("0 5\n2 3", r"agent 0 in .* must have different classes in 0..4, got \[0, 5\]"),
        ("0 1\n-1 3", r"agent 1 in .* must have different classes in 0..4, got \[-1, 3\]"),
    ],
)
def test_bad_class_files_are_refused_by_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "classes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        partition.read_classes(path, 2, CLASSES)


def test_a_missing_class_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing.txt must hold one line of class numbers an agent: .*No such file"):
        partition.read_classes(tmp_path / "missing.txt", 2, CLASSES)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(populations(), st.integers(1, 12))
def test_agents_are_tested_on_all_of_their_classes(population, first):
    labels, classes_of, _ = population
    indices, ranks = partition.tests_by_class(labels, classes_of)
    for mine, rank, row in zip(indices, ranks, classes_of, strict=True):
        assert mine.dtype == rank.dtype == np.int32
        assert sorted(mine.tolist()) == [sample for sample, label in enumerate(labels) if label in row]
        for sample, place in zip(mine, rank, strict=True):
            assert place == (labels[:sample] == labels[sample]).sum()
        # The first of every class are a prefix: evaluating on few samples reads no further.
        prefix = mine[: first * len(row)]
        expected = np.concatenate([np.flatnonzero(labels == label)[:first] for label in row])
        assert set(prefix.tolist()) == set(expected.tolist())


def test_an_agent_without_tests_is_refused():
    with pytest.raises(ValueError, match=r"agent 1 has no test samples of its classes \[2, 3\]"):
        partition.tests_by_class(np.array([0, 1, 1], np.int32), [[0], [2, 3]])


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
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5_000)).astype(np.int32)
    classes_of = partition.read_classes(shared / "paper_setup" / "classes_per_agent_4.txt", 20, 10)
    assert all(len(row) == 4 for row in classes_of)
    own = partition.split_by_class(labels, classes_of, np.random.default_rng(0), 0.2)
    together = np.concatenate(own)
    assert round(len(together) / 20) == 499
    assert len(np.unique(together)) == len(together)
