"""The page that shows runs, and their event files: what they say, and what they make of what is missing or hostile."""

import csv
import html.parser
import itertools
import json
import math
import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from markupsafe import Markup, escape

from dslth_jax import masks
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import folders, models, plots, report, similarity, track
from dslth_jax.study.results.metrics import METRICS, PERHAPS, VALIDATION
from dslth_jax.study.results.points import OF_POINTS, Sweep, read_all, spelled, summary
from dslth_jax.study.training import agreement
from experiments import board as board_command
from experiments import report as report_command

VOID = {"meta", "link", "img", "br", "input", "hr"}
SHAPES = {"path", "use", "image", "line", "rect", "circle", "ellipse", "polygon", "polyline"}
MASKS_ALONE = ("bitmap_bits", "kept_bits", "coded_bits", "density", "flip_rate")
HOSTILE = '<script>alert("1")</script> & $x_$ \\'


class Page(html.parser.HTMLParser):
    """A page taken apart: whether its tags balance, what it refers to, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def shown(*folders: Path, out: Path) -> Page:
    """The page of some folders, after what is true of every page was looked at."""
    assert report_command.main([*map(str, folders), "--out", str(out)]) == 0
    page = Page(out.read_text())
    assert len(page.ids) == len(set(page.ids))
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("data:image/png;base64,", "#"))
            assert not value.startswith("#") or value[1:] in page.ids
    assert "http:" not in out.read_text()
    assert "https:" not in out.read_text()
    assert {"script", "iframe", "object", "link", "base"}.isdisjoint(page.tags)
    assert re.findall(r"(?i)\b(nan|none|null|undefined)\b", page.words.replace("feature skew none", "")) == []
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    # Every picture is described, and every table says what it is of.
    assert page.tags.count("img") == sum(name == "alt" for name, _ in page.attributes)
    assert page.tags.count("svg") == sum(value == "img" for name, value in page.attributes if name == "role")
    assert page.tags.count("table") == page.tags.count("caption")
    return page


@pytest.fixture
def whole_charts():
    """Asks for charts as they are."""


@pytest.fixture(autouse=True)
def charts_without_svg(request, monkeypatch):
    """Draw into axes and write no SVG, which takes most of the time, for tests that look at no chart."""

    def chart(title, label, draw, *what, height=0, note="", **how):
        with plots.new_figure(5, 4) as figure:
            draw(figure.subplots(), *what, **how)
        return plots.Chart(title, Markup(f'<svg role="img" aria-label="{escape(label)}"></svg>'), note)

    if "whole_charts" not in request.fixturenames:
        monkeypatch.setattr(plots, "chart", chart)
        monkeypatch.setattr(report, "chart", chart)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run folder as runs leave them (`test_algorithms` shows real ones), without a run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    out.mkdir()
    settings = Settings(dataset="digits", agents=4, rounds=2, topology="erdos-renyi:0.5", out=out)
    config = {"settings": settings.as_json(), "graph": {"links": 10, "connected": True, "spectral_gap": 0.25}}
    folders.save_config(out, config | {"seed": 0} | folders.circumstances())
    numbers = dict.fromkeys(METRICS.keys() - {*PERHAPS}, 0)
    rows = [numbers | {"round": round, "loss": 2.5 / round if round else None} for round in range(3)]
    for row in rows:
        row |= {"accuracy_mean": 0.25 + row["round"] / 10, "accuracy_worst": 0.125, "accuracy_best": 0.625}
        row |= dict.fromkeys(("kept_bits", "bitmap_bits", "coded_bits", "busiest_agent_bits"), 10000 * row["round"])
    folders.write_metrics(out, rows)
    agents = [
        {
            "agent": agent,
            "classes": f"{agent} {agent + 1}",
            "samples": 100 + agent,
            "test_samples": 30,
            "retention": 0.3,
        }
        | {"neighbours": 2 + agent % 2, "accuracy": 0.125 * (agent + 1), "density": 0.625}
        | {"balanced_accuracy": 0.75 - agent / 8}
        for agent in range(4)
    ]
    folders.write_table(out / "agents.csv", agents)
    counts = {"agents": 2, "samples": 99, "test_samples": 40}
    classes = [{"class": name} | counts | {"accuracy": share} for name, share in (("cat", 0.875), ("a <b>", 0.0625))]
    folders.write_table(out / "classes.csv", classes)
    bits = np.random.default_rng(0).random((4, 20, 3)) < 0.6
    shape = jax.ShapeDtypeStruct((20, 3), bool)
    models.write_masks(
        out, {"linear": np.stack([np.asarray(masks.pack(jnp.asarray(own))) for own in bits])}, {"linear": shape}
    )
    for name in report.PICTURES:
        (out / name).write_bytes(b"\x89PNG of some kind")
    return out


@pytest.fixture
def copy(folder, tmp_path):
    """Makes copies of that folder, with other settings."""

    def make(name: str, **settings) -> Path:
        shutil.copytree(folder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        config["settings"] |= settings
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    return make


def rewrite(path: Path, change) -> None:
    """Change the rows of a metrics.jsonl."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def sweep_folder(out: Path, axes: dict, **more) -> Path:
    """A made-up sweep; the last point of its grid does not stay finite."""
    out.mkdir()
    points = list(itertools.product(*axes.values()))
    members = [dict(zip(axes, point, strict=True)) | {"seed": seed} for point in points for seed in range(2)]
    settings = Settings(dataset="digits").__dict__ | {"out": "somewhere"}
    config = {"kind": "sweep", "settings": settings, "axes": axes, "seeds": [0, 1], "members": members, **more}
    (out / "config.json").write_text(json.dumps(config))
    with (out / "metrics.jsonl").open("w") as file:
        for round, number in itertools.product((0, 5, 10), range(len(members))):
            if round and number // 2 == len(points) - 1:
                continue
            row = dict.fromkeys(METRICS) | {"member": number, "round": round, "bitmap_bits": round * 8_000_000}
            row |= {"accuracy_mean": 0.1 + round * (0.01 + number // 2 / 1000), "loss": 2 / (round + 1), "seconds": 0}
            file.write(json.dumps(row | {"accuracy_worst": 0.05, "accuracy_best": 0.9}) + "\n")
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*axes, *OF_POINTS, "status"])
        for number, point in reversed(list(enumerate(points[:-1]))):
            writer.writerow([*point, 2, 0.2 + number / 100, 0.01, 0.05, 0.18, 0.3, 10, 2, 0, "done"])
        writer.writerow([*points[-1], 2, "", "", "", "nan", "", "", "", "", "not finite"])
    return out


