"""The charts of a report: SVG that stands in a page, narrow enough for a phone, in colours that the page chooses."""

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH, HEIGHT = 360, 270  # of a chart, in the page's pixels at its natural size
COLOURS = 6  # named by the page as --c0, --c1, ...; of more lines the second half is dashed
NAMED, FEW = 12, 6  # so many lines at most are told apart by colour; of more than that, so many
BANDS = 3  # lines whose bands can be told apart
WIDE = 8  # times as many megabytes, from where an axis of them is logarithmic
FAR = 20  # times as large the largest number of a search, from where its axis is logarithmic
CELLS = 100  # numbers are written into heat maps of no more cells

# Colours that stand for the page's own, so that one chart serves its light and its dark scheme.
INK, FAINT, GRID, PAPER = "#0b0b01", "#0b0b02", "#0b0b03", "#0b0b04"
SERIES = [f"#0b0c{number:02x}" for number in range(COLOURS)]
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--c{number}" for number, colour in enumerate(SERIES)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dslth_jax",
    "text.parse_math": False,
    "font.size": 12,
    "axes.labelsize": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


class Chart(NamedTuple):
    """A chart with the words around it."""

    title: str
    svg: Markup
    note: str = ""


class Line(NamedTuple):
    """What one run, or one point of a sweep, puts into the charts of curves. Accuracies are fractions."""

    name: str
    rounds: list[int]
    accuracy: list[float | None]
    low: list[float | None]  # of a band around it
    high: list[float | None]
    loss: list[float | None]
    megabytes: list[float | None]  # sent so far


def chart(title: str, label: str, draw: Callable[[Axes], None], *, height: int = HEIGHT, note: str = "") -> Chart:
    """What `draw` draws, as SVG; `label` says in words what is seen."""
    out = io.StringIO()
    # The page's fonts have glyphs that matplotlib's own may lack, of which it would warn.
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        draw(figure.subplots())
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    return Chart(title, Markup(for_page(out.getvalue(), label)), note)


def for_page(text: str, label: str) -> str:
    """An SVG file's text as an element of a page: no name in it is that of another chart, no address leads outside."""
    inside = text.partition("<svg")[2].partition(">")[2]
    # The page has the one rule of the file's own style sheet.
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL).replace(
        "xlink:href=", "href="
    )
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', inside))
    own = "g" + hashlib.sha256((label + inside).encode("utf-8", "replace")).hexdigest()[:8]
    inside = re.sub(r' id="([^"]*)"', lambda found: f' id="{own}{found[1]}"' if found[1] in used else "", inside)
    inside = re.sub(r'(href="|url\()#([\w-]+)', rf"\1#{own}\2", inside)
    inside = re.sub(r'(font: [^;"]*?px)[^;"]*', r"\1 system-ui, sans-serif", inside)
    inside = re.sub(r": (#0b0[bc]\w\w)\b", lambda found: f": var({VARIABLES[found[1]]})", inside)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0]
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{inside}'


def style_of(place: int, lines: int) -> dict[str, Any]:
    """How the line at a place, best first, is drawn."""
    if place < named(lines):
        return {"color": SERIES[place % COLOURS], "linestyle": "--" if place >= COLOURS else "-", "zorder": 50 - place}
    return {"color": FAINT, "linestyle": "-", "linewidth": 0.8, "alpha": 0.5, "zorder": 2}


def named(lines: int) -> int:
    """How many of so many lines are told apart by colour."""
    return lines if lines <= NAMED else FEW


