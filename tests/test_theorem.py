"""The theorem in numbers: subset sums against all subsets, tickets against what their masks make, and the command."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate
from tiny import slow_but

from dslth_jax import tickets
from dslth_jax.study.data import datasets
from dslth_jax.study.theorem import networks, page, sums, trained
from dslth_jax.subset_sums import MOST, MOST_AT_ONCE, nearest, worst_error
from dslth_jax.tickets import Form
from experiments import theorem

SMALL = page.Sizes((4, 8), (4,), (4,), (4, 6), (4, 6, 8), (4, 6), (4,))
NUMBERS = st.floats(-2, 2, width=32)
RNG = np.random.default_rng


def every_sum(candidates, size=None):
    """The oracle: sums of all subsets, of any size or of one."""
    sizes = range(len(candidates) + 1) if size is None else [size]
    return np.array([math.fsum(own) for many in sizes for own in itertools.combinations(candidates, many)])


@settings(deadline=None, max_examples=60)
@given(st.lists(NUMBERS, max_size=10), st.lists(NUMBERS, min_size=1, max_size=3), st.data())
def test_the_nearest_subset_is_that_of_all_subsets(candidates, targets, data):
    """Of any size, and of each size; what is chosen adds up to what is said."""
    sized = st.none() | st.integers(0, len(candidates))
    size = data.draw(sized)
    found = nearest(np.array(candidates), np.array(targets), size)
    wanted = np.abs(every_sum(candidates, size)[:, None] - np.array(targets)).min(axis=0)
    np.testing.assert_allclose(found.errors, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.abs(found.chosen @ np.array(candidates) - targets), found.errors)
    assert size is None or (found.chosen.sum(axis=1) == size).all()


@pytest.mark.parametrize("size", [None, 4, 8])
def test_sixteen_candidates_are_searched_exactly(size):
    candidates, targets = RNG(0).uniform(-1, 1, 16), RNG(1).uniform(-1, 1, 5)
    wanted = np.abs(every_sum(candidates, size)[:, None] - targets).min(axis=0)
    np.testing.assert_allclose(nearest(candidates, targets, size).errors, wanted, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.lists(NUMBERS, min_size=1, max_size=8), NUMBERS, NUMBERS)
def test_the_worst_error_bounds_every_target_and_is_reached(candidates, one, other):
    low, high = sorted((one, other))
    worst = worst_error(np.array(candidates), low, high)
    every = np.sort(every_sum(candidates))
    middles = (every[1:] + every[:-1]) / 2  # where an interval's farthest target may be, beside its ends
    tried = np.array([low, high, *middles[(middles >= low) & (middles <= high)], *np.linspace(low, high, 50)])
    assert np.abs(every[:, None] - tried).min(axis=0).max() == pytest.approx(worst, abs=1e-9)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match=f"at most {MOST} candidates, got {MOST + 1}"):
        nearest(np.zeros(MOST + 1), np.zeros(1))
    with pytest.raises(ValueError, match=r"size must lie in 0\.\.3, the number of candidates, got 4"):
        nearest(np.zeros(3), np.zeros(1), 4)
    with pytest.raises(ValueError, match=f"at most {MOST_AT_ONCE} candidates"):
        worst_error(np.zeros(MOST_AT_ONCE + 1), 0.0, 1.0)


@pytest.mark.parametrize("retention", [None, 0.5])
def test_errors_fall_by_about_a_bit_for_each_bit_of_the_number_of_subsets(retention):
    """Where that is sure: of any size, and of a half, up to 20 candidates."""
    found = sums.errors(RNG(0), 150, (8, 12, 16, 20), retention)
    assert 0.8 < sums.slope(found, "bits") < 1.2
    assert (found["low"] < found["median"]).all()
    assert (found["median"] < found["high"]).all()


def test_a_smaller_retention_has_fewer_subsets_and_larger_errors():
    by_retention = [sums.errors(RNG(0), 150, (20,), own)["median"][0] for own in (0.1, 0.25, 0.5, None)]
    assert by_retention == sorted(by_retention, reverse=True)


def targets_of(form, agents=3):
    """Targets of two layers with four channels, their biases, a random network and the masks for them."""
    rng, shapes = RNG(3), networks.small(2)
    kernels = networks.draw_targets(rng, shapes, agents)
    biases = [rng.uniform(-0.5, 0.5, (agents, 4)) for _ in shapes] if form.constant else None
    network = tickets.random_network(rng, shapes, 7, form)
    return kernels, biases, network, tickets.masks_for(network, kernels, biases, form)


def test_masks_make_kernels_that_are_near_the_targets():
    """The masked pair of layers is one convolution, by the kernel that its products add up to: the oracle of
    `masked_answers`. The odd layer's mask is the same for all, and each of its channels sees one input."""
    kernels, _, network, masks = targets_of(Form())
    images = RNG(4).uniform(0, 1, (5, 8, 8, 2))
    for own in masks:
        assert own.odd.sum(axis=0).max() == 1
        assert own.even.shape[0] == 3
    for agent in range(3):
        made = [(pair.odd * own.odd) @ (pair.even * own.even[agent]) for pair, own in zip(network, masks, strict=True)]
        answers = tickets.masked_answers(network, masks, agent, images)
        np.testing.assert_allclose(answers, tickets.answers(made, images), rtol=0, atol=1e-12)
        off = [np.abs(one - kernel[agent]) for one, kernel in zip(made, kernels, strict=True)]
        assert max(np.median(own) for own in off) < 0.02
        # The bound by which the theorem goes on from entries to answers, in the largest norm.
        first, second = (own.sum(axis=(0, 1, 2)).max() for own in off)
        wanted = tickets.answers([kernel[agent] for kernel in kernels], images)
        assert np.abs(answers - wanted).max() <= first * (1 + second) + second