def test_what_a_run_said_of_simulated_time_is_on_its_page(copy, tmp_path):
    """Beside the bandwidth and the controller; where no time is simulated, nothing."""
    timed = copy("timed", bandwidth="constant:10", controller="deadline")
    config = json.loads((timed / "config.json").read_text())
    sentence = "retention alone can change 0.2% of a round's simulated time at most: it buys next to no time here"
    (timed / "config.json").write_text(json.dumps(config | {"simulated_time": [sentence]}))
    page = shown(timed, out=tmp_path / "page.html")
    assert f"simulated time bandwidth constant:10, controller deadline, {sentence}" in page.words
    page = shown(copy("untimed"), out=tmp_path / "page.html")
    assert "simulated time bandwidth" not in page.words


def test_a_run_is_shown_with_all_it_has_the_same_every_time(folder, tmp_path, whole_charts):
    page = shown(folder, out=tmp_path / "page.html")
    shown(folder, out=tmp_path / "again.html")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "again.html").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "again.html"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((folder / "config.json").read_text())
    assert f"{100 * rows[-1]['accuracy_mean']:.1f} %" in page.words.replace("\xa0", " ")
    for said in (config["command"], config["versions"]["jax"], "erdos-renyi:0.5", "preset code", "kept entries"):
        assert said in page.words
    assert page.tags.count("img") == 2
    # Three charts of curves, of agents one and those of what differs, two of masks.
    assert page.tags.count("svg") >= 6
    assert "Left out, for nothing was counted there: sent as float32" in page.words
    for agent in csv.DictReader((folder / "agents.csv").read_text().splitlines()):
        percent = " ".join(f"{100 * float(agent[key]):.1f}" for key in ("accuracy", "balanced_accuracy"))
        assert f"{percent} {agent['classes']} {agent['samples']}" in page.words
    for said in ("a <b> 6.2 2 99 40", "weighted by training samples 31.4 %", "classes, mean 56.2 %"):
        assert said in page.words.replace("\xa0", " ")
    assert "worst and best class a <b>: 6.2 %, cat: 87.5 %" in page.words


