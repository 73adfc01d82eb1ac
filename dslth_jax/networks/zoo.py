"""The networks by name. To add one, write its flax module of `Conv` and `Linear` and name it in `MODULES`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array

from dslth_jax.naming import expect_choice
from dslth_jax.networks.convolution import max_pool
from dslth_jax.networks.layers import scaled
from dslth_jax.networks.mobilenet import MobileNetV2
from dslth_jax.networks.network import Conv, Linear, Network, network_of
from dslth_jax.networks.operations import elu, local_response_norm, max_pool_pairs, pad_with_lowest
from dslth_jax.networks.residual import ResNet18, ResNet20
from dslth_jax.networks.transformer import ViTTiny
from dslth_jax.networks.wiring import Wiring, chain, cut_of


class AlexNet(nn.Module):
    """The authors' network for 32x32 images: three 5x5 convolutions, two linear layers, 1,227,328 masked entries."""

    classes: int
    width: float = 1.0
    smallest_side: ClassVar[int] = 21  # of an image, so that every pooling has a window
    wiring: ClassVar[Wiring] = chain(
        ("conv1", "conv2", "conv3", "linear1", "linear2"), elu, windowed=("conv1", "conv2", "conv3")
    )

    @nn.compact
    def __call__(self, values: Array) -> Array:
        for number, (features, alpha, pool_padding) in enumerate(((64, 2e-5, 0), (128, 1e-4, 0), (256, 1e-4, 1)), 1):
            values = elu(Conv(scaled(features, self.width), side=5, padding=1, name=f"conv{number}")(values))
            left = cut_of(self, f"conv{number}")
            values = local_response_norm(values, alpha, None if left is None else left.numbers)
            values = max_pool(pad_with_lowest(values, pool_padding))
        values = values.reshape(values.shape[0], -1)
        values = elu(Linear(scaled(192, self.width), name="linear1")(values))
        return Linear(self.classes, name="linear2")(values)


class SmallNet(nn.Module):
    """For small grey images such as scikit-learn's digits: two 3x3 convolutions and two linear layers."""

    classes: int
    width: float = 1.0
    smallest_side: ClassVar[int] = 1
    wiring: ClassVar[Wiring] = chain(("conv1", "conv2", "linear1", "linear2"), elu)

    @nn.compact
    def __call__(self, values: Array) -> Array:
        values = max_pool(
            pad_with_lowest(elu(Conv(scaled(32, self.width), side=3, padding=1, name="conv1")(values)), 1)
        )
        values = max_pool(
            pad_with_lowest(elu(Conv(scaled(64, self.width), side=3, padding=1, name="conv2")(values)), 1)
        )
        values = values.reshape(values.shape[0], -1)
        values = elu(Linear(scaled(128, self.width), name="linear1")(values))
        return Linear(self.classes, name="linear2")(values)


class Conv3(nn.Module):
    """For studies that are to be cheap, at 16x16 pixels: three 3x3 convolutions and two linear layers. Ours.

    `plain` makes it deeper or shallower: convolutions stand in up to three stages of 32, 64 and 128 channels, those of
    the last stages one more where they do not come out even, and a stage ends in a 2x2 pooling.
    """

    classes: int
    width: float = 1.0
    convolutions: ClassVar[tuple[int, ...]] = (1, 1, 1)  # of each stage
    smallest_side: ClassVar[int] = 8

    @nn.compact
    def __call__(self, values: Array) -> Array:
        number = 0
        for features, times in zip((32, 64, 128), self.convolutions, strict=False):
            for _ in range(times):
                number += 1
                values = elu(Conv(scaled(features, self.width), side=3, padding=1, name=f"conv{number}")(values))
            values = max_pool_pairs(values)
        values = values.reshape(values.shape[0], -1)
        values = elu(Linear(scaled(128, self.width), name="linear1")(values))
        return Linear(self.classes, name="linear2")(values)

    @property
    def wiring(self) -> Wiring:
        """Each layer reads the one before."""
        return chain((*(f"conv{number}" for number in range(1, 1 + sum(self.convolutions))), "linear1", "linear2"), elu)


def plain(convolutions: int) -> type[Conv3]:
    """The network like `Conv3` of so many 3x3 convolutions, at least two.

    >>> [plain(depth).convolutions for depth in (2, 4, 8)]
    [(1, 1), (1, 1, 2), (2, 3, 3)]
    """
    stages = min(convolutions, 3)
    even, further = divmod(convolutions, stages)
    counts = tuple(even + (stage >= stages - further) for stage in range(stages))
    fields = {"convolutions": counts, "smallest_side": 2**stages, "__module__": __name__}
    return type(f"Plain{convolutions}", (Conv3,), fields)


