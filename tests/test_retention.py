"""Retention by policy: counts and masks are those of the numpy twins, whatever agents, ties and zeros there are; how
settings spell and deal retentions; what classes of device came to."""

import collections
import functools
import json
import re

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from fakes import use_fakes
from tiny import use_tiny_network

from dslth_jax import load, masks
from dslth_jax.algorithm import World, by_name
from dslth_jax.algorithms.masked import MaskRule, personal_model
from dslth_jax.keys import key_of
from dslth_jax.networks.network import draw_like, signed_constant
from dslth_jax.retention import POLICIES, erk_densities, kept_by_policy, shared_out
from dslth_jax.study.config.numbers import numbers_of, population_hyper
from dslth_jax.study.config.resolve import network_of, resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import devices, folders, report
from dslth_jax.study.sweeping.grid import Sweep, axes_of, programs_of
from dslth_jax.study.training.prepare import members_of
from experiments import cifar

SHAPES = {"conv": (3, 3, 2, 4), "deep": (3, 3, 1, 2), "head": (6, 3), "linear": (9, 6)}
ROLES = {"conv": "convolution", "deep": "depthwise", "head": "linear", "linear": "linear"}
LAYERS = {layer: jax.ShapeDtypeStruct(shape, jnp.float32) for layer, shape in SHAPES.items()}
SIZES = {layer: leaf.size for layer, leaf in LAYERS.items()}
SHARES = st.floats(0.1, 1.0)


@pytest.mark.parametrize("policy", POLICIES)
@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(SHARES, SHARES)
def test_a_policy_makes_the_counts_of_its_numpy_twin(policy, retention, linear):
    kept = kept_by_policy(LAYERS, ROLES, policy, retention, linear)
    twin = reference.kept_by_policy(SHAPES, ROLES, policy, retention, linear)
    if policy == "erk":  # shares of layers are whole numbers but for what is cut off
        assert all(twin[layer] - 1 - 1e-6 <= count <= twin[layer] + 1e-6 for layer, count in kept.items())
    else:
        assert kept == twin
    assert kept["deep"] == SIZES["deep"]
    assert all(1 <= count <= SIZES[layer] for layer, count in kept.items())


def test_erk_is_that_of_dis_pfl():
    others = [layer for layer in SHAPES if ROLES[layer] != "depthwise"]
    densities = erk_densities([SHAPES[layer] for layer in others], 0.3)
    kept = kept_by_policy(LAYERS, ROLES, "erk", 0.3)
    assert [kept[layer] for layer in others] == [
        int(share * SIZES[layer]) for layer, share in zip(others, densities, strict=True)
    ]


@functools.cache
def shared(dtype):
    """What is kept by one threshold, compiled once for all counts."""

    @jax.jit
    def of(fused, kept):
        counts = shared_out(fused, kept, ROLES)
        return counts, masks.threshold(fused, counts)

    return of


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.data())
def test_one_threshold_for_all_layers_keeps_what_the_numpy_twin_keeps(dtype, data):
    tying = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, np.inf, float(np.finfo(dtype).tiny)])
    entries = tying | st.floats(allow_nan=False, allow_subnormal=False, width=np.finfo(dtype).bits)
    fused = {layer: data.draw(hnp.arrays(dtype, shape, elements=entries)) for layer, shape in SHAPES.items()}
    kept = {layer: data.draw(st.integers(1, size) | st.just(0)) for layer, size in SIZES.items()}
    with jax.enable_x64(dtype == "float64"):
        layers = jax.tree.map(jnp.asarray, fused)
        counts, mask = jax.device_get(shared(dtype)(layers, jax.tree.map(jnp.int32, kept)))
    assert {layer: int(count) for layer, count in counts.items()} == reference.shared_out(fused, kept, ["deep"])
    others = [layer for layer in SHAPES if layer != "deep"]
    alive = {layer: np.count_nonzero(fused[layer]) if kept[layer] else 0 for layer in others}
    assert sum(mask[layer].sum() for layer in others) == min(sum(kept[layer] for layer in others), sum(alive.values()))
    for layer in others:
        assert mask[layer].any() == bool(alive[layer])  # a layer that an agent lacks stays empty, and no other


def test_one_threshold_compares_scores_by_their_fan_in():
    """A score of a layer with four times as many inputs counts twice as much."""
    fused = {"conv": jnp.full((2, 2, 4, 1), 0.6), "head": jnp.full((4, 4), 1.0)}
    roles = {"conv": "convolution", "head": "linear"}
    counts = shared_out(fused, {"conv": 8, "head": 8}, roles)
    assert (int(counts["conv"]), int(counts["head"])) == (15, 1)
    counts = shared_out(fused | {"conv": jnp.full((2, 2, 4, 1), 0.4)}, {"conv": 8, "head": 8}, roles)
    assert (int(counts["conv"]), int(counts["head"])) == (1, 15)


