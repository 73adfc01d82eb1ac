"""The course of one run: what it has sent, its rows of metrics, its symptoms, whether it failed. Host side."""

import copy
import dataclasses
import functools
import math
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from dslth_jax.algorithm import Message, by_masked_name, by_name
from dslth_jax.evaluation import Evaluation
from dslth_jax.exchange import silence, unpacked
from dslth_jax.keys import key_of
from dslth_jax.networks.cost import positions_of, sizes_of
from dslth_jax.population import world_of
from dslth_jax.study.config.mortality import may_die
from dslth_jax.study.config.numbers import depths_of
from dslth_jax.study.results.devices import multiply_adds_of_agents
from dslth_jax.study.training.agreement import agreement_row, pairs_of, spread_row
from dslth_jax.study.training.diagnostics import Seen, Symptoms, at_the_seam
from dslth_jax.study.training.foreseen import said_of_time
from dslth_jax.study.training.ledger import Ledger, lengths_of
from dslth_jax.study.training.plan import Prepared
from dslth_jax.study.training.survival import Shares, shares_alive

Accuracies = Float[np.ndarray, "agents"]


@dataclasses.dataclass
class Tally:
    """What adds up over rounds besides bits, on the host."""

    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)  # since the last row
    flip_rate: float | None = None
    simulated: float | None = None  # seconds, where time is simulated
    idle: list[float] = dataclasses.field(default_factory=list)  # of each agent, simulated seconds
    late: list[int] = dataclasses.field(default_factory=list)  # of each agent, exchanges

    def add(self, info: dict[str, Any], bits: Int[np.ndarray, "agents"], seconds: float) -> None:
        """Count one round, in which agents had so many bits to send."""
        self.seconds += seconds
        self.losses.append(float(info["loss"].mean(dtype=np.float64)))
        if info["flipped"] is not None:
            self.flip_rate = float(info["flipped"].mean(dtype=np.float64)) / max(float(bits.mean()), 1.0)
        if "idle" in info:
            agents = len(info["idle"])
            self.simulated = (self.simulated or 0.0) + float(info["length"][0])
            self.idle = np.add(self.idle or [0.0] * agents, info["idle"], dtype=np.float64).tolist()
            self.late = np.add(self.late or [0] * agents, info["late"], dtype=np.int64).tolist()

    def row(self, round: int, evaluation: Evaluation, validation: Accuracies | None = None) -> dict[str, Any]:
        """The row of metrics after `round`; losses start anew. `validation` are accuracies on what agents hold back: a
        run in which they hold nothing back has no such numbers in its rows."""
        accuracy = np.asarray(evaluation.accuracy, np.float64)
        losses, self.losses = self.losses, []
        return {
            "round": round,
            "loss": float(np.mean(losses)) if losses else None,
            "accuracy_mean": accuracy.mean(),
            "accuracy_std": accuracy.std(),
            "accuracy_worst": accuracy.min(),
            "accuracy_best": accuracy.max(),
            **({} if validation is None else validated(validation)),
            "density": None if evaluation.density is None else float(np.mean(evaluation.density, dtype=np.float64)),
            "flip_rate": self.flip_rate,
            "simulated_seconds": self.simulated,
            "idle_seconds": None if self.simulated is None else float(np.mean(self.idle or 0.0)),
        }


class Outcome(NamedTuple):
    """What a run came to."""

    rows: list[dict[str, Any]]  # of metrics
    failure: str | None  # what is not finite, and in which round