class Conv4(nn.Module):
    """Conv-4 of the lottery ticket papers (Frankle and Carbin 2019): 3x3 convolutions in pairs, three linear layers."""

    classes: int
    width: float = 1.0
    pairs: ClassVar[tuple[int, ...]] = (64, 128)
    smallest_side: ClassVar[int] = 4

    @nn.compact
    def __call__(self, values: Array) -> Array:
        for number, channels in enumerate(self.pairs):
            features = scaled(channels, self.width)
            values = nn.relu(Conv(features, side=3, padding=1, name=f"conv{2 * number + 1}")(values))
            values = nn.relu(Conv(features, side=3, padding=1, name=f"conv{2 * number + 2}")(values))
            values = max_pool_pairs(values)
        values = values.reshape(values.shape[0], -1)
        for number in (1, 2):
            values = nn.relu(Linear(scaled(256, self.width), name=f"linear{number}")(values))
        return Linear(self.classes, name="linear3")(values)

    @property
    def wiring(self) -> Wiring:
        """Each layer reads the one before."""
        convolutions = [f"conv{number}" for number in range(1, 2 * len(self.pairs) + 1)]
        return chain((*convolutions, "linear1", "linear2", "linear3"), nn.relu)


class Conv6(Conv4):
    """Conv-6 of the same papers, a pair more: 2,261,184 masked entries for 10 classes."""

    pairs: ClassVar[tuple[int, ...]] = (64, 128, 256)
    smallest_side: ClassVar[int] = 8


class VGG11(nn.Module):
    """VGG-11 for 32x32 images (Simonyan and Zisserman 2015) without norms, with one linear layer: 9,222,848 masked
    entries for 10 classes."""

    classes: int
    width: float = 1.0
    smallest_side: ClassVar[int] = 32
    wiring: ClassVar[Wiring] = chain((*(f"conv{number}" for number in range(1, 9)), "linear"), nn.relu)

    @nn.compact
    def __call__(self, values: Array) -> Array:
        number = 0
        for group in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for channels in group:
                number += 1
                conv = Conv(scaled(channels, self.width), side=3, padding=1, name=f"conv{number}")
                values = nn.relu(conv(values))
            values = max_pool_pairs(values)
        return Linear(self.classes, name="linear")(values.reshape(values.shape[0], -1))


class MLP(nn.Module):
    """LeNet-300-100: two hidden linear layers, for images of any size."""

    classes: int
    width: float = 1.0
    smallest_side: ClassVar[int] = 1
    wiring: ClassVar[Wiring] = chain(("linear1", "linear2", "linear3"), nn.relu)

    @nn.compact
    def __call__(self, values: Array) -> Array:
        values = values.reshape(values.shape[0], -1)
        for number, features in enumerate((300, 100), 1):
            values = nn.relu(Linear(scaled(features, self.width), name=f"linear{number}")(values))
        return Linear(self.classes, name="linear3")(values)


MODULES: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "small": SmallNet,
    "conv3": Conv3,
    **{f"plain{convolutions}": plain(convolutions) for convolutions in (2, 4, 5, 6, 7, 8)},
    "conv4": Conv4,
    "conv6": Conv6,
    "vgg11": VGG11,
    "mlp": MLP,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "mobilenetv2": MobileNetV2,
    "vit-tiny": ViTTiny,
}


def network_by_name(
    name: str,
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    width: float = 1.0,
    exits: bool = False,
    **settings: Any,
) -> Network:
    """The network called `name` in `MODULES`, for images of `image_shape` (height, width, channels).

    `width` is a factor on the channels and features of all layers but the last; a class without a field `width` takes 1
    alone. `exits` puts a head behind every stage, where a class has that field. `settings` are those of `network_of`.
    """
    expect_choice("model", name, tuple(MODULES))
    if not width > 0:
        raise ValueError(f"width must be above 0, got {width}")
    smallest = getattr(MODULES[name], "smallest_side", 1)
    if min(image_shape[:2]) < smallest:
        raise ValueError(
            f"the model {name} needs images of at least {smallest} pixels a side, "
            f"got {image_shape[0]}x{image_shape[1]}: choose another model"
        )
    try:
        inspect.signature(MODULES[name]).bind(classes=classes)
    except TypeError as error:
        raise ValueError(
            f"the model {name} must be made by its number of classes alone ({error}): give its class a field "
            f"`classes: int`, and all its other fields defaults"
        ) from None
    if width != 1 and "width" not in inspect.signature(MODULES[name]).parameters:
        raise ValueError(f"width must be 1 for the model {name}, whose class has no field `width: float`, got {width}")
    if exits and "exits" not in inspect.signature(MODULES[name]).parameters:
        having = ", ".join(one for one, kind in MODULES.items() if "exits" in inspect.signature(kind).parameters)
        raise ValueError(f"exits are behind the stages of {having}, and the model {name} has none: leave them out")
    return network_of_kind(MODULES[name], classes, tuple(image_shape), width, exits, **settings)


# Members of a study have one network: to look at a module takes time.
@functools.lru_cache(maxsize=64)
def network_of_kind(
    kind: Callable[..., nn.Module],
    classes: int,
    image_shape: tuple[int, int, int],
    width: float = 1.0,
    exits: bool = False,
    **settings: Any,
) -> Network:
    """The network of a kind of module, made once; its fields are said only where they are not as usual."""
    fields: dict[str, Any] = ({} if width == 1 else {"width": width}) | ({"exits": True} if exits else {})
    return network_of(kind(classes=classes, **fields), image_shape, **settings)


def largest_fitting(image_shape: tuple[int, int, int]) -> str:
    """The authors' network where images are large enough for it, else the small one."""
    return "alexnet" if min(image_shape[:2]) >= AlexNet.smallest_side else "small"
