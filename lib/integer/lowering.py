"""Lowers a trained, quantized network to integers: multiplications, additions and shifts, and nothing else."""

import math

import torch
from torch import fx, nn

from lib.integer import shapes as shapes
from lib.integer.activations import module_activation
from lib.integer.aliases import Aliases, InPlaceProxy, owner, title
from lib.integer.calls import Calls
from lib.integer.fixed_point import ROUNDINGS, Mantissa, parse_format
from lib.integer.layers import (
    BATCH_NORMS,
    PLAIN_FORWARDS,
    accumulate,
    batch_norm,
    input_word,
    integer_weight,
    is_layer,
    kinds_without_integers,
    plain_convolution,
)
from lib.integer.network import IMAGE_LIMIT, IntegerNetwork, noise_images
from lib.integer.values import Program, Value, value_of
from lib.network.behaviour import rest_of_norm
from lib.network.hooks import evaluating
from lib.quantize.layers import QuantizedLayer
from lib.quantize.quantizer import Quantizer

ORIGINAL = {'blocks': '32,10', 'ends': '32,16'}
RELUS = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
# Bits behind the point of the images; a step of a normalised 8-bit image is 0.015 or more. The shift of fixed-point
# multipliers is longer by these bits, so there they are fewer.
IMAGE_FRACTION, FIXED_POINT_IMAGE_FRACTION = 20, 16
USED_BITS = 10  # of a wide tensor, at least