class History:
    """What one run has come to so far. New symptoms, one sentence each, wait in `warnings` to be taken."""

    evaluation: Evaluation  # the last
    wanted: Any = None  # how many entries of each layer agents were to keep in the last round, (agents,); None: no such
    open: Ledger | None = None  # what a longer run would have counted, where that is something else
    at_end: dict[str, Any] | None = None  # what a checkpoint holds for it, from before the evaluation at the end
    variables: Any = None  # everybody's at the end, with a leading agents axis, where weights are trained
    validation: Accuracies | None = None  # and the last accuracies on what agents hold back

    def __init__(self, prepared: Prepared, shapes: tuple[Any, Message], number: int = 0) -> None:
        self.prepared, self.number = prepared, number  # of several runs, which one it is
        self.maskable, self.message = shapes
        sizes = {name: math.prod(leaf.shape) for name, leaf in self.message.masks.items()}
        alone = bool(sizes) and not self.message.values
        self.tally = Tally(simulated=None if prepared.budget is None else 0.0)
        self.ledger = Ledger(sizes, [*self.message.scales], masks_alone=alone)
        self.held = prepared.held(prepared.train)
        self.tested = tested = prepared.held(prepared.tests)
        self.pairs = pairs_of(self.held)
        self.chance = float(np.mean(tested.max(axis=1) / tested.sum(axis=1)))  # of who names an agent's likeliest class
        self.redrawn = prepared.topology.redraw is not None
        lasting = None if prepared.changing else prepared.graph_report
        roles = prepared.network.roles
        self.symptoms = Symptoms(prepared.settings, lasting, self.maskable, self.chance, roles)
        seam = at_the_seam(prepared.settings, self.held)
        self.warnings = [*self.symptoms.at_start, *seam, *said_of_time(prepared)]
        self.rows: list[dict[str, Any]] = []
        self.failure: str | None = None
        self.evaluation_seconds = 0.0  # since this process began

    def after_round(self, round: int, info: dict[str, Any], seconds: float, sent: Sequence[Message]) -> None:
        """Count one round, unless one before had numbers that are not finite. `sent` is what everybody sent in this
        round and those before, the latest first, where messages are to be encoded."""
        if self.failure is not None:
            return
        self.failure = not_finite(info, round)
        if self.failure is not None:
            self.warnings.append(self.failure)
            return
        course = self.prepared.course
        self.tally.add(info, self.ledger.entries_of_each(info), seconds)
        if course.is_closing(round):
            self.open = copy.deepcopy(self.ledger)
        ledgers = [self.ledger, *([self.open] if self.open else [])]
        for ledger in ledgers:
            ledger.add(info)
        self.wanted = info.get("wanted")
        if self.ledger.masks_alone and course.has_exchange(round):
            # A start message that everybody knows, and that is of the scores, spares the only key frame.
            spared = self.prepared.algorithm.start_known and course.key_every == 0
            known = course.since_key_frame(round) + spared
            # Where a listener may lack the masks sent before, every message can be read alone.
            loses = self.redrawn or self.prepared.settings.link_drop > 0
            lengths = lengths_of(sent[: 1 if loses else 1 + known], self.message, round) if sent else None
            for ledger in ledgers:
                closing = ledger is self.open
                ledger.add_coded(info["listeners"], None if closing else lengths, known)
        self.warnings += self.symptoms.after_round(round, info, self.tally.flip_rate)

    def after_evaluation(
        self, round: int, evaluation: Evaluation, seconds: float, validation: Accuracies | None = None
    ) -> None:
        """Add a row; `validation` as in `Tally.row`."""
        self.evaluation_seconds += seconds
        prepared = self.prepared
        if self.failure is None:
            self.evaluation, self.validation = evaluation, validation
            alike = agreement_row(evaluation.masks, self.maskable, self.pairs)
            alike |= spread_row(evaluation.magnitudes, self.maskable, self.pairs)
            means: dict[str, Any] = {name: float(shares.mean()) for name, shares in self.shares_alive().items()}
            means["retention_mean"] = None if prepared.budget is None else float(np.mean(self.retentions()))
            counted = self.tally.row(round, evaluation, validation) | means | alike | self.ledger.row()
            self.rows.append(counted | {"seconds": self.tally.seconds})
            self.warnings += self.symptoms.after_evaluation(round, evaluation)

    def retentions(self) -> Float[np.ndarray, "agents"]:
        """The share of its convolutions' entries that each agent was to keep in the last round, before the first one of
        the run's own settings; of all layers where there are none. Of an algorithm without retentions it is 1."""
        kept = self.wanted if self.wanted is not None else getattr(self.prepared.hyper, "kept", None)
        roles = self.prepared.network.roles
        counts = {name: own for name, own in by_masked_name(kept).items() if name in roles} if kept is not None else {}
        of_role = {name: own for name, own in counts.items() if roles[name] == "convolution"} or counts
        if not of_role or self.prepared.costs is None:
            return np.ones(self.prepared.agents)
        entries = sum(self.prepared.costs.entries[name] for name in of_role)
        return np.sum([np.asarray(own, np.float64) for own in of_role.values()], axis=0) / entries

    def depths(self) -> list[int] | None:
        """How many residual blocks each agent had in the last round; None where all have all."""
        budget, costs = self.prepared.budget, self.prepared.costs
        if budget is None or costs is None or budget.fewest is None:
            return depths_of(self.prepared.settings)
        kept = by_name(self.wanted if self.wanted is not None else self.prepared.hyper.kept)
        had = [np.where(np.asarray(kept[name]) > 0, depth, 0) for name, depth in costs.needs.items()]
        return np.max([np.full(self.prepared.agents, min(costs.needs.values()) - 1), *had], axis=0).tolist()

    def shares_alive(self) -> Shares:
        """The share of its channels that live in each agent's last model, where a rule can kill any."""
        prepared = self.prepared
        mortal = may_die(prepared.settings) and self.evaluation.masks is not None
        return shares_alive(self.evaluation.masks, self.maskable, prepared.network.heads) if mortal else {}

    def take_warnings(self) -> list[str]:
        """The symptoms since the last call."""
        warnings, self.warnings = self.warnings, []
        return warnings

    def close(self) -> None:
        """Note all that a checkpoint must hold of this at the end, before the evaluation that only the end has."""
        wanted = None if self.wanted is None else {name: kept.tolist() for name, kept in by_name(self.wanted).items()}
        self.at_end = {**self.notes(), "wanted": wanted}

    def notes(self) -> dict[str, Any]:
        """All that a checkpoint must hold of this, in words and numbers."""
        counted: dict[str, Any] = {"tally": self.tally, "ledger": self.ledger, "symptoms": self.symptoms.seen}
        notes = {name: dataclasses.asdict(own) for name, own in counted.items()}
        opened = None if self.open is None else dataclasses.asdict(self.open)
        return {**notes, "open": opened, "rows": [*self.rows], "failure": self.failure}

    def go_on_from(self, notes: dict[str, Any], reopened: bool = False) -> None:
        """Take up the state in which these notes were made. The ledger is `reopened` where the run that made them was
        shorter, so that its last exchange is not the last one any more."""
        self.tally, self.ledger = Tally(**notes["tally"]), Ledger(**notes["ledger"])
        if notes["open"] is not None:
            opened = Ledger(**notes["open"])
            self.ledger, self.open = (opened, None) if reopened else (self.ledger, opened)
        if notes.get("wanted") is not None:
            self.wanted = {name: np.array(kept) for name, kept in notes["wanted"].items()}
        self.symptoms.seen = Seen(**notes["symptoms"])
        self.rows, self.failure, self.warnings = list(notes["rows"]), notes["failure"], []

    @functools.cached_property
    def positions(self) -> dict[str, int] | str:
        """How often a sample multiplies by each entry of a layer, or why that cannot be said."""
        height, width, channels = self.prepared.train.images.shape[1:]
        try:
            return positions_of(self.prepared.network, (height, width, channels))
        except ValueError as error:
            return str(error)

    def multiply_adds(self) -> list[int] | None:
        """Of each agent, in the model of the last evaluation; None where that cannot be said."""
        if isinstance(self.positions, str):
            return None
        masked, _ = jax.eval_shape(self.prepared.network.init, key_of(0))
        found = multiply_adds_of_agents(self.positions, self.evaluation.masks, sizes_of(masked))
        return np.broadcast_to(found, self.prepared.agents).tolist()

    def agent_rows(self) -> list[dict[str, Any]]:
        """The rows of agents.csv, after the last evaluation."""
        prepared, evaluation, work = self.prepared, self.evaluation, self.multiply_adds()
        neighbours, held = prepared.last_adjacency.sum(axis=1), self.held
        balanced = balanced_accuracy(np.asarray(evaluation.right), self.tested)
        depths, alive = self.depths(), self.shares_alive()
        return [
            {
                "agent": agent,
                "classes": shlex.join(str(prepared.labels[label]) for label in np.flatnonzero(held[agent])),
                "samples": int(prepared.train.sizes[agent]),
                "test_samples": int(prepared.tests.sizes[agent]),
                "retention": "" if retention is None else retention,
                **({} if depths is None else {"depth": depths[agent]}),
                "neighbours": int(neighbours[agent]),
                "accuracy": round(float(evaluation.accuracy[agent]), 6),
                **self.validation_of(agent),
                "density": "" if evaluation.density is None else round(float(evaluation.density[agent]), 6),
                "balanced_accuracy": round(float(balanced[agent]), 6),
                "multiply_adds": "" if work is None else work[agent],
                **self.timed(agent),
                "sent_bits": self.ledger.sent_by(agent),
                **{name: round(float(shares[agent]), 6) for name, shares in alive.items()},
            }
            for agent, retention in enumerate(prepared.retentions)
        ]

    def timed(self, agent: int) -> dict[str, Any]:
        """What agents.csv says of an agent's simulated time, where there is any."""
        tally = self.tally
        if tally.simulated is None or not tally.idle:
            return {}
        kept = round(float(self.retentions()[agent]), 6)
        return {"idle_seconds": round(tally.idle[agent], 6), "late": tally.late[agent], "retention_at_end": kept}

    def class_rows(self) -> list[dict[str, Any]]:
        """The rows of classes.csv, after the last evaluation: those classes that any agent is tested on."""
        right, tested = np.asarray(self.evaluation.right).sum(axis=0), self.tested.sum(axis=0)
        return [
            {
                "class": str(self.prepared.labels[number]),
                "agents": int((self.held[:, number] > 0).sum()),
                "samples": int(self.held[:, number].sum()),
                "test_samples": int(tested[number]),
                "accuracy": round(float(right[number] / tested[number]), 6),
            }
            for number in np.flatnonzero(tested)
        ]

    def validation_of(self, agent: int) -> dict[str, Any]:
        """What agents.csv says of the samples that an agent holds back, if it does."""
        held = self.prepared.validation
        if held is None or self.validation is None:
            return {}
        accuracy = round(float(self.validation[agent]), 6)
        return {"validation_samples": int(held.sizes[agent]), "validation_accuracy": accuracy}


