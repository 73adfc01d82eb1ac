"""Settings: what presets stand for, what flags beside them do, and the numbers that the compiled round gets."""

import dataclasses
import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import use_fakes
from tiny import use_tiny_network

from dslth_jax import augment
from dslth_jax.algorithms import local
from dslth_jax.algorithms.masked import MaskRule
from dslth_jax.algorithms.mce_pl import Hyper
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.schedules import constant
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS, Row, table, with_own_settings
from dslth_jax.study.config.command import help_of, parse
from dslth_jax.study.config.numbers import population_hyper
from dslth_jax.study.config.resolve import algorithm_of, resolve
from dslth_jax.study.config.setting import setting, within
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.config.spellings import GRAPHS
from dslth_jax.study.data import datasets
from dslth_jax.study.sweeping.grid import Sweep, axes_of, points_of
from dslth_jax.study.training import programs
from dslth_jax.study.training.plan import fingerprints, plan
from dslth_jax.study.training.prepare import members_of, prepare
from experiments import cifar

NETWORK = network_by_name("small", (8, 8, 1), 10)
ANOTHER = {
    "order": "paper",
    "fine_tune_gradient": "recomputed",
    "group_lasso": 0.5,
    "elu_on_logits": False,
    "weights": "uniform",
    "biases": "zero",
    "linear_retention": 0.4,
    "optimizer": "momentum",
    "lr": 3.0,
    "weight_decay": 0.125,
    "fine_tune_lr": "2@step:5",
    "augment": "crop",
    "mask_sent": "own",
    "personal_layers": "linear1",
}
ANOTHER_FUSION = {"tensor": "force", "force": "tensor"}
# What means something with the aggregation tensor alone.
OF_TENSOR = ("order", "fine_tune_gradient", "fine_tune_lr")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_stands_for_its_switches(preset):
    resolved = resolve(Settings(preset=preset, retention=0.25))
    same = {"fine_tune_lr": resolved.lr, "linear_retention": 0.25, "augment": "flip-crop"}
    idle = dict(zip(OF_TENSOR, (None, None, 0.0), strict=True)) if resolved.fusion == "force" else {}
    for name, value in (PRESETS[preset] | idle).items():
        assert getattr(resolved, name) == (same[name] if value in ("same", "by-data") else value)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", PRESETS["code"])
def test_a_flag_beside_a_preset_wins(preset, name):
    # Another optimizer than the preset's wants step sizes said beside it: say the preset's own.
    beside = {step: PRESETS[preset][step] for step in ("lr", "fine_tune_lr")} if name == "optimizer" else {}
    beside |= {"fusion": "tensor"} if name in (*OF_TENSOR, "optimizer", "lr") else {}
    other = ANOTHER_FUSION[PRESETS[preset]["fusion"]] if name == "fusion" else ANOTHER[name]
    resolved = resolve(Settings(preset=preset, **beside, **{name: other}))
    plain = resolve(Settings(preset=preset, fusion=beside.get("fusion")))
    assert getattr(resolved, name) == other
    # And nothing else changes, but for what follows the step size, or means nothing to the other fusion.
    follows = {"fine_tune_lr"} if name == "lr" and PRESETS[preset]["fine_tune_lr"] == "same" else set()
    follows |= {*OF_TENSOR, "amplitude", "force"} if name == "fusion" else set()
    # The strength of the group lasso is relative where tuned has one.
    follows |= {"group_lasso_strength"} if (name, preset) == ("group_lasso", "tuned") else set()
    changed = {field for field, value in dataclasses.asdict(resolved).items() if value != getattr(plain, field)}
    assert changed - {name} == follows


