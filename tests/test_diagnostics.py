"""Failure signatures: each is said when it shows, once, and not of runs that are well."""

import numpy as np
import pytest
from fakes import use_fakes
from tiny import use_tiny_network

from dslth_jax.class_lists import window_classes
from dslth_jax.evaluation import Evaluation
from dslth_jax.graph_report import report
from dslth_jax.graphs import adjacency_of
from dslth_jax.study.config.resolve import network_of, resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.spellings import topology_of
from dslth_jax.study.training.diagnostics import PATIENCE, STRETCHES, WINDOW, Symptoms, at_the_seam
from experiments import cifar

AGENTS = 4
WEIGHTS = {"conv": {"kernel": np.zeros((3, 3, 1, 4))}, "linear": {"kernel": np.zeros((16, 2))}}
ENTRIES = 36 + 32
WANTED = {"conv": {"kernel": np.full(AGENTS, 18)}, "linear": {"kernel": np.full(AGENTS, 29)}}


def watch(topology="ring", **settings):
    """The symptoms of a run that has not begun: four agents, each tested on as many samples of either class."""
    settings = resolve(Settings(dataset="digits", agents=AGENTS, topology=topology, **settings))
    graph, redraw = topology_of(topology, AGENTS, 0)
    lasting = report(adjacency_of(graph)) if redraw is None else None
    return Symptoms(settings, lasting, WEIGHTS, chance=0.5)


def info(*, conv=(18,) * AGENTS, flipped=0, listeners=2):
    """The driver's diagnostics of one round."""
    return {
        "kept": {"conv/kernel": np.array(conv), "linear/kernel": WANTED["linear"]["kernel"]},
        "wanted": WANTED,
        "flipped": np.full(AGENTS, flipped),
        "listeners": np.full(AGENTS, listeners),
    }


def said_over(symptoms, rounds):
    """Every sentence over rounds of diagnostics, with the round it came in."""
    rates = [seen["flipped"].mean() / ENTRIES for seen in rounds]
    each = enumerate(zip(rounds, rates, strict=True), 1)
    return [(round, line) for round, (seen, rate) in each for line in symptoms.after_round(round, seen, rate)]


