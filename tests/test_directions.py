"""What experiments find at the smallest size, by training on digits where it takes that: each asserts the direction
that cannot be chance, and no other. Those of the theorem stand in test_theorem, of majorities in test_comparison."""

import csv

import pytest
from comparisons import COMPARISONS
from fakes import use_fakes
from tiny import use_tiny_network

from dslth_jax.study import commands
from dslth_jax.study.config import command
from dslth_jax.study.results import gains, points
from dslth_jax.study.results.points import Sweep
from dslth_jax.study.sweeping import comparison

SMALL = ["--dataset", "digits", "--resize", "8", "--agents", "6", "--rounds", "40", "--eval-every", "40"]
SMALL += ["--batch-size", "16"]

pytestmark = pytest.mark.slow


def trained(name: str, folder, flags: str, *only: str) -> Sweep:
    """A comparison after training, of these arms alone where some are named."""
    settings = command.parse([*SMALL, *flags.split(), "--out", str(folder)], COMPARISONS[name], "experiments.test")
    arms = settings.arms()
    assert {*only} <= {*arms}, [*arms]
    study = commands.sweep_of(*comparison.shared_and_own(settings, {arm: arms[arm] for arm in only or arms}), settings)
    commands.whole(study)
    found = points.read(folder, name)
    assert isinstance(found, Sweep)
    return found


def column(found: Sweep, key: str) -> dict[str, float]:
    """A number of every arm's row of results.csv, by its name."""
    return {point.values["arm"]: point.result[key] for point in found.points}


def agents_of(found: Sweep, arm: str) -> list[dict[str, str]]:
    """The rows of agents.csv of an arm's first seed."""
    (path,) = (found.folder / "runs").glob(f"*arm={arm.replace(': ', '__').replace(' ', '_')},seed=0/agents.csv")
    with path.open() as file:
        return [*csv.DictReader(file)]


def test_masks_take_a_small_part_of_the_bits_of_weights_and_rarer_ones_less(tmp_path):
    found = trained("thousandfold", tmp_path, "--model small --seeds 1 --mask-intervals 1,5 --weight-intervals 1")
    coded, floats = column(found, "coded_mb"), column(found, "float32_mb")
    assert coded["force, every 5"] < coded["force, every 1"] / 2
    assert coded["force, every 1"] < floats["weights, every 1"] / 20
    assert not coded["alone"]


def test_images_of_all_agents_are_worth_more_than_ones_own(tmp_path):
    found = trained(
        "neighbours",
        tmp_path,
        "--model small --seeds 3 --data-fraction 0.05 --rounds 120 --eval-every 120",
        "alone",
        "pooled",
    )
    assert gains.over(found.points)["pooled"].low > 0


def test_masks_multiply_less_than_weights_at_a_32nd_of_the_bits_whatever_the_width(tmp_path, monkeypatch):
    use_fakes(monkeypatch)  # sizes need no training
    models = trained("width", tmp_path, "--seeds 1 --widths 0.25 --depths 2 --rounds 1 --eval-every 1").config["models"]
    for width in ("width 0.25", "width 1", "depth 2"):
        masks, weights = (models[f"{width}: {kind}"] for kind in ("masks", "weights"))
        assert masks["multiply_adds"] < weights["multiply_adds"]
        assert weights["model_bits"] == 32 * masks["model_bits"]


def test_devices_that_multiply_what_they_keep_are_done_sooner_where_they_keep_less(tmp_path):
    flags = "--model small --seeds 1 --scenario one-slow --retentions 0.1,0.3,0.7"
    found = trained("budgets", tmp_path, flags, "0.1", "0.3", "0.7", "alone")
    seconds = {point.values["arm"]: point.members[0][-1]["simulated_seconds"] for point in found.points}
    assert seconds["0.1"] < seconds["0.3"] < seconds["0.7"]
    assert seconds["alone"] < seconds["0.3"]  # it keeps 0.3, too, and sends nothing


def test_unlike_agents_keep_what_they_were_dealt(tmp_path):
    flags = "--model small --seeds 1 --dealt 0.2,0.6 --run-folders"
    found = trained("unlike", tmp_path, flags, "unlike: alone", "unlike: force")
    for arm in ("unlike: alone", "unlike: force"):
        agents = agents_of(found, arm)
        assert sorted(row["retention"] for row in agents) == ["0.2"] * 3 + ["0.6"] * 3
        assert all(float(row["density"]) == pytest.approx(float(row["retention"]), abs=0.01) for row in agents)


def test_shallow_agents_multiply_and_send_less(tmp_path):
    flags = "--model resnet20 --width 0.1 --seeds 1 --run-folders --rounds 10 --eval-every 10"
    found = trained("depths", tmp_path, flags, "all shallow: force", "mixed: force", "mixed: gossip", "all deep: force")
    coded = column(found, "coded_mb")
    assert coded["all shallow: force"] < coded["mixed: force"] < coded["all deep: force"]
    assert coded["mixed: gossip"] > coded["mixed: force"]  # signs of scores, where masks turn in few entries
    by_depth = {row["depth"]: int(row["multiply_adds"]) for row in agents_of(found, "mixed: force")}
    assert by_depth["3"] < by_depth["9"]


def test_weights_of_neighbours_without_a_class_in_common_are_worth_less_than_of_those_with_the_same(
    tmp_path, monkeypatch
):
    """For all of three seeds: what is shared by all layers is dear where neighbours hold other classes."""
    use_tiny_network(monkeypatch)
    arms = [
        f"overlap {overlap}: {rule}" for overlap in (0, 1) for rule in ("alone", "weights", "weights, personal head")
    ]
    gained = gains.over(
        trained("boundary", tmp_path, "--model tiny --agents 10 --overlaps 0,1 --alphas None", *arms).points
    )
    assert gained["overlap 1: weights"].mean > gained["overlap 0: weights"].mean + 0.05