def lower_network(model: nn.Module, input_shape: tuple[int, int, int], *, block_format: str = 'mantissa:24',
                  end_format: str | None = None, rounding: str = 'round', saturate: bool = False,
                  wide_word: int | None = None) -> IntegerNetwork:
    """Return the `IntegerNetwork` that computes what `model` computes in evaluation, up to rounding.

    A quantizer of activations is where integers are made: Y = clip((sum acc_i M_i + C) >> F), with batch norms, biases,
    residual sums, average pools, ReLU and ReLU6 before it merged into M, C and the clip. Where codes are needed and no
    quantizer made them, a wide fixed-point tensor is; its binary point follows from bounds that the integers cannot
    leave. The same bounds show that no sum leaves int64.

    Args:
        model: its Quantizers are modules of their own, or in `QConv2d` and `QLinear`, or both.
        block_format: of the multipliers and offsets of all quantizers under `blocks.`: 'mantissa:BITS' with a shift
            for each layer, '<T,I>' fixed point with I integer bits, or 'original': <32,10>.
        end_format: the same for stem, header and classifier; by default that of the blocks for a mantissa, else
            <32,16> as in the original.
        rounding: of the shift: 'round' (to nearest), 'floor' or 'trunc'.
        saturate: clip constants that do not fit their format and say so, instead of raising.
        wide_word: bits of wide tensors; by default 32 for mantissas, 24 for fixed point.

    Raises:
        ValueError: a module has no integer form, a constant does not fit its format, or a sum int64; it is named.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f'rounding is {rounding!r}; expected one of {", ".join(ROUNDINGS)}')
    blocks = parse_format(ORIGINAL['blocks'] if block_format == 'original' else block_format)
    if end_format is None:
        ends = blocks if isinstance(blocks, Mantissa) else parse_format(ORIGINAL['ends'])
    else:
        ends = parse_format(ORIGINAL['ends'] if end_format == 'original' else end_format)
    if wide_word is not None and not 12 <= wide_word <= 40:
        raise ValueError(f'wide_word is {wide_word}; expected 12 to 40 bits')
    program = Program(rounding, saturate)
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        return _Lowering(model, program, blocks, ends, wide_word).run(tuple(input_shape))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (QuantizedLayer, Quantizer, *BATCH_NORMS)) or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)


class _Lowering(Calls):
    """Walks the graph of a network with symbolic values."""

    def __init__(self, model: nn.Module, *options):
        super().__init__(*options)
        self.model, self.modules, self.last = model, dict(model.named_modules()), set()
        self.fraction = IMAGE_FRACTION if self.has_mantissas else FIXED_POINT_IMAGE_FRACTION

    def run(self, input_shape: tuple[int, int, int]) -> IntegerNetwork:
        """Return the network of images (C, H, W) as integer operations; a ValueError names what cannot be one."""
        try:
            graph = _Tracer().trace(self.model)
        except Exception as error:  # whatever a forward raises when it is given a symbol
            raise self._refusal(f'{type(self.model).__name__} cannot be traced, its forward depends on more than the '
                                f'graph: {error}') from error
        values, output, aliases = {}, None, Aliases(self.model, graph, input_shape)
        self.last = {node.target for node in graph.nodes if {user.op for user in node.users} == {'output'}}
        for node in graph.nodes:
            arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
            if node.op == 'placeholder':
                values[node] = self._image(input_shape) if not values else None
            elif node.op == 'output':
                output = arguments[0]
            else:
                values[node] = self._node(node, list(arguments), dict(options))
            if node.op != 'output':
                values.update(dict.fromkeys(aliases.run(node), values[node]))
        if not isinstance(output, Value):
            raise ValueError(f'{type(self.model).__name__} returns {type(output).__name__}; expected one tensor')
        register, scale = self.logits(output)
        network = IntegerNetwork(self.program.operations, input_shape, register.index, scale, self.quantizers,
                                 fraction=self.fraction)
        check_resolution(network, self.wide)
        return network

    def _image(self, shape):
        top = IMAGE_LIMIT << self.fraction
        return value_of(self.program.register(shape, -top, top), 2.0**-self.fraction, self.fraction)

    def _node(self, node, arguments, options):
        if node.op == 'call_module':
            inputs = [*arguments, *options.values()]
            if len(inputs) != 1 or not isinstance(inputs[0], Value):
                raise ValueError(f'{node.target} is called with {len(inputs)} arguments; expected one tensor')
            return self._module(node.target, self.modules[node.target], inputs[0])
        if node.op in ('call_function', 'call_method'):
            result = self.function(node.name, node.target, arguments, options)
            if result is not None:
                return result
        given = f' with {", ".join(options)}' if options else ''
        raise self._refusal(
            f'{title(node)}{given} has no integer form, and {owner(node)} calls it: known are convolutions, linear '
            'layers, batch norms, sums, products, ReLU, activations by table, pools, joining, splitting and shuffling '
            'of channels, flattening, slices, padding with zeros and quantizers')

    def _refusal(self, message):
        """Return the error to raise: about layers of which no integer form is known, if there are any, or this one."""
        kinds = kinds_without_integers(self.model)
        return ValueError(f'{type(self.model).__name__} has no integer form: {kinds}' if kinds else message)

    # Modules

    def _module(self, name, module, value):
        if isinstance(module, NOTHING):
            return value
        if isinstance(module, Quantizer):
            return self.quantize(name, module, value)
        if is_layer(module):
            return self._layer(name, module, value)
        if isinstance(module, BATCH_NORMS):
            return self._batch_norm(name, module, value)
        if type(module) in RELUS:
            return self.relu(name, value, RELUS[type(module)])
        if activation := module_activation(module):
            return self.activation(name, activation, value)
        if isinstance(module, nn.ChannelShuffle):
            return self.shuffle(name, shapes.Grouped(value, module.groups, True))
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return shapes.flatten(self.program, name, value)
        pool = shapes.module_pool(name, module, value.shape)
        if pool is None:
            raise self._refusal(f'{name} ({type(module).__name__}) has no integer form: replace it, for example by '
                                'ReLU or Hardswish, before the network is trained with quantization')
        return self.pool(name, value, *pool)

    def _batch_norm(self, name, norm, value):
        """Lower a BatchNorm, also one that goes on with an activation of its own, as timm's do."""
        value = batch_norm(name, norm, self.linear(name, value))
        if type(norm).forward in PLAIN_FORWARDS:
            return value
        rest = rest_of_norm(norm)
        if rest is not None and {part for part, _ in rest.named_children()} <= {'drop', 'act'}:
            for part, module in rest.named_children():
                value = self._module(f'{name}.{part}', module, value)
            return value
        raise ValueError(f'{name} ({type(norm).__name__}) is a BatchNorm with a forward of its own, which is not '
                         'normalisation, drop and activation: it has no integer form here')

    def _layer(self, name, layer, value):
        quantizer = getattr(layer, 'input_quantizer', None)
        if quantizer is not None and quantizer.active:
            value = self.quantize(f'{name}.input_quantizer', quantizer, value)
        form, term = None if name in self.last else self.form(name), value.codes()
        weight = integer_weight(name, layer, form)
        if term is None or term.register.magnitude.amax().item().bit_length() > 16:
            term = self.codes(name, value, input_word(name, weight, self.wide_word, form))
        if isinstance(layer, nn.Linear):
            if value.shape != (layer.in_features,):
                raise ValueError(f'{name} gets {value.shape} an image; expected ({layer.in_features},): flatten it')
            return accumulate(self.program, name, layer, weight, term, 'linear', (layer.out_features,))
        padding = plain_convolution(name, layer)
        shape = (layer.out_channels, *shapes.windows(value.shape[1:], layer.kernel_size, layer.stride, padding,
                                                     layer.dilation))
        return accumulate(self.program, name, layer, weight, term, 'conv', shape, stride=tuple(layer.stride),
                          padding=padding, dilation=tuple(layer.dilation), groups=layer.groups)


def check_resolution(network: IntegerNetwork, wide: set[int]) -> None:
    """Refuse a network whose wide tensors carry next to nothing, because the bounds far exceed what occurs.

    Bounds grow from layer to layer where no quantizer and no ReLU6 ends them.

    Args:
        wide: its registers with wide tensors.

    Raises:
        ValueError: on images of noise, a wide tensor stays below 2^9.
    """
    def watch(operation, result):
        used = int(result.abs().amax()).bit_length()
        if operation.output in wide and used < USED_BITS:
            name = operation.name.removesuffix('.wide')
            raise ValueError(f'{name}: its input is not quantized, nor are the layers before, so that its bounds grew '
                             f'until images use {used} bits of a wide tensor: quantize an activation before it')

    network.forward(network.encode(noise_images(network.input_shape, 2)), watch=watch)