@pytest.mark.parametrize("name", [*OF_TENSOR, "fine_tune_weight", "amplitude"])
def test_a_flag_of_the_tensor_is_refused_beside_a_force(name):
    """Unless it is 0, which says that there is nothing of it."""
    given = {"fine_tune_weight": "touched", "amplitude": 0.5, **ANOTHER}[name]
    with pytest.raises(ValueError, match="needs --fusion tensor: say it, or leave"):
        resolve(Settings(preset="tuned", **{name: given}))
    assert resolve(Settings(preset="tuned", amplitude=0.0, fine_tune_lr=0.0)) == resolve(Settings(preset="tuned"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_images_are_varied_by_the_preset_and_the_data_whatever_the_algorithm(algorithm, tmp_path):
    """Unless a flag says otherwise."""
    by_data = {"cifar10": "flip-crop", "cifar100": "flip-crop", "svhn_cropped": "crop"}
    for dataset in datasets.READERS:
        for preset in PRESETS:
            own = {"algorithm": algorithm, "preset": preset, "dataset": dataset}
            expected = by_data.get(dataset, "none") if preset == "tuned" else "none"
            assert resolve(Settings(**own)).augment == expected
            assert resolve(Settings(**own, augment="crop")).augment == "crop"
    assert resolve(Settings(algorithm=algorithm, preset="tuned", data_file=tmp_path / "x.npz")).augment == "none"


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_resolved_is_settings_again(preset):
    """So that a run folder's config.json can be run again."""
    resolved = resolve(Settings(preset=preset, classes_per_agent=3, retention="0.1:0.3", agents=5))
    assert resolve(resolved) == resolved


def test_another_optimizer_wants_its_own_step_sizes():
    with pytest.raises(ValueError, match=r"--optimizer adam needs step sizes of its own, .* --lr 10.0 and --fine-tune"):
        resolve(Settings(optimizer="adam"))
    with pytest.raises(ValueError, match=r"leaves it --fine-tune-lr 10.0, meant for sgd"):
        resolve(Settings(optimizer="adam", lr=0.01))
    assert resolve(Settings(optimizer="adam", lr=0.01, fine_tune_lr="same")).fine_tune_lr == 0.01


def test_a_list_of_retentions_is_taken():
    assert hyper_of(retention=[0.1, 0.2, 0.3])[0].kept["conv1"]["kernel"].tolist() == [29, 58, 87]


@pytest.mark.parametrize(
    ("flags", "spelling"),
    [
        ({}, "classes:4"),
        ({"classes_per_agent": 2}, "classes:2"),
        ({"dirichlet_alpha": 0.3}, "dirichlet:0.3"),
        ({"class_overlap": 0.5}, "overlapping:0.5:4"),
        ({"class_overlap": 0.5, "classes_per_agent": 2}, "overlapping:0.5:2"),
        ({"owner_file": "owners.csv"}, "owner"),
        ({"partition": "iid"}, "iid"),
    ],
)
def test_every_way_to_ask_for_a_partition(flags, spelling):
    resolved = resolve(Settings(**flags))
    assert resolved.partition == spelling
    assert resolve(resolved) == resolved


def hyper_of(**settings):
    return population_hyper(resolve(Settings(agents=3, **settings)), NETWORK)


def test_the_round_gets_each_agents_numbers():
    hyper, schedules = hyper_of(retention="0.1,0.2,0.3", lr=2.0, weight_decay="0.5@cosine")
    sizes = {"conv1": 288, "conv2": 18_432, "linear1": 32_768, "linear2": 1_280}
    for layer, size in sizes.items():
        retentions = [0.9] * 3 if layer.startswith("linear") else [0.1, 0.2, 0.3]
        np.testing.assert_array_equal(hyper.kept[layer]["kernel"], [size - int((1 - r) * size) for r in retentions])
    assert hyper.lr.tolist() == [2.0] * 3
    assert hyper.weight_decay.tolist() == [0.5] * 3
    assert schedules.lr is constant
    assert float(schedules.weight_decay(jnp.int32(200))) == pytest.approx(0.5, abs=1e-6)
    assert jax.tree.structure(hyper) == jax.tree.structure(schedules)


def test_linear_layers_keep_their_own_share_or_the_same():
    own, _ = hyper_of(retention="0.1:0.3", linear_retention="same")
    np.testing.assert_array_equal(own.kept["linear2"]["kernel"], [128, 256, 384])
    one, _ = hyper_of(retention="0.1:0.3", linear_retention=0.5)
    np.testing.assert_array_equal(one.kept["linear2"]["kernel"], [640] * 3)


def test_retentions_follow_schedules_of_their_own():
    _, schedules = hyper_of(retention="0.4@step:10:0.5", linear_retention="0.8@cosine")
    half = jnp.int32(200)
    assert float(schedules.kept["conv1"]["kernel"](jnp.int32(25))) == 0.25
    assert float(schedules.kept["linear1"]["kernel"](half)) == pytest.approx(0.5, abs=1e-6)
    _, shared = hyper_of(retention="0.4@step:10:0.5", linear_retention="same")
    assert float(shared.kept["linear1"]["kernel"](jnp.int32(25))) == 0.25


def test_steps_of_fine_tuning_follow_the_local_steps_where_they_are_the_same():
    hyper, schedules = hyper_of(preset="tuned", fusion="tensor", lr="0.5@warm-up:2")
    assert hyper.fine_tune_lr.tolist() == [0.5] * 3
    assert float(schedules.fine_tune_lr(jnp.int32(0))) == 0.5


@pytest.mark.parametrize("name", [name for name in Hyper._fields if name != "kept"])
def test_every_number_of_the_round_may_follow_a_schedule(name):
    _, schedules = hyper_of(**{name: "0.25@step:1:0.5"}, fusion="force" if name == "force" else "tensor")
    assert float(getattr(schedules, name)(jnp.int32(3))) == 0.125


def test_everything_that_is_prepared_fits_together():
    """Dirichlet shares, turned views, a weighted graph: agents, samples and edges agree in number."""
    prepared = prepare(
        Settings(dataset="digits", agents=6, dirichlet_alpha=0.5, feature_skew="rotation:45", mixing="metropolis")
    )
    assert prepared.train.indices.shape[0] == prepared.tests.sizes.shape[0] == 6
    assert (prepared.tests_while_running <= prepared.tests.sizes).all()
    assert (prepared.tests_while_running >= 1).all()
    assert prepared.train.skew.degrees.tolist() == [0, 45, 90, 135, 180, 225]
    assert np.issubdtype(prepared.topology.graph.weights.dtype, np.floating)
    assert prepared.graph_report.links == prepared.adjacency.sum() == prepared.topology.graph.senders.size


def test_a_graph_of_which_agents_hear_a_part_is_described_as_a_whole():
    """And what is heard of it in the first round is counted beside."""
    prepared = prepare(Settings(dataset="digits", agents=6, topology="complete", hear=2))
    assert (prepared.graph_report.links, prepared.graph_report.connected, prepared.changing) == (30, True, False)
    assert np.asarray(prepared.adjacency.sum(axis=1)).ravel().tolist() == [2] * 6


def test_images_are_resized_before_a_network_is_chosen_and_once_for_all_of_a_sweep(monkeypatch):
    rng, loaded = np.random.default_rng(0), []
    images, labels = rng.integers(0, 256, (400, 24, 24, 1), dtype=np.uint8), np.arange(400, dtype=np.int32) % 10

    def read(folder):
        loaded.append(folder)
        return datasets.Dataset(images, labels, images[:100], labels[:100], 10)

    monkeypatch.setitem(datasets.READERS, "squares", read)
    own = {"dataset": "squares", "agents": 3, "topology": "ring"}
    large, small = prepare(Settings(**own)), prepare(Settings(**own, resize=12))
    assert (large.settings.model, small.settings.model, small.settings.resize) == ("alexnet", "small", 12)
    assert small.train.images.shape[1:] == small.tests.images.shape[1:] == (12, 12, 1)
    assert fingerprints([large])[0]["the images and labels"] != fingerprints([small])[0]["the images and labels"]
    loaded.clear()
    members = members_of(Settings(**own, resize=12), [{"lr": 3}, {"lr": 10}], seeds=2)
    assert len(loaded) == 1
    assert len({id(member.train.images) for member in members}) == 1


def test_a_class_file_gives_its_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("0 1\n2 3\n4 5 6\n")
    prepared = prepare(Settings(dataset="digits", agents=3, class_file=tmp_path / "classes.txt", topology="ring"))
    labels = [
        set(prepared.train.labels[row[:size]].tolist())
        for row, size in zip(prepared.train.indices, prepared.train.sizes, strict=True)
    ]
    assert labels == [{0, 1}, {2, 3}, {4, 5, 6}]


def digits_with(tmp_path, **arrays):
    """A file of digits with more arrays."""
    np.savez(tmp_path / "own.npz", **dict(zip(datasets.Dataset._fields[:4], datasets.digits(), strict=False)), **arrays)
    return tmp_path / "own.npz"


@pytest.mark.parametrize("way", ["in the data", "said too", "in a file", "another way said", "four classes said"])
def test_whose_each_sample_is_is_followed(tmp_path, way):
    """Where the data says it and nothing else is said, or where a file says it, whatever the data says."""
    owner = np.arange(1437) % 3
    data = digits_with(tmp_path, owner=owner if way != "in a file" else owner[::-1])
    np.save(tmp_path / "owner.npy", owner)
    flags = {
        "in the data": {},
        "said too": {"partition": "owner"},
        "four classes said": {"classes_per_agent": 4},
        "in a file": {"owner_file": tmp_path / "owner.npy"},
        "another way said": {"partition": "iid"},
    }[way]
    prepared = prepare(Settings(data_file=data, agents=3, topology="ring", **flags))
    others = {"another way said": "iid", "four classes said": "classes:4"}
    assert prepared.owners == (() if way in others else (0, 1, 2))
    assert prepared.settings.partition == others.get(way, "owner")
    held = [sorted(row[:size].tolist()) for row, size in zip(*prepared.train[2:4], strict=True)]
    assert (held == [list(range(agent, 1437, 3)) for agent in range(3)]) == (way not in others)


def test_too_few_classes_for_the_default_name_the_flag(tmp_path):
    few = {"train_labels": np.arange(1437) % 3, "test_labels": np.arange(360) % 3}
    whole = dict(zip(datasets.Dataset._fields[:4], datasets.digits(), strict=False))
    np.savez(tmp_path / "own.npz", **(whole | few))
    with pytest.raises(
        ValueError, match=r"^--partition classes:4: .* got 4: say --classes-per-agent, or another --part"
    ):
        prepare(Settings(data_file=tmp_path / "own.npz", agents=3))


def test_who_has_no_owner_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"^--partition owner: owner must say whose each training sample is, and the "):
        prepare(Settings(dataset="digits", agents=3, partition="owner"))
    data = digits_with(tmp_path, owner=np.arange(1437) % 5)
    with pytest.raises(ValueError, match=r"^--partition owner: owner must name 3 agents, got 5 owners: take as many"):
        prepare(Settings(data_file=data, agents=3))


def test_every_switch_reaches_the_algorithm(monkeypatch):
    seen = {}

    def factory(network, **switches):
        seen.update(switches)
        return local.local(network)

    monkeypatch.setitem(ALGORITHMS, "mce-pl", ALGORITHMS["mce-pl"]._replace(factory=factory))
    switches = {
        "order": "paper",
        "fine_tune_gradient": "recomputed",
        "fine_tune_weight": "touched",
        "group_lasso_form": "penalty",
        "penalty_on": "scores",
        "start_scores": "personal",
        "fusion": "tensor",
        "mask_sent": "own",
    }
    algorithm_of(resolve(Settings(**switches, filter_rule=3, revive=True, weights="signed-constant")), NETWORK)
    assert {name: seen[name] for name in switches} == switches
    assert seen["mask_rule"] == MaskRule(smallest_filter=3, revive=True, scale_by_retention=True)
    algorithm_of(resolve(Settings()), NETWORK)
    assert seen["mask_rule"] == MaskRule()


def test_a_graph_of_ones_own_that_changes_is_refused_as_the_librarys_are(monkeypatch):
    """Where messages add up; its name does not say that it changes."""
    monkeypatch.setitem(GRAPHS, "mine", GRAPHS["changing-regular"])
    given: dict[str, Any] = {"dataset": "digits", "model": "tiny", "agents": 4, "topology": "mine:2"}
    use_tiny_network(monkeypatch)
    with pytest.raises(ValueError, match=r"--topology mine:2 changes neighbours: name a graph that stays"):
        prepare(Settings(**given, algorithm="score-gossip"))
    with pytest.raises(ValueError, match=r"with --topology mine:2 they may never have had it"):
        prepare(Settings(**given, algorithm="mce-pl", bandwidth="constant:1", deadline=1.0))
    assert prepare(Settings(**given, algorithm="mce-pl")).changing


class SeenError(Exception):
    """Enough was seen."""


def test_every_setting_of_a_round_reaches_the_driver(monkeypatch):
    seen = {}

    def look(algorithm, world, hyper, state, shares, graph, **settings):
        _, first = settings["controller"].init(hyper)
        seen.update(settings, lr=hyper.lr, first=first.lr, skew=shares.skew, weights=graph.weights)
        raise SeenError

    use_tiny_network(monkeypatch)
    monkeypatch.setattr(programs.population, "round", look)
    flags = {"local_steps": 3, "exchange_every": 2, "batch_size": 7, "agent_chunk": 2, "rounds": 8}
    views = {"feature_skew": "rotation:90", "mixing": "metropolis", "topology": "changing-regular:2"}
    views["augment"] = "flip-crop"
    prepared = prepare(Settings(dataset="digits", model="tiny", agents=4, lr="2@step:1:0.5", **flags, **views))
    with pytest.raises(SeenError):
        programs.compile_programs(plan([prepared]))
    assert (seen["local_steps"], seen["exchange_every"], seen["batch_size"], seen["chunk"]) == (3, 2, 7, 2)
    assert seen["skew"].degrees.shape == (4,)
    assert seen["augment"] is augment.flip_crop
    # Step sizes, their schedule and the redrawing were traced: none is a constant.
    assert isinstance(seen["lr"], jax.core.Tracer)
    assert isinstance(seen["first"], jax.core.Tracer)
    assert seen["first"] is not seen["lr"]
    assert isinstance(seen["weights"], jax.core.Tracer)
    assert np.issubdtype(seen["weights"].dtype, np.floating)


@dataclasses.dataclass(frozen=True)
class Sharper:
    """What an algorithm brings whose flag nobody had before: one file, one row."""

    sharpness: float = setting(1.0, bounds="(0, 4]", scheduled=True)
    """How sharp."""


class SharpHyper(NamedTuple):
    lr: float
    sharpness: float


@pytest.fixture
def sharp(monkeypatch):
    factory = lambda network, optimizer: local.local(network)  # noqa: E731
    row = Row(factory, SharpHyper, "sharpens", "nothing", defaults={"lr": 0.5}, own=Sharper)
    monkeypatch.setitem(ALGORITHMS, "sharp", row)


def test_an_algorithm_with_a_flag_of_its_own_is_one_row(sharp, capsys):
    """Its flag is known to the command, to help, and to the axes of sweeps and searches."""
    words = ["--algorithm", "sharp", "--sharpness", "2", "--dataset", "digits", "--agents", "3"]
    prepared = prepare(parse(words, Settings, "experiments.sharp"))
    assert prepared.hyper.sharpness.tolist() == [2, 2, 2]
    assert prepared.hyper.lr.tolist() == [0.5] * 3
    with pytest.raises(SystemExit):
        parse(["--help"], Settings, "experiments.sharp")
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith("sharper: --sharpness NUMBER How sharp. In (0, 4]. (default: 1.0) For sharp.")
    swept = parse([*words[:2], *words[4:], "--grid", "sharpness=1,4"], Sweep, "experiments.sharp")
    axes = axes_of(swept)
    assert axes == {"sharpness": [1, 4]}
    members = members_of(swept, points_of(axes), 1)
    assert [member.hyper.sharpness.tolist() for member in members] == [[1] * 3, [4] * 3]
    assert any(line.startswith("| `sharp` | sharpens | nothing | `--sharpness` |") for line in table())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"algorithm": "dsgd", "sharpness": 2.0},
            "--sharpness means nothing to --algorithm dsgd, only to sharp",
        ),
        ({"algorithm": "sharp", "sharpness": 5.0}, r"--sharpness must be in \(0, 4\], got 5"),
        ({"algorithm": "sharp", "retention": 0.5}, "--retention means nothing to --algorithm sharp, only to mce-pl"),
        ({"algorithm": "sharpp"}, "did you mean sharp?"),
    ],
)
def test_refusals_know_an_algorithm_from_outside(sharp, own, said):
    with pytest.raises(ValueError, match=said):
        resolve(with_own_settings(Settings)(dataset="digits", **own))