def curves(lines: Sequence[Line], what: str, band: str) -> list[Chart]:
    """Accuracy over rounds, loss over rounds, accuracy over megabytes; lines come best first.

    `what` names in words whose curves they are, `band` what lies inside a band.
    """
    ends = [line.megabytes[-1] or 0 for line in lines if line.megabytes]
    # Weights and masks on one axis, say: the masks would stand on top of each other.
    logarithmic = bool(ends) and min(ends) > 0 and max(ends) > WIDE * min(ends)
    banded = "Band" if len(lines) <= BANDS else "Band of the best"
    drawn = [
        chart(
            "Accuracy over rounds",
            f"Test accuracy of {what} over rounds; band: {band}",
            lambda axes: draw_accuracy(axes, lines, [line.rounds for line in lines]),
            note=f"{banded}: {band}.",
        )
    ]
    if any(loss is not None for line in lines for loss in line.loss):
        label = f"Training loss of {what} over rounds"
        note = "Mean over agents since the evaluation before."
        drawn.append(chart("Loss over rounds", label, lambda axes: draw_loss(axes, lines), note=note))
    if any(sent is not None for line in lines for sent in line.megabytes):
        label = f"Test accuracy of {what} over megabytes sent"
        note = "Masks as plain bitmaps, weights as float32" + ("; a logarithmic axis." if logarithmic else ".")
        drawn.append(
            chart("Accuracy over megabytes", label, lambda axes: draw_megabytes(axes, lines, logarithmic), note=note)
        )
    return drawn


def draw_accuracy(axes: Axes, lines: Sequence[Line], positions: Sequence[Sequence[float | None]]) -> None:
    """Accuracies of lines over their positions, which are rounds unless the axis is named anew."""
    banded = len(lines) if len(lines) <= BANDS else 1
    for place, line in enumerate(lines):
        x, mean, low, high = map(floats, (positions[place], line.accuracy, line.low, line.high))
        there, style = np.isfinite(x) & np.isfinite(mean), style_of(place, len(lines))
        axes.plot(x[there], 100 * mean[there], **style, **markers(there.sum(), len(lines)))
        if place < banded:
            look: dict[str, Any] = {"color": style["color"], "alpha": 0.16 if banded == 1 else 0.09}
            axes.fill_between(x[there], 100 * low[there], 100 * high[there], linewidth=0, zorder=1, **look)
    axes.set(xlabel="round", ylabel="test accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def draw_megabytes(axes: Axes, lines: Sequence[Line], logarithmic: bool) -> None:
    """Accuracies of lines over what was sent; a logarithmic axis has no place for nothing."""
    sent = [[x if x or not logarithmic else None for x in line.megabytes] for line in lines]
    draw_accuracy(axes, lines, sent)
    axes.set_xlabel("sent over all links, MB")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def draw_loss(axes: Axes, lines: Sequence[Line]) -> None:
    """Losses of lines over rounds."""
    for place, line in enumerate(lines):
        x, y = floats(line.rounds), floats(line.loss)
        there = np.isfinite(y)
        axes.plot(x[there], y[there], **style_of(place, len(lines)), **markers(there.sum(), len(lines)))
    axes.set(xlabel="round", ylabel="training loss, nats")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def floats(values: Sequence[float | None]) -> np.ndarray:
    """Numbers to draw; what is missing is not a number, and is not drawn."""
    return np.array([np.nan if value is None else value for value in values], float)


def markers(points: int, lines: int) -> dict[str, Any]:
    """Dots where there are few of them."""
    return {"marker": "o", "markersize": 3.2} if points == 1 or (points <= 30 and lines <= BANDS) else {}


def ranked(accuracies: Sequence[float], whose: str) -> Chart:
    """The accuracy of every agent, sorted."""

    def draw(axes: Axes) -> None:
        percent = 100 * np.sort(np.array(accuracies))
        axes.vlines(np.arange(1, len(percent) + 1), 0, percent, color=GRID, linewidth=min(3, 200 / len(percent)))
        size = 4 if len(percent) < 80 else 2
        axes.plot(np.arange(1, len(percent) + 1), percent, "o", color=SERIES[0], markersize=size)
        axes.axhline(percent.mean(), color=SERIES[1], linestyle="--", linewidth=1.2)
        axes.set(ylabel="test accuracy, %", xlabel="agents, worst to best", ylim=(0, 100))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="x", visible=False)

    label = f"Test accuracy of each of {len(accuracies)} agents of {whose}, sorted"
    return chart("Accuracy of each agent", label, draw, note="Sorted; the dashed line is the mean.")