def test_a_run_folder_of_before_classes_were_told_apart_is_shown(copy, tmp_path):
    run = copy("old")
    (run / "classes.csv").unlink()
    lines = [line.rsplit(",", 1)[0] for line in (run / "agents.csv").read_text().splitlines()]
    (run / "agents.csv").write_text("\n".join(lines) + "\n")
    page = shown(run, out=tmp_path / "page.html")
    assert "mean weighted by training samples" in page.words
    for word in ("balanced", "Each class", "best class"):
        assert word not in page.words


def test_the_table_of_several_runs_says_what_differs_and_only_that(copy, tmp_path):
    one, other = copy("one", lr=3.0, feature_skew="noise:4"), copy("other", lr=30.0, feature_skew="noise:3")
    rewrite(other / "metrics.jsonl", lambda row: row | {"accuracy_mean": 0.9, "coded_bits": 8_000_000})
    page = shown(one, other, one, out=tmp_path / "page.html")
    head = page.words.partition("Best first")[2].partition("Curves")[0]
    assert "run mean accuracy, % worst agent, % sent, MB feature skew lr other" in head
    assert "the evaluation after round 2" in head
    # Sent are 8,000,000 bits of coded masks.
    assert head.index("other 90.0 12.5 1 noise:3 30") < head.index("one 45.0 12.5 0.0025 noise:4 3")


def test_where_many_settings_differ_they_share_a_column(copy, tmp_path):
    """So that the table fits its page; weights count as float32."""
    differing = {"lr": 3.0, "fine_tune_lr": 3.0, "batch_size": 7, "local_steps": 2, "seed": 5, "eval_every": 9}
    one, other = copy("one"), copy("other", **differing)
    rewrite(other / "metrics.jsonl", lambda row: row | {"coded_bits": None, "float32_bits": 16_000_000})
    page = shown(one, other, out=tmp_path / "page.html")
    head = page.words.partition("Best first")[2].partition("Curves")[0]
    assert "run mean accuracy, % worst agent, % sent, MB settings that differ one" in head
    assert "other 45.0 12.5 2 lr 3, fine tune lr 3, batch size 7, local steps 2, seed 5, eval every 9" in head
    assert "sent, MB (masks coded, weights float32)" in {
        plots.words_of("megabytes", {run.name: plots.numbers_of(run.rows) for run in read_all([one, other])})
    }