def test_a_run_that_is_well_says_nothing():
    symptoms = watch()
    falling = [info(flipped=max(20 - round // 20, 1) + (round % 3 == 0)) for round in range(400)]
    assert list(symptoms.at_start) == []
    assert said_over(symptoms, falling) == []
    assert [list(symptoms.after_evaluation(25 * i, accuracies(0.5 + 0.03 * i))) for i in range(10)] == [[]] * 10


@pytest.mark.parametrize(
    ("model", "flags", "is_said"),
    [
        ("mlp", {"retention": 0.5}, True),
        ("vit-tiny", {"retention": 0.5}, True),
        ("mlp", {}, False),
        ("mlp", {"retention": 0.5, "linear_retention": "same"}, False),
        ("conv3", {"retention": 0.5}, False),
        ("mlp", {"retention": 0.5, "algorithm": "fedmrn"}, None),
    ],
)
def test_a_retention_of_no_layer_is_said(model, flags, is_said):
    """A sweep over it would train the same again and again."""
    try:
        settings = resolve(Settings(dataset="digits", agents=AGENTS, model=model, **flags))
    except ValueError:
        assert is_said is None  # an algorithm without masks of scores has no such flag
        return
    said = Symptoms(settings, None, WEIGHTS, 0.5, network_of(settings, (8, 8, 1), 10).roles).at_start
    wanted = (
        f"--retention 0.5 changes nothing, for --model {model} has no convolutions: "
        f"say --linear-retention, which is 0.9"
    )
    assert said == [wanted] * is_said


def test_a_layer_of_zeros_is_said_once():
    said = said_over(watch(), [info(), info(conv=(18, 0, 18, 0)), info(conv=(0,) * AGENTS)])
    assert [round for round, _ in said] == [2]
    assert said[0][1].startswith("all filters of conv are zero in 2 agents (first: 1) in round 2")


def test_a_density_off_its_retention_is_said_once():
    said = said_over(watch(), [info(), info(conv=(18, 18, 9, 18)), info(conv=(9,) * AGENTS)])
    assert [round for round, _ in said] == [2]
    assert "agent 2 keeps 25.0% of conv in round 2, its retention asks for 50.0%" in said[0][1]


def test_the_filter_rule_may_keep_less():
    assert said_over(watch(filter_rule=3), [info(conv=(9,) * AGENTS)]) == []


def test_flips_that_do_not_fall_are_said_once():
    said = said_over(watch(lr=7), [info(flipped=10)] * (STRETCHES * WINDOW + 50))
    # The first exchange replaces random start masks and is left out.
    assert [round for round, _ in said] == [STRETCHES * WINDOW + 1]
    assert "does not fall" in said[0][1]
    assert "--lr 7@cosine" in said[0][1]


def test_flips_are_a_share_of_the_bits_that_are_sent():
    """Of ternary masks there are twice as many bits as entries: the share is that of metrics."""
    symptoms, rate = watch(mask="ternary"), 10 / (2 * ENTRIES)
    rounds = range(STRETCHES * WINDOW + 50)
    said = [line for round in rounds for line in symptoms.after_round(round, info(flipped=10), rate)]
    assert len(said) == 1
    assert f"{rate:.3%}" in said[0]


def test_flips_in_silent_rounds_do_not_count():
    rounds = [info(flipped=10, listeners=0)] * 1000
    assert said_over(watch(), rounds) == []


def test_flips_that_oscillate_are_said_once():
    falling_but_to_and_fro = [
        info(flipped=round % 2 * max(40 - round // 10, 4)) for round in range(STRETCHES * WINDOW + 50)
    ]
    said = said_over(watch(), falling_but_to_and_fro)
    assert len(said) == 1
    assert "oscillates" in said[0][1]


def accuracies(mean):
    return Evaluation(np.full(AGENTS, mean), np.full(AGENTS, 0.5), None)


def test_accuracy_at_chance_for_long_is_said_once():
    symptoms = watch()
    said = [list(symptoms.after_evaluation(25 * i, accuracies(0.505))) for i in range(8)]
    assert [len(lines) for lines in said] == [0] * PATIENCE + [1] + [0] * (7 - PATIENCE)
    assert "50.5% after round 75, chance level 50.0%" in said[PATIENCE][0]


def test_who_has_one_class_is_not_at_chance_where_all_is_right():
    symptoms = watch()
    symptoms.chance = 1.0
    assert [list(symptoms.after_evaluation(25 * i, accuracies(1.0))) for i in range(8)] == [[]] * 8


def test_a_good_evaluation_in_between_starts_the_patience_anew():
    symptoms = watch()
    course = [0.5, 0.5, 0.5, 0.9, 0.5, 0.5]
    assert [list(symptoms.after_evaluation(25 * i, accuracies(mean))) for i, mean in enumerate(course)] == [[]] * 6


@pytest.mark.parametrize(
    ("topology", "sentence"),
    [
        ("erdos-renyi:0", "4 of 4 agents hear nobody and learn alone: 0, 1, 2, 3"),
        ("regular:1", "the graph is not connected: some agents' messages never reach some others"),
    ],
)
def test_what_the_graph_lets_expect_is_said_at_the_start(topology, sentence):
    assert list(watch(topology=topology).at_start) == [sentence]


def test_a_step_of_fine_tuning_that_does_not_follow_is_said():
    assert "--fine-tune-lr same" in watch(lr="10@cosine").at_start[0]
    for follows in (
        {"lr": 10},
        {"lr": 5, "fine_tune_lr": "same"},
        {"lr": 5, "fine_tune_lr": 2},
        {"preset": "tuned", "lr": 0.01},
    ):
        assert list(watch(**follows).at_start) == []


def test_windows_that_do_not_close_on_a_ring_are_said():
    """Of five agents that move by two of ten classes the last and the first share what all others do; of four none."""
    for agents, topology, said in (
        (5, "ring", []),
        (1, "ring", []),
        (4, "complete", []),
        (
            4,
            "ring",
            [
                "the last agent and the first share 0 classes, all other neighbours on the ring 2: take a multiple of "
                "5 agents, with which the classes go round"
            ],
        ),
    ):
        windows = window_classes(agents, 10, 4, 0.5, np.random.default_rng(0))
        held = np.array([[3 * (label in own) for label in range(10)] for own in windows])
        settings = resolve(Settings(dataset="digits", agents=agents, topology=topology, class_overlap=0.5))
        assert at_the_seam(settings, held) == said


def test_graphs_that_change_are_not_judged_by_their_first_round():
    assert list(watch(topology="changing-regular:1").at_start) == []


FEW = ["--dataset", "digits", "--model", "tiny", "--agents", "2", "--topology", "erdos-renyi:0", "--rounds", "4"]


def warnings_of(capsys) -> list[str]:
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(set(warnings)) == len(warnings)
    return warnings


def test_the_command_says_them_among_its_lines(tmp_path, capsys, monkeypatch):
    use_tiny_network(monkeypatch)
    use_fakes(monkeypatch)
    assert cifar.main([*FEW, "--lr", "5", "--out", str(tmp_path / "run")]) == 0
    steps, alone = warnings_of(capsys)
    assert "--lr is 5.0 and --fine-tune-lr 10.0" in steps
    assert "hear nobody" in alone


@pytest.mark.slow
def test_a_group_lasso_that_kills_every_filter_is_said(tmp_path, capsys, monkeypatch):
    """On real digits."""
    use_tiny_network(monkeypatch)
    assert cifar.main([*FEW, "--test-samples", "3", "--group-lasso", "1e-1", "--out", str(tmp_path / "run")]) == 0
    assert any("all filters of" in line for line in warnings_of(capsys))
