"""Lowers a trained, quantized network to integers: multiplications, additions and shifts, and nothing else."""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from lib.integer import shapes as shapes
from lib.integer.aliases import Aliases, InPlaceProxy, title
from lib.integer.fixed_point import ROUNDINGS, FixedPoint, Mantissa, parse_format
from lib.integer.layers import accumulate, batch_norm, input_word, integer_weight, is_layer, plain_convolution
from lib.integer.network import IMAGE_LIMIT, IntegerNetwork, noise_images
from lib.integer.values import Program, Term, Value, value_of
from lib.network.hooks import evaluating
from lib.quantize.layers import QuantizedLayer
from lib.quantize.quantizer import Quantizer

ORIGINAL = {'blocks': '32,10', 'ends': '32,16'}
RELUS = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
RELU_FUNCTIONS = {F.relu: math.inf, torch.relu: math.inf, torch.relu_: math.inf, F.relu6: 6.0,
                  'relu': math.inf, 'relu_': math.inf}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
ADDITIONS = (operator.add, operator.iadd, torch.add, 'add', 'add_')
# Bits behind the point of the images; a step of a normalised 8-bit image is 0.015 or more. The shift of fixed-point
# multipliers is longer by these bits, so there they are fewer.
IMAGE_FRACTION, FIXED_POINT_IMAGE_FRACTION = 20, 16
Form = FixedPoint | Mantissa
USED_BITS = 10  # of a wide tensor, at least
BATCH = object()  # stands for x.size(0)


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
        return isinstance(module, (QuantizedLayer, Quantizer)) or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)


