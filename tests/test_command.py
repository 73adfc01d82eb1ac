"""How every command ends: exit codes, the one line that is said, signals, and streams that take no words."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import dslth_jax
from dslth_jax.study import dslth as by_name
from dslth_jax.study.config import command
from dslth_jax.study.config.command import conduct
from dslth_jax.study.config.setting import flag
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.system.console import Stream, console
from dslth_jax.study.system.machine import check_machine
from dslth_jax.study.system.stopping import NotFiniteError, Stop, StoppedError

KEPT = "; what was had is kept in /a/run"
FINISH = {
    "nothing": (None, 0, ""),
    "bad input": (ValueError("no trial\nis left"), 2, "no trial is left"),
    "a full disk": (OSError(28, "No space left"), 2, "the run folder /a/run cannot be written to any more: [Errno 28]"),
    "diverged": (NotFiniteError("the loss is nan"), 3, f"the loss is nan{KEPT}"),
    "Ctrl-C": (StoppedError(2), 130, f"stopped by SIGINT{KEPT}; --resume --out /a/run goes on"),
    "hung up": (StoppedError(1), 129, "stopped by SIGHUP; what"),
    "a scheduler": (StoppedError(signal.SIGUSR1), 138, "stopped by SIGUSR1; what"),
    "a broken pipe": (StoppedError(signal.SIGPIPE), 141, "stopped by SIGPIPE; what"),
    "a device's memory": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBy op"),
        2,
        f"there is not enough memory: take fewer --agents, a smaller --agent-chunk, --batch-size or --model "
        f"(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.){KEPT}",
    ),
    "memory": (MemoryError(), 2, f"--model (MemoryError){KEPT}"),
}


def raising(error):
    def raises(*_):
        if error is not None:
            raise error

    return raises


@pytest.mark.parametrize(("error", "code", "said"), FINISH.values(), ids=FINISH)
def test_how_work_ends(error, code, said, capsys):
    begun = SimpleNamespace(finished="", path=Path("/a/run"))
    assert conduct("experiments.some", lambda: begun, raising(error)) == code
    written = capsys.readouterr().err
    assert written.count("\n") == (code != 0)
    assert written.startswith("experiments.some: " if code else "")
    assert said in written


def test_what_is_wrong_before_the_folder_names_no_folder(capsys):
    for error, code, said in (
        (ValueError("no such flag"), 2, "no such flag"),
        (OSError(2, "Not there"), 2, "[Errno 2] Not there"),
        (StoppedError(15), 143, "stopped by SIGTERM before anything was kept"),
    ):
        assert conduct("experiments.some", raising(error), raising(None)) == code
        assert capsys.readouterr().err == f"experiments.some: {said}\n"


def test_what_was_finished_says_so_and_is_let_be(capsys):
    begun = SimpleNamespace(finished="the run was finished", path=Path("/a/run"))
    assert conduct("experiments.some", lambda: begun, raising(AssertionError)) == 0
    assert capsys.readouterr().out == "the run was finished\n"


def test_a_fault_of_the_program_is_not_made_a_sentence():
    with pytest.raises(KeyError):
        conduct("experiments.some", raising(KeyError("x")), raising(None))


def test_a_path_in_brackets_is_printed_as_it_is(capsys):
    console().print("run folder: /a/run[old]/[red]x", markup=False)
    assert "/a/run[old]/[red]x" in capsys.readouterr().out


def test_a_stream_loses_what_it_cannot_write():
    latin = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    Stream(latin).write("é 100 \udcff\n")
    assert latin.buffer.getvalue() == b"? 100 ?\n"
    closed = io.StringIO()
    closed.close()
    for stream in (Stream(None), Stream(closed)):
        print("nothing", file=stream, flush=True)
    with Path("/dev/full").open("w") as full:
        print("nothing", file=Stream(full), flush=True)
        # Its own closing would complain of what it still holds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_second_hangup_does_not_insist():
    """A terminal that closes says so itself, and so does its shell."""
    stop = Stop()
    stop.later = True
    stop(signal.SIGHUP)
    stop(signal.SIGHUP)
    stop.wish()
    assert stop.asked == signal.SIGHUP


def test_nothing_compiles_where_that_is_forbidden_or_there_is_no_device(monkeypatch):
    with jax.disable_jit(), pytest.raises(ValueError, match=r"JAX_DISABLE_JIT must be unset"):
        check_machine()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for error, reason in (
        (RuntimeError("Unable to initialize backend 'cuda':\nmore"), r" \(Unable .*'cuda':\)"),
        (AssertionError(), ""),
    ):
        monkeypatch.setattr(jax, "devices", raising(error))
        with pytest.raises(ValueError, match=f"no device as JAX_PLATFORMS=cuda asks for{reason}: say "):
            check_machine()


# A command whose work says words and gives itself a signal, in a process for each way to treat its streams. Forked from
# one that has imported everything.
CHILDREN = """
import json, os, signal, sys
from types import SimpleNamespace
from dslth_jax.study.config.command import conduct, leave
from dslth_jax.study.config.setting import flag
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.system.stopping import StoppedError

