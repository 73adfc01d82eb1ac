"""What is drawn, in one place: each `draw_` function into one of Matplotlib's Axes, which becomes a PNG or an SVG.

Matplotlib is loaded when something is drawn, so that a user's settings of it, even broken ones, change no run.
"""

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from scipy import sparse

from dslth_jax.study.results.folders import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page of a report has a variable of each name, with another colour in its dark scheme.
COLOURS = {
    "ink": "#1b2430", "faint": "#5c6878", "grid": "#e3e7ec",
    "c0": "#1d5fd1", "c1": "#c8500b", "c2": "#0b7f5b", "c3": "#b8317f", "c4": "#8a6a00", "c5": "#4b5563",
}  # fmt: skip
INK, FAINT, GRID, *SERIES = COLOURS.values()
DASHES = ("solid", "dashed", "dotted")
NAMED, FEW = len(SERIES) * len(DASHES), len(SERIES)  # so many lines are told apart; of more than that, the best few
BANDS = 3  # lines whose bands can be told apart in a small chart
WIDE = 8  # times as many megabytes, from where an axis of them is logarithmic
FAR = 20  # times as large the largest number of a search, from where its axis is logarithmic
CELLS = 100  # numbers are written into heat maps of no more cells
MANY = 40  # beyond it agents and classes go without their numbers
MOST_ROWS = 1_000  # of a picture of agents; of more agents several share a row
MOST_ORDERED = 100_000  # links of a graph whose communities are found in a second or two
WIDTH, HEIGHT = 360, 270  # of a chart, in the page's pixels at its natural size
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "dslth_jax", "text.parse_math": False, "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), FAINT),
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "legend.frameon": False, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
}  # fmt: skip
# The numbers of lines, in percent, nats and megabytes, of which `words_of` says more; a band's are `_low`, `_high`.
WORDS = {
    "round": "round",
    "accuracy": "test accuracy, %",
    "loss": "training loss, nats",
    "density": "density of the masks in use",
    "megabytes": "sent over all links, MB",
    "simulated": "simulated time, s",
}
# Those of lines that join points of an axis, in place of rounds; a gain is over learning alone.
AXES = {
    "overlap": "share of an agent's classes that its neighbours hold",
    "alpha": "concentration of Dirichlet label shares",
    "width": "factor on all channels",
    "depth": "convolutions",
    "model_bits": "bits of a model",
    "multiply_adds": "multiply-adds of a sample",
    "gain": "gain over learning alone, points",
}
SIZES_OF_MODELS = ("model_bits", "multiply_adds")  # where points of several axes lie: they are not joined
Lines = Mapping[str, pd.DataFrame]  # numbers of runs, or of points of a sweep, by their names, best first
Dots = Sequence[tuple[str, float]]  # the value of an axis, and an accuracy


class Panel(NamedTuple):
    """Which numbers of lines are drawn against each other: names of `WORDS`, or of `AXES`."""

    across: str
    up: str
    logarithmic: bool = False


class Chart(NamedTuple):
    """A chart of a page with the words around it."""

    title: str
    svg: Markup
    note: str = ""


