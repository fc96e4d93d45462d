"""The record of one quantizable layer: all that a hardware model needs to know about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod

from lib.record.values import TEXT, Rule

KINDS = ('conv', 'linear', 'matmul')
NOT_SAVED = ('order', 'flow')
COUNT = Rule(lambda value: type(value) is int and value < 2**53, 'a whole number')  # exact in floating point
RULES = {str: TEXT, int: COUNT, tuple[int, int]: Rule(
    lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(COUNT.accepts, value)), 'two whole numbers')}


@dataclass(frozen=True)
class LayerRecord:
    """Shapes of one convolution or linear layer, or product of activations, in one forward pass of one image.

    A product of activations ('matmul') is (in_h, in_channels) x (in_channels, out_channels), `calls` times, such as
    once for each head of attention. Its second operand takes the place of the weight, with the bits of weights, but no
    call has it in common with another: `num_weights` is 0.
    A linear layer has kernel and stride (1, 1); `in_h` = `out_h` is the number of positions it is applied to per image
    (1 for a classifier, the number of tokens in a transformer) and `in_w` = `out_w` = 1. A layer that the forward pass
    never reaches has `calls` = 0 and sizes 0. `num_weights` leaves the bias out. `order` counts the calls of all layers
    of a network, and `flow` says how the layer stands to its ends; they are no part of what a layer is: records are
    compared and saved without them.

    Raises:
        ValueError: kind unknown, or sizes that no layer can have.
    """

    name: str
    kind: str  # one of `KINDS`
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]  # (height, width)
    stride: tuple[int, int]
    groups: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    num_weights: int
    calls: int = 1  # how often one forward pass uses the layer
    order: tuple[int, int] | None = field(default=None, compare=False, repr=False)  # numbers of its first and last call
    flow: tuple[bool, bool] | None = field(default=None, compare=False, repr=False)  # reads the image, is the output

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"layer {self.name!r}: kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        positive = (self.in_channels, self.out_channels, self.groups, *self.kernel, *self.stride)
        not_negative = (self.in_h, self.in_w, self.out_h, self.out_w, self.num_weights, self.calls)
        if min(positive) < 1 or min(not_negative) < 0:
            raise ValueError(f'{self}: channels, groups, kernel and stride must be positive, no size negative')
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f'{self}: both channel counts must be multiples of groups')

    @property
    def is_depthwise(self) -> bool:
        """Whether every filter sees a single one of several input channels."""
        return self.groups == self.in_channels > 1

    @property
    def type(self) -> str:
        """What figures and summaries group by: linear, matmul, depthwise, pointwise (1x1) or conv."""
        if self.kind != 'conv':
            return self.kind
        if self.is_depthwise:
            return 'depthwise'
        return 'pointwise' if self.kernel == (1, 1) else 'conv'

    @property
    def inputs(self) -> int:
        """Values that go into one call for an image."""
        return self.in_channels * self.in_h * self.in_w

    @property
    def operands(self) -> int:
        """Values of the weight, or of the second operand of one product of activations."""
        return self.in_channels * self.out_channels if self.kind == 'matmul' else self.num_weights

    @property
    def outputs(self) -> int:
        """Values that come out of one call for an image."""
        return self.out_channels * self.out_h * self.out_w

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations per image, all calls together."""
        weights = self.out_channels * (self.in_channels // self.groups) * prod(self.kernel)
        return self.calls * self.out_h * self.out_w * weights

    def to_dict(self) -> dict:
        """Return plain lists and numbers, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
                if key not in NOT_SAVED}

    @classmethod
    def from_dict(cls, entries: dict) -> 'LayerRecord':
        """Rebuild a record from `to_dict`; ValueError for a missing or unknown key, or a value of another kind."""
        known = {field.name: field.type for field in fields(cls) if field.name not in NOT_SAVED}
        optional = {'calls'}
        name = entries.get('name', '?')
        if wrong := (set(entries) - set(known)) | (set(known) - optional - set(entries)):
            raise ValueError(f'layer record {name!r:.60}: missing or unknown keys {sorted(wrong)}')
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
        for key, value in values.items():
            RULES[known[key]].check(f'layer record {name!r:.60}: {key}', value)
        return cls(**values)


DEFINED, CALLED, FLOWING = 1, 2, 3  # who is first and last: by definition, by calls, by the flow of data
END_RULES = {None: DEFINED, 'called': CALLED, 'flow': FLOWING}  # as the settings of a training call them


def ends(layers: Sequence[LayerRecord], rule: int = FLOWING) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the indices of the first layers and those of the last ones.

    First is what reads the image and nothing of another layer, last what the network returns with no other layer in
    between: several where there are several stems, or heads whose outputs are averaged. Where the flow of data says
    nothing, it is what is called first and last; where the calls do not either, the first and last one of the list.
    """
    called = [index for index, layer in enumerate(layers) if layer.order and rule >= CALLED]
    found = ((min(called, key=lambda index: layers[index].order[0]),),
             (max(called, key=lambda index: layers[index].order[1]),)) if called else ((0,), (len(layers) - 1,))
    if rule < FLOWING:
        return found
    flowing = (tuple(index for index, layer in enumerate(layers) if layer.flow and layer.flow[side])
               for side in (0, 1))
    return tuple(ours or theirs for ours, theirs in zip(flowing, found, strict=True))


def merge(name: str, layers: Sequence[LayerRecord]) -> LayerRecord:
    """Return one record of layers that multiply with the same weights: the first one's shape, the calls of all.

    Where calls differ in size, it is one call whose positions are those of all together, in a single column.
    """
    called = [layer for layer in layers if layer.calls]
    if not called:
        return replace(layers[0], name=name)
    orders = [number for layer in called for number in layer.order or ()]
    order = (min(orders), max(orders)) if orders else None
    flow = tuple(map(any, zip(*(layer.flow or (False, False) for layer in called), strict=True)))
    sizes = {(layer.in_h, layer.in_w, layer.out_h, layer.out_w) for layer in called}
    if len(sizes) == 1:
        count, size = sum(layer.calls for layer in called), sizes.pop()
    else:
        count = 1
        size = (sum(layer.calls * layer.in_h * layer.in_w for layer in called), 1,
                sum(layer.calls * layer.out_h * layer.out_w for layer in called), 1)
    in_h, in_w, out_h, out_w = size
    return replace(layers[0], name=name, in_h=in_h, in_w=in_w, out_h=out_h, out_w=out_w, calls=count, order=order,
                   flow=flow)
