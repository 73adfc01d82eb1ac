"""Masks against a stable sort in numpy: exact counts, ties, zeros, gradients, bits."""

import inspect

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dslth_jax import masks

SHAPE = (3, 4, 5)
SIZE = 60
DTYPES = ("float32", "float64")

threshold = jax.jit(masks.threshold)


def kept_by_sorting(values, count):
    """The oracle: a stable sort by falling magnitude, from which zeros are struck out."""
    magnitudes = np.abs(values).reshape(-1)
    order = np.argsort(-magnitudes, kind="stable")[:count]
    mask = np.zeros(magnitudes.size, values.dtype)
    mask[order[magnitudes[order] > 0]] = 1
    return mask.reshape(values.shape)


def drawn_arrays(dtype, shape=SHAPE):
    """Few values, so that most draws tie, among them both zeros, infinities and the least normal number."""
    tying = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, float(np.finfo(dtype).tiny), np.inf, -np.inf])
    any_float = st.floats(allow_nan=False, allow_subnormal=False, width=np.finfo(dtype).bits)
    return hnp.arrays(dtype, shape, elements=tying | any_float)


@pytest.mark.parametrize("dtype", DTYPES)
@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.data())
def test_threshold_keeps_what_a_stable_sort_keeps(dtype, data):
    values = data.draw(drawn_arrays(dtype))
    count = data.draw(st.integers(0, SIZE + 5))
    with jax.enable_x64(dtype == "float64"):
        mask = threshold(jnp.asarray(values), jnp.int32(count))
        assert mask.dtype == dtype
        np.testing.assert_array_equal(mask, kept_by_sorting(values, count))
        assert int(np.sum(mask)) == min(count, np.count_nonzero(values))