def numbers_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The numbers of rows of metrics that have an accuracy, whose band goes from the worst to the best agent."""
    keys, accuracies = ["round", "loss", "density"], ["accuracy_mean", "accuracy_worst", "accuracy_best"]
    sums = ["coded_bits", "float32_bits", "simulated_seconds"]
    every = pd.DataFrame(rows, columns=[*keys, *sums, *accuracies]).astype(float)
    found = every[keys].assign(simulated=every["simulated_seconds"])
    found["megabytes"] = every["coded_bits"].fillna(every["float32_bits"]) / 8e6
    found["coded"] = every["coded_bits"].notna().astype(float)
    found[["accuracy", "accuracy_low", "accuracy_high"]] = 100 * every[accuracies]
    return found.dropna(subset=["accuracy"])


def numbers_of_seeds(members: Sequence[Sequence[Row]]) -> pd.DataFrame:
    """The numbers of a point of a sweep: means over its seeds, and bands from the lowest to the highest."""
    every = pd.concat([numbers_of(rows)[[*WORDS, "coded"]] for rows in members or [[]]]).groupby("round")
    bands = [every.min().add_suffix("_low"), every.max().add_suffix("_high")]
    return pd.concat([every.mean(), *bands], axis=1).reset_index()


def draw_lines(axes: "Axes", lines: Lines, panel: Panel, bands: int | None = None) -> None:
    """Lines, so many of them with bands (all by default)."""
    across, up, logarithmic = panel
    for place, (name, numbers) in enumerate(lines.items()):
        rows = numbers.dropna(subset=[across, up])
        # A logarithmic axis has no place for 0.
        rows = rows[rows[across] > 0] if logarithmic else rows
        look, few = look_of(place, len(lines)), len(rows) == 1 or (len(rows) <= 30 and len(lines) <= BANDS)
        dots: dict[str, Any] = {"marker": "o", "markersize": 3.2} if few or across in AXES else {}
        look |= {"linestyle": "none"} if across in SIZES_OF_MODELS else {}
        axes.plot(rows[across], rows[up], label=name, **look, **dots)
        if f"{up}_low" in rows and across not in SIZES_OF_MODELS and (bands is None or place < bands):
            faint = 0.16 if len(lines) == 1 or bands == 1 else 0.09
            low, high = rows[f"{up}_low"], rows[f"{up}_high"]
            axes.fill_between(rows[across], low, high, linewidth=0, zorder=1, color=look["color"], alpha=faint)
    if up == "gain":
        axes.axhline(0, color=FAINT, linestyle=":", zorder=1)
    if across in SIZES_OF_MODELS:
        name_groups(axes, pd.concat([*lines.values()]).dropna(subset=[across, up]), across, up)
    axes.set(xlabel=words_of(across, lines), ylabel=(WORDS | AXES)[up])
    axes.locator_params(nbins=6)
    axes.locator_params("x", integer=across in ("round", "depth"))
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")


def name_groups(axes: "Axes", rows: pd.DataFrame, across: str, up: str) -> None:
    """What dots are of, above the highest one at each place."""
    for place, own in rows.groupby(across):
        top, words = (place, own[up].max()), own["group"].iloc[0]
        axes.annotate(words, top, (0, 4), textcoords="offset points", ha="center", fontsize=7)


def words_of(across: str, lines: Lines) -> str:
    """What an axis says: of megabytes also how they are counted, masks entropy-coded and weights as float32."""
    coded = {bool(own["coded"].any()) for own in lines.values()} if across == "megabytes" else set()
    if len(coded) == 2:
        return "sent, MB (masks coded, weights float32)"
    how = {True: ", entropy-coded,", False: ", float32,"}[coded.pop()] if coded else ","
    return (WORDS | AXES)[across].replace(",", how)


def look_of(place: int, lines: int) -> dict[str, Any]:
    """How the line at a place is drawn; the best line comes first."""
    if place < named(lines):
        return {"color": SERIES[place % FEW], "linestyle": DASHES[place // FEW], "zorder": 50 - place}
    return {"color": FAINT, "linestyle": "solid", "linewidth": 0.8, "alpha": 0.5, "zorder": 2}


def named(lines: int) -> int:
    """How many of so many lines are told apart."""
    return lines if lines <= NAMED else FEW


def draw_heat_map(axes: "Axes", table: pd.DataFrame, words: str | None = None, **how: Any) -> None:
    """The cells of a table, with a scale of colours and words beside it or, if small and without words, its numbers."""
    image = axes.imshow(np.ma.masked_invalid(table.to_numpy(float)), interpolation="none", **how)
    label_steps(axes.set_xticks, table.columns)
    label_steps(axes.set_yticks, table.index)
    axes.set(xlabel=shortened(str(table.columns.name), 40), ylabel=shortened(str(table.index.name), 30))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if words is not None or table.size > CELLS:
        bar: Any = axes.figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, label=words or "")
        bar.outline.set_visible(False)
        # Drawn as one small picture: as shapes it would weigh as much as all the rest.
        bar.solids.set_rasterized(True)
        return
    for (row, column), value in np.ndenumerate(table.to_numpy(float)):
        text = "\u2013" if np.isnan(value) else f"{value:.1f}"
        axes.text(column, row, text, ha="center", va="center", color=on_top(image, value))


def on_top(coloured: Any, value: float) -> str:
    """The colour of words on top of what is coloured by a value."""
    red, green, blue, _ = coloured.cmap(coloured.norm(value))
    return INK if np.isnan(value) else "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"


def draw_graph(axes: "Axes", adjacency: sparse.csr_array, percent: np.ndarray) -> None:
    """A graph of few links as nodes, coloured by accuracy, and lines. Where links are one-way, arrows point from who is
    heard to who hears."""
    import networkx

    agents, directed = adjacency.shape[0], (adjacency != adjacency.T).nnz > 0
    kind = networkx.DiGraph if directed else networkx.Graph
    graph = networkx.from_scipy_sparse_array(adjacency.T.astype(int), create_using=kind)
    whole = networkx.is_connected(graph.to_undirected())
    places = (networkx.kamada_kawai_layout if whole else networkx.circular_layout)(graph)
    size = 260 if agents <= MANY else 150
    arrows = {"arrows": True, "arrowsize": 9, "node_size": size} if directed else {}
    networkx.draw_networkx_edges(graph, places, ax=axes, alpha=0.5, edge_color=FAINT, **arrows)
    how = {"cmap": "viridis", "node_size": size, "edgecolors": FAINT, "linewidths": 0.5}
    nodes = networkx.draw_networkx_nodes(graph, places, ax=axes, node_color=percent, **how)
    for agent, place in places.items():
        colour = on_top(nodes, percent[agent])
        axes.text(place[0], place[1], str(agent), ha="center", va="center", fontsize=7, color=colour)
    axes.figure.colorbar(nodes, ax=axes, shrink=0.8, label=WORDS["accuracy"])
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")  # also of two agents, who span no area
    axes.axis("off")


def draw_matrix(axes: "Axes", adjacency: sparse.csr_array, percent: np.ndarray) -> None:
    """A graph of many links as a matrix: whom each agent hears, in the colour of its accuracy. Agents of a community,
    who have more links with each other than with others, stand beside each other. Of more than a thousand agents
    several share a cell, and its colour is the mean over its links."""
    import networkx

    agents = adjacency.shape[0]
    communities = [[*range(agents)]]
    if adjacency.sum() <= MOST_ORDERED:
        graph = networkx.from_scipy_sparse_array((adjacency + adjacency.T).astype(int))
        communities = sorted(map(sorted, networkx.community.louvain_communities(graph, seed=0)))
    order, each = np.concatenate(communities), -(-agents // MOST_ROWS)
    places = np.empty(agents, int)
    places[order] = np.arange(agents) // each
    receivers, senders = adjacency.nonzero()
    shape = (places.max() + 1,) * 2
    totals, links = np.zeros(shape), np.zeros(shape)
    np.add.at(totals, (places[receivers], places[senders]), percent[receivers])
    np.add.at(links, (places[receivers], places[senders]), 1)
    heard = pd.DataFrame(np.divide(totals, links, out=np.full(shape, np.nan), where=links > 0), order[::each])
    heard.columns = heard.index
    draw_heat_map(axes, heard, words=WORDS["accuracy"], vmin=percent.min(), vmax=percent.max())
    several = f", by community ({len(communities)} of them)" if len(communities) > 1 else ""
    several += f"; {each} agents a cell" if each > 1 else ""
    axes.set(xlabel="who is heard", ylabel=f"who hears{several}")
    for bound in np.cumsum([len(own) for own in communities])[:-1] / each - 0.5:
        axes.axhline(bound, color=FAINT, linewidth=0.5)
        axes.axvline(bound, color=FAINT, linewidth=0.5)
    if MANY < len(order) <= CELLS:  # in a picture of its own there is room for them
        axes.set_xticks(range(len(order)), order, fontsize=6, rotation=90)
        axes.set_yticks(range(len(order)), order, fontsize=6)


def label_steps(set_ticks: Callable[..., Any], values: Sequence[Any]) -> None:
    """Write values beside an axis where they are not too many, upright where they are long."""
    spelled = [shortened(str(value), 16) for value in values] if len(values) <= MANY else []
    crowded = set_ticks.__name__ == "set_xticks" and len(spelled) * max(map(len, spelled), default=0) > 40
    size = {"fontsize": max(6, 200 // len(spelled))} if len(spelled) > 20 else {}
    set_ticks(range(len(spelled)), spelled, rotation=90 if crowded else 0, **size)


def best_of_pairs(axes: Mapping[str, Sequence[Any]], results: Sequence[Row], one: str, other: str) -> pd.DataFrame:
    """The accuracy, in percent, of the best point at every pair of values of two axes of a sweep. `results` come best
    first, and what is best was decided on samples held back, where there are any."""
    rows = [(str(row[one]), str(row[other]), row["accuracy_mean"]) for row in results]
    table = pd.DataFrame(rows, columns=[one, other, "best"]).pivot_table("best", one, other, "first")
    return 100 * table.reindex(index=[*map(str, axes[one])], columns=[*map(str, axes[other])])


def draw_along(axes: "Axes", name: str, dots: Dots, steps: Sequence[str] | None, joined: Dots = ()) -> None:
    """Dots over an axis of a sweep, and a line through the best of `joined`, which come best first. `steps` are the
    axis' values, None where these are numbers."""
    place = float if steps is None else list(steps).index
    across = [place(value) for value, _ in dots]
    axes.plot(across, [100 * accuracy for _, accuracy in dots], "o", color=SERIES[0], markersize=5, alpha=0.6)
    best = pd.Series([100 * y for _, y in joined], [place(x) for x, _ in joined], float).groupby(level=0).first()
    axes.plot(best.index, best, color=SERIES[1], zorder=1)
    axes.set(xlabel=shortened(name, 40), ylabel=WORDS["accuracy"])
    axes.locator_params("y", nbins=6)
    if steps is not None:
        label_steps(axes.set_xticks, steps)
        axes.set_xlim(-0.5, len(steps) - 0.5)
    elif across and min(across) > 0 and max(across) > FAR * min(across):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.locator_params("x", nbins=5)


