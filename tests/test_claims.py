"""experiments.all: what a budget holds, processes that are watched, stopped and resumed, and the page of what came."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from comparisons import COMPARISONS
from fakes import StopAfter, use_fakes
from hypothesis import given
from hypothesis import strategies as st
from tiny import rows_of, use_tiny_network

from dslth_jax.study.claims import children, page, table
from dslth_jax.study.claims.table import CLAIMS, NO_DATA, Claim
from dslth_jax.study.config import command
from dslth_jax.study.config.setting import spelled
from dslth_jax.study.results import folders
from dslth_jax.study.sweeping import comparison
from dslth_jax.study.sweeping.grid import Sweep, axes_of
from dslth_jax.study.system.stopping import Stop
from experiments import ablation, theorem
from experiments import all as claims

DATA = dict.fromkeys(table.WHOLE_DATA)
PYTHON = (sys.executable, "-c")


# The table -----------------------------------------------------------------------------------------------------------


def arms_of(claim: Claim, flags: str) -> set[str]:
    """The names of the arms that a command compares; a ValueError if its flags cannot be."""
    name = claim.module.removeprefix("experiments.")
    if name == "sweep":
        (axis,) = axes_of(command.parse(shlex.split(flags), Sweep, name)).values()
        return {*map(spelled, axis)}
    settings = command.parse(shlex.split(flags), COMPARISONS[name], name)
    return {*comparison.shared_and_own(settings, settings.arms())[1]}


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.rounds])
def test_every_reduced_command_and_every_whole_one_can_be_run_and_has_the_arms_that_are_compared(name):
    claim = CLAIMS[name]
    for dataset in ("cifar10", "digits"):
        arms = arms_of(claim, table.flags_of(claim, {**DATA, "dataset": dataset}, seeds=2))
        assert {arm for pair in claim.differences for arm in pair} <= arms, arms
    whole = table.whole_of(claim, {**DATA, "dataset": "cifar10"})
    assert {arm for pair in claim.differences for arm in pair} <= arms_of(claim, whole)
    assert table.whole_of(claim, {**DATA, "dataset": "digits", "topology": "ring"}) == whole


def test_what_trains_no_population_takes_no_rounds_and_what_a_row_does_not_take_is_not_said():
    data = {"dataset": "cifar10", "data_dir": Path("a folder"), "topology": "ring", "class_file": None}
    said = table.flags_of(CLAIMS["theorem"], data, rounds=50, seeds=3)
    assert said == "--dataset cifar10 --data-dir 'a folder' --draws 6"
    settings = command.parse(shlex.split(said), theorem.Theorem, "theorem")
    assert (settings.draws, settings.data_dir) == (6, Path("a folder"))
    assert table.flags_of(CLAIMS["compaction"], data) == "--repeats 16 --batch 1 16"
    assert "--topology ring" in table.flags_of(CLAIMS["validation"], data)
    assert "--topology" not in table.flags_of(CLAIMS["architectures"], data)
    assert "--rounds 50 --seeds 3" in table.flags_of(CLAIMS["validation"], data, rounds=50, seeds=3)


def test_estimates_grow_with_rounds_and_seeds_where_there_are_any():
    claim = CLAIMS["validation"]
    assert table.minutes_of(claim, False) == pytest.approx(claim.minutes)
    assert table.minutes_of(claim, False, 2 * claim.rounds, 3) == pytest.approx((1 / 3 + 6 * 2 / 3) * claim.minutes)
    assert table.minutes_of(claim, True, seeds=2) == pytest.approx(5 / 3 * claim.on_digits)
    assert table.minutes_of(CLAIMS["theorem"], True, rounds=1, seeds=9) == CLAIMS["theorem"].on_digits
    assert math.fsum(claim.minutes for claim in CLAIMS.values()) < 120


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 60), max_size=12), st.integers(1, 200))
def test_a_budget_takes_in_order_what_fits_and_nothing_else(minutes, budget):
    """By a loop over whole numbers: what is taken fits, and each that is left out was too long when its turn came."""
    left, expected = budget, []
    for name, own in minutes.items():
        if own <= left:
            left, expected = left - own, [*expected, name]
    assert table.chosen(minutes, budget) == expected
    assert sum(minutes[name] for name in expected) <= budget
    # What holds all takes all.
    assert table.chosen(minutes, max(1, sum(minutes.values()))) == [*minutes]


@given(st.integers(1, 10**6), st.sampled_from("hms"))
def test_a_time_is_read_as_it_is_written(number, unit):
    assert table.seconds_of(f"{number}{unit}") == number * {"h": 3600, "m": 60, "s": 1}[unit]
    assert table.seconds_of(f"{number}.5{unit}") == (number + 0.5) * {"h": 3600, "m": 60, "s": 1}[unit]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        *[
            (f"--budget {word}", f"--budget must be a time above 0 such as 2h, 30m or 90s, got '{word}'")
            for word in ("2x", "0h", "0", "-1h", "2", "h", "1e3s", "infh", "0.0s", "9999999999h")
        ],
        ("--budget 1s", "--budget 1s holds no experiment: the shortest that is left, accuracy, takes about 30 s"),
        ("--only validation,thorem", "--only must be one of theorem, validation,"),
        ("--dataset digit", "--dataset must be one of cifar10, cifar100, svhn_cropped, digits, got 'digit'; did you"),
        ("--dataset mnist", "--dataset must be one of cifar10, cifar100, svhn_cropped, digits, got 'mnist'"),
        ("--data-dir .", "--data-dir is for data sets that are downloaded, digits needs none: leave it out"),
        ("--class-file {full}/none.txt", "--class-file must be a file of each agent's classes, got "),
        ("--topology rng", "or a graph's file that exists, got 'rng'"),
        ("--rounds 9", "--rounds must be in 10..1000000, got 9"),
        ("--seeds 0", "--seeds must be in 1..1000, got 0"),
        ("--resume", "--resume needs --out: say which folder is to go on"),
        ("--out {full}", "must be a new or empty folder, and it holds something: name another"),
        ("--out {full}/file", "must be a new or empty folder, and it is a file: name another"),
        ("--out {full} --resume", "must be a new or empty folder, and it holds something: name another"),
        ("--agents 3", "there is no flag --agents"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(words, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    given = [word.format(full=tmp_path) for word in words.split()]
    assert claims.main([*([] if "--dataset" in given else ["--dataset", "digits"]), *given]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Processes -----------------------------------------------------------------------------------------------------------


def watched(code: str, log: Path, seconds: float = 60.0, stop: Stop | None = None) -> tuple[children.Ended, str]:
    """A process of such code, and what it was heard to say."""
    heard: list[str] = []
    ended = children.run([*PYTHON, code], log, time.monotonic() + seconds, stop or Stop(), heard.append)
    return ended, "".join(heard)


def test_a_process_is_heard_to_its_end_and_its_exit_code_is_its_own(tmp_path):
    log = tmp_path / "log"
    assert children.last_line(log) == "it said nothing"
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    ended, heard = watched(code, log)
    assert (ended.code, ended.stopped) == (3, "")
    assert sorted(heard.split()) == ["one", "two"]
    assert log.read_text() == heard
    assert children.last_line(log) in ("one", "two")
    assert watched("", log)[0].code == 0


def asked_when_ready(code: str, log: Path) -> tuple[children.Ended, str]:
    """A process of such code, which is asked to stop as soon as it says that it is ready."""
    stop, heard = Stop(), list[str]()

    def say(text: str) -> None:
        heard.append(text)
        if "ready" in text:
            stop.wish()

    return children.run([*PYTHON, code], log, math.inf, stop, say), "".join(heard)


def test_at_a_signal_a_process_is_asked_to_save_and_waited_for(tmp_path):
    saves = "lambda *_: (print('saved'), sys.exit(143))"
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, {saves}); print('ready', flush=True)"
    ended, heard = asked_when_ready(f"{code}; time.sleep(60)", tmp_path / "log")
    assert (ended.code, ended.stopped, heard.split()) == (143, children.BY_A_SIGNAL, ["ready", "saved"])
    # One that has come to its end all the same was not stopped.
    ended, _ = asked_when_ready(f"{code.replace('143', '0')}; time.sleep(60)", tmp_path / "log")
    assert (ended.code, ended.stopped) == (0, "")


def test_at_the_end_of_the_time_a_process_is_stopped_too(tmp_path):
    ended, _ = watched("import time; time.sleep(600)", tmp_path / "log", 0.2)
    assert (ended.code, ended.stopped) == (-signal.SIGTERM, children.OUT_OF_TIME)


def test_a_process_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "GRACE", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)"
    ended, heard = asked_when_ready(f"{deaf}; time.sleep(600)", tmp_path / "log")
    assert (ended.code, ended.stopped, heard) == (-signal.SIGKILL, children.BY_A_SIGNAL, "ready\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_process_ends_when_the_one_that_watches_it_is_killed(tmp_path):
    """Else it would train on, and be in the way of --resume."""
    log, ready = tmp_path / "log", "print('ready', flush=True); time.sleep(60)"
    saves = "lambda *_: (print('saved', flush=True), sys.exit(143))"
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, {saves}); {ready}"
    watching = f"""