def test_channels_of_either_sign_take_biases_by_positive_ones():
    """Ones times a negative entry are nothing behind a ReLU; without any kernel the answer is the bias."""
    form, kernels, biases = Form(constant=True, channels="both"), np.zeros((1, 1, 1, 1, 1)), np.array([[0.3]])
    network = tickets.random_network(RNG(0), [(1, 1, 1)], 12, form)
    masks = tickets.masks_for(network, [kernels], [biases], form)
    answers = tickets.masked_answers(network, masks, 0, RNG(1).uniform(-1, 1, (2, 3, 3, 1)), form)
    np.testing.assert_allclose(answers, 0.3, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Form(channels="lifted"), "a form with lifted channels must have constant=True"),
        (Form(channels="both", activation="elu"), "a form with ELU must have positive or lifted channels"),
    ],
)
def test_channels_that_cannot_say_it_are_refused(form, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        tickets.masks_for([], [], form=form)
    with pytest.raises(ValueError, match=r"^a form of layers with biases must have constant=True"):
        tickets.masks_for([], [], [])


def test_each_entry_takes_the_nearest_subset():
    kernels, _, network, masks = targets_of(Form(), agents=1)
    pair, own, kernel = network[0], masks[0], kernels[0][0]
    for place in ((0, 0), (2, 1)):
        live = np.flatnonzero(own.odd[1])
        products = pair.odd[1, live] * pair.even[(*place, live, 3)]
        reached = products @ own.even[0][(*place, live, 3)]
        wanted = np.abs(tickets.nearest(products, kernel[(*place, [1], 3)]).errors[0])
        assert abs(reached - kernel[(*place, 1, 3)]) == pytest.approx(wanted, abs=1e-12)


def test_of_very_many_candidates_the_first_are_taken_one_by_one():
    entries, gains, wanted = RNG(0).uniform(-1, 1, 60), np.ones(60), np.array([7.0, -7.0])
    mask = np.zeros((2, 60), bool)
    tickets.choose(mask, entries, gains, wanted)
    assert np.abs(mask @ entries - wanted).max() < 1e-4


@pytest.mark.parametrize(("stride", "padding"), [(1, False), (2, False), (1, True), (2, True)])
def test_convolutions_are_those_of_scipy(stride, padding):
    images, kernel = RNG(0).normal(size=(2, 7, 8, 3)), RNG(1).normal(size=(3, 3, 3, 4))
    found = tickets.convolved(images, kernel, Form(stride=stride, padding=padding))
    mode = "same" if padding else "valid"
    for image, output in itertools.product(range(2), range(4)):
        wanted = sum(correlate(images[image, ..., one], kernel[..., one, output], mode) for one in range(3))
        np.testing.assert_allclose(found[image, ..., output], wanted[::stride, ::stride], rtol=0, atol=1e-12)


def test_a_residual_sum_and_pooling_stand_where_they_should():
    images, kernels = RNG(0).uniform(0, 1, (1, 4, 4, 1)), [np.ones((1, 1, 1, 1)), np.full((1, 1, 1, 1), 2.0)]
    residual = Form(padding=True, residual=True)
    np.testing.assert_allclose(tickets.answers(kernels, images, form=residual), 3 * images)
    largest = tickets.answers(kernels, images, form=Form(pool=2))
    np.testing.assert_allclose(largest[0, 0, 1, 0], 2 * images[0, :2, 2:].max())


@pytest.mark.parametrize("name", slow_but(networks.LEFT_OUT, "stride 2", "ELU, kept as before"))
def test_more_channels_bring_every_form_nearer_but_two(name):
    """Four times as many channels: a sure finding where the construction holds, and sure not to hold where negative
    numbers meet channels that are kept for others."""
    images = networks.patches(RNG(0), datasets.digits())
    shown = 2 * images - 1 if name.startswith("inputs") else images
    form, shapes = networks.LEFT_OUT[name], networks.small(1, channels=2)
    few, many = (
        np.median([networks.measure(RNG(seed), shown, shapes, width, 2, form).errors.max() for seed in range(5)])
        for width in (6, 24)
    )
    if name.endswith("kept as before"):
        assert many > few / 4
    else:
        assert many < few / 4


def test_a_lifted_channel_is_linear_where_the_activation_is_not():
    """ELU and ReLU then answer alike in the random network, on what a layer before can answer."""
    form = networks.LEFT_OUT["ELU, lifted"]
    odd = RNG(0).uniform(-1, 1, (3, 40))
    mask = tickets.odd_mask(odd, [1, 1, 2], "lifted")
    assert mask[:2].any(axis=0).sum() > 2
    inputs = np.concatenate([RNG(1).uniform(-1, 1, (5, 3, 3, 2)), np.ones((5, 3, 3, 1))], axis=-1)
    hidden = inputs @ (odd * mask)
    np.testing.assert_allclose(tickets.activated(hidden, form), hidden)


def test_a_constant_is_found_where_numbers_follow_the_theorem():
    """n = 2·log(N / min(ε, δ)) + 1 is fitted exactly; a line through logarithms is crossed where it should be."""
    rows = [
        {"target": "x", "entries": entries, "ε": level, "δ": 0.1, "n": 2 * math.log(entries / min(level, 0.1)) + 1}
        for entries in (1, 20)
        for level in (0.3, 0.01)
    ]
    found = networks.fit(networks.pd.DataFrame(rows))
    assert [found[name] for name in ("C", "c", "off")] == pytest.approx([2, 1, 0], abs=1e-9)
    errors = np.exp(-np.arange(4.0, 13.0))[:, None] * np.ones((9, 5))
    needed = networks.needed("x", 1, range(4, 13), errors, (0.5,))
    np.testing.assert_allclose(needed["n"], [math.nan, math.nan, -math.log(0.01), -math.log(0.003)])


@pytest.fixture(scope="module")
def target():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "STEPS", 500)
        return trained.train(0, datasets.digits())