def draw_sorted(axes: "Axes", agents: Sequence[Row]) -> None:
    """The accuracy of every agent, worst to best, and their mean; of many, of some at even distances."""
    percent = 100 * np.sort([row["accuracy"] for row in agents])
    drawn = np.linspace(0, len(percent) - 1, min(len(percent), MOST_ROWS)).astype(int)
    axes.vlines(drawn + 1, 0, percent[drawn], color=GRID, linewidth=min(3, 200 / len(drawn)))
    axes.plot(drawn + 1, percent[drawn], "o", color=SERIES[0], markersize=4 if len(drawn) < 80 else 2)
    axes.axhline(percent.mean(), color=SERIES[1], linestyle="--", linewidth=1.2)
    axes.set(ylabel=WORDS["accuracy"], xlabel="agents, worst to best", ylim=(0, 100))
    axes.locator_params("x", nbins=6, integer=True)
    axes.grid(axis="x", visible=False)


def draw_against(axes: "Axes", agents: Sequence[Row], key: str, words: str) -> None:
    """The accuracy of agents over another of their numbers; of many, of some at random."""
    if len(agents) > MOST_ROWS:
        agents = [agents[place] for place in np.random.default_rng(0).permutation(len(agents))[:MOST_ROWS]]
    percent = [100 * row["accuracy"] for row in agents]
    axes.plot([row[key] for row in agents], percent, "o", color=SERIES[0], markersize=4.5, alpha=0.7)
    axes.set(ylabel=WORDS["accuracy"], xlabel=words)
    axes.locator_params("x", nbins=5, integer=key != "retention")