WORLD = World(
    draw_like(key_of(0), jax.tree.map(lambda own: jnp.zeros(own.shape), LAYERS), signed_constant),
    {}, key_of(0), jnp.int32(0), jnp.int32(1),
)  # fmt: skip
SCORES = draw_like(key_of(1), WORLD.weights, jax.random.normal)


def used(rule, policy="uniform"):
    """The weights in use, the masks, and the gradient of the sum of the weights' sines, by the scores."""
    kept = jax.tree.map(jnp.int32, kept_by_policy(LAYERS, ROLES, policy, 0.3))

    def sines(scores):
        variables, mask = personal_model(WORLD, scores, kept, ROLES, rule)
        return sum(jnp.sum(jnp.sin(own)) for own in jax.tree.leaves(variables["params"])), (variables["params"], mask)

    (_, (weights, mask)), gradient = jax.jit(jax.value_and_grad(sines, has_aux=True))(SCORES)
    return jax.device_get((weights, mask, gradient))


@pytest.mark.parametrize("policy", ["uniform", "erk"])
def test_self_scaled_weights_are_signed_constants_where_counts_are_exact(policy):
    constant, mask, gradient = used(MaskRule(scale_by_retention=True), policy)
    own, same, also = used(MaskRule(scale_by_mask=True), policy)
    for layer, size in SIZES.items():
        np.testing.assert_array_equal(mask[layer], same[layer])
        np.testing.assert_allclose(own[layer], constant[layer], rtol=1e-6)
        np.testing.assert_allclose(also[layer], gradient[layer], rtol=1e-6)
        fan_in, density = np.prod(SHAPES[layer][:-1]), mask[layer].sum() / size
        np.testing.assert_allclose(np.abs(own[layer][mask[layer] > 0]), np.sqrt(2 / (fan_in * density)), rtol=1e-6)


@pytest.mark.parametrize("rule", [MaskRule(across_layers=True), MaskRule(smallest_filter=4)])
def test_self_scaled_weights_have_the_scale_of_the_mask_in_use(rule):
    policy = "global" if rule.across_layers else "uniform"
    nominal = kept_by_policy(LAYERS, ROLES, policy, 0.3)
    weights, mask, gradient = used(rule._replace(scale_by_mask=True), policy)
    kept = {layer: int(own.sum()) for layer, own in mask.items()}
    assert kept != nominal
    assert not rule.across_layers or sum(kept.values()) == sum(nominal.values())
    for layer, size in SIZES.items():
        scaled = np.asarray(WORLD.weights[layer]) * np.sqrt(size / kept[layer])
        np.testing.assert_allclose(weights[layer], scaled * mask[layer], rtol=1e-6)
        # Straight through, the scale a constant: the slope of the sine, times the weight and the sign of the score.
        expected = np.cos(weights[layer]) * scaled * np.sign(SCORES[layer])
        expected = 0 * expected if ROLES[layer] == "depthwise" else expected  # no score chooses what is kept whole
        np.testing.assert_allclose(gradient[layer], expected, rtol=1e-5, atol=1e-7)


def test_constants_scaled_by_retention_take_the_masks_own_counts_across_layers():
    one, other = (
        used(MaskRule(across_layers=True, **{by: True}), "global") for by in ("scale_by_retention", "scale_by_mask")
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


# How settings say it --------------------------------------------------------------------------------------------------


def settings_of(**settings):
    return resolve(Settings(**{"agents": 4, "dataset": "digits", "model": "small", "retention": 0.3} | settings))


@pytest.mark.parametrize("algorithm", ["mce-pl", "score-gossip", "independent", "mask-mean"])
@pytest.mark.parametrize("preset", ["code", "tuned"])
def test_a_policy_drops_the_presets_retention_of_linear_layers(algorithm, preset):
    given = {"algorithm": algorithm, "preset": preset, "retention": "0.2:0.5"}
    assert settings_of(**given).linear_retention == 0.9
    for policy in ("uniform", "erk", *(["global"] if algorithm != "mask-mean" else [])):
        settings = settings_of(**given, retention_policy=policy)
        assert settings.linear_retention is None
        network = network_of(settings, (8, 8, 1), 10)
        hyper, schedules = population_hyper(settings, network)
        assert jax.tree.structure(hyper) == jax.tree.structure(schedules)
        weights, _ = jax.eval_shape(network.init, key_of(0))
        for agent, share in enumerate(np.linspace(0.2, 0.5, 4).tolist()):
            own = kept_by_policy(weights, network.roles, policy, share)
            assert jax.tree.map(lambda counts, agent=agent: int(counts[agent]), hyper.kept) == own


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            {"retention_policy": "uniform", "linear_retention": 0.9},
            "--linear-retention needs --retention-policy fixed-",
        ),
        ({"retention_policy": "erk", "linear_retention": "same"}, "--linear-retention needs --retention-policy fixed-"),
        ({"retention_policy": "global", "linear_retention": 0}, "--linear-retention needs --retention-policy fixed-"),
        (
            {"retention_policy": "global", "algorithm": "mask-mean"},
            "--retention-policy must be one of fixed-linear, uniform, erk with --algorithm mask-mean, got 'global'",
        ),
        (
            {"retention_policy": "global", "algorithm": "dis-pfl"},
            "--retention-policy means nothing to --algorithm dis-pfl, only to mce-pl, score-gossip, independent, mask-",
        ),
        ({"weights": "self-scaled", "algorithm": "dsgd", "retention": 0.3}, "--weights self-scaled is for masks of"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, sentence):
    flags = {"agents": 4} | flags
    with pytest.raises(ValueError, match=re.escape(sentence)):
        resolve(Settings(**flags))