def test_a_folder_of_run_folders_is_all_of_its_runs(copy, tmp_path, capsys):
    """Sweeps in it are named and left out; a folder without any run is one sentence."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "nothing").mkdir()
    for name in ("one", "other"):
        copy(name).rename(tmp_path / "runs" / name)
    sweep = sweep_folder(tmp_path / "runs" / "swept", {"lr": [1, 2]})
    assert [run.name for run in read_all([tmp_path / "runs", tmp_path / "runs" / "one"])] == ["one", "other"]
    assert capsys.readouterr().err == (
        f"warning: {sweep} is the folder of a sweep, which is read alone, and is left out\n"
    )
    assert isinstance(read_all([sweep]), Sweep)
    for name in ("one", "other"):
        shutil.rmtree(tmp_path / "runs" / name)
    assert report_command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "page.html")]) == 2
    assert "holds no config.json, and no run folders" in capsys.readouterr().err


def test_of_more_runs_than_looks_the_best_are_named(copy, tmp_path):
    runs = [copy(f"run-{number}", seed=number) for number in range(plots.NAMED + 1)]
    for number, run in enumerate(runs):
        rewrite(run / "metrics.jsonl", lambda row, number=number: row | {"accuracy_mean": number / 100})
        for name in ("masks.npz", "agents.csv", "partition.png", "topology.png"):
            (run / name).unlink()
    page = shown(*runs, out=tmp_path / "page.html")
    legend = page.words.partition("Curves")[2].partition("Accuracy over rounds")[0]
    assert legend.split() == ["run-18", "run-17", "run-16", "run-15", "run-14", "run-13", "13", "others"]


def test_runs_of_one_name_are_told_apart(copy, tmp_path):
    one, other = copy("first"), copy("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    page = shown(one.rename(tmp_path / "a/run"), other.rename(tmp_path / "b/run"), out=tmp_path / "page.html")
    assert "a/run" in page.words
    assert "b/run" in page.words


def test_a_run_that_was_stopped_says_what_is_missing(copy, tmp_path):
    run = copy("stopped")
    for name in ("masks.npz", "agents.csv", "topology.png"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "lo')
    page = shown(run, out=tmp_path / "page.html")
    assert "Not there, and so left out: agents.csv, masks.npz, topology.png." in page.words
    assert "The last line of metrics.jsonl breaks off" in page.words
    (run / "metrics.jsonl").write_text("")
    page = shown(run, copy("whole"), out=tmp_path / "page.html")
    assert "No round has been evaluated yet" in page.words
    shown(run, out=tmp_path / "page.html")


def test_weights_instead_of_masks_and_numbers_that_are_none(copy, tmp_path):
    run = copy("weights", retention=None)
    (run / "masks.npz").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) | dict.fromkeys(MASKS_ALONE) for line in lines]
    rows = [row | {"float32_bits": 10**9 * row["round"], "loss": math.nan} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = shown(run, out=tmp_path / "page.html")
    assert "250 MB" in page.words.replace("\xa0", " ")
    assert "Loss over rounds" not in page.words
    # Beside masks they stand on a logarithmic axis.
    assert "logarithmic" in shown(run, copy("masks"), out=tmp_path / "page.html").words


def test_runs_that_hold_samples_back_are_ranked_by_them_and_say_so(copy, tmp_path):
    """On a page of several all must; on a page of one its agents have a column of their own."""
    one, other = copy("one", lr=3.0, validation=0.2), copy("other", lr=30.0, validation=0.2)
    for run, validation in ((one, 0.75), (other, 0.125)):
        rewrite(run / "metrics.jsonl", lambda row, own=validation: row | dict.fromkeys(VALIDATION, own))
    rewrite(other / "metrics.jsonl", lambda row: row | {"accuracy_mean": 0.9})
    page = shown(other, one, out=tmp_path / "page.html")
    head = page.words.partition("Best first by validation accuracy: the evaluation")[2].partition("Curves")[0]
    assert "mean validation accuracy, % worst agent's validation, %" in head
    assert head.index("one 45.0 12.5 0.0025 75.0 75.0 3") < head.index("other 90.0 12.5 0.0025 12.5 12.5 30")
    assert "validation 0.2" in page.words
    page = shown(other, copy("without"), out=tmp_path / "page.html")
    assert "by validation" not in page.words
    assert "12.5 \u2013" in page.words  # of the run without
    table = folders.read_table(one / "agents.csv", ("classes",), folders.OF_AGENTS)
    agents = [row | {"validation_samples": 25, "validation_accuracy": 0.625} for row in table]
    folders.write_table(one / "agents.csv", agents)
    page = shown(one, out=tmp_path / "page.html")
    assert "validation, mean and worst 75.0, 75.0 %" in page.words.replace("\xa0", " ")
    assert "agent test accuracy, % balanced over classes, % validation accuracy, % classes" in page.words
    assert page.words.count("62.5 ") >= 4


def test_of_many_agents_a_page_shows_both_ends(copy, tmp_path, monkeypatch):
    """In its table the worst and the best, in its charts some of all, and it says so."""
    monkeypatch.setattr(report, "MOST_AGENTS", 2)
    monkeypatch.setattr(plots, "MOST_ROWS", 3)
    page = shown(copy("many"), out=tmp_path / "page.html")
    assert "The worst 1 and the best 1 of 4 agents, worst first; agents.csv has all" in page.words
    assert page.words.count("3 of 4 agents are drawn.") == 3  # sorted, over samples, over neighbours
    drawn = []
    with plots.new_figure(5, 4) as figure:
        agents = [{"accuracy": share, "samples": number} for number, share in enumerate((0.5, 0.1, 0.9, 0.3))]
        for draw, *more in ((plots.draw_sorted,), (plots.draw_against, "samples", "training samples")):
            axes = figure.add_subplot()
            draw(axes, agents, *more)
            drawn.append(axes.lines[0].get_xydata().tolist())
    assert drawn[0] == [[1, 10], [2, 30], [4, 90]]
    assert len(drawn[1]) == 3
    assert all([number, 100 * agents[int(number)]["accuracy"]] == [number, share] for number, share in drawn[1])


def test_hostile_names_are_harmless(copy, tmp_path, whole_charts):
    run = copy("<script>", topology=HOSTILE, dataset="\ud800", partition={"x": None}, **{HOSTILE: HOSTILE})
    agents = (run / "agents.csv").read_text().splitlines()
    agents[1] = ",".join([f'"{HOSTILE.replace(chr(34), chr(34) * 2)}"', *agents[1].split(",")[1:]])
    (run / "agents.csv").write_text("\n".join(agents) + "\n")
    page = shown(run, out=tmp_path / "page.html")
    assert "alert" in page.words
    assert "<script>" in page.words
    sweep = sweep_folder(tmp_path / "sweep", {HOSTILE: [HOSTILE, "\u732b"], "_b": [1, None]}, command="<b>")
    assert "<b>" in shown(sweep, out=tmp_path / "page.html").words


@pytest.mark.parametrize(
    ("axes", "maps"),
    [({"lr": [3, 10.0, 30]}, 0), ({"lr": [3, 10.0, 30], "retention": [0.1, "0.1:0.3"]}, 1),
     ({"a": [1, 2], "b": [True, False], "c": ["x", "y"]}, 3), ({"a": [1, 2], "b": [1], "c": [1], "d": [1]}, 1)],
)  # fmt: skip
def test_a_sweep_is_shown_along_its_axes(axes, maps, tmp_path):
    page = shown(sweep_folder(tmp_path / "sweep", axes), out=tmp_path / "page.html")
    points = math.prod(map(len, axes.values()))
    assert page.words.count("Heat map") == 0
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert sum(label.startswith("Heat map") for label in labels) == maps
    assert sum(label.startswith("Test accuracy over") for label in labels) == len(axes)
    assert "not finite" in page.words
    assert f"{points}, with {2 * points} members in all" in page.words
    assert f"{20 + points - 2:.1f} 5.0 2 1.0 2 0.18" in page.words


def test_a_sweep_that_still_runs_and_runs_inside_a_sweep(folder, tmp_path):
    sweep = sweep_folder(tmp_path / "sweep", {"lr": [3, 10]})
    (sweep / "results.csv").unlink()
    (sweep / "runs").mkdir()
    shutil.copytree(folder, sweep / "runs" / "inner")
    page = shown(sweep, out=tmp_path / "page.html")
    assert "There is no results.csv yet" in page.words
    assert "not finished" in page.words
    assert "inner" in page.words
    (sweep / "metrics.jsonl").unlink()
    assert "There is no metrics.jsonl" in shown(sweep, out=tmp_path / "page.html").words


def test_points_are_matched_with_their_members(tmp_path):
    found = read_all([sweep_folder(tmp_path / "sweep", {"lr": [3, 10.0], "retention": ["1e-1", 0.3]})])
    assert isinstance(found, Sweep)
    assert [len(point.members) for point in found.points] == [2] * 4
    assert found.points[-1].values == {"lr": "10", "retention": "0.3"}
    assert [len(rows) for rows in found.points[-1].members] == [1, 1]
    summed_up = summary(found.points[0].members, ["done", "done"])
    assert summed_up["accuracy_mean"] == pytest.approx(found.points[0].members[0][-1]["accuracy_mean"])
    assert (summed_up["accuracy_std"], summed_up["bitmap_mb"]) == (0, 10)
    assert summed_up["status"] == "done"
    assert [spelled(x) for x in (None, True, 10, "10.0", "a")] == ["", "True", "10", "10", "a"]


def test_members_that_failed_are_left_out_of_a_sweep_that_still_runs(tmp_path):
    done = {"1": "the loss is nan", "4": "the loss is nan", "5": "the loss is nan", "2": None, "3": None}
    sweep = sweep_folder(tmp_path / "sweep", {"lr": [3, 10, 30]}, done=done)
    (sweep / "results.csv").unlink()
    found = read_all([sweep])
    assert isinstance(found, Sweep)
    assert [(point.values["lr"], point.result["status"]) for point in found.points] == [
        ("10", "done"), ("3", "not finite (1 of 2 seeds)"), ("30", "not finite (2 of 2 seeds)"),
    ]  # fmt: skip
    assert [point.result["seeds"] for point in found.points] == [2, 2, 2]
    assert found.points[1].result["accuracy_mean"] == found.points[1].members[0][-1]["accuracy_mean"]
    assert found.points[2].result["accuracy_mean"] is None
    assert "not finite (2 of 2 seeds)" in shown(sweep, out=tmp_path / "page.html").words


def test_a_search_is_shown_by_dots_at_the_numbers_it_tried(tmp_path):
    axes = {"lr": [2.5, 10.0, 80.0], "retention": [0.1, 0.2], "order": ["code", "paper"], "mixing": ["metropolis"]}
    sweep = sweep_folder(tmp_path / "sweep", axes)
    config = json.loads((sweep / "config.json").read_text())
    config["settings"]["search"] = ["lr=1:100:log", "retention=0.1:0.3", "order=code,paper", "mixing=metropolis"]
    (sweep / "config.json").write_text(json.dumps(config))
    page = shown(sweep, out=tmp_path / "page.html")
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert [label for label in labels if label.startswith("Heat map")] == [
        "Heat map of the accuracy at every order and mixing"
    ]
    assert sum(label.startswith("Test accuracy over") for label in labels) == 4
    found = read_all([sweep])
    assert isinstance(found, Sweep)
    assert [chart.note for chart in report.charts_of_axes(found)[1:]] == ["A dot is a point of the search."] * 4
    # Before its first point.
    config |= {"axes": {axis: [] for axis in axes}, "members": []}
    (sweep / "config.json").write_text(json.dumps(config))
    (sweep / "metrics.jsonl").write_text("")
    (sweep / "results.csv").unlink()
    assert "0, with 0 members in all" in shown(sweep, out=tmp_path / "page.html").words


def damage(run: Path, kind: str) -> Path:
    """Break a folder in one way; returns what to name on the command."""
    metrics, agents, config = run / "metrics.jsonl", run / "agents.csv", json.loads((run / "config.json").read_text())
    if kind.startswith("config"):
        text = {"config torn": '{"settings"', "config list": "[1]", "config bare": "{}", "config deep": "[" * 100_000}
        (run / "config.json").write_text(text[kind])
    elif kind == "no config":
        (run / "config.json").unlink()
    elif kind == "no metrics":
        metrics.unlink()
    elif kind == "bytes":
        metrics.write_bytes(b"\xff\xfe\x00")
    elif kind == "torn row":
        metrics.write_text('{"round": 0\n{"round": 1}\n')
    elif kind == "word":
        rewrite(metrics, lambda row: row | {"loss": "low"})
    elif kind == "endless":
        rewrite(metrics, lambda row: row | {"kept_bits": 10**400})
    elif kind == "no round":
        rewrite(metrics, lambda row: row | {"round": None})
    elif kind == "columns":
        agents.write_text("agent,classes\n0,1\n")
    elif kind == "short":
        agents.write_text(agents.read_text() + "9\n")
    elif kind == "cell":
        agents.write_text(agents.read_text().replace("0.3", "many"))
    elif kind == "quote":
        agents.write_text(agents.read_text().replace("\n0,", "\n0,'", 1))
    elif kind == "fewer agents":
        agents.write_text("\n".join(agents.read_text().splitlines()[:-1]) + "\n")
    elif kind == "masks":
        (run / "masks.npz").write_bytes(b"PK nothing")
    elif kind == "picture":
        (run / "topology.png").write_text("<svg>")
    elif kind == "sweep":
        (run / "config.json").write_text(json.dumps(config | {"kind": "sweep"}))
    elif kind == "members":
        (run / "config.json").write_text(json.dumps(config | {"kind": "sweep", "axes": {"lr": [1]}, "members": [3]}))
    elif kind == "file":
        return run / "config.json"
    else:
        return run / "missing"
    return run


@pytest.mark.parametrize(
    "kind",
    ["config torn", "config list", "config bare", "config deep", "no config", "no metrics", "bytes", "torn row", "word",
     "endless", "no round", "columns", "short", "cell", "quote", "fewer agents", "masks", "picture", "sweep", "members",
     "file", "missing"],
)  # fmt: skip
def test_a_damaged_folder_is_one_sentence_and_leaves_nothing(kind, copy, tmp_path, capsys):
    named, out = damage(copy("run"), kind), tmp_path / "pages"
    out.mkdir()
    (out / "page.html").write_text("an older page")
    assert report_command.main([str(named), "--out", str(out / "page.html")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("experiments.report: ")
    assert len(said) > 60
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("page.html", "an older page")]


def test_help_says_what_stands_without_a_flag(capsys):
    with pytest.raises(SystemExit):
        board_command.main(["--help"])
    said = capsys.readouterr().out
    assert "--folders" not in said
    assert "Run folders. (must be said)" in " ".join(said.split())
    assert "--log-dir PATH" in said


def test_other_mistakes_are_one_sentence(folder, tmp_path, capsys):
    sweep = sweep_folder(tmp_path / "sweep", {"lr": [1, 2]})
    for arguments in (
        [],
        [str(folder), "--nonsense"],
        [str(folder), "--out", str(tmp_path / "page.txt")],
        [str(folder), "--out", str(tmp_path / "no" / "page.html")],
        [str(folder), str(sweep), "--out", str(tmp_path / "page.html")],
    ):
        assert report_command.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    results = (sweep / "results.csv").read_text()
    (sweep / "results.csv").write_text(results.replace("1,2,", "7,2,", 1))
    assert report_command.main([str(sweep), "--out", str(tmp_path / "page.html")]) == 2
    assert "must be one of 1, 2, got '7'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_similarity_is_that_of_the_unpacked_masks(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random((5, *shape)) < 0.4 for shape in ((3, 3, 7), (501,), (2, 2))]
    masks[2][:] = False
    arrays = {f"layer {k}": np.stack([np.packbits(one) for one in mask]) for k, mask in enumerate(masks)}
    arrays |= {f"layer {k}.shape": np.array(mask.shape[1:]) for k, mask in enumerate(masks)}
    np.savez(tmp_path / "masks.npz", **arrays)
    agents = [{"classes": classes.split()} for classes in ("0 1", "1 2", "0 1", "", "12")]
    similar = similarity.similarity(tmp_path / "masks.npz", agents)
    flat = np.concatenate([mask.reshape(5, -1) for mask in masks], axis=1)
    for one, other in itertools.product(range(5), repeat=2):
        expected = (flat[one] & flat[other]).sum() / (flat[one] | flat[other]).sum()
        assert similar.masks[one, other] == pytest.approx(expected)
        held, others = set(agents[one]["classes"]), set(agents[other]["classes"])
        assert similar.classes[one, other] == (len(held & others) / len(held | others) if held | others else 1)
    # Masks drawn at random are as alike as chance has it.
    assert similar.by_chance == pytest.approx(similar.masks[np.triu_indices(5, 1)].mean(), abs=0.02)


def test_similarity_of_many_agents_takes_seconds(tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, (64, 150_000), np.uint8)
    began = time.perf_counter()
    counts = agreement.intersections(bits)
    assert time.perf_counter() - began < 5
    assert counts[3, 60] == np.bitwise_count(bits[3] & bits[60]).sum()
    assert (counts == counts.T).all()
    assert counts[7, 7] == np.bitwise_count(bits[7]).sum()


def test_of_too_many_agents_some_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(similarity, "MOST_AGENTS", 3)
    np.savez(tmp_path / "masks.npz", **{"a": np.arange(7, dtype=np.uint8)[:, None], "a.shape": np.array([8])})
    similar = similarity.similarity(tmp_path / "masks.npz", [{"classes": ["0"]}] * 7)
    assert similar.agents.tolist() == [0, 3, 6]
    assert similar.masks[1, 2] == pytest.approx(1 / 3)


def events_in(*paths: Path) -> tuple[dict[tuple[str, int], list[float]], set[str]]:
    """The numbers in event files, by tag and round, and all their tags."""
    from tensorboardX.proto.event_pb2 import Event

    found, tags = dict[tuple[str, int], list[float]](), set[str]()
    for content in (path.read_bytes() for path in paths):
        while content:
            # A record: its length, a checksum, what it says, a checksum.
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                tags.add(value.tag)
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found, tags


@pytest.mark.install
def test_event_files_hold_the_metrics(folder, tmp_path, capsys):
    pytest.importorskip("tensorboardX", reason="the extra [tensorboard] is not installed")
    arguments = [str(folder), "--log-dir", str(tmp_path / "logs")]
    assert board_command.main(arguments) == 0
    found, tags = events_in(*(tmp_path / "logs" / "tiny").iterdir())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert found["accuracy/mean", row["round"]] == [pytest.approx(row["accuracy_mean"])]
        assert found["megabytes/bitmap", row["round"]] == [pytest.approx(row["bitmap_bits"] / 8e6)]
        assert found["megabytes/coded", row["round"]] == [pytest.approx(row["coded_bits"] / 8e6)]
    assert ("loss", 0) not in found
    assert "_hparams_/session_start_info" in tags
    # A second time the points would be there twice.
    assert board_command.main(arguments) == 2
    assert "name another" in capsys.readouterr().err


def test_event_files_need_their_package_and_run_folders(folder, tmp_path, capsys, monkeypatch):
    sweep = sweep_folder(tmp_path / "sweep", {"lr": [1, 2]})
    monkeypatch.setattr(track, "find_spec", lambda package: find_spec("json"))
    assert board_command.main([str(sweep), "--log-dir", str(tmp_path / "logs")]) == 2
    assert "name run folders" in capsys.readouterr().err
    assert board_command.main([str(folder)]) == 2
    assert "--log-dir" in capsys.readouterr().err
    monkeypatch.setattr(track, "find_spec", lambda package: None)
    assert board_command.main([str(folder), "--log-dir", str(tmp_path / "logs")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'dslth-jax[tensorboard]'" in said