def are_numbers(values: Sequence[str]) -> bool:
    """Whether all of them spell finite numbers."""
    return bool(np.isfinite(pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").astype(float)).all())


def shortened(text: str, length: int) -> str:
    """A text that fits a chart."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@contextlib.contextmanager
def new_figure(width: float, height: float, **style: Any) -> "Iterator[Figure]":
    """A figure of so many inches, drawn and written in the style above, whatever a user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its fonts may lack glyphs of a user's words
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | style)
        from matplotlib.figure import Figure

        yield Figure(figsize=(width, height), layout="constrained")


def chart(
    title: str, label: str, draw: Callable[..., None], *what: Any, height: int = HEIGHT, note: str = "", **how: Any
) -> Chart:
    """What `draw` draws of some things into Axes, as SVG for a page; `label` says in words what is seen."""
    out = io.StringIO()
    with new_figure(WIDTH / 72, height / 72, **{"font.size": 12, "axes.labelsize": 12}) as figure:
        draw(figure.subplots(), *what, **how)
        figure.savefig(out, format="svg", transparent=True)
    return Chart(title, Markup(for_page(out.getvalue(), label)), note)


def for_page(text: str, label: str) -> str:
    """An SVG file's text as an element of a page: names are its own, and no address leads outside."""
    size, inside = re.findall(r'<svg.*?( viewBox="[^"]*").*?>(.*)', text, re.DOTALL)[0]
    # The page has the one rule of the file's own style sheet.
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inside, flags=re.DOTALL)
    inside = inside.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', inside))
    own = "g" + hashlib.sha256((label + inside).encode("utf-8", "replace")).hexdigest()[:8]
    inside = re.sub(r' id="([^"]*)"', lambda found: f' id="{own}{found[1]}"' if found[1] in used else "", inside)
    inside = re.sub(r'(href="|url\()#([\w-]+)', rf"\1#{own}\2", inside)
    inside = re.sub(r'(font: [^;"]*?px)[^;"]*', r"\1 system-ui, sans-serif", inside)
    for name, colour in COLOURS.items():
        inside = inside.replace(f": {colour}", f": var(--{name})")
    return f'<svg{size} role="img" aria-label="{escape(label)}">{inside}'
