"""The paper's experiments at the smallest size: every arm on equal terms, in one table and one figure."""

import csv

import pytest
from fakes import use_fakes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from tiny import use_tiny_network

from dslth_jax.networks.zoo import MODULES
from dslth_jax.study.config import command
from dslth_jax.study.results import compared, pictures
from dslth_jax.study.results.plots import Panel, named, numbers_of_seeds
from dslth_jax.study.results.points import Point, Sweep
from dslth_jax.study.sweeping import comparison
from experiments import (
    ablation,
    architectures,
    boundary,
    budgets,
    communication,
    crossed,
    depths,
    neighbours,
    thousandfold,
    unlike,
    validation,
    width,
)

TINY = ["--dataset", "digits", "--model", "tiny", "--agents", "3", "--topology", "ring", "--rounds", "4"]
TINY += ["--eval-every", "2", "--seeds", "2", "--batch-size", "16", "--resize", "8"]


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.mark.parametrize(
    ("experiment", "flags", "arms"),
    [
        (validation, [], 4),
        (ablation, [], 4),
        pytest.param(ablation, ["--code-every", "2"], 4, marks=pytest.mark.slow),
        pytest.param(communication, ["--retentions", "0.3", "--every", "2"], 10, marks=pytest.mark.slow),
        pytest.param(communication, ["--retentions", "0.2,0.4"], 14, marks=pytest.mark.slow),
        (thousandfold, ["--mask-intervals", "1,2", "--weight-intervals", "2"], 4),
        pytest.param(neighbours, ["--model", "small", "--every", "2"], 8, marks=pytest.mark.slow),
        pytest.param(
            architectures,
            ["--networks", "small,mlp", "--every", "2", "--steps", "mlp/local=0.1"],
            8,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            budgets, ["--scenario", "one-slow", "--retentions", "0.3", "--every", "2"], 7, marks=pytest.mark.slow
        ),
        pytest.param(unlike, ["--every", "2", "--dealt", "0.2,0.6"], 12, marks=pytest.mark.slow),
        pytest.param(depths, ["--model", "resnet20", "--width", "0.1", "--every", "2"], 9, marks=pytest.mark.slow),
        pytest.param(
            boundary,
            ["--model", "small", "--every", "2", "--overlaps", "0,0.5", "--alphas", "1"],
            24,
            marks=pytest.mark.slow,
        ),
        pytest.param(width, ["--widths", "0.25", "--depths", "2"], 6, marks=pytest.mark.slow),
        pytest.param(crossed, ["--model", "small", "--every", "2", "--classes", "2,3"], 16, marks=pytest.mark.slow),
    ],
    ids=[
        "validation",
        "ablation",
        "real",
        "communication",
        "communication at two retentions",
        "thousandfold",
        "neighbours",
        "architectures",
        "budgets",
        "unlike",
        "depths",
        "boundary",
        "width",
        "crossed",
    ],
)
def test_an_experiment_leaves_a_table_and_a_figure_of_all_arms(experiment, flags, arms, tmp_path, capsys, monkeypatch):
    out, real, save = tmp_path / "out", "--code-every" in flags, pictures.save
    if not real:  # what majorities find is no fake's to say
        use_fakes(monkeypatch)
    if experiment is ablation:
        monkeypatch.setattr(pictures, "save", save)
    own = experiment in (architectures, width)  # networks
    given = [word for word in TINY if word not in ("--model", "tiny")] if own else TINY
    assert experiment.main([*given, *flags, "--out", str(out)]) == 0
    table = (out / "table.md").read_text().splitlines()
    assert table[2].startswith("Seeds 0, 1.")
    assert table[4].startswith("| arm | accuracy, %")
    assert len(table) == 6 + arms
    assert (out / "figure.png").stat().st_size > 10_000 or experiment is not ablation
    with (out / "results.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert len(rows) == arms
    assert all(row["status"] == "done" for row in rows.values())
    grouped = {
        ablation: 3,
        architectures: 6,
        boundary: 21,
        budgets: 7,  # alone among them, beside the best retention that stays
        crossed: 14,
        depths: 6,
        neighbours: 7,
        thousandfold: 3,
        unlike: 9,
        validation: 2,
        width: 5,
    }  # whose table says what arms gain
    gaining = 3 * (1 + flags[1].count(",")) if experiment is communication else grouped.get(experiment, 0)
    assert sum("±" in line and " to " in line for line in table) == gaining
    if experiment is validation:
        assert [rows[f"{what}: alone"]["bitmap_mb"] for what in ("weights", "masks")] == ["", ""]
        # An entry of a mask is a bit, an entry of weights 32; the layer with biases is personal.
        floats = float(rows["weights: among neighbours"]["float32_mb"])
        assert floats == pytest.approx(32 * float(rows["masks: among neighbours"]["bitmap_mb"]))
    if real:
        # Thresholds keep what was asked for, majorities what they find.
        density = {name: float(row["density"]) for name, row in rows.items()}
        assert density["alone"] == density["aggregation tensor"] > density["majority, sent on"]
    capsys.readouterr()
    assert experiment.main([*given, *flags, "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out.strip().endswith("nothing is left to do")
    if experiment is thousandfold:
        again = [*TINY, "--mask-intervals", "1,3", "--weight-intervals", "2", "--out", str(out), "--resume"]
        assert experiment.main(again) == 2
        assert "compares other arms" in capsys.readouterr().err


def test_a_comparison_is_finished_when_its_table_is_there(tmp_path, capsys, monkeypatch):
    """One that is cut off before it goes on from there."""
    use_fakes(monkeypatch)
    out = tmp_path / "out"
    words = [*TINY, "--mask-intervals", "1", "--weight-intervals", "1", "--out", str(out)]
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(compared, "table_of", lambda *_: (_ for _ in ()).throw(full))
        assert thousandfold.main(words) == 2
    assert (out / "results.csv").exists()
    assert not (out / "table.md").exists()
    assert thousandfold.main([*words, "--resume"]) == 0
    assert (out / "table.md").exists()
    capsys.readouterr()


def own_of(kind, experiment, *flags):
    settings = command.parse([*TINY, *flags], kind, "experiments.test")
    return comparison.shared_and_own(settings, settings.arms())


def test_arms_get_the_flags_that_mean_something_to_them():
    flags = ("--lr", "dsgd=0.4@cosine,mce-pl=0.001", "--amplitude", "0.5", "--weight-decay", "0.1", "--code-every", "7")
    shared, arms = own_of(communication.Communication, communication, "--retentions", "0.3", *flags)
    assert (shared.lr, shared.amplitude, shared.weight_decay, shared.code_every) == (None, 1.0, None, None)
    assert (shared.preset, shared.seeds, shared.agents) == ("tuned", 2, 3)
    assert arms["weights"] == {"algorithm": "dsgd", "weight_decay": 0.1, "lr": "0.4@cosine"}
    _, named = own_of(communication.Communication, communication, "--lr", "dsgd=momentum:0.4@step:5:0.2")
    named = named["weights, personal head"]
    assert (named["optimizer"], named["lr"]) == ("momentum", "0.4@step:5:0.2")
    searched = {"optimizer": "adam", "lr": "0.004@cosine"}  # where no flag says a step, which is of the algorithm's own
    assert arms["weights, alone"] == {"algorithm": "local", "weight_decay": 0.1, **searched}
    heads = {"algorithm": "fedmrn", "personal_layers": "last", "weight_decay": 0.1, "code_every": 7}
    heads |= {"lr": "0.1@cosine"}
    assert arms["fedmrn, personal head"] == heads
    drawn = {"personal_layers": "last", "code_every": 7, "exchange_every": 4, "lr": "0.8@cosine"}
    assert arms["fedpm, personal head"] == {"algorithm": "fedpm", **drawn}
    assert arms["retention 0.3: dis-pfl"] == {
        "algorithm": "dis-pfl",
        "weight_decay": 0.1,
        "retention": 0.3,
        "lr": "0.8@cosine",
    }
    masks = {"retention": 0.3, "linear_retention": "same", "weight_decay": 0.1}
    heard = {"algorithm": "mce-pl", "lr": "0.001", "code_every": 7, "exchange_every": 4, **masks}
    tensor = {"fusion": "tensor", "mask_sent": "fused", "personal_layers": "none"}
    assert arms["retention 0.3: aggregation tensor"] == {"amplitude": 0.5, **tensor, **heard}
    assert arms["retention 0.3: alone"] == {"algorithm": "independent", "lr": "0.002@cosine", **masks}


def test_a_figure_of_all_methods_tells_them_apart():
    _, arms = own_of(communication.Communication, communication)
    assert named(len(arms)) == len(arms)


def test_messages_of_arms_are_all_encoded_and_their_defaults_their_own():
    _, arms = own_of(ablation.Ablation, ablation)
    of_all = {"linear_retention": "same", "code_every": 1, "lr": "0.0005@cosine"}
    assert arms["majority of own masks"] == {"algorithm": "mask-mean", "personal_layers": "none", **of_all}
    assert arms["alone"] == {"algorithm": "independent", "linear_retention": "same", "lr": "0.002@cosine"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--algorithm", "dsgd"], "--algorithm is set by the experiment itself"),
        (["--exchange-every", "2"], "--exchange-every is set by the experiment itself"),
        (["--clamp", "0.1"], "--clamp means nothing to any arm"),
        (["--lr", "dsgd=0.1,mce-pl=1,dsgd=0.2"], "--lr must say one step for dsgd, got several"),
        (["--lr", "0.1"], "--lr must be ALGORITHM=STEP,... of algorithms among dsgd, independent, mce-pl, got '0.1'"),
        (["--lr", "fedpm=0.1"], "got 'fedpm=0.1'"),
        (["--mask-intervals", "1,x"], "--mask-intervals must be whole numbers between commas, got '1,x'"),
        (["--preset", "paper"], "--preset"),
    ],
    ids=str,
)
def test_flags_that_arms_cannot_share_are_one_line(flags, said, capsys, tmp_path):
    assert thousandfold.main([*TINY, *flags, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_each_network_learns_at_its_own_steps():
    """And at those that a flag says, of the optimizer that it names; masks that are heard as those alone; AlexNet at
    defaults, others as the proxy."""
    said = "resnet20/local=adam:0.2,alexnet/score-gossip=0.3@cosine"
    arms = architectures.Architectures(networks="resnet20,alexnet,small", steps=said).arms()
    steps = {name: arm.get("lr") for name, arm in arms.items()}
    proxy = comparison.STEPS["conv3"]
    optimizers = {name: arm["optimizer"] for name, arm in arms.items() if "optimizer" in arm}
    assert optimizers == dict.fromkeys(("resnet20: weights", "alexnet: weights", "small: weights"), "adam")
    assert steps == {
        "resnet20: weights": "0.2",
        **dict.fromkeys(("resnet20: alone", "resnet20: force", "resnet20: gossip"), "0.001@cosine"),
        "alexnet: weights": comparison.ways("alexnet", 1)["weights, alone"]["lr"],
        **dict.fromkeys(("alexnet: alone", "alexnet: force")),
        "alexnet: gossip": "0.3@cosine",
        "small: weights": "0.004@cosine",
        **{f"small: {way}": proxy[way] for way in ("alone", "force", "gossip")},
    }
    assert comparison.STEPS.keys() <= MODULES.keys()
    assert set().union(*comparison.STEPS.values()) == comparison.ways(None, 1).keys()


def test_weights_that_are_shared_learn_by_adam_and_sparse_ones_by_gradient_descent():
    """As was best by validation; only the algorithm's own optimizer needs no name."""
    found = {name: (arm.get("optimizer"), arm["lr"]) for name, arm in comparison.ways(None, 1).items()}
    assert {name: own for name, own in found.items() if own[0]} == {
        "weights, alone": ("adam", "0.004@cosine"),
        "weights": ("adam", "0.001"),
        "weights, personal head": ("adam", "0.008@cosine"),
    }
    for network, steps in comparison.STEPS.items():
        trained = [name for name in steps if name.startswith("weights")]
        assert all(comparison.ways(network, 1)[name]["optimizer"] == "adam" for name in trained)


def test_networks_that_learn_for_few_rounds_listen_weakly_unless_a_flag_says_otherwise():
    def heard(*flags):
        settings = command.parse(["--networks", "conv6", *flags], architectures.Architectures, "experiments.test")
        _, arms = comparison.shared_and_own(settings, settings.arms())
        names = ("exchange_every", "force", "mixing_step")
        return [{name: arms[f"conv6: {way}"].get(name) for name in names} for way in ("force", "gossip")]

    weak = [{"exchange_every": 1, "force": 0.1, "mixing_step": None}]
    assert heard() == [*weak, {"exchange_every": None, "force": None, "mixing_step": "0.5@cosine"}]
    force, gossip = heard("--every", "2", "--force", "1", "--mixing-step", "0.5")
    assert (force["exchange_every"], force["force"], gossip["mixing_step"]) == (2, None, None)  # as algorithms have it


def test_steps_of_networks_and_of_algorithms_do_not_go_together(capsys, tmp_path):
    """Else one of the two would not be what was said."""
    flags = ["--networks", "small", "--steps", "small/local=0.1", "--lr", "local=0.2", "--out", str(tmp_path / "out")]
    assert architectures.main([*TINY, *flags]) == 2
    assert "--steps says more than --lr: leave one of the two out" in capsys.readouterr().err


def test_class_files_of_one_name_are_refused(capsys, tmp_path):
    """Else arms of one would stand for those of the other."""
    flags = ["--class-files", "some/x.txt,others/x.txt", "--out", str(tmp_path / "out")]
    assert crossed.main([*TINY, *flags]) == 2
    assert "--class-files must be of different names, got some/x.txt,others/x.txt" in capsys.readouterr().err


def rows_of(*accuracies, bits=8e6):
    keys = ("kept_bits", "bitmap_bits", "coded_bits", "float32_bits", "busiest_agent_bits")
    return [
        {
            "round": number,
            **dict.fromkeys(("accuracy_mean", "accuracy_worst", "accuracy_best"), value),
            **{"loss": 1.0, "density": None},
            **dict.fromkeys(keys, bits * number),
        }
        for number, value in enumerate(accuracies)
    ]


def point_of(arm, members, status="done"):
    result = {"accuracy_mean": 0.5, "accuracy_std": 0.1, "accuracy_worst": 0.25, "loss": 1.0, "density": None}
    return Point({"arm": arm}, result | {"status": status}, members)


def test_an_arm_looks_alike_in_every_panel_and_one_that_sent_nothing_or_lost_a_seed_is_there(monkeypatch, tmp_path):
    points = [point_of(f"arm {number}", [rows_of(0.1, 0.2, bits=8e6 * (number != 1))] * 2) for number in range(12)]
    points[3] = point_of("arm 3", [[], rows_of(0.1, 0.2)], "not finite (1 of 2 seeds)")
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    lines = {point.values["arm"]: numbers_of_seeds(point.members) for point in points}
    pictures.lines_picture(tmp_path / "figure.png", lines, compared.BY_BITS)
    (figure,) = drawn
    looks = [
        [(line.get_label(), to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines]
        for axes in figure.axes
    ]
    assert looks[0] == looks[1]
    assert len(set(looks[0])) == len({look[1:] for look in looks[0]}) == 12
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"arm {number}" for number in range(12)]
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [1, 0, *[1] * 10]
    assert all(len(line.get_xdata()) == 2 for line in figure.axes[1].lines)


def test_a_table_says_that_a_seed_was_lost_and_means_over_the_others(tmp_path):
    points = [
        point_of("whole", [rows_of(0.1, 0.2, bits=8e6), rows_of(0.1, 0.2, bits=24e6)]),
        point_of("torn", [[], rows_of(0.1, 0.2, bits=8e6)], "not finite (1 of 2 seeds)"),
    ]
    config = {"command": "python -m x", "seeds": [0, 1]}
    lines = compared.table_of(Sweep("x", tmp_path, config, {}, points, [], [])).splitlines()
    assert lines[-2] == "| whole | 50.0 ± 10.0 | 25.0 | 1.000 |  | 2 | 2 | 2 | 2 | 2 |"
    assert lines[-1] == "| torn (not finite (1 of 2 seeds)) | 50.0 ± 10.0 | 25.0 | 1.000 |  | 1 | 1 | 1 | 1 | 1 |"


def test_a_table_says_what_images_arms_learn_from_what_they_keep_personal_and_their_steps():
    """Where they are not as they come: the preset's choice by the data set, and that of an arm by its name."""
    arms = {"alone": {"algorithm": "independent"}, "weights": {"algorithm": "dsgd"}}
    own = {"preset": "tuned", "dataset": "cifar10", "data_file": None, "augment": None}

    def said(changed, arms=arms):
        return compared.said_of_arms({"settings": own | changed, "arms": arms})

    assert said({}) == "Images: augmentation flip-crop. "
    assert said({"preset": "code"}) == said({"data_file": "own.npz"}) == said({"augment": "none"}) == ""
    assert said({"augment": "crop"}) == "Images: augmentation crop. "
    varied = arms | {"weights": {"algorithm": "dsgd", "augment": "crop"}}
    assert said({}, varied) == "Images: augmentation flip-crop (alone); augmentation crop (weights). "
    pooled = arms | {"pooled": {"algorithm": "independent", "images": "pooled"}}
    assert said({"augment": "none"}, pooled) == "Images: drawn from all agents' (pooled). "
    assert said({}, pooled) == "Images: augmentation flip-crop; drawn from all agents' (pooled). "
    # And what is not told to neighbours, where an algorithm tells them anything.
    heads = arms | {"masks": {"algorithm": "mce-pl"}, "all": {"algorithm": "mce-pl", "personal_layers": "none"}}
    own |= {"augment": "none", "personal_layers": None}
    assert said({}, heads) == "Personal layers: last (masks). "
    # Of arms in groups the rule alone, where all groups have it so.
    groups = {f"{group}: {rule}": how for group in ("ring", "star") for rule, how in heads.items()}
    assert said({"augment": "none"}, groups) == ("Personal layers: last (masks). ")
    groups["ring: masks"] = heads["all"]
    assert said({"augment": "none"}, groups) == "Personal layers: last (star: masks). "
    # The step of an arm, or else its algorithm's own.
    stepped = {"alone": arms["alone"], "weights": {"algorithm": "dsgd", "lr": "0.1@cosine"}}
    own |= {"personal_layers": "none", "lr": None}
    assert said({}, stepped) == "Step sizes: 0.0005@cosine (alone); 0.1@cosine (weights). "
    own |= {"optimizer": None}  # versions after 0.4
    assert said({}, stepped) == "Step sizes: 0.0005@cosine by adam (alone); 0.1@cosine by sgd (weights). "
    # Version 0.4 had none.
    assert compared.said_of_arms({"settings": {"preset": "tuned", "dataset": "cifar10"}, "arms": arms}) == ""


def test_a_table_has_a_column_of_what_is_held_back_where_it_ranks_the_arms(tmp_path):
    point = point_of("held back", [rows_of(0.1, 0.2)])
    point = point._replace(result=point.result | {"validation_mean": 0.75, "validation_worst": 0.5})
    config = {"command": "python -m x", "seeds": [0]}
    lines = compared.table_of(Sweep("x", tmp_path, config, {}, [point], [], [])).splitlines()
    assert lines[2].endswith("bitmaps or floats. Arms stand best first by validation accuracy.")
    assert lines[-3].startswith("| arm | accuracy, % | validation, % | worst agent, % |")
    assert lines[-1] == "| held back | 50.0 ± 10.0 | 75.0 | 25.0 | 1.000 |  | 1 | 1 | 1 | 1 | 1 |"


def test_controllers_are_compared_with_the_best_retention_that_stays_when_the_first_arm_is_done(tmp_path):
    """At equal simulated time, paired by seed, chosen by validation; agents alone, who are done first, do not count."""

    def timed(each, *accuracies, validation):
        return [
            row | {"simulated_seconds": each * row["round"], "idle_seconds": 0.0, "validation_mean": validation}
            for row in rows_of(*accuracies)
        ]

    seeds = {  # two seeds each, seconds of the only round after the start, accuracies before and after it
        "alone": [timed(1.0, 0.1, 0.9, validation=0.9)] * 2,
        "0.1": [timed(8.0, 0.1, 0.5, validation=0.3), timed(8.0, 0.1, 0.3, validation=0.3)],
        "0.3": [timed(4.0, 0.1, 0.9, validation=0.2)] * 2,
        "deadline": [timed(4.0, 0.1, 0.6, validation=0.1), timed(4.0, 0.1, 0.4, validation=0.1)],
    }
    points = [point_of(arm, members) for arm, members in seeds.items()]
    points = [own._replace(result=own.result | {"validation_mean": 0.5, "validation_worst": 0.5}) for own in points]
    arms: dict = {arm: {"algorithm": "independent"} for arm in seeds}
    arms["deadline"]["controller"] = "deadline"
    settings = {"preset": "tuned", "dataset": "digits", "augment": "none"}
    config = {"command": "python -m x", "seeds": [0, 1], "settings": settings}
    found = Sweep("x", tmp_path, config | {"arms": arms}, {}, points, [], [])
    assert compared.shortest(found) == 4.0
    *_, said, _, head, _, alone, fixed, _, deadline = compared.table_of(found).splitlines()
    assert said.endswith(
        " Differences are paired by seed, their 95 % intervals Student's t. Below alone by their whole interval: none. "
        "Arms that end before keep their last. Of those without a controller that hear neighbours 0.1 is the best "
        "then, by validation."
    )
    assert head.endswith(" | accuracy after 4 s, % | minus 0.1 then, points |")
    assert alone.split(" | ")[-2] == "90.0"
    assert fixed.endswith(" | 25.0 |  |")  # half-way from 10 % to 50 and 30
    assert deadline.split(" | ")[-2] == "50.0"
    assert deadline.split(" | ")[-1].startswith("+25.0 (-38.5 to ")  # 30 and 20 points
    # An arm that has lost a seed is no rival; without validation the test accuracy chooses.
    torn = [points[0], points[1]._replace(members=[[], seeds["0.1"][1]]), *points[2:]]
    assert (
        "neighbours 0.3 is the best then, by validation" in compared.columns_of_a_time(found._replace(points=torn))[1]
    )
    plain = [own._replace(members=[without_validation(rows) for rows in own.members]) for own in points]
    assert "0.3 is the best then, by test accuracy" in compared.columns_of_a_time(found._replace(points=plain))[1]
    lost = [own if own.values["arm"] in ("alone", "deadline") else own._replace(members=[[], []]) for own in points]
    columns, said = compared.columns_of_a_time(found._replace(points=lost))
    assert ([column.head for column in columns], said) == (
        ["accuracy after 4 s, %"],
        " Arms that end before keep their last.",
    )


def without_validation(rows):
    return [{key: value for key, value in row.items() if key != "validation_mean"} for row in rows]


def test_bad_retentions_are_one_line(capsys, tmp_path):
    flags = [*TINY, "--out", str(tmp_path / "out"), "--retentions"]
    said = {"0.1,x": "--retentions must be numbers between commas", "0.1,2": "at arm=retention 2: alone:"}
    for words, sentence in said.items():
        assert communication.main([*flags, words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_arm_is_compared_with_the_one_alone_of_its_own_group():
    """And with a certain one, where that is called the baseline."""
    levels = {"overlap 0: alone": 0.5, "overlap 0: force": 0.4, "overlap 1: alone": 0.6, "overlap 1: force": 0.75}
    points = [point_of(arm, [rows_of(0.1, level), rows_of(0.1, level + 0.1)]) for arm, level in levels.items()]
    config = {"command": "python -m x", "seeds": [0, 1]}
    found = Sweep("x", None, config, {}, points, [], [])
    lines = compared.table_of(found).splitlines()
    assert lines[2].endswith(" Below alone by their whole interval: force at overlap 0.")
    assert lines[4].startswith("| arm | accuracy, % | minus alone, points | worst agent, % |")
    cells = {line.split(" | ")[0]: line.split(" | ")[2] for line in lines[6:]}
    assert cells == {
        "| overlap 0: alone": "", "| overlap 0: force": "-10.0 (-10.0 to -10.0)",
        "| overlap 1: alone": "", "| overlap 1: force": "+15.0 (+15.0 to +15.0)",
    }  # fmt: skip
    panels = (Panel("overlap", "gain"), Panel("alpha", "gain"))
    drawn, of_these = compared.lines_of(found, panels, "alone")
    assert [*of_these] == [*panels[:1]]
    assert list(drawn) == ["force"]
    assert drawn["force"][["overlap", "gain"]].round(9).to_numpy().tolist() == [[0.0, -10.0], [1.0, 15.0]]
    lines = compared.table_of(found, "overlap 1: alone").splitlines()
    assert "| overlap 0: force | 50.0 ± 10.0 | -20.0 (-20.0 to -20.0) |" in "\n".join(lines)


def test_models_of_unlike_networks_have_columns():
    """What is said of them in config.json; their points are dots over the sizes."""
    levels = {"width 1: weights": 0.5, "width 2: masks": 0.6}
    points = [point_of(arm, [rows_of(0.1, level)]) for arm, level in levels.items()]
    models = {arm: {"model_bits": 2e6, "multiply_adds": 1.5e6} for arm in levels}
    models["width 2: masks"]["multiply_adds"] = None
    config = {"command": "python -m x", "seeds": [0], "models": models}
    found = Sweep("x", None, config, {}, points, [], [])
    lines = compared.table_of(found, "width 1: weights").splitlines()
    assert lines[2].endswith(" as bitmaps or floats.")  # of one seed there is no interval
    assert lines[4].endswith("| model, kbit | multiply-adds, millions |")
    assert lines[-1].startswith("| width 2: masks | 50.0 ± 10.0 | +10.0 | ")
    assert [line.split(" | ")[-2:] for line in lines[-2:]] == [["2,000", "1.5 |"], ["2,000", " |"]]
    drawn, _ = compared.lines_of(found, width.Width.panels, width.Width.baseline)
    assert drawn["masks"][["width", "accuracy", "model_bits"]].to_numpy().tolist() == [[2.0, 60.0, 2e6]]
    of_one_network = found._replace(config={**found.config, "models": {}}, points=found.points[:0])
    assert compared.lines_of(of_one_network, architectures.Architectures.panels, "alone") == ({}, compared.BY_BITS)


def test_flags_that_arms_take_up_themselves_may_be_said():
    _, arms = own_of(crossed.Crossed, crossed, "--classes", "2,3", "--topology", "star")
    assert len(arms) == 2 * 2 * 8
    assert {arm["topology"] for arm in arms.values()} == {"star", "ring"}
    assert arms["3 classes, ring: alone"]["classes_per_agent"] == 3
    _, arms = own_of(crossed.Crossed, crossed, "--class-files", "a/four.txt,five.txt")
    assert arms["four, ring: force"]["class_file"] == "a/four.txt"
    with pytest.raises(ValueError, match=r"^--classes and --class-files contradict each other"):
        own_of(crossed.Crossed, crossed, "--class-files", "four.txt", "--classes", "3")
    with pytest.raises(ValueError, match=r"^--mixing is set by the experiment itself"):
        own_of(boundary.Boundary, boundary, "--mixing", "metropolis")
    with pytest.raises(ValueError, match=r"^--overlaps and --alphas leave no point to compare at"):
        own_of(boundary.Boundary, boundary, "--overlaps", "None", "--alphas", "None")
    with pytest.raises(ValueError, match=r"^--overlaps are of neighbours on a ring: say --overlaps None, or leave"):
        own_of(boundary.Boundary, boundary, "--topology", "star")
    assert own_of(boundary.Boundary, boundary, "--topology", "star", "--overlaps", "None")
    for flag in ("half", "megabits"):
        with pytest.raises(ValueError, match=f"^--{flag} means nothing to --scenario traces: leave it out$"):
            own_of(budgets.Budgets, budgets, "--scenario", "traces", "--traces", "folder", f"--{flag}", "3")
    assert own_of(boundary.Boundary, boundary)[1]["overlap 0: force"]["exchange_every"] == 4  # as many as rounds
    with pytest.raises(ValueError, match=r"^--every must be at most --rounds, got 5 and 4: exchange more often$"):
        own_of(boundary.Boundary, boundary, "--every", "5")
    flags = [word for word in TINY if word not in ("--model", "tiny")]
    settings = command.parse([*flags, "--depths", "1"], width.Width, "experiments.test")
    with pytest.raises(ValueError, match=r"^--depths must be among 2, 3, 4, 5, 6, 7, 8, got 1$"):
        settings.arms()