def test_a_ternary_mask_keeps_what_the_binary_one_keeps_with_its_signs_and_gradients_pass_to_every_entry():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)).round(1), jnp.float32)
    layers, counts = {"one": values[0], "other": values[1]}, {"one": 20, "other": 7}
    mask, pass_back = jax.vjp(lambda y: masks.signed_threshold(y, counts), layers)
    chex.assert_trees_all_equal(mask, jax.tree.map(lambda m, y: m * jnp.sign(y), threshold(layers, counts), layers))
    own = jax.tree.map(jnp.cos, layers)
    chex.assert_trees_all_equal(pass_back(own)[0], own)
    planes = masks.planes(mask["one"])
    chex.assert_trees_all_equal(planes["positive"] * 1.0 - planes["negative"], mask["one"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("retention", [0.001, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_a_whole_layer_keeps_its_exact_count(dtype, retention):
    """Rounded to 1/16, a layer's normal draws tie thousands of times, and thousands are 0."""
    values = np.random.default_rng(1).normal(size=(5, 5, 64, 16)).astype(dtype)
    for layer in (values, np.round(values * 16) / 16):
        count = masks.kept_entries(retention, layer.size)
        with jax.enable_x64(dtype == "float64"):
            mask = np.asarray(threshold(jnp.asarray(layer), count))
        np.testing.assert_array_equal(mask, kept_by_sorting(layer, count))
        assert mask.sum() == min(count, np.count_nonzero(layer))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.data())
def test_narrow_floats_keep_what_a_stable_sort_keeps(dtype, data):
    """Rounded to bfloat16 many tie; float16's subnormal numbers are numbers like all others."""
    tying = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 6e-8, np.inf, -np.inf])
    drawn = data.draw(hnp.arrays(np.float16, SHAPE, elements=tying | st.floats(allow_nan=False, width=16)))
    layer, count = jnp.asarray(drawn).astype(dtype), data.draw(st.integers(0, SIZE + 5))
    mask = threshold(layer, jnp.int32(count))
    assert mask.dtype == dtype
    values = np.asarray(layer.astype(jnp.float32))
    np.testing.assert_array_equal(mask.astype(jnp.float32), kept_by_sorting(values, count))


def test_a_count_above_the_size_keeps_all_that_is_not_zero(x64):
    """Even one that no int32 holds, whether it is traced or not."""
    values = jnp.arange(float(SIZE))
    both = jax.jit(lambda values, traced: [masks.threshold(values, count) for count in (traced, 2**40)])
    for mask in both(values, jnp.int64(2**31)):
        np.testing.assert_array_equal(mask, values > 0)


def test_the_lowest_flat_index_wins_a_tie():
    values = jnp.array([[1.0, -2.0, 2.0], [0.0, -1.0, 1.0]])
    np.testing.assert_array_equal(threshold(values, 1), [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(threshold(values, 3), [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(threshold(values, 4), [[1, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize("candidates", [1, 7])
def test_masks_do_not_depend_on_how_many_candidates_a_pass_has(candidates, monkeypatch):
    """Accelerators take more than CPUs do: each keeps what a sort keeps, where many tie and where few do."""
    monkeypatch.setattr(masks, "_candidates", lambda: candidates)
    keep = jax.jit(lambda values, count: masks.threshold(values, count))  # a trace of its own
    rng = np.random.default_rng(0)
    for count in range(0, SIZE + 4, 3):
        for values in (rng.normal(size=SHAPE), rng.integers(-2, 3, SHAPE), np.exp(30 * rng.normal(size=SHAPE))):
            values = values.astype(np.float32)
            np.testing.assert_array_equal(keep(values, jnp.int32(count)), kept_by_sorting(values, count))


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbouring_floats_are_told_apart(dtype):
    """The cut is exact to the last bit, where a sort of rounded keys would see a tie."""
    values = np.array([1, np.nextafter(np.ones((), dtype), 2, dtype=dtype), 1], dtype)
    with jax.enable_x64(dtype == "float64"):
        np.testing.assert_array_equal(threshold(jnp.asarray(values), 1), [0, 1, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_too_small_to_be_normal_do_not_break_the_count(dtype):
    """Processors may take them for zeros, so whether they are kept is open; that no more than `count` are is not."""
    values = np.full(SHAPE, np.finfo(dtype).tiny / 2, dtype)
    values[1, 2, 3] = 1
    with jax.enable_x64(dtype == "float64"):
        for count in (0, 1, 7):
            mask = np.asarray(threshold(jnp.asarray(values), jnp.int32(count)))
            assert mask.sum() <= count
            assert mask[1, 2, 3] == (count > 0)


@pytest.mark.parametrize("count", [0, 1, 60, 1000])
@pytest.mark.parametrize("value", [0.0, -3.0, np.inf])
def test_a_constant_layer_keeps_its_first_entries(value, count):
    values = np.full(SHAPE, value, np.float32)
    kept = min(count, SIZE) if value else 0
    np.testing.assert_array_equal(np.reshape(threshold(values, count), -1), np.arange(SIZE) < kept)


@pytest.mark.parametrize(
    ("retention", "size", "count"),
    [
        (0.3, 4_800, 1_440),
        (0.3, 204_800, 61_440),
        (0.3, 819_200, 245_760),
        (0.9, 196_608, 176_948),
        (0.9, 1_920, 1_729),
        (1.0, 1_920, 1_920),
    ],
)
def test_counts_are_those_of_the_authors_code(retention, size, count):
    assert masks.kept_entries(retention, size) == count


@jax.jit
def pulled(fused, count, cotangent):
    """What the derivative of masks makes of a cotangent."""
    return jax.vjp(lambda y: masks.threshold(y, count), fused)[1](cotangent)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_straight_through_to_every_magnitude(dtype):
    rng = np.random.default_rng(2)
    fused, cotangent = rng.normal(size=(2, *SHAPE)).astype(dtype)
    fused[0] = 0
    with jax.enable_x64(dtype == "float64"):
        gradient = pulled(jnp.asarray(fused), jnp.int32(7), jnp.asarray(cotangent))
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient, np.sign(fused) * cotangent)


def test_a_count_of_python_has_a_gradient_too():
    gradient = jax.grad(lambda y: jnp.sum(masks.threshold(y, 2)))(jnp.array([-3.0, 0.0, 1.0]))
    np.testing.assert_array_equal(gradient, [-1, 0, 1])


def test_forward_and_mixed_derivatives_are_straight_through_too():
    """Of the sum of m² s, whose gradient is 2 m s sign(s) + m² and whose second derivative 2 s + 4 m sign(s)."""
    scores, direction = np.random.default_rng(11).normal(size=(2, 9)).astype(np.float32)

    def one(scores):
        return jnp.sum(masks.threshold(scores, 4) ** 2 * scores)

    @jax.jit
    def derivatives(scores, direction):
        curved = jax.jvp(jax.grad(one), (scores,), (direction,))[1]
        return *jax.jvp(lambda s: masks.threshold(s, 4), (scores,), (direction,)), curved

    mask, along, curved = derivatives(scores, direction)
    np.testing.assert_array_equal(along, np.sign(scores) * direction)
    np.testing.assert_allclose(curved, (2 * scores + 4 * mask * np.sign(scores)) * direction, rtol=1e-5)


def test_under_vmap_every_agent_keeps_its_own_count():
    values = np.random.default_rng(3).integers(-3, 4, (9, *SHAPE)).astype(np.float32)
    counts = jnp.array([0, 1, 5, 17, 30, 44, 59, 60, 99], jnp.int32)
    together = jax.jit(jax.vmap(masks.threshold))(values, counts)
    for agent, mask in enumerate(together):
        np.testing.assert_array_equal(mask, threshold(values[agent], counts[agent]))
        np.testing.assert_array_equal(mask, kept_by_sorting(values[agent], int(counts[agent])))


def test_gradients_of_several_agents_are_those_of_each():
    fused, cotangents = np.random.default_rng(4).normal(size=(2, 5, *SHAPE)).astype(np.float32)
    gradients = jax.vmap(pulled)(fused, jnp.arange(5, dtype=jnp.int32), cotangents)
    np.testing.assert_array_equal(gradients, np.sign(fused) * cotangents)


def test_another_count_does_not_compile_again():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(fused, count):
        return masks.threshold(fused, count)

    fused = jnp.arange(1.0, 13.0)
    kept = [int(traced(fused, jnp.int32(count)).sum()) for count in (0, 3, 7, 12, 20)]
    assert kept == [0, 3, 7, 12, 12]


def test_fuse_adds_the_neighbours_with_the_sign_of_the_score(x64):
    rng = np.random.default_rng(5)
    scores, mean = rng.normal(size=SHAPE), rng.uniform(size=SHAPE)
    scores[1] = 0
    amplitude = 0.7 * np.abs(scores).mean()
    fused = np.asarray(masks.fuse(jnp.asarray(scores), jnp.asarray(mean), 0.7))
    np.testing.assert_allclose(fused, scores + amplitude * np.sign(scores) * mean, rtol=1e-14)
    np.testing.assert_array_equal(fused[1], 0)


def test_fuse_by_default_has_the_mean_magnitude_as_amplitude():
    fused = masks.fuse(jnp.array([2.0, -4.0]), jnp.array([1.0, 0.5]))
    np.testing.assert_array_equal(fused, [2 + 3, -4 - 1.5])


def test_only_the_scores_carry_a_gradient_through_fuse():
    rng = np.random.default_rng(6)
    scores, cotangent = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    mean = rng.uniform(size=SHAPE).astype(np.float32)
    _, pull = jax.vjp(masks.fuse, scores, mean, jnp.float32(0.7))
    to_scores, to_mean, to_amplitude = pull(cotangent)
    np.testing.assert_array_equal(to_scores, cotangent)
    np.testing.assert_array_equal(to_mean, 0)
    assert to_amplitude == 0


def test_density_is_the_share_kept():
    assert masks.density(jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])) == np.float32(1 / 3)


LENGTHS = range(1, 71)


def bits_by_numpy(mask):
    """Byte k holds the entries k, k + bytes, k + 2 bytes, ..., lowest bit first."""
    flat = mask.reshape(-1) != 0
    return np.packbits(np.pad(flat, (0, -flat.size % 8)).reshape(8, -1), axis=0, bitorder="little")[0]


def test_bits_of_any_length_are_numpys_and_come_back():
    rng = np.random.default_rng(7)
    drawn = [rng.integers(0, 2, length).astype(np.float32) for length in LENGTHS]
    # All lengths in one program: seventy small ones would compile for seconds.
    packed = jax.jit(lambda many: [masks.pack(mask) for mask in many])(drawn)
    unpacked = jax.jit(lambda many: [masks.unpack(bits, (n,)) for bits, n in zip(many, LENGTHS, strict=True)])(packed)
    for mask, bits, back in zip(drawn, packed, unpacked, strict=True):
        assert bits.shape == (-(-mask.size // 8),)
        assert bits.dtype == back.dtype == jnp.uint8
        np.testing.assert_array_equal(bits, bits_by_numpy(mask))
        np.testing.assert_array_equal(back, mask)


def test_bits_keep_the_shape_and_see_any_non_zero_as_kept():
    mask = np.array([[[0.5, 0.0], [-2.0, 1.0], [0.0, -0.0]]], np.float32)
    bits = masks.pack(jnp.asarray(mask))
    np.testing.assert_array_equal(masks.unpack(bits, mask.shape), mask != 0)


def test_bits_of_several_agents_are_those_of_each():
    drawn = np.random.default_rng(8).integers(0, 2, (4, 3, 7)).astype(np.float32)
    bits = jax.vmap(masks.pack)(drawn)
    np.testing.assert_array_equal(bits, [bits_by_numpy(mask) for mask in drawn])
    np.testing.assert_array_equal(jax.vmap(lambda b: masks.unpack(b, (3, 7)))(bits), drawn)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(hnp.arrays(np.uint8, (2, 3, 5), elements=st.integers(0, 1)), st.integers(0, 7))
def test_few_entries_are_dropped_by_filter_unless_the_layer_has_few(mask, smallest):
    kept = mask.sum(axis=(0, 1))
    expected = np.where((kept <= smallest) & (kept.mean() > smallest), 0, mask)
    np.testing.assert_array_equal(masks.drop_filters(jnp.asarray(mask, jnp.float32), smallest), expected)


def test_a_layer_whose_filters_all_have_few_keeps_them():
    mask = jnp.eye(4)
    np.testing.assert_array_equal(masks.drop_filters(mask, 1), mask)


def test_dropped_filters_pass_their_gradient_on():
    mask = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    weights = jnp.arange(6.0).reshape(3, 2)
    gradient = jax.grad(lambda m: jnp.sum(weights * masks.drop_filters(m, 1)))(mask)
    np.testing.assert_array_equal(gradient, weights)


def test_no_number_of_float16_is_small_enough_to_revive_a_zero():
    with pytest.raises(ValueError, match="must be float32, float64 or bfloat16, got float16"):
        masks.revive(jnp.zeros(2, jnp.float16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_revived_zero_is_fused_and_gets_a_gradient_again(dtype):
    with jax.enable_x64(dtype == "float64"):
        scores = jnp.array([0.0, -0.0, 1.0, -2.0, 0.0], dtype)
        mean = jnp.array([1.0, 0.0, 0.0, 0.0, 0.5], dtype)

        def kept(scores, revive):
            return masks.threshold(masks.fuse(masks.revive(scores) if revive else scores, mean, 10.0), 2)

        weights = jnp.arange(1, 6, dtype=dtype)
        pull = lambda z, revive: jax.vjp(lambda z: kept(z, revive), z)[1](weights)[0]  # noqa: E731
        both = jax.jit(lambda z: [own(z, revive) for own in (kept, pull) for revive in (False, True)])(scores)
        expected = [0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 0, 3, -4, 0], [1, 2, 3, -4, 5]
        np.testing.assert_array_equal(both, expected)
        assert masks.revive(scores).dtype == dtype


# Several layers in one search.

LAYERS = {"conv": (2, 3, 2), "linear": [(7,), (5, 4), (1, 1)]}


def is_shape(node):
    return isinstance(node, tuple)


@pytest.mark.parametrize("dtype", DTYPES)
@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.data())
def test_layers_together_keep_what_each_keeps_alone(dtype, data):
    """Each its own count of its own entries, from none to more than there are, whatever the others need."""
    layers = jax.tree.map(lambda shape: data.draw(drawn_arrays(dtype, shape)), LAYERS, is_leaf=is_shape)
    counts = jax.tree.map(lambda layer: data.draw(st.integers(0, layer.size + 2)), layers)
    with jax.enable_x64(dtype == "float64"):
        together = threshold(layers, jax.tree.map(jnp.int32, counts))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(together)} == {dtype}
        chex.assert_trees_all_equal(jax.device_get(together), jax.tree.map(kept_by_sorting, layers, counts))


def test_layers_of_several_agents_keep_each_agents_counts():
    rng = np.random.default_rng(9)
    layers = jax.tree.map(lambda s: rng.integers(-3, 4, (6, *s)).astype(np.float32), LAYERS, is_leaf=is_shape)
    counts = jax.tree.map(lambda layer: rng.integers(0, layer[0].size + 2, 6, np.int32), layers)
    together = jax.device_get(jax.jit(jax.vmap(masks.threshold))(layers, counts))
    for agent in range(6):
        own, few, kept = jax.tree.map(lambda leaf, agent=agent: leaf[agent], (layers, counts, together))
        chex.assert_trees_all_equal(kept, jax.tree.map(kept_by_sorting, own, few))


def test_the_gradient_of_layers_is_that_of_each():
    rng = np.random.default_rng(10)
    fused, cotangents = (
        jax.tree.map(lambda shape: rng.normal(size=shape).astype(np.float32), LAYERS, is_leaf=is_shape) for _ in "12"
    )
    counts = jax.tree.map(lambda layer: layer.size // 3, fused)
    pull = jax.jit(lambda y, cotangents: jax.vjp(lambda y: masks.threshold(y, counts), y)[1](cotangents))
    expected = jax.tree.map(lambda y, cotangent: np.sign(y) * cotangent, fused, cotangents)
    chex.assert_trees_all_equal(jax.device_get(pull(fused, cotangents)[0]), expected)


def test_layers_of_two_dtypes_are_refused():
    """The search is among bit patterns of one length."""
    with pytest.raises(ValueError, match="must be of one floating dtype, got float32, bfloat16"):
        masks.threshold([jnp.ones(3), jnp.ones(3, jnp.bfloat16)], [1, 1])


TWO = {"a": jnp.ones(3), "b": jnp.ones(4)}


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (0.5, r"be a whole number of entries, got float32 0.5: for a share of them say kept_entries\(share, size\)"),
        (3.0, "be a whole number of entries, got float32 3.0: "),
        (np.float32(0.5), "be a whole number of entries, got float32 0.5: "),
        (True, "be a whole number of entries, got bool True: "),
        (jnp.array([1, 3]), r"be a whole number of entries, got an array of \(2,\): "),
        (-1, "not be negative, got -1: to keep nothing say 0"),
        (jnp.int32(-2), "not be negative, got -2: "),
    ],
)
def test_a_count_that_is_none_is_refused(count, sentence):
    unchecked = inspect.unwrap(masks.threshold)  # else the types of arguments are refused before
    for function in (lambda fused: unchecked(fused, count), jax.jit(lambda fused: unchecked(fused, count))):
        with pytest.raises(ValueError, match=f"^count must {sentence}"):
            function(jnp.ones(3))


def test_a_traced_share_is_refused():
    with pytest.raises(ValueError, match="must be a whole number of entries, got float32"):
        jax.jit(inspect.unwrap(masks.threshold))(jnp.ones(3), 0.5)


@pytest.mark.parametrize("count", [2, {"a": 1}, [1, 1], {"a": 1, "b": [1]}])
def test_counts_in_another_structure_than_the_layers_are_refused(count):
    sentence = r"count must be a whole number for each layer, PyTreeDef.*: for one share of every layer say"
    with pytest.raises(ValueError, match=sentence):
        masks.threshold(TWO, count)