import math, pathlib, sys
from dslth_jax.study.claims import children
from dslth_jax.study.system.stopping import Stop
children.run([*{PYTHON!r}, {code!r}], pathlib.Path({str(log)!r}), math.inf, Stop(), lambda text: None)
"""

    def hears(word: str) -> bool:
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not (log.is_file() and word in log.read_text()):
            time.sleep(0.02)
        return word in log.read_text()

    with subprocess.Popen([*PYTHON, watching]) as parent:
        assert hears("ready")
        parent.kill()
    assert hears("saved")


# The command, with other programs in the place of experiments --------------------------------------------------------


def row(module: str, flags: str, minutes: float = 0.01) -> Claim:
    """A row that runs a module of Python's own."""
    return Claim(
        f"{module} works", module, "", minutes, minutes, "", None, flags, small="", takes=NO_DATA, resumes=False
    )


@pytest.fixture
def programs(monkeypatch):
    """Three rows: one that comes to its end, one that fails, and one too long for any budget here."""
    rows = {"good": row("timeit", "-n 1 -r 1 pass"), "bad": row("json.tool", "no-such-file"), "long": row("this", "")}
    monkeypatch.setattr(page, "came_of", lambda *_: page.Came("a | b"))
    for name in [*CLAIMS]:
        monkeypatch.delitem(CLAIMS, name)
    for name, claim in rows.items():
        monkeypatch.setitem(CLAIMS, name, claim._replace(minutes=1e3, on_digits=1e3) if name == "long" else claim)