def test_help_says_of_every_flag_what_presets_and_algorithms_make_of_it():
    shown = " ".join(help_of(Settings, "experiments.cifar").split())
    for name in PRESETS["code"]:
        values = ", ".join(f"{preset} {own[name]}" for preset, own in PRESETS.items())
        assert f"By preset: {values}." in shown.replace("- ", "-")
    steps = "dsgd 0.0125, dis-pfl 0.4@cosine, fedpm 0.1@cosine, fedmrn 0.0125, local 0.0125@cosine"
    assert f"By algorithm: {steps}." in shown
    assert [shown.index(f" {group}: ") for group in ("data", "population", "method", "run")] == sorted(
        shown.index(f" {group}: ") for group in ("data", "population", "method", "run")
    )


def test_every_bound_of_a_field_is_readable_and_holds_its_default():
    for name, known in SETTINGS.items():
        if known.bounds and known.default is not None:
            assert within(known.default, known.bounds), name


def test_flags_of_a_file_stand_in_front_of_those_of_the_command(tmp_path):
    """Of a run's config.json as they were said, so that all else is resolved anew; and of a YAML file."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "settings": {"agents": 4, "lr": "0.0005@cosine"},
                "given": {"agents": 4, "dataset": "digits", "elu_on_logits": False, "retention": "0.2,0.3,0.5,0.9"},
            }
        )
    )
    words = ["--config", str(tmp_path / "config.json"), "--agents", "8", "--elu-on-logits", "--preset=tuned"]
    found = parse(words, Settings, "experiments.cifar")
    assert (found.agents, found.dataset, found.elu_on_logits) == (8, "digits", True)
    assert (found.retention, found.preset, found.lr) == ("0.2,0.3,0.5,0.9", "tuned", None)
    (tmp_path / "own.yaml").write_text("agents: 4\n--grid: ['lr=1,2', 'retention=0.3,0.5']\nrevive: true\nseeds: 2\n")
    found = parse([f"--config={tmp_path / 'own.yaml'}", "--seeds", "3"], Sweep, "experiments.sweep")
    assert (found.agents, found.grid, found.revive) == (4, ("lr=1,2", "retention=0.3,0.5"), True)
    assert found.seeds == 3


def test_what_the_command_says_takes_the_place_of_what_the_file_says(tmp_path):
    """Values of the command are no flags, flags that mean the same otherwise give way, and lists are one value where a
    flag is said once."""

    def settings(text, *words):
        (tmp_path / "own.yaml").write_text(text)
        return parse(["--config", str(tmp_path / "own.yaml"), *words], Settings, "experiments.cifar")

    assert settings("fusion: force\nforce: 2.0\n", "--fusion", "force").force == 2.0
    assert settings("momentum: 0.5", "--optimizer", "momentum").momentum == 0.5
    found = settings("classes_per_agent: 3\nrevive: true\n", "--partition", "dirichlet:0.3", "--no-revive")
    assert (found.classes_per_agent, found.partition, found.revive) == (None, "dirichlet:0.3", False)
    assert settings("retention: [0.2, 0.3]\npersonal_layers: [conv1, linear1]\n").retention == "0.2,0.3"
    found = settings("depth: 3:8\ndevice_speed: 1:5\nseed: 012\nlr: 3e-4\n")  # in YAML itself 188, 65, 10 and a word
    assert (found.depth, found.device_speed, found.seed, found.lr) == ("3:8", "1:5", 12, 3e-4)
    with pytest.raises(SystemExit):
        parse(["--config", "none.json", "--help"], Settings, "experiments.cifar")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.yaml", None, "cannot be read (No such file or directory)"),
        (
            "list.yaml",
            "- agents",
            "the config.json of a run, or a YAML file of flags and their values, and is not",
        ),
        ("torn.json", "{", "and cannot be read (Expecting property name"),
        ("old.json", '{"settings": {}}', "was written by a version before 0.5, which kept no flags as they were said"),
        ("unknown.yaml", "agnets: 4", "unknown.yaml: there is no flag --agnets; did you mean --agents?"),
        ("wrong.yaml", "agents: many", "wrong.yaml: --agents must be a whole number, got 'many'"),
    ],
)
def test_a_file_of_flags_that_is_none_is_one_sentence(name, text, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(["--config", str(tmp_path / name)], Settings, "experiments.cifar")
    with pytest.raises(ValueError, match="--config needs a value behind it"):
        parse(["--config"], Settings, "experiments.cifar")


def test_what_was_said_is_kept_and_says_the_same_again(tmp_path, monkeypatch):
    use_fakes(monkeypatch)
    use_tiny_network(monkeypatch)
    flags = ["--dataset=digits", "--model=tiny", "--agents=4", "--rounds=2", "--preset=tuned", "--lr=0.001"]
    assert cifar.main([*flags, "--out", str(tmp_path / "first")]) == 0
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    given = {"dataset": "digits", "model": "tiny", "agents": 4, "rounds": 2, "preset": "tuned", "lr": 0.001}
    assert config["given"] == given
    again = ["--config", str(tmp_path / "first" / "config.json"), "--out", str(tmp_path / "second")]
    assert cifar.main(again) == 0
    repeated = json.loads((tmp_path / "second" / "config.json").read_text())
    assert repeated["given"] == config["given"]
    assert {**repeated["settings"], "out": None} == {**config["settings"], "out": None}


def test_what_is_said_by_a_path_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("ring", "traces"):
        (tmp_path / folder).mkdir()
    said = Settings(topology="ring", bandwidth="traces", class_file="classes").as_given()
    assert said == {"topology": "ring", "bandwidth": str(tmp_path / "traces"), "class_file": str(tmp_path / "classes")}


def test_agents_that_send_rarely_have_every_message_encoded():
    period = Settings(bandwidth="constant:1", controller="period")
    assert (resolve(period).code_every, resolve(Settings()).code_every) == (1, None)
