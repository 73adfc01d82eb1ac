"""What the README shows runs as it stands."""

import doctest
import importlib
import inspect
import pydoc
import re
import shlex
from pathlib import Path

import pytest

import dslth_jax
from dslth_jax.networks import zoo
from dslth_jax.study.config import command
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.sweeping import comparison
from dslth_jax.study.sweeping.grid import Sweep, axes_of
from dslth_jax.study.sweeping.search import spaces_of
from experiments import ablation, communication, thousandfold, validation

ROOT = Path(__file__).parent.parent
README, MEASURED = (ROOT / "README.md").read_text(), (ROOT / "experiments" / "README.md").read_text()
COMPARISONS = {
    "ablation": (ablation, ablation.Ablation),
    "communication": (communication, communication.Communication),
    "thousandfold": (thousandfold, thousandfold.Thousandfold),
    "validation": (validation, validation.Validation),
}
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    (program, words)
    for block in re.findall(r"```sh\n(.*?)```", README + MEASURED, re.DOTALL)
    for program, words in re.findall(rf"-m experiments\.(cifar|sweep|{'|'.join(COMPARISONS)}) (.*)", block)
]


@pytest.mark.parametrize(
    "code", PYTHON, ids=["population", "run", "own data", "own network", "messages", "sweep", "own loop"]
)
def test_python_examples_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(zoo.MODULES, "wide", None)  # which one example adds: afterwards it is gone again
    names = {}
    exec(code.replace("agents, rounds, data = 16, 200,", "agents, rounds, data = 9, 2,"), names)
    if "step" in names and "topology" in names:
        assert int(names["state"].round) == names["rounds"] == 2
        assert len([*filter(None, code.splitlines())]) <= 25
    elif "loss" in names:
        untrained = names["jax"].random.uniform(names["keys"][3], names["weights"].shape)
        assert float(names["loss"]) < 0.9 * float(names["loss_and_gradient"](untrained)[0])
    elif "message" in names:
        assert len(names["message"]) < 60
    elif "results" in names:
        assert [row["status"] for row in names["results"]] == ["done"] * 2
    else:
        assert names["result"].metrics[-1]["round"] == (20 if "own.npz" in code else 2)
    if "own.npz" in code:
        assert names["result"].metrics[-1]["accuracy_mean"] > 0.6


@pytest.mark.parametrize(("program", "words"), COMMANDS)
def test_commands_parse(program, words):
    if program == "cifar":
        assert command.parse(shlex.split(words), Settings, "experiments.cifar").agents >= 16
    elif program in COMPARISONS:
        module, kind = COMPARISONS[program]
        own = command.parse(shlex.split(words), kind, program)
        shared, arms = comparison.shared_and_own(own, module.arms_of(own))
        assert shared.seeds == (1 if "--seeds 1 " in words else 3)
        assert len(arms) > 1
    else:
        settings = command.parse(shlex.split(words), Sweep, program)
        assert axes_of(settings.grid, settings) or spaces_of(settings)


MODULES = [
    "algorithm", "algorithms.dis_pfl", "algorithms.mce_pl", "codec.messages", "codec.entropy", "exchange", "graphs",
    "group_lasso", "keys", "masks", "naming", "networks.network", "partition", "population", "schedules", "skew",
    "study.config.spellings",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"dslth_jax.{name}"))
    assert tried > 0
    assert failed == 0


def test_no_figure_is_missing():
    assert re.findall(r"@[A-Z]+@|[A-Z]+LINE\b|TODO|\?\?", README) == []


def test_the_table_of_rivals_names_every_algorithm():
    section = README.partition("| `--algorithm` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == set(ALGORITHMS)
    for name, defaults in ((name, row.defaults) for name, row in ALGORITHMS.items() if row.defaults):
        (row,) = re.findall(rf"^\| `{name}` \|.*$", section, re.MULTILINE)
        assert f"--lr {defaults['lr']}`" in row


def test_every_public_name_exists():
    assert all(hasattr(dslth_jax, name) for name in dslth_jax.__all__)


def test_the_table_of_switches_is_that_of_the_presets():
    rows = re.findall(r"^\| .* \| `--([\w-]+)` \| `(.*)` \| `(.*)` \| `(.*)` \|$", README, re.MULTILINE)
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
    root = Path(__file__).parent.parent
    assert f"version: {dslth_jax.__version__}\n" in (root / "CITATION.cff").read_text()
    assert re.search(r"\*\*([\d.]+)\*\* \(", README.partition("## Changes")[2])[1] == dslth_jax.__version__