class _Lowering:
    """Walks the graph of a network with symbolic values."""

    def __init__(self, model: nn.Module, program: Program, blocks: Form, ends: Form, wide_word: int | None):
        self.model, self.program, self.blocks, self.ends = model, program, blocks, ends
        self.modules = dict(model.named_modules())
        self.quantizers, self.wide, self.last = {}, set(), set()
        mantissas = isinstance(blocks, Mantissa) and isinstance(ends, Mantissa)
        self.wide_word = wide_word or (32 if mantissas else 24)
        self.fraction = IMAGE_FRACTION if mantissas else FIXED_POINT_IMAGE_FRACTION

    def run(self, input_shape: tuple[int, int, int]) -> IntegerNetwork:
        try:
            graph = _Tracer().trace(self.model)
        except Exception as error:  # whatever a forward raises when it is given a symbol
            raise ValueError(f'{type(self.model).__name__} cannot be traced, its forward depends on more than the '
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
        register, scale = self._logits(output)
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
            result = self._function(node.name, node.target, arguments, options)
            if result is not None:
                return result
        given = f' with {", ".join(options)}' if options else ''
        raise ValueError(f'{title(node)}{given} has no integer form: known are convolutions, linear layers, batch '
                         'norms, additions, ReLU, ReLU6, pools, flattening, slices, padding with zeros and quantizers')

    # Modules

    def _module(self, name, module, value):
        if isinstance(module, NOTHING):
            return value
        if isinstance(module, Quantizer):
            return self.quantize(name, module, value)
        if is_layer(module):
            return self._layer(name, module, value)
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            return batch_norm(name, module, self.linear(name, value))
        if type(module) in RELUS:
            return self.relu(name, value, RELUS[type(module)])
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return shapes.flatten(self.program, name, value)
        pool = shapes.module_pool(name, module, value.shape)
        if pool is None:
            raise ValueError(f'{name} ({type(module).__name__}) has no integer form: replace it, for example by ReLU '
                             'or ReLU6, before the network is trained with quantization')
        return self._pool(name, value, *pool)

    def _layer(self, name, layer, value):
        quantizer = getattr(layer, 'input_quantizer', None)
        if quantizer is not None and quantizer.active:
            value = self.quantize(f'{name}.input_quantizer', quantizer, value)
        form, term = None if name in self.last else self._format(name), value.codes()
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

    def quantize(self, name: str, quantizer: Quantizer, value: Value) -> Value:
        """Return the value as codes of `quantizer`."""
        if not quantizer.active:
            return value
        try:
            grid = quantizer.grid()
        except NotImplementedError as error:
            raise ValueError(f'{name}: a {type(quantizer).__name__} has no fixed grid, so no integer form') from error
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
        if name in self.quantizers:
            name = f'{name}#{sum(other.partition("#")[0] == name for other in self.quantizers) + 1}'
        dead = not grid.step > 0 and not grid.binary
        register = self.program.requantize(value, name, self._format(name), step=grid.step, binary=grid.binary,
                                           low=0 if dead else grid.low, high=0 if dead else grid.high)
        self.quantizers[name] = (register.index, grid.scale)
        return value_of(register, grid.scale)

    def _format(self, name):
        return self.blocks if name.startswith('blocks.') else self.ends

    # Values

    def codes(self, name: str, value: Value, word: int) -> Term:
        """Return a value as integers of at most `word` bits with one scale: its own, or those of a wide tensor."""
        for known in (value, value.wide):
            term = None if known is None else known.codes()
            if term is not None and term.register.magnitude.amax().item().bit_length() < word:
                return term
        largest = value.largest()
        point = word - 1 - math.frexp(largest)[1] if largest else 0
        register = self.program.requantize(value, f'{name}.wide', None, step=2.0**-point)
        self.wide |= {register.index} if largest else set()
        value.wide = value_of(register, 2.0**-point, point)
        return value.wide.codes()

    def linear(self, name: str, value: Value) -> Value:
        """Return a value without a pending clip, for operations that do not pass it."""
        if not value.clipped:
            return value
        self.codes(name, value, self.wide_word)
        return value.wide

    def relu(self, name: str, value: Value, top: float) -> Value:
        if value.low >= 0 and value.high <= top:
            return value
        low, high = max(value.low, 0.0), min(value.high, top)
        return Value(value.shape, value.terms, value.offset, low, max(low, high))

    def add(self, name: str, left: Value, right: Value) -> Value:
        if not (isinstance(left, Value) and isinstance(right, Value)) or left.shape != right.shape:
            kinds = [part.shape if isinstance(part, Value) else part for part in (left, right)]
            raise ValueError(f'{name} adds {kinds[0]} and {kinds[1]}; expected two tensors of one shape')
        left, right = (self.linear(name, part) if part.wide is None else part.wide for part in (left, right))
        return Value(left.shape, left.terms + right.terms, left.offset + right.offset)

    def _pool(self, name, value, kind, options):
        if kind == 'sum_pool':
            return shapes.average(self.program, name, self.linear(name, value), **options)
        term = self.codes(name, value, self.wide_word)
        return shapes.maximum(self.program, name, term, **options)

    def _logits(self, value):
        """Return register and scale of the output: the accumulator, with the bias if there is one."""
        value = self.linear('output', value)
        term = value.terms[0]
        scale = term.multiplier[0].item()
        if len(value.terms) > 1 or not scale > 0 or not (term.multiplier == scale).all():
            term = self.codes('output', value, self.wide_word)
            return term.register, term.multiplier[0].item()
        if value.offset.any():
            register, fraction = self.program.add_offset(term.register, value.offset / scale, 'output')
            return register, scale * 2.0**-fraction
        return term.register, scale

    # Functions and methods

    def _function(self, name, target, arguments, options):
        """Return the result of a function or method, None for one that is not known."""
        value = arguments[0] if arguments else options.get('input')
        if target in ADDITIONS and len(arguments) == 2 and not options:
            return self.add(name, *arguments)
        if target in RELU_FUNCTIONS:
            return self.relu(name, value, RELU_FUNCTIONS[target])
        if target in (F.dropout, F.dropout2d, 'contiguous'):
            return value
        if target is getattr and arguments[1:] == ['shape'] or target == 'size' and len(arguments) == 1:
            return (BATCH, *value.shape)
        if target == 'size' and arguments[1:] == [0]:
            return BATCH
        if target is operator.getitem:
            if isinstance(value, tuple):
                return value[arguments[1]]
            return shapes.take(self.program, name, value, arguments[1])
        if shapes.flattens(target, arguments[1:], options, BATCH):
            return shapes.flatten(self.program, name, value)
        if target is F.pad:
            # zeros around codes: an offset or a clip would come to lie upon them
            term = self.codes(name, value, self.wide_word)
            return shapes.pad(self.program, name, term, *arguments[1:], **options)
        mean = shapes.mean_axes(target, arguments[1:], options)
        if mean is not None:
            pooled = self._pool(name, value, 'sum_pool', {'kernel': value.shape[1:], 'stride': value.shape[1:]})
            return pooled if mean else shapes.flatten(self.program, name, pooled)
        pool = shapes.function_pool(name, target, arguments, options)
        return None if pool is None else self._pool(name, value, *pool)


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