def retentions(text, agents=20, seed=0, **settings):
    settings = settings_of(agents=agents, retention=text, seed=seed, **settings)
    return numbers_of(settings)["retention"].values.tolist()


def test_a_list_says_how_many_agents_have_each_retention():
    assert retentions("0.1*5,0.3*5,0.5*9,0.7") == [0.1] * 5 + [0.3] * 5 + [0.5] * 9 + [0.7]


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.integers(4, 40), st.integers(0, 2**32 - 1))
def test_retentions_are_dealt_by_the_seed_in_shares_as_equal_as_they_can_be(agents, seed):
    dealt = retentions("dealt:0.1,0.3,0.5,0.7", agents, seed)
    many = collections.Counter(dealt)
    assert sorted(many) == [0.1, 0.3, 0.5, 0.7]
    assert max(many.values()) - min(many.values()) == (agents % 4 > 0)
    assert dealt == retentions("dealt:0.1,0.3,0.5,0.7", agents, seed)


def test_seeds_deal_other_orders_also_of_a_list_and_linear_layers_get_the_same():
    text = "dealt:0.1*5,0.3*5,0.5*5,0.7*5"
    orders = {tuple(retentions(text, seed=seed)) for seed in range(5)}
    assert len(orders) == 5
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted([0.1, 0.3, 0.5, 0.7] * 5))}
    both = numbers_of(settings_of(agents=20, retention=text, linear_retention="same"))
    assert both["retention"].values.tolist() == both["linear_retention"].values.tolist() == retentions(text)
    assert retentions(f"{text}@cosine") == retentions(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.1*5,0.3*5", "--retention must give one number for each of 20 agents, got 10"),
        ("dealt:0.1*5,0.3", "--retention must give one number for each of 20 agents, got 6"),
        ("dealt:" + ",".join(["0.3"] * 21), "--retention must give at most one number for each of 20 agents, got 21"),
        ("0.1*0,0.3*20", "--retention must be a number, a comma list such as 0.1,0.3 or 0.1*5,0.3*15, low:high or dea"),
        ("0.1*2.5,0.3*20", "--retention must be a number, a comma list"),
        ("0.1*9999999999999,0.3", "--retention must give one number for each of 20 agents, got 10000000000000"),
        ("dealt:", "--retention must be a number, a comma list"),
        ("dealt:0.1:0.3", "--retention must be a number, a comma list"),
        ("dealt:0.1,1.3", "--retention must be in (0, 1], got 1.3 for agent"),
        ("delt:0.1,0.3", "--retention must be a number, a comma list"),
    ],
)
def test_a_wrong_list_is_refused(text, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        retentions(text)


TINY = {"agents": 8, "dataset": "digits", "model": "tiny", "topology": "ring", "batch_size": 8, "test_samples": 4}
TINY |= {"rounds": 4, "eval_every": 2, "preset": "tuned", "retention": "dealt:0.2,0.4"}


def test_every_seed_of_a_sweep_has_its_own_deal_in_one_program(monkeypatch):
    use_tiny_network(monkeypatch)
    members = members_of(Settings(**TINY), [{}], seeds=3)
    assert len({member.retentions for member in members}) == 3
    assert programs_of(members, range(3)) == [[0, 1, 2]]
    for member in members:
        assert sorted(member.retentions) == [0.2] * 4 + [0.4] * 4
        kept = member.hyper.kept["conv"]["kernel"]
        assert (np.argsort(kept, kind="stable") == np.argsort(member.retentions, kind="stable")).all()


def test_what_is_dealt_needs_semicolons_in_a_grid():
    with pytest.raises(ValueError, match="commas between values, and dealt: has some of its own: got retention=dealt"):
        axes_of(Sweep(dataset="digits", agents=4, grid=("retention=dealt:0.2,0.4",)))


def test_runs_of_fakes_end_with_what_each_class_of_device_came_to(tmp_path, monkeypatch, capsys):
    use_fakes(monkeypatch)
    use_tiny_network(monkeypatch)
    cifar.run(Settings(**TINY, out=tmp_path / "run"))
    said = capsys.readouterr().out
    assert "By class of device, that is by retention" in said
    [run] = report.read_all((tmp_path / "run",))
    rows, last = (
        devices.by_device(run.agents),
        json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]),
    )
    assert [row["retention"] for row in rows] == ["0.2", "0.4"]
    assert [row["agents"] for row in rows] == [4, 4]
    assert sum(row["sent_bits"] for row in rows) == pytest.approx(last["coded_bits"], abs=8)
    assert np.mean([row["accuracy_mean"] for row in rows]) == pytest.approx(last["accuracy_mean"], abs=1e-5)
    assert min(row["accuracy_worst"] for row in rows) == pytest.approx(last["accuracy_worst"], abs=1e-5)
    assert rows[0]["multiply_adds"] < rows[1]["multiply_adds"]
    for picture in (tmp_path / "run").glob("*.png"):
        picture.unlink()  # fakes draw none
    report.write(report.Report((tmp_path / "run",), tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "By class of device, that is by retention" in page
    assert "multiply-adds a sample" in page


def test_many_retentions_are_classed_by_quartile_and_one_is_no_class():
    row = {"accuracy": 0.5, "density": 0.5, "multiply_adds": 10, "sent_bits": 80}
    agents = [row | {"retention": share, "accuracy": share} for share in np.linspace(0.1, 0.9, 17).round(2).tolist()]
    rows = devices.by_device(agents)
    assert [own["retention"] for own in rows] == ["0.1 to 0.3", "0.35 to 0.5", "0.55 to 0.7", "0.75 to 0.9"]
    assert [own["agents"] for own in rows] == [5, 4, 4, 4]
    assert rows[0]["accuracy_worst"] == pytest.approx(0.1)
    assert devices.by_device(agents[:1] * 4) == []
    assert devices.by_device([own | {"retention": None} for own in agents]) == []
    # Of a run folder of an earlier version, or of weights, some columns are missing.
    [one, _] = devices.by_device(
        [own | {"density": None, "multiply_adds": None, "sent_bits": ""} for own in agents[:2]]
    )
    assert (one["density"], one["multiply_adds"], one["sent_bits"]) == (None, None, None)


@pytest.mark.slow
def test_a_run_by_one_threshold_keeps_each_agents_number_and_its_models_load(tmp_path, monkeypatch, capsys):
    """Masks change their shares of layers from round to round, and nobody is alarmed."""
    use_tiny_network(monkeypatch)
    flags = {
        "retention": "dealt:0.2,0.4@step:2:0.5",
        "preset": "code",
        "weights": "self-scaled",
        "elu_on_logits": False,
        "retention_policy": "global",
    }
    cifar.run(Settings(**TINY | flags, out=tmp_path))
    assert "its retention asks for" not in capsys.readouterr().out
    config, models = folders.read_config(tmp_path), load(tmp_path)
    assert config["settings"]["linear_retention"] is None
    sizes = {name: leaf.size for name, leaf in by_name(models.world.weights).items()}
    [run] = report.read_all((tmp_path,))
    shares = set()
    for number, row in enumerate(run.agents):
        kept = {name: int(own.sum()) for name, own in by_name(models.agent(number).masks).items()}
        # After two of four rounds a half of what all layers would keep if they kept alike.
        uniform = [round(masks.kept_entries(row["retention"], size) / 2) for size in sizes.values()]
        assert sum(kept.values()) == sum(uniform)
        assert row["density"] == pytest.approx(sum(uniform) / sum(sizes.values()), abs=1e-6)
        assert row["multiply_adds"] == 64 * kept["conv/kernel"] + kept["linear/kernel"]
        shares.add(tuple(kept.values()))
        weights_in_use = by_name(models.agent(number).variables["params"])
        for name, own in weights_in_use.items():
            fan_in = np.prod(own.shape[:-1])
            constant = np.sqrt(2 / (fan_in * kept[name] / sizes[name]))
            np.testing.assert_allclose(np.abs(own[own != 0]), constant, rtol=1e-5)
    assert len(shares) > 2