def against(agents: Sequence[dict[str, Any]], key: str, word: str, whose: str) -> Chart:
    """The accuracy of agents over another of their numbers."""

    def draw(axes: Axes) -> None:
        percent = [100 * row["accuracy"] for row in agents]
        axes.plot([row[key] for row in agents], percent, "o", color=SERIES[0], markersize=4.5, alpha=0.7)
        axes.set(ylabel="test accuracy, %", xlabel=word)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=key != "retention"))

    return chart(f"Accuracy and {word}", f"Test accuracy of agents of {whose} over their {word}", draw)


def bar_beside(axes: Axes, image: Any) -> None:
    """A scale of colours beside a heat map."""
    plain(axes)
    bar: Any = axes.figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    # Drawn as one small picture: as shapes it would weigh as much as all the rest.
    bar.solids.set_rasterized(True)


def plain(axes: Axes) -> None:
    """No grid and no spines around a heat map."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def marginal(
    axis: str,
    values: Sequence[str],
    dots: Sequence[tuple[str, float | None]],
    joined: Sequence[tuple[str, float]],
    note: str,
) -> Chart:
    """Accuracies over one axis of a sweep, as dots, and a line through the best of others; pairs of value, accuracy."""

    def draw(axes: Axes) -> None:
        percent = 100 * floats([accuracy for _, accuracy in dots])
        axes.plot([values.index(value) for value, _ in dots], percent, "o", color=SERIES[0], markersize=5, alpha=0.6)
        best: dict[int, float] = {}
        for value, accuracy in joined:
            best[values.index(value)] = max(accuracy, best.get(values.index(value), 0))
        axes.plot(sorted(best), [100 * best[place] for place in sorted(best)], color=SERIES[1], zorder=1)
        ticks(axes.set_xticks, values)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set(xlabel=shortened(axis, 40), ylabel="test accuracy, %", xlim=(-0.5, len(values) - 0.5))

    return chart(f"Accuracy along {axis}", f"Test accuracy over {axis}", draw, note=note)


def scatter(axis: str, dots: Sequence[tuple[float, float | None]], note: str) -> Chart:
    """Accuracies over the numbers that a search has tried of one setting; pairs of number, accuracy."""

    def draw(axes: Axes) -> None:
        numbers = [number for number, _ in dots]
        percent = 100 * floats([accuracy for _, accuracy in dots])
        axes.plot(numbers, percent, "o", color=SERIES[0], markersize=5, alpha=0.6)
        axes.set(xlabel=shortened(axis, 40), ylabel="test accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if min(numbers) > 0 and max(numbers) > FAR * min(numbers):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    return chart(f"Accuracy along {axis}", f"Test accuracy over {axis}", draw, note=note)


def heat_map(
    axes_names: tuple[str, str],
    values: tuple[Sequence[str], Sequence[str]],
    best: dict[tuple[str, str], float],
    note: str,
) -> Chart:
    """The best accuracy at every pair of values of two axes."""
    table = np.array([[100 * best.get((y, x), np.nan) for x in values[1]] for y in values[0]])

    def draw(axes: Axes) -> None:
        image = axes.imshow(np.ma.masked_invalid(table), cmap="viridis", interpolation="none", aspect="auto")
        ticks(axes.set_xticks, values[1])
        ticks(axes.set_yticks, values[0])
        axes.set(xlabel=shortened(axes_names[1], 40), ylabel=shortened(axes_names[0], 30))
        if table.size > CELLS:
            bar_beside(axes, image)
        else:
            plain(axes)
            low, high = image.get_clim()
            middle = 0.55 * low + 0.45 * high
            for (row, column), value in np.ndenumerate(table):
                colour = INK if np.isnan(value) else "white" if value < middle else "black"
                text = "\u2013" if np.isnan(value) else f"{value:.1f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=11)

    title = f"{axes_names[0]} and {axes_names[1]}"
    return chart(title, f"Heat map of the accuracy at every {title}", draw, note=note)


def ticks(set_ticks: Callable[..., Any], values: Sequence[str]) -> None:
    """Write values beside an axis, upright where they are long."""
    crowded = len(values) * max(map(len, values)) > 40 and set_ticks.__name__ == "set_xticks"
    set_ticks(range(len(values)), [shortened(value, 16) for value in values], rotation=90 if crowded else 0)


def shortened(text: str, length: int) -> str:
    """A text that fits a chart."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
