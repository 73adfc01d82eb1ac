"""What a study leaves: tables are those of the csv module, pictures and words end no run and eat nothing."""

import csv
import io
import json
import statistics
import types

import matplotlib
import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from scipy import sparse

from dslth_jax import graphs
from dslth_jax.graph_report import report
from dslth_jax.study.results import folders, pictures, plots, tables
from dslth_jax.study.results.metrics import METRICS
from dslth_jax.study.results.points import best, best_first, spelled, summary

HOSTILE = '[red]x[/] $x_$ \\frac{ <b>&"猫"'


def row(round: int, accuracy: float | None, **more) -> dict:
    numbers = dict.fromkeys(METRICS) | {"round": round, "loss": 1.5, "bitmap_bits": 8 * round}
    return numbers | dict.fromkeys(("accuracy_mean", "accuracy_worst", "accuracy_best"), accuracy) | more


def test_a_table_has_the_bytes_of_the_csv_module(tmp_path):
    rows = [
        {"lr": 10, "order": "code", "x": None, "mean": np.float64(1 / 3), "b": True},
        {"lr": 1e-7, "order": 'a, "b"\n', "x": 0.1 + 0.2, "mean": np.float64(0), "b": "\udcff"},
        {"lr": "0.1:0.8", "order": "", "x": 10**20, "mean": 1e38, "b": False},
    ]
    expected = io.StringIO(newline="")
    writer = csv.DictWriter(expected, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    folders.write_table(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_bytes() == expected.getvalue().encode("utf-8", "surrogateescape")
    read = folders.read_table(tmp_path / "a.csv", ("order", "b"), ("x", "mean"))
    assert [own["x"] for own in read] == [None, 0.1 + 0.2, 1e20]
    assert [own["order"] for own in read] == [own["order"] for own in rows]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a table of comma-separated values"),
        ("a\n1\n", "must have columns a, n, and lacks n"),
        ("a,n\n1,2,3\n", "must have as many cells as its head"),
        ("a,a,n\n1,2,3\n", "as many cells as its head has names"),
        ("a,n\n1\n", "must have as many cells as its head"),
        ('a,n\n"1,2\n', "must be a table of comma-separated values"),
        ("a,n\n1,many\n", "n in .* must be numbers .*many"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(text, said, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        folders.read_table(tmp_path / "a.csv", ("a",), ("n",))


def test_a_point_is_summed_up_over_the_seeds_that_stay_finite():
    seeds = [[row(0, 0.1), row(2, 0.3, bitmap_bits=16_000_000)], [row(2, 0.9)], [row(2, 0.4, bitmap_bits=0)], []]
    came = summary(seeds, ["done", "not finite", "done", "not finite"])
    assert came["accuracy_mean"] == statistics.fmean([0.3, 0.4])
    assert came["accuracy_std"] == statistics.stdev([0.3, 0.4])
    assert (came["accuracy_worst"], came["bitmap_mb"], came["coded_mb"]) == (0.3, 1, None)
    assert (came["seeds"], came["status"]) == (4, "not finite (2 of 4 seeds)")
    assert summary([[], seeds[0]], ["not finished", "done"])["status"] == "not finished"
    whole = summary(seeds[:1], ["done"])
    assert whole["accuracy_std"] is None
    assert best_first([came | {"accuracy_mean": 0.9}, whole])[0] is whole
    assert [spelled(value) for value in (None, True, 10, "10.0", "a")] == ["", "True", "10", "10", "a"]


def test_points_are_ranked_by_what_is_held_back_where_all_hold_something_back():
    """A point of which no seed stays finite has no accuracy to be ranked by."""
    members = [[row(2, accuracy, validation_mean=1 - accuracy, validation_worst=0.1)] for accuracy in (0.3, 0.6)]
    one, other = (summary([own], ["done"], validated=True) for own in members)
    failed = summary([members[0]], ["not finite"], validated=True)
    assert (one["validation_mean"], one["validation_worst"], failed["validation_mean"]) == (0.7, 0.1, None)
    assert best_first([failed, other, one]) == [one, other, failed]
    assert best([failed, other, one]) == "best first by validation accuracy"
    without = summary([[row(2, 0.5)]], ["done"], validated=True)
    assert best_first([one, without, other]) == [other, without, one]
    assert best([one, without]) == "best first"
    lines = shown(200, False, [{"lr": 3} | one, {"lr": 10} | other], ["lr"], 1, 2)
    assert "after round 2, best first by validation accuracy" in " ".join(lines.split())
    assert "70.00" in lines


def test_pictures_do_not_depend_on_the_matplotlib_of_the_user(tmp_path, monkeypatch):
    axes = {"lr": [1, 10.5, None], HOSTILE: [HOSTILE, True]}
    results = [{"lr": lr, HOSTILE: x, "accuracy_mean": 0.5} for lr in axes["lr"] for x in axes[HOSTILE]]
    drawn = []
    for number, mine in enumerate(({}, {"text.usetex": True, "axes.prop_cycle": matplotlib.cycler(color=["r"])})):
        monkeypatch.setattr(matplotlib, "rcParams", matplotlib.rcParams)
        with matplotlib.rc_context(mine):
            folder = tmp_path / str(number)
            folder.mkdir()
            pictures.curves_picture(folder, [row(0, 0.25), row(1, 0.5), row(2, None)], 0.25)
            pictures.slices_picture(folder, axes, results)
            pictures.topology_picture(folder, sparse.csr_array(~np.eye(2, dtype=bool)), np.array([0.5, 0.25]))
            assert matplotlib.rcParams["text.usetex"] == bool(mine)
            drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert drawn[0].keys() == {"curves.png", "slices.png", "topology.png"}
    assert drawn[0] == drawn[1]
    # A name with a slash is no file: the picture is left out.
    table = plots.best_of_pairs(axes, results, "lr", HOSTILE)
    assert table.to_numpy().tolist() == [[50.0, 50.0]] * 3


def test_a_heat_map_shows_the_points_that_the_table_has_first():
    """Ranked by what is held back, where samples are, and not by the test accuracy that is shown."""
    came = [("code", 1, 0.70, 0.60), ("paper", 1, 0.50, 0.64), ("code", 2, 0.40, 0.30), ("paper", 2, 0.45, None)]
    names = ("order", "lr", "validation_mean", "accuracy_mean")
    rows = [{**dict(zip(names, own, strict=True)), "fusion": "force"} for own in came]
    best = plots.best_of_pairs({"lr": [1, 2], "fusion": ["force"]}, rows, "lr", "fusion")
    assert best.to_numpy().tolist() == [[60.0], [30.0]]


@pytest.mark.parametrize(
    ("topology", "matrix"),
    [(graphs.ring(64), False), (graphs.erdos_renyi(8, seed=1), False), (graphs.regular(64, degree=8), True),
     (graphs.ring(5, directed=True), False), (graphs.ring(200), True)],
    ids=["ring", "few", "hairball", "one-way", "many"],
)  # fmt: skip
def test_a_graph_is_drawn_as_what_can_be_read(topology, matrix, tmp_path, monkeypatch):
    """Nodes whose numbers stand out from their colours, or a matrix of all links, agents of a community together; links
    are counted as the first table and reports count them."""
    figures = []
    monkeypatch.setattr(pictures, "save", lambda path, width, height, draw, *_: figures.append((width, height, draw)))
    adjacency = np.asarray(graphs.adjacency_of(topology.graph))
    accuracy = np.linspace(0.1, 0.9, len(adjacency))
    pictures.topology_picture(tmp_path, sparse.csr_array(adjacency), accuracy)
    ((width, height, draw),) = figures
    with plots.new_figure(width, height) as figure:
        draw(figure)
        axes = figure.axes[0]
        assert axes.get_title() == f"{len(adjacency)} agents, {report(adjacency).links} one-way links"
        numbers = {text.get_text(): text.get_color() for text in axes.texts}
        if matrix:
            (image,) = axes.get_images()
            drawn = image.get_array()
            assert (~drawn.mask).sum() == adjacency.sum()
            rows = np.sort([row.compressed()[0] for row in drawn])
            np.testing.assert_allclose(rows, 100 * accuracy)
            assert "by community" in axes.get_ylabel()
        else:
            assert numbers.keys() == {str(agent) for agent in range(len(adjacency))}
            assert (numbers["0"], numbers[str(len(adjacency) - 1)]) == ("white", "black")  # of viridis' ends


def test_agents_of_a_community_stand_beside_each_other_in_a_matrix():
    """Of two cliques, odd and even agents, with one link between them."""
    agents = np.arange(100)
    adjacency = (agents[:, None] + agents) % 2 == 0
    np.fill_diagonal(adjacency, False)
    adjacency[0, 1] = adjacency[1, 0] = True
    with plots.new_figure(5, 5) as figure:
        axes = figure.subplots()
        plots.draw_matrix(axes, sparse.csr_array(adjacency), agents / 100)
        assert [int(label.get_text()) for label in axes.get_yticklabels()] == [*range(0, 100, 2), *range(1, 100, 2)]


def test_of_many_agents_several_share_a_cell(monkeypatch):
    """Every link is in the cell of its two ends, and a cell has the mean accuracy of who hears over its links."""
    monkeypatch.setattr(plots, "MOST_ROWS", 4)
    monkeypatch.setattr(plots, "MOST_ORDERED", 0)
    adjacency, percent = np.asarray(graphs.adjacency_of(graphs.regular(10, 3).graph)), np.arange(10.0)
    with plots.new_figure(5, 5) as figure:
        axes = figure.subplots()
        plots.draw_matrix(axes, sparse.csr_array(adjacency), percent)
        assert axes.get_ylabel() == "who hears; 3 agents a cell"
        drawn = axes.get_images()[0].get_array()
    assert drawn.shape == (4, 4)
    for place in np.ndindex(4, 4):
        rows, columns = (slice(3 * own, 3 * own + 3) for own in place)
        hears, _ = np.nonzero(adjacency[rows, columns])
        expected = percent[rows][hears]
        assert drawn.mask[place] == (expected.size == 0)
        assert expected.size == 0 or np.isclose(drawn[place], expected.mean())


def test_megabytes_are_those_of_coded_masks_or_of_float32():
    """And the axis says which, of one kind of lines or of both."""
    coded = plots.numbers_of([row(1, 0.5, coded_bits=8_000_000, float32_bits=0)])
    floats = plots.numbers_of([row(1, 0.5, bitmap_bits=None, float32_bits=16_000_000)])
    assert (coded["megabytes"].item(), floats["megabytes"].item()) == (1, 2)
    said = [
        plots.words_of("megabytes", lines) for lines in ({"a": coded}, {"b": floats}, {"a": coded, "b": floats}, {})
    ]
    assert said[:2] == ["sent over all links, entropy-coded, MB", "sent over all links, float32, MB"]
    assert said[2:] == ["sent, MB (masks coded, weights float32)", "sent over all links, MB"]
    assert plots.words_of("round", {"a": coded}) == "round"


def test_a_picture_that_cannot_be_had_is_one_line_of_warning(tmp_path, capsys):
    def fail(figure) -> None:
        raise RuntimeError("no fonts\nhere")

    pictures.save(tmp_path / "a.png", 1, 1, fail)
    pictures.save(tmp_path / "missing" / "a.png", 1, 1, lambda figure: None)
    (tmp_path / "b.png").mkdir()
    pictures.save(tmp_path / "b.png", 1, 1, lambda figure: None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(str(tmp_path))[0] for line in lines] == ["warning: the picture "] * 3
    assert lines[0].endswith("a.png is left out (no fonts)")
    assert [path.name for path in tmp_path.iterdir()] == ["b.png"]


def shown(width: int, terminal: bool, *what, show=tables.show_results) -> str:
    """What a console of a width gets to see."""
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=terminal, color_system=None), *what)
    return out.getvalue()


LONG = {
    "topology": f"/home/somebody/{'with/a/long/path/' * 4}graph.txt",
    "retention": "0.1,0.2,0.3,0.4",
    "partition": HOSTILE,
    **{f"setting_{number}": number / 3 for number in range(6)},
}


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
@pytest.mark.parametrize("point", [{"lr": 3}, {"order": "code", "lr": 0.5}, LONG], ids=len)
def test_a_table_of_a_sweep_fits_80_columns_and_loses_nothing(point, terminal):
    """Accuracy comes first; whatever has no room is folded, and no number is, unless there is still less room."""
    came = summary([[row(2, 0.31531, bitmap_bits=1234_567_890, density=0.25)]] * 2, ["done"] * 2)
    failed = summary([[row(2, 0.3)]] * 2, ["done", "not finite"])
    lines = shown(80, terminal, [point | came, point | failed], point, 2, 8).splitlines()
    assert max(map(cell_len, lines)) <= 80
    text = "".join("".join(lines).split())
    values = [f"{own:.5g}" if isinstance(own, float) else str(own) for own in point.values()]
    # The cells of a column that is folded stand below each other, and nothing stands beside the last column's.
    column = min(line.index(next(iter(point)) if len(point) < 3 else "point") for line in lines if "density" in line)
    last = "".join("".join(line[column:] for line in lines).split())
    for words in (*values, failed["status"]):
        assert "".join(words.split()) in (text if len(point) < 3 else last)
    assert any(line.split()[:5] == ["31.53", "0.00", "31.53", "154.3", "0.25"] for line in lines)
    assert [line.split()[0] for line in lines if "std" in line] == ["accuracy"]
    narrow = shown(40, terminal, [point | came], point, 2, 8)
    assert "\u2026" not in narrow
    assert max(map(cell_len, narrow.splitlines())) <= 40


def test_numbers_that_no_point_has_are_no_columns():
    """And a status that all have, done, is said once."""
    alone = summary([[row(2, 0.0, bitmap_bits=0, float32_bits=8_000_000)]], ["done"])
    said = shown(80, False, [{"lr": 3} | alone], ["lr"], 1, 8)
    assert "1 point, done, 1 seed each" in " ".join(said.split())
    heads = ["accuracy", "worst", "float32", "%", "%", "MB", "lr"]
    assert said.split()[-5 - len(heads) :] == [*heads, said.split()[-5], "0.00", "0.00", "1", "3"]


def test_what_ends_a_run_fits_80_columns():
    """With the accuracy first, and beside it what a mean hides: agents of more samples, and classes."""
    agents = [
        {"accuracy": accuracy, "samples": samples, "balanced_accuracy": balanced, "retention": balanced - 0.25}
        | {"density": accuracy, "multiply_adds": 4_000_000 * samples, "sent_bits": 8_000_000}
        for accuracy, samples, balanced in ((0.25, 300, 0.5), (0.75, 100, 0.625))
    ]
    of_classes = {"cat": 0.5, "a" * 90: 0.125, "7": 0.75}
    classes = [{"class": name, "accuracy": accuracy} for name, accuracy in of_classes.items()]
    last = row(30, 0.5, accuracy_std=0.25, density=0.25, flip_rate=0.01, coded_bits=8e6, kept_bits=8e6, seconds=3.0)
    last |= {"exchanges": 30, "coded_rounds": 7, "validation_mean": 0.375, "validation_worst": 0.25}
    course = types.SimpleNamespace(course=types.SimpleNamespace(rounds=30))
    history = types.SimpleNamespace(rows=[last], chance=0.25, prepared=course, evaluation_seconds=0.5, positions={})
    history.class_rows = lambda: classes
    lines = shown(80, False, history, agents, 21.5, show=tables.show_outcome).splitlines()
    assert max(map(len, lines)) <= 80
    assert "mean of agents" in lines[2]
    assert "50.00%" in lines[2]
    of_devices = [line.split() for line in lines if line.split()[:2] in (["0.25", "1"], ["0.375", "1"])]
    assert of_devices == [
        ["0.25", "1", "25.0", "25.0", "0.25", "1", "1,200"],
        ["0.375", "1", "75.0", "75.0", "0.75", "1", "400"],
    ]
    left, right = zip(*(line.strip("│").split("│") for line in lines if line[0] == "│"), strict=True)
    for words in ("400 to 1.2e+03, mean 800", "37.50%", "56.25%", "interpolated)", "7: 75.00%", "a" * 90):
        assert "".join(words.split()) in "".join("".join((*left, *right)).split())
    # A run folder of an earlier version has less to say.
    assert tables.beside_mean([own | {"balanced_accuracy": None} for own in agents], [], "{:.2%}".format) == [
        ("mean weighted by training samples", "37.50%")
    ]


def test_metrics_are_written_whole_or_not_at_all(tmp_path):
    folders.write_metrics(tmp_path, [{"round": 0, "loss": 0.1 + 0.2}])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        folders.write_metrics(tmp_path, [{"round": 0}, {"round": 1, "loss": float("nan")}])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert json.loads(before) == {"round": 0, "loss": 0.1 + 0.2}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
