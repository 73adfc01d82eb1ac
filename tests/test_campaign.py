"""A campaign against run folders: kills at random moments, damaged files, full and read-only disks, two runs at once.

Minutes long: `pytest -m campaign -n 0 -s` shows its counts. Nothing may be lost but rounds since the last whole
checkpoint, which is found and used; where nothing can go on, one line says what to do.
"""

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_resume import FLAGS, begin, wait_for
from tiny import assert_same_numbers, rows_of, use_tiny_network

from experiments import cifar

pytestmark = pytest.mark.campaign

LONG = ["--rounds", "400", "--eval-every", "50"]
KILLS = 30


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        assert cifar.main([*FLAGS, *LONG, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A run that was killed with two checkpoints behind it."""
    out = tmp_path_factory.mktemp("runs") / "cut"
    process = begin(*LONG, "--out", str(out), "--checkpoint-every", "60")
    wait_for(process, lambda: len(checkpoints(out)) == 2)
    process.kill()
    process.communicate()
    assert len(checkpoints(out)) == 2
    return out


def checkpoints(out: Path) -> list[Path]:
    return sorted(path for path in (out / "checkpoint").glob("round_*") if path.suffix != ".part")


def goes_on(out: Path, whole: Path) -> None:
    assert cifar.main([*FLAGS, *LONG, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)


def refused(out: Path, capsys, *flags: str) -> str:
    """The one line that says why a run does not go on."""
    capsys.readouterr()
    assert cifar.main([*FLAGS, *LONG, "--out", str(out), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_kills_at_random_moments(whole, tmp_path):
    """Half of them at any time after the start, half while a checkpoint is being written."""
    rng, counts, out = random.Random(0), Counter(), tmp_path / "run"
    for kill in range(KILLS):
        process = begin(*LONG, "--out", str(out), "--resume", "--checkpoint-every", "1")
        before = newest(out)
        if kill % 2:
            time.sleep(rng.uniform(0.5, 8))
        else:
            wait_for(process, lambda before=before: newest(out) > before)
            wait_for(process, lambda: any((out / "checkpoint").glob("*.part")))
            time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.communicate()
        counts["killed" if process.returncode == -9 else f"ended with {process.returncode} before"] += 1
        counts["in the middle of a save"] += any((out / "checkpoint").glob("*.part"))
        counts["went on further"] += newest(out) > before
        assert newest(out) >= before
        if process.returncode == 0:
            shutil.rmtree(out)
    if out.exists():
        goes_on(out, whole)
    print(f"\nkills: {dict(counts)}, the last checkpoint of round {newest(out)}")
    assert counts["killed"] > 0.8 * KILLS
    assert counts["in the middle of a save"] > 0.2 * KILLS


def newest(out: Path) -> int:
    """The round of the newest checkpoint."""
    return max((int(path.name.split("_")[1].split("-")[0]) for path in checkpoints(out)), default=-1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bit-flipped": flip,
    "missing": lambda path: path.unlink(),
    "foreign": lambda path: path.write_bytes(b"not what was here"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_of_the_newest_checkpoint(kind, cut, whole, tmp_path):
    """Each file in turn: the one before is found and used."""
    tried = 0
    for number, path in enumerate(sorted(p for p in checkpoints(cut)[-1].rglob("*") if p.is_file())):
        if path.stat().st_size < 2:
            continue
        out = tmp_path / str(number)
        shutil.copytree(cut, out)
        DAMAGE[kind](out / path.relative_to(cut))
        goes_on(out, whole)
        shutil.rmtree(out)
        tried += 1
    print(f"\n{kind}: {tried} files, each passed over, each run ended as if whole")
    assert tried > 2


def test_no_whole_checkpoint_is_one_line(cut, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(cut, out)
    for path in checkpoints(out):
        flip(path / "manifest.json")
    assert "is whole" in refused(out, capsys, "--resume")
    assert rows_of(out) == rows_of(cut)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, which tests make smaller and larger."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


def test_full_disks(disk, whole, capsys):
    """From one that takes nothing to one that takes all: whatever it is that does not fit, the run goes on later."""
    ended: Counter[str] = Counter()
    for kilobytes in (4, 8, 12, 24, 48, 80, 120, 160, 240, 400, 800):
        remount(disk, f"size={kilobytes}k")
        out = disk / "run"
        code = cifar.main([*FLAGS, *LONG, "--out", str(out), "--checkpoint-every", "60"])
        said = capsys.readouterr().err
        ended[f"exit code {code}"] += 1
        # Pictures that do not fit are left out, each with a line, and end no run.
        others = [line for line in said.splitlines() if not line.startswith("warning: the picture")]
        assert (code, len(others)) in ((2, 1), (0, 0)), said
        remount(disk, "size=64m")
        if code == 0:
            assert_same_numbers(whole, out)
        elif out.exists():
            goes_on(out, whole)
            ended["went on"] += 1
        shutil.rmtree(out, ignore_errors=True)
    print(f"\nfull disks: {dict(ended)}")
    assert ended["exit code 2"] > 3


def test_read_only_folders(disk, cut, capsys):
    remount(disk, "size=64m")
    shutil.copytree(cut, disk / "cut")
    remount(disk, "ro")
    assert "cannot be written to (Read-only file system)" in refused(disk / "new", capsys)
    refused(disk / "cut", capsys, "--resume")


def test_two_runs_on_one_folder(whole, tmp_path):
    """Started at once, again and again: one runs, the other is told."""
    for number in range(5):
        out = tmp_path / str(number)
        both = [begin(*LONG, "--out", str(out), "--resume") for _ in range(2)]
        said = [process.communicate()[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2]
        assert "another process is at work in the run folder" in max(said, key=len)
        assert_same_numbers(whole, out)
