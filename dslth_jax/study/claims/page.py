"""claims.md: what came of each claim's experiment, read from what the experiment has left."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dslth_jax.study.claims.children import last_line
from dslth_jax.study.claims.table import Claim
from dslth_jax.study.results import points
from dslth_jax.study.results.compared import shortest
from dslth_jax.study.results.folders import Row

FIT = "n by least squares"  # how the theorem's page begins the line that says which constants fit
HEAD = ("claim", "experiment", "what came out", "difference", "how it ended", "minutes")


class Came(NamedTuple):
    """What came of an experiment, in words."""

    numbers: str
    difference: str = ""


class Line(NamedTuple):
    """A row of the page: the record of an experiment, and its commands."""

    name: str
    claim: Claim
    record: Row | None  # status, seconds, reason; None where it was not begun
    command: str
    whole: str
    minutes: float  # as estimated


def came_of(claim: Claim, folder: Path, log: Path) -> Came:
    """What an experiment has left in its folder, or in its log where it has no folder, ended or not."""
    try:
        if claim.module == "experiments.theorem":
            lines = (folder / "table.md").read_text().split("\n")
            return Came(next(line for line in lines if line.startswith(FIT)))
        if claim.module == "benchmarks.compaction":
            return of_compaction(json.loads(last_line(log))["rows"])
        found = points.read(folder, folder.name)
        assert isinstance(found, points.Sweep)
        return of_arms(claim, found)
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return Came("nothing yet")


def of_compaction(rows: Mapping[str, Row]) -> Came:
    """Parameters, multiply-adds, and the fastest pass of each form at the largest batch, whose time wavers least."""
    said, fastest = [], {}
    for name, row in rows.items():
        *_, (batch, milliseconds) = row["fastest_milliseconds"].items()
        fastest[name] = milliseconds
        sizes = f"{row['parameters'] / 1e6:.3f} M parameters, {row['multiply_adds'] / 1e6:.1f} M multiply-adds"
        said.append(f"{name}: {sizes}, {milliseconds:.2f} ms ({batch})")
    first, *_, last = fastest
    return Came("; ".join(said), f"{first} takes {fastest[first] / fastest[last]:.1f} times as long as {last}")


def of_arms(claim: Claim, found: points.Sweep) -> Came:
    """The accuracy of each arm, with the megabytes that it sends, and the difference of two that are done. Where time
    is simulated, accuracies are those when the first arm has done its rounds."""
    seconds, accuracies, said = shortest(found), dict[str, float](), []
    for point in found.points:
        name, result = ", ".join(point.values.values()), point.result
        at_end = result["accuracy_mean"]
        accuracy = at_end if seconds is None else points.mean_at(point.members, seconds)
        if accuracy is None:
            said.append(f"{name}: {result['status']}")
            continue
        if result["status"] == points.DONE:  # of fewer rounds, or of other seeds, a difference says nothing
            accuracies[name] = accuracy
        spread = f" ± {100 * result['accuracy_std']:.1f}" if result["accuracy_std"] and seconds is None else ""
        said.append(f"{name}: {100 * accuracy:.1f}{spread} %{more_of(claim, result)}")
    when = (
        "" if seconds is None else f"After {seconds:,.4g} simulated seconds, or at the end of those that end before: "
    )
    return Came(when + "; ".join(said), difference_of(claim, accuracies))


def more_of(claim: Claim, result: Row) -> str:
    """What stands behind an arm's accuracy: megabytes, coded where messages are of masks; density where it is asked
    for; that it is not done."""
    sent = next((result[size] for size in ("coded_mb", "float32_mb") if result[size]), None)
    more = [] if sent is None else [f"{sent:,.4g} MB"]
    if claim.shows_density and result["density"] is not None:
        more.append(f"density {result['density']:.3f}")
    if result["status"] != points.DONE:
        more.append(str(result["status"]))
    return f" ({', '.join(more)})" if more else ""


def difference_of(claim: Claim, accuracies: Mapping[str, float]) -> str:
    """The accuracy of one arm minus that of another, for each of the claim's pairs, in words; of an axis of
    architectures, of masks minus weights in each."""
    pairs = [*claim.differences]
    trained = [kind.removesuffix("weights") for kind in accuracies if kind.endswith(": weights")]
    pairs += [(f"{group}{way}", f"{group}weights") for group in trained for way in ("masks", "alone")]
    said = [
        f"{one} minus {other}: {100 * (accuracies[one] - accuracies[other]):+.1f} points"
        for one, other in pairs
        if one in accuracies and other in accuracies
    ]
    return "; ".join(said)


# The page ------------------------------------------------------------------------------------------------------------


def page_of(lines: Sequence[Line], left_out: Sequence[Line], head: Sequence[str], out: Path) -> str:
    """The whole page in Markdown: `lines` are what the budget was to hold, `left_out` what it did not."""
    rows = [row_of(line, out) for line in lines]
    parts = [
        "# The claims, reduced",
        *head,
        "Accuracy is the mean over agents, each on test images of its own classes; megabytes are over all links and "
        "rounds, coded where masks are sent and float32 where weights are. One seed, where nothing else is said, "
        "tells differences of a point or two from nothing by luck alone.",
        table_of(HEAD, rows),
        "## What each leaves out",
        table_of(
            ("experiment", "left out", "this command", "the whole"),
            [(line.name, line.claim.leaves_out, f"`{line.command}`", f"`{line.whole}`") for line in lines],
        ),
    ]
    if left_out:
        parts += [
            "## Left out for lack of time",
            table_of(
                ("experiment", "claim", "minutes of one core, about", "reduced", "the whole"),
                [
                    (line.name, line.claim.says, estimate_of(line), f"`{line.command}`", f"`{line.whole}`")
                    for line in left_out
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def estimate_of(line: Line) -> str:
    """How long an experiment is estimated to take, and by what."""
    return f"{line.minutes:.1f}" + (f" ({line.claim.by})" if line.claim.by else "")


def row_of(line: Line, out: Path) -> tuple[str, ...]:
    """The cells of one experiment."""
    if line.record is None:
        return line.claim.says, line.name, "", "", "not begun", ""
    came = came_of(line.claim, out / line.name, out / f"{line.name}.log")
    reason = f": {line.record['reason']}" if line.record["reason"] else ""
    minutes = f"{line.record['seconds'] / 60:.1f}"
    return line.claim.says, line.name, came.numbers, came.difference, line.record["status"] + reason, minutes


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, in whose cells nothing is a border."""
    written = (" | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) for row in rows)
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {row} |" for row in written)])
