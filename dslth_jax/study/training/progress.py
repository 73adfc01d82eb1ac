"""The progress of a run: one line that renews itself on a terminal, lines of a log elsewhere."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from dslth_jax.study.system.console import sent

SECONDS_BETWEEN_LINES = 30  # of a log; evaluations are said in any case


class ProgressLine:
    """Shows round of rounds, rate, time left, mean and worst accuracy as last evaluated, and megabytes sent; on a
    terminal inside of `with line.bar`."""

    def __init__(self, console: Console, rounds: int, done: int = 0, what: str = "") -> None:
        self.console, self.rounds, self.what = console, rounds, what
        self.accuracy = "not evaluated yet"
        self.last_line = time.monotonic()
        self.bar = Progress(
            # In this order and without a bar, so that all of it fits in 80 columns.
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(),
            TextColumn("left, {task.fields[note]}", table_column=Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(self.heading(done), total=rounds, completed=done, note="")

    def heading(self, round: int) -> str:
        """Round of rounds."""
        return f"{self.what}round {round} of {self.rounds}"

    def trained(self, round: int, seconds: float, bits: int) -> None:
        """After every round, with training time and bits sent so far."""
        if round == 0:
            return
        note = f"{rate(round / seconds)}, {self.accuracy}, {sent(bits)}"
        self.bar.update(self.task, completed=round, description=self.heading(round), note=note)
        if time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            left = seconds / round * (self.rounds - round)
            self.say(f"{self.heading(round)}, {note}, {left:.0f} s of training left")

    def evaluated(self, row: dict[str, Any], bits: int) -> None:
        """After every evaluation, with its row of metrics, of several runs that of the best, and bits sent by all."""
        self.accuracy = f"mean {row['accuracy_mean']:.1%} worst {row['accuracy_worst']:.1%}"
        loss = "" if row["loss"] is None else f"loss {row['loss']:.4f}, "
        self.say(f"{self.heading(row['round'])} evaluated: {loss}{self.accuracy}, {sent(bits)} sent")

    def warn(self, lines: Iterable[str]) -> None:
        """Lines that stay, on a terminal too."""
        for line in lines:
            self.console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True, style="yellow")

    def say(self, line: str) -> None:
        """One line of a log; a terminal shows the renewed line instead."""
        self.last_line = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def rate(rounds_per_second: float) -> str:
    """Rounds a second, or seconds a round where that is the larger number."""
    return f"{rounds_per_second:.1f} rounds/s" if rounds_per_second >= 1 else f"{1 / rounds_per_second:.1f} s a round"
