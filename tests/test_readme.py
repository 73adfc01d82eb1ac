"""What the documents show runs as it stands, and what they say of names, tables and flags holds."""

import doctest
import importlib
import inspect
import pydoc
import re
import shlex
from pathlib import Path

import pytest
from comparisons import COMPARISONS
from fakes import draw_nothing, use_fakes
from tiny import TinyNet

import dslth_jax
from dslth_jax.networks import zoo
from dslth_jax.study.claims.regenerate import All
from dslth_jax.study.config import command
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS, table
from dslth_jax.study.config.setting import described, flag
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import board, export, predict, report
from dslth_jax.study.sweeping import comparison
from dslth_jax.study.sweeping.grid import Sweep, axes_of
from dslth_jax.study.sweeping.search import spaces_of
from dslth_jax.study.theorem import page

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
NAMES = ["README.md", "experiments/README.md", "dslth_jax/README.md", "benchmarks/README.md", "CHANGELOG.md"]
PAGE = "experiments/RESULTS.md"
MEASURED = sorted(f"experiments/results/{path.name}" for path in RESULTS.glob("*.md"))
DOCUMENTS = {name: (ROOT / name).read_text() for name in (*NAMES, PAGE, *MEASURED)}
README, STUDIES = DOCUMENTS["README.md"], DOCUMENTS["experiments/README.md"]
KINDS = (Settings, Sweep, *COMPARISONS.values(), report.Report, board.Board)
KINDS += (predict.Predict, export.Export, page.Theorem, All)
PYTHON = [code for text in DOCUMENTS.values() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
COMMANDS = [
    (program, words)
    for block in re.findall(r"```sh\n(.*?)```", "\n".join(DOCUMENTS.values()), re.DOTALL)
    for program, words in re.findall(rf"-m experiments\.(all|cifar|sweep|{'|'.join(COMPARISONS)}) (.*)", block)
]


@pytest.mark.parametrize(
    "code", PYTHON, ids=["population", "run", "model", "own data", "sweep", "own network", "own loop", "messages"]
)
def test_python_examples_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_nothing(monkeypatch)
    monkeypatch.setitem(zoo.MODULES, "wide", None)  # which one example adds: afterwards it is gone again
    for name in ("small", "mlp"):
        monkeypatch.setitem(zoo.MODULES, name, TinyNet)
    if 'dataset="digits"' in code:
        use_fakes(monkeypatch)  # the others compile: a population, a run on data of one's own, a loop of one's own
    names = {}
    exec(code.replace("agents, rounds, data = 16, 50,", "agents, rounds, data = 9, 2,"), names)
    if "topology" in names:
        assert int(names["state"].round) == names["rounds"] == 2
        assert len([*filter(None, code.splitlines())]) <= 25
    elif "loss" in names:
        untrained = names["jax"].random.uniform(names["keys"][3], names["weights"].shape)
        assert float(names["loss"]) < 0.9 * float(names["loss_and_gradient"](untrained)[0])
    elif "message" in names:
        assert len(names["message"]) < 60
    elif "logits" in names:
        assert (names["labels"] == names["logits"].argmax(axis=1)).all()
    elif "results" in names:
        assert [row["status"] for row in names["results"]] == ["done"] * 2
    else:
        assert names["result"].metrics[-1]["round"] == (20 if "own.npz" in code else 2)
    if "own.npz" in code:
        assert names["result"].metrics[-1]["accuracy_mean"] > 0.6


@pytest.mark.slow
def test_the_population_learns(as_users_compile, capsys):
    """As it stands, to about what README says, where a guess scores 43 %."""
    exec(PYTHON[0], {})
    assert float(re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)[1]) > 78


@pytest.mark.parametrize(("program", "words"), COMMANDS)
def test_commands_parse(program, words):
    if program == "all":
        assert command.parse(shlex.split(words), All, program).budget == "2h"
    elif program == "cifar":
        assert command.parse(shlex.split(words), Settings, "experiments.cifar").agents >= 4
    elif program in COMPARISONS:
        kind = COMPARISONS[program]
        own = command.parse(shlex.split(words), kind, program)
        shared, arms = comparison.shared_and_own(own, own.arms())
        said = re.search(r"--seeds (\d+)", words)
        assert shared.seeds == (int(said[1]) if said else kind.seeds)
        assert len(arms) > 1
    else:
        settings = command.parse(shlex.split(words), Sweep, program)
        assert axes_of(settings) or spaces_of(settings)


