"""What `experiments.theorem` leaves: table.md and figure.png, and what it says while it measures."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dslth_jax.study.config import command
from dslth_jax.study.config.resolve import obstacle_to_folder
from dslth_jax.study.config.setting import setting
from dslth_jax.study.data.datasets import named
from dslth_jax.study.data.form import Dataset, resized
from dslth_jax.study.results import pictures, plots
from dslth_jax.study.results.folders import fresh, replace, spelled_command
from dslth_jax.study.system.console import Stream, counted
from dslth_jax.study.theorem import networks, sums, trained

MOST_DRAWS = 10_000
LARGEST_SIDE = 16  # of the images from which the trained target learns
DELTAS, DELTAS_OF_AN_ENTRY = (0.5, 0.1), (0.5, 0.1, 0.02)


class Sizes(NamedTuple):
    """How much is measured. Widths are n: odd layers have 2·n channels for each input channel."""

    numbers: Sequence[int] = sums.NUMBERS
    by_agents: Sequence[int] = (8, 12, 16, 20)
    by_form: Sequence[int] = (8, 12, 16, 24)
    by_size: Sequence[int] = (8, 12, 16, 20, 24, 28)
    of_an_entry: Sequence[int] = (4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
    all_targets: Sequence[int] = (4, 6, 8, 10, 12, 14, 16)
    trained: Sequence[int] = (4, 6, 8, 10, 12, 16, 20)


class Tables(NamedTuple):
    """What was measured."""

    sums: dict[str, pd.DataFrame]  # by the retention, in words
    agents: pd.DataFrame
    forms: pd.DataFrame
    needed: pd.DataFrame
    exact: float  # accuracy of the trained target
    perturbed: pd.DataFrame
    trained: pd.DataFrame


@dataclasses.dataclass(frozen=True)
class Theorem:
    """Check the theorem on strong lottery tickets in numbers: subset sums, small targets, a trained one."""

    dataset: str = "digits"
    """Data set whose images are shown to targets, by name."""
    data_dir: Path | None = None
    """Folder that has the data set, or gets it; None is the usual folder of tensorflow-datasets."""
    draws: int = setting(24, bounds=f"1..{MOST_DRAWS}")
    """Random networks for each number; ten times as many sets of candidates."""
    seed: int = setting(0, bounds="0..4294967295")
    """Seed of all that is drawn."""
    out: Path | None = None
    """Folder of the table and the figure, new or empty; None is a fresh dated one under runs/."""


def check(settings: Theorem) -> None:
    """Raise a ValueError if a setting cannot be, or the folder holds something."""
    if settings.dataset == "digits" and settings.data_dir is not None:
        raise ValueError("--data-dir is for data sets that are downloaded, digits needs none: leave it out")
    if settings.out is not None and (obstacle := obstacle_to_folder(settings.out, resume=False)):
        raise ValueError(f"--out {settings.out} must be a new or empty folder, and {obstacle}: name another")


def write(settings: Theorem) -> str:
    """Measure all, and write the folder; returns where it is, in words."""
    check(settings)
    dataset = named(settings.dataset, None, settings.data_dir)
    out = settings.out or fresh("theorem")
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = measure(settings, dataset, Sizes())
    minutes = (time.perf_counter() - start) / 60
    words = " ".join(spelled_command(sys.orig_argv))
    head = f"`{words}`\n\nSeed {settings.seed}, {settings.draws} random networks a number, {minutes:.1f} minutes.\n"
    replace(out / "table.md", f"{head}\n{page_of(found)}")
    pictures.save(out / "figure.png", 9, 7, draw, found)
    return f"table and figure: {out / 'table.md'}, {out / 'figure.png'}"


def measure(settings: Theorem, dataset: Dataset, sizes: Sizes) -> Tables:
    """Measure all; says what is being measured."""
    draws, say = settings.draws, partial(print, file=Stream(sys.stdout), flush=True)
    # Each part has a stream of its own, so that none depends on how much another draws.
    streams = np.random.default_rng(settings.seed).spawn(8)
    images = networks.patches(streams[0], dataset)
    say("subset sums, by the number of candidates and the retention")
    by_retention = {
        "any" if share is None else f"{share:g}": sums.errors(streams[1], 10 * draws, sizes.numbers, share)
        for share in sums.RETENTIONS
    }
    say(f"up to {networks.AGENTS} agents' targets in one random network")
    agents = networks.by_agents(streams[2], images, draws, sizes.by_agents)
    say("what the theorem leaves out")
    forms = networks.by_form(streams[3], images, draws, sizes.by_form)
    say("which n is needed")
    rows = []
    for name, more, widths, of_all in (
        ("one entry, a target up to 1/2", 25, sizes.of_an_entry, False),
        ("one entry, all targets up to 1/2", 5, sizes.all_targets, True),
    ):
        errors = sums.of_an_entry(streams[4], more * draws, widths, of_all)
        rows.append(networks.needed(name, 1, widths, errors, DELTAS_OF_AN_ENTRY))
    by_size = networks.errors_by_size(streams[5], images, draws, sizes.by_size)
    for name, (entries, errors) in by_size.items():
        rows.append(networks.needed(name, entries, sizes.by_size, errors, DELTAS))
    say("a trained target")
    side = max(one for one in range(1, LARGEST_SIDE + 1) if dataset.train_images.shape[1] % one == 0)
    target = trained.train(settings.seed, resized(dataset, side))
    perturbed = trained.perturbed(streams[6], target, draws)
    found = trained.in_random_networks(streams[7], target, max(1, draws // 4), sizes.trained)
    return Tables(by_retention, agents, forms, pd.concat(rows), trained.exact(target), perturbed, found)


# The page ------------------------------------------------------------------------------------------------------------


def page_of(found: Tables) -> str:
    """All tables in Markdown, a sentence before each."""
    parts = [
        "Subset sums: the median error of the best subset of n candidates U[-1, 1] for a target U[-1, 1] (half of the "
        "draws lie between the numbers in brackets), and 2^(-n·H2(k/n)) behind it; k are kept.",
        table_of_sums(found.sums),
        "By how many bits the median falls for each bit of n·H2(k/n), and of the number of subsets: "
        + "; ".join(
            f"{name} {sums.slope(own, 'entropy'):.2f}, {sums.slope(own, 'bits'):.2f}"
            for name, own in found.sums.items()
        )
        + ".",
        "The worst of so many agents' targets in one random network: the largest error over patches and outputs, "
        "median over networks (nine tenths are below the number in brackets).",
        table_of_agents(found.agents),
        "What the theorem leaves out, the worst of two agents: median over networks (half of them lie between the "
        "numbers in brackets).",
        table_of_forms(found.forms),
        "The n at which a share 1 - δ of random networks comes within ε; of networks, for two agents at once, as a "
        "share of the largest answer.",
        table_of_needed(found.needed),
        fits(found.needed),
        f"A trained target, {100 * found.exact:.1f} % by itself: accuracy in random networks, median of draws (worst), "
        "and with every weight and bias perturbed. The largest weight of each layer is 1/2.",
        table_of_trained(found.trained),
        table_of_perturbed(found.perturbed),
    ]
    return "\n\n".join(parts) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def table_of_sums(found: dict[str, pd.DataFrame]) -> str:
    """A row for each n, a column for each retention."""
    head = ["n", *("any size" if name == "any" else f"r = {name}" for name in found)]
    columns = []
    for own in found.values():
        kept = ["" if pd.isna(row.kept) else f"k = {row.kept:.0f}: " for row in own.itertuples()]
        columns.append(
            [
                f"{before}{row.median:.2g} ({row.low:.1g} to {row.high:.1g}); {row.law:.2g}"
                for before, row in zip(kept, own.itertuples(), strict=True)
            ]
        )
    numbers = [str(number) for number in next(iter(found.values()))["n"]]
    return markdown(head, zip(numbers, *columns, strict=True))


def table_of_agents(found: pd.DataFrame) -> str:
    """A row for each n, a column for each number of agents."""
    counts = sorted(found["agents"].unique())
    ratio = f"{counts[-1]} / {counts[0]}"
    head = ["n", *(counted(int(count), "agent") for count in counts), ratio, "largest answer", "kept"]
    rows = []
    for number, own in found.groupby("n"):
        medians = own["median"].to_numpy()
        cells = [f"{row.median:.2g} ({row.most:.2g})" for row in own.itertuples()]
        last = own.iloc[-1]
        kept = f"{100 * last.odd:.0f} % odd, {100 * last.even:.0f} % even"
        rows.append([f"{number}", *cells, f"{medians[-1] / medians[0]:.1f}", f"{last['size']:.2g}", kept])
    return markdown(head, rows)


def table_of_forms(found: pd.DataFrame) -> str:
    """A row for each thing left out, a column for each n."""
    head = ["", *(f"n = {number}" for number in sorted(found["n"].unique())), "largest answer"]
    rows = []
    for name, own in found.groupby("form", sort=False):
        cells = [f"{row.median:.2g} ({row.low:.1g} to {row.high:.1g})" for row in own.itertuples()]
        rows.append([str(name), *cells, f"{own['size'].median():.2g}"])
    return markdown(head, rows)


def table_of_needed(found: pd.DataFrame) -> str:
    """A row for each target and δ, a column for each ε."""
    rows = []
    for (name, entries, delta), own in found.groupby(["target", "entries", "δ"], sort=False):
        cells = ["\u2013" if pd.isna(number) else f"{number:.1f}" for number in own["n"]]
        rows.append([str(name), f"{entries}", f"{delta:g}", *cells])
    return markdown(["target", "N", "δ", *(f"ε = {level:g}" for level in networks.LEVELS)], rows)


def fits(found: pd.DataFrame) -> str:
    """What constants fit, in words."""
    groups = {
        "all rows": found,
        "one entry and one target": found[found["target"] == "one entry, a target up to 1/2"],
        "one entry and all targets": found[found["target"] == "one entry, all targets up to 1/2"],
        "networks": found[found["entries"] > 1],
    }
    said = []
    for name, rows in groups.items():
        if rows["n"].notna().sum() > 2:
            own = networks.fit(rows)
            line = f"{own['C']:.2f}·log(N / min(ε, δ)) {'-' if own['c'] < 0 else '+'} {abs(own['c']):.1f}"
            said.append(
                f"{name} {line}, at most {own['off']:.1f} off, and C = {own['sufficient']:.1f} suffices for all"
            )
    return f"n by least squares, natural logarithms: {'; '.join(said)}."


def table_of_trained(found: pd.DataFrame) -> str:
    """A row for each n."""
    cells = [
        [f"{row.n}", f"{row.rms:.2g}", f"{row.largest:.2g}", f"{100 * row.median:.1f} ({100 * row.worst:.1f})"]
        for row in found.itertuples()
    ]
    return markdown(["n", "error, root mean square", "largest", "accuracy, % (worst)"], cells)


def table_of_perturbed(found: pd.DataFrame) -> str:
    """A row for each ε, a column for each law."""
    rows = []
    for level, own in found.groupby("ε", sort=False):
        by_law = {row.law: f"{100 * row.median:.1f} ({100 * row.worst:.1f})" for row in own.itertuples()}
        rows.append([f"{level:g}", by_law["uniform"], by_law["signs"]])
    return markdown(["ε", "U[-ε, ε], % (worst)", "±ε, % (worst)"], rows)


# The figure ----------------------------------------------------------------------------------------------------------


def draw(figure: "plots.Figure", found: Tables) -> None:
    """Four charts of the tables."""
    (above, agents), (forms, accuracy) = figure.subplots(2, 2)
    for place, (name, own) in enumerate(found.sums.items()):
        look = plots.look_of(place, len(found.sums))
        above.plot(own["n"], own["median"], marker="o", markersize=3, label=f"r = {name}", **look)
        above.fill_between(own["n"], own["low"], own["high"], color=look["color"], alpha=0.12, linewidth=0)
        above.plot(own["n"], own["law"], color=look["color"], linestyle="dotted", linewidth=1)
    above.set(xlabel="candidates n", ylabel="error", title="subset sums; dotted: 2^(-n·H2(k/n))")
    for place, (number, own) in enumerate(found.agents.groupby("n")):
        look = plots.look_of(place, plots.FEW)
        agents.plot(own["agents"], own["median"], marker="o", markersize=3, label=f"n = {number}", **look)
    agents.set_xscale("log", base=2)
    agents.set(xlabel="agents", ylabel="largest error", title="the worst agent's target")
    for place, (name, own) in enumerate(found.forms.groupby("form", sort=False)):
        forms.plot(own["n"], own["median"], label=name, **plots.look_of(place, found.forms["form"].nunique()))
    forms.set(xlabel="n", ylabel="largest error", title="what the theorem leaves out")
    lines = {"subset sums": (found.trained["rms"], found.trained["median"])}
    for law, rows in found.perturbed.groupby("law", sort=False):
        factor, words = (3**-0.5, "U[-ε, ε]") if law == "uniform" else (1.0, "±ε")
        lines[words] = (factor * rows["ε"], rows["median"])
    for place, (words, (across, up)) in enumerate(lines.items()):
        look = plots.look_of(place, len(lines))
        accuracy.plot(across, 100 * up, marker="o", markersize=3, label=words, **look)
    accuracy.axhline(100 * found.exact, color=plots.FAINT, linestyle=":", label="the target")
    accuracy.set_xscale("log")
    accuracy.set(xlabel="root mean square error of weights", ylabel=plots.WORDS["accuracy"], title="a trained target")
    for axes, size in ((above, 8), (agents, 8), (forms, 6), (accuracy, 8)):
        if axes is not accuracy:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        if axes in (agents, accuracy):
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.legend(fontsize=size, loc="lower left")


main: Callable[..., Any] = partial(command.act, Theorem, write)  # of a program's name, and of words