def test_the_environment_changes_no_trained_target(monkeypatch):
    monkeypatch.setattr(trained, "STEPS", 1)
    plain = trained.train(0, datasets.digits())
    with jax.threefry_partitionable(False):
        again = trained.train(0, datasets.digits())
    np.testing.assert_array_equal(again.kernels[1], plain.kernels[1])


@pytest.mark.slow
def test_a_trained_target_keeps_its_accuracy_under_small_errors_alone(target):
    assert trained.exact(target) > 0.9
    assert max(np.abs(own).max() for own in target.kernels + target.biases) == pytest.approx(0.5)
    accuracies = trained.perturbed(RNG(0), target, 3).query("law == 'signs'").set_index("ε")["median"]
    assert accuracies[0.003] > trained.exact(target) - 0.02
    assert accuracies[0.3] < 0.5
    found = trained.in_random_networks(RNG(0), target, 1, (4, 14))
    assert found["median"][1] > trained.exact(target) - 0.05
    assert found["rms"][1] < found["rms"][0]


def test_the_command_leaves_a_table_and_a_figure(tmp_path, monkeypatch, capsys, target):
    monkeypatch.setattr(page, "Sizes", lambda: SMALL)
    monkeypatch.setattr(networks, "PATCHES", 5)
    monkeypatch.setattr(trained, "train", lambda seed, dataset: target)
    out = tmp_path / "out"
    assert theorem.main(["--draws", "1", "--out", str(out)]) == 0
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "table.md").read_text()
    assert text.count("\n|---") == 6
    for words in (*networks.LEFT_OUT, "| 32 / 1 |", "natural logarithms", "Seed 0, 1 random networks a number"):
        assert words in text
    said = capsys.readouterr()
    assert "table and figure:" in said.out
    assert not said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--dataset digit", "--dataset must be one of cifar10, "),
        ("--data-dir .", "--data-dir is for data sets that are downloaded, digits needs none: leave it out"),
        ("--draws 0", "--draws must be in 1..10000, got 0"),
        ("--draws many", "--draws must be a whole number, got 'many'"),
        ("--seed -1", "--seed must be in 0..4294967295, got -1"),
        ("--out {full}", "must be a new or empty folder, and it holds something: name another"),
        ("--out {full}/file", "must be a new or empty folder, and it is a file: name another"),
        ("--out {full}/file/run", "must be a new or empty folder, and it cannot be one (Not a directory)"),
        ("--agents 3", "there is no flag --agents"),
    ],
)
def test_bad_input_is_one_line(words, sentence, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert theorem.main(words.format(full=tmp_path).split()) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