LIBRARY = Path(dslth_jax.__file__).parent
MODULES = [
    ".".join(file.relative_to(LIBRARY.parent).with_suffix("").parts)
    for file in sorted(LIBRARY.rglob("*.py"))
    if ">>>" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


def test_the_readme_is_short():
    assert len(README.encode()) <= 10_000


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_figure_is_missing_and_every_link_leads_somewhere(name):
    assert re.findall(r"@[A-Z]+@|[A-Z]+LINE\b|TODO|\?\?", DOCUMENTS[name]) == []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", DOCUMENTS[name]):
        path, _, heading = target.partition("#")
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.exists(), target
        headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {*map(anchor_of, headings)}


def anchor_of(heading):
    """Where a link to a heading leads."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_figure_of_a_claim_stands_in_the_section_that_it_links_to():
    """And every one of its verdict in one of those. It has a command that there is, seeds and hours."""
    sections = {}
    for name in (*MEASURED, "benchmarks/README.md"):
        headings = re.split(r"^#+ (.*)$", DOCUMENTS[name], flags=re.MULTILINE)
        at = "../benchmarks/README.md" if name.startswith("benchmarks") else f"results/{Path(name).name}"
        anchors = (f"{at}#{anchor_of(heading)}" for heading in headings[1::2])
        sections |= zip(anchors, headings[2::2], strict=True)
    rows = re.findall(r"^\| (.*) \|$", DOCUMENTS[PAGE].partition("| claim |")[2].partition("\n\n")[0], re.MULTILINE)
    names = [row.partition(":")[0] for row in rows]
    assert {"Theorem", "Over-parameterization", "Heterogeneity boundary", "Cross-architecture"} <= {*names}
    linked = 0
    for row in rows:
        _, verdict, figures, commands, _, _ = row.split(" | ")
        assert "**" in verdict
        for module in re.findall("`(.*?)`", commands):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        found = re.findall(r"(.*?)\(\[[^]]*\]\(([^)]*)\)\)", figures)
        for said, *links in [*found, (verdict, *(link for _, link in found))]:
            for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", re.sub("`.*?`", "", said) if found else ""):
                held = re.compile(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)")
                assert any(held.search(sections[link]) for link in links), (number, links)
                linked += 1
    assert linked > 40


def test_every_flag_that_is_named_exists():
    """In the words and commands of all documents, but for what older versions had and other programs have."""
    known = {flag(name) for kind in KINDS for name in described(kind)}
    known |= {
        "--help",
        "--config",
        "--dist",
        "--file",
        "--ntasks-per-node",
        "--logdir",
    }  # of every command, of other programs
    for path in (ROOT / "benchmarks").glob("*.py"):
        known |= set(re.findall(r"--[a-z][a-z-]+", path.read_text()))
    named = {word for name, text in DOCUMENTS.items() for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert {word for word in named if word not in known and word.replace("--no-", "--") not in known} == set()


def test_the_core_names_no_flag():
    core = [path for path in (ROOT / "dslth_jax").rglob("*.py") if "study" not in path.parts]
    assert len(core) > 20
    assert {path.name: re.findall(r"(?<![\w=-])--[a-z][\w-]*", path.read_text()) for path in core} == {
        path.name: [] for path in core
    }


def test_the_tables_of_algorithms_are_those_of_the_code():
    assert "\n".join(table()) in STUDIES
    rows = README.partition("| algorithm |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", rows, re.MULTILINE)) == set(ALGORITHMS)


def test_every_public_name_exists():
    assert all(hasattr(dslth_jax, name) for name in dslth_jax.__all__)


def test_the_table_of_switches_is_that_of_the_presets():
    rows = re.findall(r"^\| .* \| `--([\w-]+)` \| `(.*)` \| `(.*)` \| `(.*)` \|$", STUDIES, re.MULTILINE)
    table = {name.replace("-", "_"): values for name, *values in rows}
    assert table.keys() == PRESETS["code"].keys()
    for name, values in table.items():
        assert values == [str(PRESETS[preset][name]) for preset in ("code", "paper", "tuned")]


@pytest.mark.parametrize("name", dslth_jax.__all__)
def test_every_public_name_is_described(name):
    described = inspect.getdoc(getattr(dslth_jax, name))
    assert described
    # A NamedTuple without a docstring describes itself as its fields: that does not count.
    assert not described.startswith(f"{name}(")


def test_help_shows_the_map():
    assert pydoc.render_doc(dslth_jax, renderer=pydoc.plaintext).index("A map of the modules") < 300


def test_versions_agree():
    assert f"version: {dslth_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"\*\*([\d.]+)\*\* \(", DOCUMENTS["CHANGELOG.md"])[1] == dslth_jax.__version__