def test_one_that_fails_is_told_and_the_others_go_on_and_resume_tries_it_again(programs, tmp_path, capsys):
    out = tmp_path / "out"
    assert claims.main(["--budget", "1h", "--dataset", "digits", "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert said.err == f"experiments.all: 1 experiment failed: bad; their logs are in {out}\n"
    assert "left out for lack of time: long\n" in said.out
    assert "1 of 2, good: about 0.0 minutes, 60.0 are left" in said.out
    text = (out / "claims.md").read_text()
    assert "| timeit works | good | a \\| b |  | done | 0.0 |" in text
    assert "Digits in small networks:" in text
    assert "| json.tool works | bad | a \\| b |  | failed: code " in text
    assert "no-such-file" in text
    assert text.partition("## Left out for lack of time")[2].count("| long |") == 1
    assert "`python -m json.tool no-such-file`" in text
    records = json.loads((out / "claims.json").read_text())["records"]
    assert [records[name]["status"] for name in ("good", "bad")] == ["done", "failed"]
    # In the same folder: only what is not done; other settings are refused, and so is a record that is none.
    assert claims.main(["--budget", "1h", "--dataset", "digits", "--out", str(out)]) == 2
    assert "name another, or say --resume" in capsys.readouterr().err
    assert claims.main(["--budget", "1h", "--dataset", "digits", "--out", str(out), "--resume", "--seeds", "2"]) == 2
    assert "have other settings: --seeds was None and is 2" in capsys.readouterr().err
    assert claims.main(["--budget", "1h", "--dataset", "digits", "--out", str(out), "--resume"]) == 2
    assert "1 experiment in 1h: bad\n" in capsys.readouterr().out
    assert claims.main(["--only", "good", "--dataset", "digits", "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out == f"all experiments in {out} are done: see {out / 'claims.md'}\n"
    (out / "claims.json").write_text("[]")
    assert claims.main(["--dataset", "digits", "--out", str(out), "--resume"]) == 2
    assert "must be what this command has written, and is not" in capsys.readouterr().err


def test_what_is_not_begun_before_the_end_or_a_signal_is_said_so(programs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(CLAIMS, "bad", row("http.server", "0 --bind 127.0.0.1"))
    monkeypatch.setitem(CLAIMS, "last", row("timeit", "pass"))
    assert claims.main(["--budget", "2s", "--only", "bad,last", "--out", str(out)]) == 0
    text = (out / "claims.md").read_text()
    assert "| bad | a \\| b |  | stopped: at the budget's end |" in text
    assert "| last |  |  | not begun |" in text
    capsys.readouterr()
    assert claims.main(["--only", "bad", "--out", str(out), "--resume"], StopAfter(5)) == 143
    said = capsys.readouterr().err
    assert said == f"experiments.all: stopped by SIGTERM; what was had is kept in {out}; --resume --out {out} goes on\n"
    assert "| bad | a \\| b |  | stopped: by a signal |" in (out / "claims.md").read_text()


def test_one_process_at_a_time_works_in_a_folder(programs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    held = folders.lock(out)
    assert claims.main(["--out", str(out)]) == 2
    assert "another process is at work in" in capsys.readouterr().err
    os.close(held)


# What is read of experiments -----------------------------------------------------------------------------------------


def test_what_came_of_a_comparison_are_its_arms_and_their_difference(tmp_path, monkeypatch):
    """With fakes of compiled programs, beside the numbers of results.csv; and of one that was stopped early."""
    use_fakes(monkeypatch)
    use_tiny_network(monkeypatch)
    flags = ["--dataset", "digits", "--model", "tiny", "--agents", "3", "--topology", "ring", "--resize", "8"]
    flags += ["--seeds", "1", "--out", str(tmp_path / "x")]
    assert ablation.main([*flags, "--rounds", "4"]) == 0
    came = page.came_of(CLAIMS["ablation"], tmp_path / "x", tmp_path / "x.log")
    rows = folders.read_table(tmp_path / "x" / "results.csv", ("arm",), ("accuracy_mean", "density", "coded_mb"))
    by_arm = {found["arm"]: found for found in rows}
    best = rows[0]
    sent = f"{best['coded_mb']:,.4g} MB, " if best["coded_mb"] else ""
    wanted = f"{best['arm']}: {100 * best['accuracy_mean']:.1f} % ({sent}density {best['density']:.3f})"
    assert came.numbers.startswith(wanted)
    assert came.numbers.count("; ") == 3
    less = 100 * (by_arm["aggregation tensor"]["accuracy_mean"] - by_arm["majority of own masks"]["accuracy_mean"])
    assert came.difference == f"aggregation tensor minus majority of own masks: {less:+.1f} points"
    (tmp_path / "x" / "results.csv").unlink()
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "done": {}}))
    came = page.came_of(CLAIMS["ablation"], tmp_path / "x", tmp_path / "x.log")
    assert "not finished" in came.numbers
    assert came.difference == ""  # of arms that may have had other rounds


def test_what_came_of_other_commands_and_of_nothing(tmp_path):
    assert page.came_of(CLAIMS["validation"], tmp_path / "x", tmp_path / "log").numbers == "nothing yet"
    (tmp_path / "table.md").write_text("`x`\n\nn by least squares, natural logarithms: so.\n")
    assert page.came_of(CLAIMS["theorem"], tmp_path, tmp_path / "log").numbers.endswith("logarithms: so.")
    rows = {
        name: {
            "parameters": 2e6 / part,
            "multiply_adds": 4e6 / part,
            "fastest_milliseconds": {"JAX, batch 1": 1.0, "JAX, batch 16": 3.0 / part},
        }
        for name, part in (("dense", 1), ("the compact", 2))
    }
    (tmp_path / "log").write_text(f"words\n{json.dumps({'rows': rows})}\n")
    came = page.came_of(CLAIMS["compaction"], tmp_path, tmp_path / "log")
    wanted = "dense: 2.000 M parameters, 4.0 M multiply-adds, 3.00 ms (JAX, batch 16); the compact: 1.000 M"
    assert came.numbers.startswith(wanted)
    assert came.difference == "dense takes 2.0 times as long as the compact"


def test_weights_and_masks_of_each_network_are_compared():
    accuracies = {"mlp: weights": 0.5, "mlp: alone": 0.625, "small: weights": 0.5}
    assert page.difference_of(CLAIMS["architectures"], accuracies) == "mlp: alone minus mlp: weights: +12.5 points"


# Real experiments ----------------------------------------------------------------------------------------------------


def begun(out: Path, *flags: str) -> subprocess.Popen:
    """The command on digits, as a process."""
    words = [sys.executable, "-m", "experiments.all", "--dataset", "digits", "--budget", "30m", "--out", str(out)]
    return subprocess.Popen([*words, *flags], cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_budget_runs_real_experiments_and_leaves_one_page(tmp_path):
    out = tmp_path / "out"
    assert begun(out, "--only", "validation,compaction", "--rounds", "10").wait() == 0
    text = (out / "claims.md").read_text()
    assert text.count("| done |") == 2
    assert "masks: alone minus weights: alone: " in text
    assert "dense takes " in text
    assert (out / "validation" / "figure.png").is_file()


@pytest.mark.slow
def test_what_a_signal_stopped_goes_on_and_ends_as_if_nothing_had_happened(tmp_path):
    """A real experiment, stopped by Ctrl-C as soon as it has trained; beside one that nothing stopped."""
    flags = ("--only", "validation", "--rounds", "100")
    first = begun(tmp_path / "cut", *flags)
    metrics = tmp_path / "cut" / "validation" / "metrics.jsonl"
    while first.poll() is None and not (metrics.is_file() and '"round": 25' in metrics.read_text()):
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    assert first.wait() == 130
    assert "stopped: by a signal" in (tmp_path / "cut" / "claims.md").read_text()
    assert not (tmp_path / "cut" / "validation" / "table.md").exists()
    assert begun(tmp_path / "cut", *flags, "--resume").wait() == 0
    assert "| done |" in (tmp_path / "cut" / "claims.md").read_text()
    assert begun(tmp_path / "whole", *flags).wait() == 0
    assert rows_of(tmp_path / "cut" / "validation") == rows_of(tmp_path / "whole" / "validation")
