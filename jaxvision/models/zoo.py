"""Every model by name: one explicit dictionary, name -> builder of a linen module."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvision.errors import UserError
from jaxvision.models import deeplab, fcn, resnet, vgg
from jaxvision.models.alexnet import AlexNet
from jaxvision.models.encoder_decoder import EncoderDecoder
from jaxvision.models.lenet import LeNet
from jaxvision.models.localizer import Localizer
from jaxvision.models.mlp import MLP
from jaxvision.models.segnet import SegNet


def localizer(
    num_classes: int = 10,
    backbone: str = "resnet18",
    backbone_options: Mapping[str, Any] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Localizer:
    """Returns a `Localizer` on the model called `backbone`: any that has `features_only`."""
    options = {**(backbone_options or {}), "features_only": True, "dtype": dtype}
    return Localizer(get_model(backbone, **options), num_classes, dtype)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "deeplabv3_resnet50": deeplab.deeplabv3_resnet50,
    "deeplabv3_resnet101": deeplab.deeplabv3_resnet101,
    "encoder_decoder": EncoderDecoder,
    "fcn_resnet50": fcn.fcn_resnet50,
    "fcn_resnet101": fcn.fcn_resnet101,
    "lenet": LeNet,
    "localizer": localizer,
    "mlp": MLP,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "resnext101_32x8d": resnet.resnext101_32x8d,
    "resnext101_64x4d": resnet.resnext101_64x4d,
    "segnet": SegNet,
    "vgg11": vgg.vgg11,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13": vgg.vgg13,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19": vgg.vgg19,
    "vgg19_bn": vgg.vgg19_bn,
    "wide_resnet50_2": resnet.wide_resnet50_2,
    "wide_resnet101_2": resnet.wide_resnet101_2,
}


def list_models() -> list[str]:
    """Returns the names that `get_model` takes, sorted."""
    return sorted(MODELS)


def get_model(name: str, **options) -> nn.Module:
    """Returns the linen module called `name`, built with `options` (`num_classes=…`, widths, …).

    Lists in the options become tuples, so that options read from JSON rebuild the same module.
    Raises `UserError` for an unknown name, with the nearest known ones, and for an unknown option.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(list_models())}"
        )
        raise UserError(f"unknown model {name!r}; {hint}")
    builder = MODELS[name]
    known = [p for p in inspect.signature(builder).parameters if p not in ("parent", "name")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"model {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return builder(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
