"""What the agents of a run have come to: their masks or weights in its folder, and models made of them again."""

import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float, Shaped, UInt8

from dslth_jax import masks
from dslth_jax.algorithm import World, by_name, layer_of, planes_of, with_names
from dslth_jax.evaluation import BATCH
from dslth_jax.keys import key_of
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Network
from dslth_jax.population import world_of
from dslth_jax.study.config.algorithms import ALGORITHMS, with_own_settings
from dslth_jax.study.config.resolve import algorithm_of, network_of
from dslth_jax.study.config.setting import described
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results.folders import WHAT_TO_DO, read_config, replace
from dslth_jax.study.system.machine import numerics

AT_ONCE = 2**22  # entries of masks that are unpacked at once


def write_masks(folder: Path, bits: Any, maskable: Any) -> None:
    """masks.npz: for each layer `numpy.packbits` of its flattened masks, (agents, bytes), and its shape.

    A ternary mask has two planes, "layer/positive" and "layer/negative".
    """
    arrays: dict[str, Any] = {}
    shapes = {name: kernel.shape for name, kernel in by_name(maskable).items()}
    for name, packed in by_name(bits).items():
        shape = shapes[layer_of(name)]
        # Users of the file expect numpy's order of bits, not the fast one of the exchange.
        unpack, many = jax.vmap(lambda row, shape=shape: masks.unpack(row, shape)), max(AT_ONCE // math.prod(shape), 1)
        parts = (unpack(jnp.asarray(packed[first : first + many])) for first in range(0, len(packed), many))
        rows = [np.packbits(np.asarray(part).reshape(len(part), -1), axis=1) for part in parts]
        arrays[name] = np.concatenate(rows)
        arrays[f"{name}.shape"] = np.array(shape)
    write_arrays(folder / "masks.npz", arrays)


def write_kept(folder: Path, wanted: Any) -> None:
    """kept.npz: for each layer how many entries agents were to keep in the last round, (agents,)."""
    counts: dict[str, Any] = {name: np.asarray(kept) for name, kept in by_name(wanted).items()}
    write_arrays(folder / "kept.npz", counts)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays by their names, in one file that is there whole or not at all."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    replace(path, content.getvalue())


def remove(folder: Path) -> None:
    """Remove what a run has left at its end, as one that becomes longer does when it begins."""
    for name in ("agents.csv", "classes.csv", "masks.npz", "kept.npz", "weights.safetensors", "topology.png"):
        (folder / name).unlink(missing_ok=True)


def write_variables(folder: Path, variables: Any) -> None:
    """weights.safetensors: everybody's variables by their names, (agents, ...)."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(own) for name, own in by_name(variables).items()}
    replace(folder / "weights.safetensors", save(tensors))


def read_masks(path: Path, agents: int) -> dict[str, tuple[UInt8[np.ndarray, "agents bytes"], tuple[int, ...]]]:
    """Each layer's packed masks, by its name, and the shape of one mask."""
    wrong = f"{path} must hold, for each layer, packed masks of {agents} agents and their shape, got"
    try:
        with np.load(path) as file:
            names = [name for name in file.files if not name.endswith(".shape")]
            found = {name: (file[name], tuple(file[f"{name}.shape"].tolist())) for name in names}
    except Exception:  # of many kinds, by where the file is damaged
        raise ValueError(f"{wrong} a file that cannot be read: {WHAT_TO_DO}") from None
    for name, (bits, shape) in found.items():
        entries = math.prod(shape)
        if bits.dtype != np.uint8 or entries < 1 or bits.shape != (agents, -(-entries // 8)):
            raise ValueError(f"{wrong} {name!r}, {bits.dtype} of {bits.shape} for {entries} entries: {WHAT_TO_DO}")
    if not found:
        raise ValueError(f"{wrong} none: {WHAT_TO_DO}")
    return found


class Model(NamedTuple):
    """What one agent predicts with. One agent's world."""

    apply: Callable[..., Any]  # the network's forward pass, compiled once for all agents
    variables: Any  # for `apply`
    # Those in use, a pytree of 0 and 1, or -1 too, of the shapes of what they mask; None where weights are trained.
    masks: Any
    image_shape: tuple[int, int, int]  # (height, width, channels)
    labels: np.ndarray  # by which the data itself calls the classes, (classes,)

    def __repr__(self) -> str:
        return f"Model(image_shape={self.image_shape}, classes={len(self.labels)})"

    def logits(self, images: UInt8[np.ndarray, "images height width channels"]) -> Float[np.ndarray, "images classes"]:
        """The logits of uint8 images as the agent sees them: turned, where the run turned its images.

        Raises a ValueError if they are of another dtype or shape than those that the run has learned from.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            wanted = f"uint8 of (images, {', '.join(map(str, self.image_shape))})"
            raise ValueError(f"images must be {wanted}, got {images.dtype} of {images.shape}")
        # As many at once as in an evaluation, so that their logits are those that it saw; of no images one batch too.
        padded = np.pad(images, [(0, -len(images) % BATCH if len(images) else BATCH), *[(0, 0)] * 3])
        batches = [self.apply(self.variables, batch) for batch in padded.reshape(-1, BATCH, *self.image_shape)]
        return np.concatenate([np.asarray(batch) for batch in batches])[: len(images)]

    def predict(self, images: UInt8[np.ndarray, "images height width channels"]) -> Shaped[np.ndarray, "images"]:
        """The label of the likeliest class of each image, as the data itself calls it; see `logits`."""
        return self.labels[np.argmax(self.logits(images), axis=-1)]


class Models:
    """The agents of a finished run, as they were at its end."""

    def __init__(self, folder: Path, network: Network | None = None) -> None:
        config = read_config(folder)
        if config is None or config.get("kind"):
            what = f"is the folder of a {config['kind']}" if config else "holds no config.json"
            raise ValueError(f"a run folder was expected, and {folder} {what}: {WHAT_TO_DO}")
        if "images" not in config or "finished" not in config:
            why = "has not come to its end" if "images" in config else "was written by a version before 0.5"
            raise ValueError(f"the run in {folder} {why}, and left no models: train it again, or to its end")
        if (then := config.get("numerics")) is None:
            raise ValueError(f"the run in {folder} does not say with which numbers it was trained: {WHAT_TO_DO}")
        if then != (now := numerics()):
            raise ValueError(f"the run in {folder} was trained with {then}, and now there is {now}: set the same")
        self.folder, self.config = folder, config
        kind, images = with_own_settings(Settings), config["images"]
        if strange := sorted(config["settings"].keys() - described(kind).keys()):
            what = f"the run in {folder} has settings that nobody here knows, {', '.join(strange)}"
            raise ValueError(f"{what}: load it in the program that brings them, or by the version that wrote it")
        self.settings = kind(**{**config["settings"], "out": None})
        expect_choice("--algorithm", self.settings.algorithm, [*ALGORITHMS])
        height, width, channels = images["shape"]
        self.image_shape, self.classes = (height, width, channels), int(images["classes"])
        self.labels = np.array(images["labels"])
        self.network = network or network_of(self.settings, self.image_shape, self.classes)
        self.algorithm = algorithm_of(self.settings, self.network)

    def __repr__(self) -> str:
        return f"Models({self.folder}, agents={self.agents}, algorithm={self.settings.algorithm!r})"

    @property
    def agents(self) -> int:
        """How many there are."""
        return int(self.settings.agents)

    @functools.cached_property
    def world(self) -> World:
        """The random weights that all share, from the seed."""
        return jax.jit(lambda: world_of(self.network, key_of(self.settings.seed), 0, 1))()

    @functools.cached_property
    def masks(self) -> dict[str, tuple[UInt8[np.ndarray, "agents bytes"], tuple[int, ...]]] | None:
        """Everybody's packed masks and their shapes, by layer; None where there are none."""
        path = self.folder / "masks.npz"
        return read_masks(path, self.agents) if path.is_file() else None

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """The network's forward pass, compiled once for all agents."""
        return jax.jit(self.network.apply)

    def agent(self, number: int) -> Model:
        """The model of one agent, counted from 0. Raises a ValueError if there is no such agent, or if the run's files
        are not of these settings and this network."""
        if not 0 <= number < self.agents:
            raise ValueError(f"agent must be in 0..{self.agents - 1}, got {number}")
        weights, frozen, of_masks = self.world.weights, self.world.frozen, self.algorithm.of_masks
        if of_masks is None:
            like = {"params": weights, "frozen": frozen}
            variables, own = with_names(self.reader_of_weights(number), like), self.masks_by_name(number)
        else:
            if self.masks is None:
                raise ValueError(f"the run in {self.folder} has lost its masks.npz: train it again")
            own = with_names(lambda name, w: self.mask(name, w, number), weights)
            variables = jax.jit(of_masks)(self.world, self.kept(number), own)
        return Model(self.apply, variables, own, self.image_shape, self.labels)

    def reader_of_weights(self, number: int) -> Callable[[str, Any], np.ndarray]:
        """What reads one agent's trained variable, of a name and a shape."""
        from safetensors import safe_open

        path = self.folder / "weights.safetensors"
        try:
            stored = safe_open(path, "numpy")
            names = {*stored.keys()}
        except Exception as error:  # of many kinds, by where the file is damaged
            raise ValueError(f"{path} cannot be read ({error}): train the run again") from None

        def read(name: str, like: Any) -> np.ndarray:
            found = stored.get_slice(name) if name in names else None
            if found is None or found.get_shape() != [self.agents, *like.shape]:
                got = f"of {tuple(found.get_shape())}" if found else "not there"
                wanted = f"{name} of {(self.agents, *like.shape)}, and it is {got}"
                raise ValueError(f"{path} must hold {wanted}: name the run's network")
            return found[number]

        return read

    def masks_by_name(self, number: int) -> Any:
        """One agent's masks, as a pytree by the names of the file; None where it has none."""
        found = (self.masks or {}).items()
        flat = {tuple(name.split("/")): unpacked(bits[number], shape) for name, (bits, shape) in found}
        return unflatten_dict(flat) or None

    def mask(self, name: str, like: Any, number: int) -> np.ndarray:
        """One agent's mask of a layer, of its dtype."""
        stored = self.masks or {}
        planes = [unpacked(stored[plane][0][number], stored[plane][1]) for plane in planes_of(stored, name)]
        if not planes or planes[0].shape != like.shape:
            wanted = f"masks of {like.shape} for {name}"
            raise ValueError(f"masks.npz in {self.folder} must hold {wanted}, and does not: name the run's network")
        return functools.reduce(np.subtract, [plane.astype(like.dtype) for plane in planes])

    def kept(self, number: int) -> Any:
        """How many entries of each layer one agent was to keep; None where its algorithm has no such number."""
        if "kept" not in ALGORITHMS[self.settings.algorithm].hyper._fields:
            return None
        path = self.folder / "kept.npz"
        try:
            with np.load(path) as file:
                return with_names(lambda name, w: file[name][number], self.world.weights)
        except Exception as error:  # of many kinds, by where the file is damaged
            raise ValueError(f"{path} must say how many entries agents were to keep, and does not ({error})") from None


def unpacked(bits: UInt8[np.ndarray, "bytes"], shape: tuple[int, ...]) -> np.ndarray:
    """A mask of the file as 0 and 1."""
    return np.unpackbits(bits, count=math.prod(shape)).reshape(shape)


def load(run_folder: str | Path, network: Network | None = None) -> Models:
    """The agents of a run that has come to its end: `load(folder).agent(3).predict(images)`.

    On the same kind of device, with the same versions, their accuracies are exactly those in agents.csv. A network of
    one's own is handed in, with the weights' rule that the run had. Raises a ValueError where the folder holds no
    finished run of this version, or one of another network.
    """
    return Models(Path(run_folder), network)
