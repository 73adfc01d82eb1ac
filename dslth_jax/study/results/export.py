"""Agents of a run as files that run elsewhere: `dslth export`."""

import dataclasses
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import PyTree

import dslth_jax
from dslth_jax.compaction import compact
from dslth_jax.export import as_dslth, as_jax, as_onnx, as_safetensors
from dslth_jax.export.programs import expect_extra
from dslth_jax.keys import key_of
from dslth_jax.networks.network import Network
from dslth_jax.population import weights_key
from dslth_jax.study.config import command
from dslth_jax.study.config.setting import refusal, setting
from dslth_jax.study.results.folders import replace
from dslth_jax.study.results.models import Model, Models, load

READER = "dslth_reader.py"  # what lies beside .dslth files, and reads them


@dataclasses.dataclass(frozen=True)
class Export:
    """Agents of a finished run as files that run elsewhere."""

    folders: tuple[Path, ...]
    """The run folder, one alone."""
    agent: int | Literal["all"] = setting(0, bounds="0..1000000")
    """Whose model it is, counted from 0; or everybody's."""
    to: Path = Path("exported")
    """The folder that gets the files, agent_0000.dslth and so on; those of the same names are replaced."""
    as_: str = "dslth"
    """What they become, joined by commas. dslth: masks and the seed, with a reader that takes numpy alone;
    safetensors: the masked weights; onnx: a model for ONNX Runtime, by the extra onnx; jax: a program of jax.export, by
    the extra export."""
    compact: bool | None = None
    """Leave out the channels that masks make idle, in all forms but dslth: a smaller network with the same answers.
    None does so where the network says its wiring, as all of the project's own do."""
    round_to: int = setting(1, bounds="1..1024")
    """Keep a multiple of so many channels of each layer then: vector units like 4 and 8."""


class Exported(NamedTuple):
    """One agent as it is exported."""

    models: Models
    number: int
    model: Model
    form: tuple[Network, PyTree]  # the network that is exported as weights or as a program, and its variables

    @property
    def about(self) -> dict[str, Any]:
        """What files say of it, in JSON's types."""
        settings = self.models.settings
        return {
            "agent": self.number,
            "network": settings.model,
            "image_shape": [*self.models.image_shape],
            "labels": self.models.labels.tolist(),
            "algorithm": settings.algorithm,
            "seed": settings.seed,
            "retention": settings.retention,
            "precision": settings.precision,
            "compact": self.form[0] is not self.models.network,
            "elu_on_logits": bool(settings.elu_on_logits),
            "dslth_jax": dslth_jax.__version__,
        }


def to_dslth(own: Exported) -> bytes:
    """Masks and keys; a ValueError where the algorithm trains weights."""
    models, model = own.models, own.model
    if models.algorithm.of_masks is None:
        raise ValueError(
            f"--as dslth is for masks over shared random weights, and {models.settings.algorithm} trains weights: say "
            f"--as safetensors,onnx,jax"
        )
    key = weights_key(key_of(models.settings.seed))
    return as_dslth(key, models.world.weights, model.variables, model.masks, own.about)


def to_safetensors(own: Exported) -> bytes:
    """The masked weights, and what is frozen."""
    return as_safetensors(own.form[1], own.about)


def to_onnx(own: Exported) -> bytes:
    """A model for ONNX Runtime."""
    return as_onnx(*own.form, own.models.image_shape, own.about)


def to_jax(own: Exported) -> bytes:
    """A program of `jax.export`."""
    return as_jax(*own.form, own.models.image_shape)


def form_of_agent(models: Models, model: Model, settings: Export) -> tuple[Network, PyTree]:
    """The network of an agent's own size, and its variables; a ValueError where it cannot be cut and is to be."""
    network = models.network
    if not (network.wiring is not None if settings.compact is None else settings.compact):
        return network, model.variables
    try:
        cut = compact(network, model.variables, round_to=settings.round_to)
    except ValueError as error:
        raise ValueError(f"--compact: {error}") from None
    return cut.network, cut.variables


class Form(NamedTuple):
    """A kind of file."""

    make: Callable[[Exported], bytes]
    extra: str = "experiments"
    modules: tuple[str, ...] = ()  # of the extra


FORMS = {
    "dslth": Form(to_dslth),
    "safetensors": Form(to_safetensors, modules=("safetensors",)),
    "onnx": Form(to_onnx, "onnx", ("jax2onnx", "onnxruntime")),
    "jax": Form(to_jax, "export", ("flatbuffers",)),
}


def write(settings: Export) -> str:
    """Write the files; returns what was written, in words."""
    if len(settings.folders) != 1:
        raise ValueError(f"one run folder was expected, got {len(settings.folders)}: name one")
    forms = {name: form_of(name) for name in settings.as_.split(",")}
    if settings.to.is_file():
        raise ValueError(f"--to {settings.to} must be a folder, and is a file: name another")
    cuts = {*forms} != {"dslth"}
    if not cuts and (settings.compact or settings.round_to > 1):
        raise ValueError("--compact and --round-to mean nothing to --as dslth, which cuts nothing: leave them out")
    if settings.compact is False and settings.round_to > 1:
        raise ValueError("--round-to means nothing with --compact False, which cuts nothing: leave it out")
    models = load(settings.folders[0])
    numbers = range(models.agents) if settings.agent == "all" else [settings.agent]
    sizes = dict.fromkeys(forms, 0)
    for number in numbers:
        model = models.agent(number)
        own = Exported(models, number, model, form_of_agent(models, model, settings) if cuts else (models.network, {}))
        for name, form in forms.items():
            content = form.make(own)
            settings.to.mkdir(parents=True, exist_ok=True)
            replace(settings.to / f"agent_{number:04d}.{name}", content)
            sizes[name] += len(content)
    if "dslth" in forms:
        replace(settings.to / READER, files("dslth_jax.export").joinpath("reader.py").read_bytes())
    said = ", ".join(f"{size / len(numbers):,.0f} bytes as {name}" for name, size in sizes.items())
    return f"{'an agent' if len(numbers) == 1 else f'{len(numbers)} agents, each about'} {said}: {settings.to}"


def form_of(name: str) -> Form:
    """The form that a word of --as means; a ValueError if there is none, or if it needs what is not installed."""
    if name not in FORMS:
        raise ValueError(refusal("as_", f"some of {', '.join(FORMS)}, joined by commas", name, FORMS))
    try:
        expect_extra(FORMS[name].extra, *FORMS[name].modules)
    except ImportError as error:
        raise ValueError(f"for --as {name} {error}") from None
    return FORMS[name]


main = partial(command.act, Export, write)  # of a program's name, and of words
