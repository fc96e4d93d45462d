"""Registry of float networks: our own by name, torchvision's classification models by theirs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


@dataclass(frozen=True)
class Entry:
    """A registered network: what builds it and the image side in pixels it was designed for."""

    build: Callable[..., nn.Module]
    resolution: int


REGISTRY: dict[str, Entry] = {}

# torchvision builds these with auxiliary heads and a slow truncated-normal initialisation. Its published weights expect
# inputs in [-1, 1]: `transform_input` maps images normalised with ImageNet's mean and std to that range.
_NO_AUXILIARY_HEADS = {'aux_logits': False, 'init_weights': False, 'transform_input': True}
_TORCHVISION_PRESETS = {'googlenet': _NO_AUXILIARY_HEADS, 'inception_v3': _NO_AUXILIARY_HEADS}


def register(*names: str, resolution: int = 224) -> Callable:
    """Class or function decorator that makes a network known under one or several names.

    Args:
        names: names for `create_model`; they must be new and must not begin with the "q" of quantized twins.
        resolution: side in pixels of the square images the network was designed for.

    Raises:
        ValueError: a name is taken or begins with "q".
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        for name in names:
            if name in REGISTRY or name.startswith('q'):
                raise ValueError(f"cannot register {name!r}: the name is taken or begins with the 'q' of quantized")
        REGISTRY.update({name: Entry(build, resolution) for name in names})
        return build

    return add


def create_model(name: str, *, convert: Callable[[nn.Module], nn.Module] | None = None, num_classes: int = 1000,
                 width_mult: float = 1.0, **options) -> nn.Module:
    """Build a network by name, with random weights; weights are loaded elsewhere.

    Args:
        name: one of `list_models()`; "q" + name is the quantized twin, `convert(create_model(name))`.
        convert: turns a float network into its quantized twin; not used for float names.
        width_mult: channel multiplier, for the networks that have one.
        options: further keyword arguments of the network, e.g. `mode="large"` for mobilenetv3.

    Returns:
        The network, in training mode. googlenet and inception_v3 come without auxiliary heads: the `aux1.*`, `aux2.*`
        and `AuxLogits.*` entries of their published weights have no place in it.

    Raises:
        ValueError: unknown name or option, a q-name without `convert`, or a width the network cannot have.
    """
    base, quantized = _split(name)
    if quantized and convert is None:
        raise ValueError(
            f'{name!r} is a quantized twin: pass convert=<function from float to quantized network>, '
            f'or ask for the float network {base!r}'
        )
    build, known = _builder(base)
    if width_mult != 1.0:
        _check_width(base, width_mult, known)
        options['width_mult'] = width_mult
    _check_options(base, options, known)
    model = build(**{**_TORCHVISION_PRESETS.get(base, {}), 'num_classes': num_classes, **options})
    return convert(model) if quantized else model


def list_models(*, quantized: bool = True) -> list[str]:
    """Sorted names of all networks, our own and torchvision's; with `quantized` also their q-twins."""
    names = [*REGISTRY, *_torchvision_names()]
    return sorted(names + ['q' + name for name in names] if quantized else names)


def default_resolution(name: str) -> int:
    """Side in pixels of the square images a network is meant for: 224, 299 (inception) or 32 (CIFAR)."""
    base, _ = _split(name)
    if base in REGISTRY:
        return REGISTRY[base].resolution
    return 299 if base.startswith('inception') else 224


def torchvision_weights(name: str, version: str = 'DEFAULT') -> WeightsEnum | None:
    """torchvision's weights of a network, or None for our own networks; nothing is downloaded here.

    Args:
        name: one of `list_models()`; a q-name means the weights of its float twin.
        version: member of the weights enum. DEFAULT is torchvision's best; results published before 2022, HAQ's
            76.15 % for resnet50 among them, start from IMAGENET1K_V1. Some defaults want another image size
            (`weights.transforms()`; vit_h_14 then needs `image_size=518` as an option).
    """
    base, _ = _split(name)
    if base in REGISTRY:
        return None
    versions = _torchvision().get_model_weights(base)
    if version not in versions.__members__:
        raise ValueError(f"{base} has no weights {version!r}; torchvision offers {', '.join(versions.__members__)}")
    return versions[version]


def _torchvision() -> ModuleType:
    """torchvision.models, imported only when it is needed: our own networks come much quicker without it."""
    import torchvision.models  # takes a second

    return torchvision.models


def _torchvision_names() -> list[str]:
    return _torchvision().list_models(module=_torchvision())


def _split(name: str) -> tuple[str, bool]:
    """The float name and whether its quantized twin is meant."""
    base = name.removeprefix('q')
    if base not in REGISTRY and base not in _torchvision_names():
        near = difflib.get_close_matches(name, list_models())
        hint = f"; did you mean {' or '.join(near)}?" if near else '.'
        raise ValueError(
            f"unknown model {name!r}{hint} Our own are {', '.join(REGISTRY)}; torchvision's classification models "
            "go by their torchvision names; 'q' + name is the quantized twin of any"
        )
    return base, base != name


def _builder(base: str) -> tuple[Callable[..., nn.Module], set[str]]:
    """What builds a float network, and the names of the keyword arguments it knows."""
    if base in REGISTRY:
        build = REGISTRY[base].build
        return build, set(inspect.signature(build).parameters)
    build = _torchvision().get_model_builder(base)
    # The builders pass **kwargs on to the class named in their return annotation, and some classes swallow what they
    # do not know: only the class's named arguments count. The MobileNetV3 builders read width_mult on the way.
    network = inspect.signature(build, eval_str=True).return_annotation
    known = set(inspect.signature(network).parameters) - {'kwargs'}
    return build, known | ({'width_mult'} if base.startswith('mobilenet_v3_') else set())


def _check_width(base: str, width_mult: float, known: set[str]) -> None:
    if 'width_mult' not in known:
        raise ValueError(
            f"{base} has no width multiplier, width_mult={width_mult} was given; leave it at 1.0 or take "
            "a network that has one: mobilenet, mobilenetv2, mobilenetv3, premobilenetv2 or torchvision's mobilenet_v2"
        )
    if width_mult <= 0:
        raise ValueError(f'width_mult={width_mult} was given, a positive factor expected')


def _check_options(base: str, options: dict, known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        others = ', '.join(sorted(known - {'num_classes', 'width_mult'})) or 'none beside the number of classes'
        raise ValueError(f"{base} does not know the option {', '.join(unknown)}; it knows {others}")