def child(name, begin, number=None):
    def finish(begun, stop):
        stop.later = True
        print("é words", flush=True)
        print("more words", flush=True)
        if number is not None:
            os.kill(os.getpid(), number)
        if stop.asked is not None:
            raise StoppedError(stop.asked)
    if name.startswith("closed"):
        descriptor = int(name[-1])
        os.close(descriptor)
        setattr(sys, "stdout" if descriptor == 1 else "stderr", None)
    elif name == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif name == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    elif name == "ascii":
        sys.stdout.reconfigure(encoding="ascii")
    elif name == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    leave(lambda stop: conduct("experiments.some", begin, finish, stop))

def good():
    return SimpleNamespace(finished="", path="/a/run")

def bad():
    raise ValueError("bad input")

def helped():
    raise SystemExit(0)

cases = {
    "closed 1": good, "closed 2": bad, "full": good, "gone": good, "ascii": good, "nohup": (good, signal.SIGHUP),
    "hangup": (good, signal.SIGHUP), "usr1": (good, signal.SIGUSR1), "help": helped,
}
codes = {}
for name, work in cases.items():
    pid = os.fork()
    if pid == 0:
        child(name, *(work if isinstance(work, tuple) else (work,)))
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with open(sys.argv[1], "w") as file:
    json.dump(codes, file)
"""


def test_streams_and_signals_of_a_process(tmp_path):
    wrote = tmp_path / "codes.json"
    came = subprocess.run(
        [sys.executable, "-c", CHILDREN, wrote], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert came.returncode == 0, came.stderr
    assert json.loads(wrote.read_text()) == {
        "closed 1": 0, "closed 2": 2, "full": 0, "gone": 141, "ascii": 0, "nohup": 0, "hangup": 129, "usr1": 138,
        "help": 0,
    }  # fmt: skip
    assert "bad input" not in came.stdout
    assert "? words\n" in came.stdout
    assert "Traceback" not in came.stderr


def test_short_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        command.parse(["-h"], Settings, "dslth run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 80
    assert {flag(name) for name in SETTINGS} <= set(re.findall(r"--[a-z-]+", "\n".join(lines)))
    with pytest.raises(ValueError, match="there is no flag --learning-rate; here it is --lr"):
        command.parse(["--learning-rate", "3"], Settings, "dslth run")


@pytest.mark.parametrize(
    ("words", "absent", "said"),
    [
        (["rnu"], [], "dslth: there is no command 'rnu'; did you mean run?\n"),
        (["train"], [], "dslth: there is no command 'train': one of run, sweep, report, predict, export, board\n"),
        (["run", "--agents", "4"], ["rich", "pandas"],
         "dslth run: rich, pandas must be installed first: pip install 'dslth-jax[experiments]'\n"),
    ],
    ids=["misspelled", "unknown", "the extra is not installed"],
)  # fmt: skip
def test_a_command_that_cannot_be_run_is_one_line(words, absent, said, monkeypatch, capsys):
    monkeypatch.setattr(by_name, "missing", lambda: absent)
    assert by_name.main(words) == 2
    assert capsys.readouterr().err == said


def test_what_there_is_can_be_seen_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(by_name, "find_spec", lambda name: None)
    assert by_name.missing() == by_name.NEEDED
    assert [by_name.main(words) for words in (["--version"], ["--help"], [])] == [0, 0, 0]
    shown = capsys.readouterr().out
    assert shown.startswith(f"{dslth_jax.__version__}\n")
    assert all(f"    {name} " in shown for name in by_name.COMMANDS)


def test_a_command_by_name_ends_the_process_with_its_code(tmp_path):
    """In any folder, and under its own name."""
    words = [sys.executable, "-m", "dslth_jax", "run", "--agents", "0"]
    path = os.pathsep.join([str(Path(dslth_jax.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("dslth run: --agents must be in 1..1000000, got 0")
    assert ended.stderr.count("\n") == 1
