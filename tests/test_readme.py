"""What the README shows runs as it stands."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

import dslth_jax
from experiments import cifar

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    command
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for command in re.findall(r"-m experiments\.cifar (.*)", block)
]


@pytest.mark.parametrize("code", PYTHON, ids=["run", "own loop"])
def test_python_examples_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    if "loss" in names:
        untrained = names["jax"].random.uniform(names["keys"][3], names["weights"].shape)
        assert float(names["loss"]) < 0.9 * float(names["loss_and_gradient"](untrained)[0])
    else:
        assert names["result"].metrics[-1]["round"] == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    assert cifar.parse(shlex.split(command)).agents >= 16


MODULES = ["algorithm", "group_lasso", "masks"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"dslth_jax.{name}"))
    assert tried > 0
    assert failed == 0


def test_no_figure_is_missing():
    assert re.findall(r"@[A-Z]+@|TODO|\?\?", README) == []


def test_the_map_names_every_module():
    modules = {path.stem for path in Path(dslth_jax.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules == set(re.findall(r"`dslth_jax/(\w+)\.py`", README))
    assert modules == set(re.findall(r"^    (\w+)  +\w", dslth_jax.__doc__, re.MULTILINE))
    commands = {path.name for path in Path(cifar.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert commands == set(re.findall(r"`(\w+\.py)`", README.partition("| `experiments/`")[2].partition("\n")[0]))


def test_every_public_name_exists():
    assert all(hasattr(dslth_jax, name) for name in dslth_jax.__all__)
