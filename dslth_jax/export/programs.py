"""Any network with its variables as a file of weights, or as a program that takes images. One agent's world.

What a network computes in its masked and its compact form can be handed in alike: it says all that is needed by `apply`
and its variables.
"""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Float, PyTree, UInt8

from dslth_jax.algorithm import by_name
from dslth_jax.networks.network import Network
from dslth_jax.networks.per_platform import stock_forms

PLATFORMS = ("cpu", "cuda", "tpu")
CLOSE = 1e-5  # how far logits of an ONNX file may be off, times the largest of them where that is above 1
ROUNDINGS = 4  # and times how far JAX's own in float32 are off those in float64, where that is more
ImageShape = tuple[int, int, int]  # (height, width, channels)


def expect_extra(extra: str, *modules: str) -> None:
    """Raise an ImportError of one sentence unless the modules of an extra are installed."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ImportError(f"{', '.join(missing)} must be installed first: pip install 'dslth-jax[{extra}]'")


def as_safetensors(variables: PyTree[Array | np.ndarray], about: Mapping[str, Any]) -> bytes:
    """The variables by their names, such as `params/conv1/kernel`, and what else is said `about` them, each value in
    JSON. Raises an ImportError where safetensors is not installed."""
    expect_extra("experiments", "safetensors")
    from safetensors.numpy import save

    tensors = {name: np.require(leaf, requirements="C") for name, leaf in by_name(variables).items()}
    return bytes(save(tensors, {name: json.dumps(value) for name, value in about.items()}))


def as_jax(network: Network, variables: PyTree[Array | np.ndarray], image_shape: ImageShape) -> bytes:
    """A program of `jax.export`, for CPUs, CUDA and TPUs, of uint8 images (batch, height, width, channels) for a batch
    of any size: `jax.export.deserialize(bytearray(content)).call(images)` are the logits (batch, classes).

    JAX reads it for at least six months after the version that wrote it. Raises an ImportError where flatbuffers is not
    installed, by which JAX writes and reads it.
    """
    expect_extra("export", "flatbuffers")
    shape = export.symbolic_shape(f"batch, {', '.join(map(str, image_shape))}")
    program = export.export(jax.jit(_forward(network, variables)), platforms=PLATFORMS)
    return bytes(program(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


def as_onnx(
    network: Network, variables: PyTree[Array | np.ndarray], image_shape: ImageShape, about: Mapping[str, Any]
) -> bytes:
    """An ONNX model, from the input `images`, uint8 (batch, height, width, channels), to the output `logits`.

    What is said `about` it, each value in JSON, is its metadata. ONNX Runtime computes a batch with it here, which must
    be what the network computes. Raises an ImportError where jax2onnx is not installed, and a ValueError where that
    cannot convert the network, or converts it wrongly.
    """
    expect_extra("onnx", "jax2onnx", "onnxruntime")
    import onnxruntime
    from jax2onnx import to_onnx

    with _silently("onnx_ir", "jax2onnx"):
        try:
            with stock_forms():
                named = {"input_names": ["images"], "output_names": ["logits"]}
                model: Any = to_onnx(
                    _forward(network, variables), [jax.ShapeDtypeStruct(("B", *image_shape), jnp.uint8)], **named
                )
            for name, value in about.items():
                model.metadata_props.add(key=name, value=json.dumps(value))
            content = bytes(model.SerializeToString())
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            images = np.random.default_rng(0).integers(0, 256, (3, *image_shape), np.uint8)
            (found,) = session.run(["logits"], {"images": images})
        except Exception as error:  # of many kinds, by what the converter does not know
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"jax2onnx cannot convert this network ({reason[:300]}): export it as jax") from error
    wanted = np.asarray(jax.jit(network.apply)(variables, images))  # all agents' by one program
    if (off := farthest(found, wanted)) > may_be_off(network, variables, images, wanted, off):
        raise ValueError(f"jax2onnx has converted this network wrongly, its logits are {off:g} off: export it as jax")
    return content


def farthest(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of logits; infinite where one is no number."""
    return float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max())


def may_be_off(
    network: Network, variables: PyTree[Array | np.ndarray], images: np.ndarray, wanted: np.ndarray, off: float
) -> float:
    """How far logits may be from those `wanted`, which JAX has computed in float32: 1e-5 of the largest. Where they are
    further `off`, four times what these are off those in float64, for norms of flat images magnify what is rounded."""
    close = CLOSE * max(1.0, float(np.abs(wanted).max()))
    if off <= close:
        return close
    with jax.enable_x64(True):
        precise = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), variables)
        exact = np.asarray(jax.jit(network.apply)(precise, images))
    return max(close, ROUNDINGS * farthest(wanted, exact))


def _forward(network: Network, variables: PyTree[Array | np.ndarray]) -> Any:
    """The network as a function of images alone."""
    fixed = jax.tree.map(jnp.asarray, variables)

    def forward(images: UInt8[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        return network.apply(fixed, images)

    return forward


@contextlib.contextmanager
def _silently(*loggers: str) -> Iterator[None]:
    """Hold back what libraries log or warn of that are not errors."""
    owners = [logging.getLogger(name) for name in loggers]
    levels = [owner.level for owner in owners]
    try:
        for owner in owners:
            owner.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for owner, level in zip(owners, levels, strict=True):
            owner.setLevel(level)