def balanced_accuracy(
    right: Int[np.ndarray, "agents classes"], tested: Int[np.ndarray, "agents classes"]
) -> Float[np.ndarray, "agents"]:
    """Of each agent the mean over the classes that it is tested on of its accuracy in each, from how many test samples
    of each class it labels right, and how many it has.

    >>> balanced_accuracy(np.array([[90, 0], [1, 1]]), np.array([[90, 10], [4, 0]]))
    array([0.5 , 0.25])
    """
    shares = np.divide(right, tested, out=np.zeros(tested.shape), where=tested > 0)
    return shares.sum(axis=1) / (tested > 0).sum(axis=1)


def validated(accuracies: Accuracies) -> dict[str, Any]:
    """The numbers of a row that accuracies on what agents hold back come to."""
    exact = np.asarray(accuracies, np.float64)
    return {"validation_mean": exact.mean(), "validation_worst": exact.min()}


def shapes_of(prepared: Prepared) -> tuple[Any, Message]:
    """The shapes of what an agent's masks cover (None if it has no masks), and of its message with bits unpacked. They
    are the same of all members of a program."""

    def look(hyper: Any) -> tuple[Any, Any]:
        world = world_of(prepared.network, key_of(0), 0, 1)
        agent, message = prepared.algorithm.init(key_of(0), world, hyper)
        like = unpacked(message, world)
        heard = silence(like, prepared.agents, prepared.topology.graph)
        return prepared.algorithm.model(world, hyper, agent, heard)[1], like

    return jax.eval_shape(look, jax.tree.map(lambda leaf: leaf[0], prepared.hyper))


def not_finite(info: dict[str, Any], round: int) -> str | None:
    """One sentence if a diagnostic of any agent, such as its loss, is not finite."""
    for name, values in info.items():
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            agent, what = int(np.argmin(np.isfinite(values))), name.replace("_", " ")
            return f"the {what} of agent {agent} is {values[agent]} in round {round}: take smaller step sizes"
    return None
