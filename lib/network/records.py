"""The layers of a network with their shapes, found by one forward pass."""

from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from lib.network.flow import FlowMode, of_layer
from lib.network.hooks import evaluating, hooked, probe
from lib.network.operations import Operation, OperationMode, linear, owned_tensors
from lib.network.reach import Following, explained, slow_attention
from lib.quantize.reading import Product, memory_of
from lib.simulator.layer import LayerRecord, merge

ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
POOLS = (*ADAPTIVE, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class Profile(NamedTuple):
    """What one image costs a network: every layer, every product outside of them, and what else one may count.

    Attributes:
        layers: a `LayerRecord` of every convolution and linear layer, in the order of `model.modules()`.
        others: the `Operation`s outside of these: weights that a module multiplies by itself, other kinds of layers,
            products of activations.
        extras: 2 per input value of a BatchNorm, and the additions of the modules that average pools: what MADDS count
            beside multiply-accumulates.
        unread: names of the Parameters that nothing reads.
    """

    layers: list[LayerRecord]
    others: list[Operation]
    extras: int
    unread: frozenset[str]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, all of the network's."""
        return sum(layer.macs for layer in self.layers) + sum(other.record.macs for other in self.others)


def profile_layers(model: nn.Module, input_shape: tuple[int, int, int]) -> list[LayerRecord]:
    """Return the `layers` of `profile_network`."""
    return profile_network(model, input_shape).layers


def profile_network(model: nn.Module, input_shape: tuple[int, int, int]) -> Profile:
    """Return the `Profile` of a network.

    One image of noise goes through the model in evaluation mode, without gradients; modes are restored and global
    random states are not touched. A module shared under several names appears once. A layer that is called several
    times has its first call's sizes and `calls` counts them (an internal batch, such as crops or windows, counts as so
    many calls). Where calls differ in size, the record is one call whose `in_h` and `out_h` are the positions of all
    calls together. A layer that is never called has `calls` = 0 and sizes 0.

    Args:
        model: any network that takes one image batch; on the meta device nothing is computed.

    Raises:
        ValueError: the forward pass fails at this input shape.
    """
    recorder = _Recorder(model)
    with explained(model, input_shape), slow_attention(), evaluating(model), torch.no_grad(), \
            hooked(dict(model.named_modules()), recorder.enter, recorder.leave), \
            recorder.flow, OperationMode(recorder.take, recorder.see), recorder.reading.through(model):
        recorder.output = model(recorder.flow.follow(_image(model, input_shape)))
    return recorder.profile()


class _Reading(Following):
    """Knows whose product a reader is computing."""

    def __init__(self):
        super().__init__(self._note)
        self.owner = None

    def _note(self, use, _x, _weight):
        self.owner = None if use.whole else use.layer  # the call of a layer is noted by itself

    def product(self, first, second, compute):
        try:
            return super().product(first, second, compute)
        finally:
            self.owner = None


class _Recorder:
    """Follows a forward pass through the modules, and notes calls of layers and products outside of them."""

    def __init__(self, model):
        self.names = {module: name for name, module in model.named_modules()}
        self.calls = {module: [] for module in self.names if isinstance(module, (nn.Conv2d, nn.Linear, Product))}
        self.reading, self.shapes = _Reading(), {}  # {Product: (inner size, columns)}
        self.orders = {}  # {layer: [number of its first call, of its last]}
        self.owned = owned_tensors(model)
        self.model, self.running = model, [(model, [])]  # [(module, products that it executed itself)], innermost last
        self.others, self.extras, self.number, self.read = {}, 0, 0, set()
        self.flow, self.output = FlowMode(model), None

    def enter(self, _name, module, _x):
        self.running.append((module, []))

    def take(self, product):
        """Note a product for the innermost module that runs; those of weights that are being computed are none."""
        if not any(isinstance(module, ParametrizationList) for module, _ in self.running):
            self.running[-1][1].append(product._replace(owner=self.reading.owner))

    def see(self, tensor):
        self.read.add(memory_of(tensor))

    def leave(self, _name, module, x, output):
        """Note what a module did that has just run."""
        products = []
        while len(self.running) > 1:  # one whose forward failed, and whose caller went on, is still there
            running, own = self.running.pop()
            products = own + products
            if running is module:
                break
        if module in self.calls:
            products = self.note_call(module, x, output, products)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            self.extras += 2 * x.numel()
        elif isinstance(module, POOLS):
            self.extras += _pool_additions(module, x, output)
        self.note_reads([product for product in products if product.owner])
        for product in products:
            if not product.owner:
                self.note_other(module, product)

    def note_reads(self, products):
        """Note the layers whose weights one forward pass of a reader multiplied with, each as a call of its own."""
        found = {}
        for product in products:
            found.setdefault(product.owner, []).extend(LayerRecord('', **record) for record in product.records)
        for layer, records in found.items():
            self.note_order(layer)
            if isinstance(layer, Product):
                self.note_product(layer, records)
            elif isinstance(layer, nn.Conv2d) and sum(record.num_weights for record in records) == _num_weights(layer):
                self.calls[layer].append((records[0].calls, *_sizes(records[0])))
            else:  # rows of the weight may be multiplied on their own
                positions = sum(record.macs for record in records) // _num_weights(layer)
                self.calls[layer].append((1, positions, 1, positions, 1))

    def note_product(self, product, records):
        inner, columns = self.shapes.setdefault(product, (records[0].in_channels, records[0].out_channels))
        for record in records:
            rows = record.macs // (record.calls * inner * columns)
            self.calls[product].append((record.calls, rows, 1, rows, 1))

    def note_order(self, layer):
        self.number += 1
        self.orders[layer] = (self.orders.get(layer, (self.number,))[0], self.number)

    def note_call(self, layer, inputs, output, products):
        """Note a call of a layer; return the products in it that are others than its own."""
        images, *sizes = _call_sizes(layer, inputs, output)
        self.note_order(layer)
        macs = images * sizes[2] * sizes[3] * _num_weights(layer)
        found = [sum(LayerRecord('', **record).macs for record in product.records) for product in products]
        if macs in found:  # a subclass may add products to the layer's own
            del products[found.index(macs)]
        elif sum(found) == macs or not products:
            products = []  # it is cut into parts, or done by something else than torch's operations
        else:
            sizes = 0, 0, 0, 0  # its forward computes something else: what that is stands for itself
        self.calls[layer].append((images, *sizes))
        return products

    def note_other(self, module, product):
        """Add a product to the operations outside of layers; equal ones are one record with several calls."""
        owned = [self.owned.get(memory_of(tensor)) for tensor in product.operands]
        if len(owned) > 1 and all(owned):
            return  # nothing of an image is in it: a weight is computed, such as by spectral normalization
        place = next((i for i, found in enumerate(owned) if found), 0)
        name, weight = next(filter(None, owned), (self.names[module] or type(module).__name__, None))
        for record in product.records:
            if place:  # the weight stands first: its rows are the outputs
                record = linear(record['out_channels'], record['in_channels'], record['in_h'], record['calls'])
            key = (name, *(value for field, value in record.items() if field != 'calls'))
            known = self.others.get(key)
            calls = record['calls'] + (known.record.calls if known else 0)
            self.others[key] = Operation(LayerRecord(name, **{**record, 'calls': calls}), weight)

    def profile(self):
        """Return the `Profile` of what was seen."""
        for product in self.running[0][1]:  # in hooks of the network itself
            self.note_other(self.model, product)
        layers = [_record(self.names[layer], layer, calls, self.orders.get(layer), self.shapes.get(layer, (1, 1)))
                  for layer, calls in self.calls.items()]
        last = self.flow.last(self.output)
        layers = [replace(layer, flow=(of_layer(layer.name, self.flow.first), of_layer(layer.name, last)))
                  for layer in layers]
        unread = frozenset(name for memory, (name, _) in self.owned.items() if memory not in self.read)
        return Profile(layers, list(self.others.values()), self.extras, unread)


def _pool_additions(pool, inputs, output) -> int:
    """Return what thop counts for a pool that averages: its outputs; of an adaptive one all additions and a division.

    A pool may have a `madds_as`, 'fixed' or 'function' (nothing), that says as what it counts.
    """
    kind = getattr(pool, 'madds_as', 'adaptive' if isinstance(pool, ADAPTIVE) else 'fixed')
    sizes = zip(inputs.shape[2:], output.shape[2:], strict=True)
    return output.numel() * {'adaptive': prod(a // b for a, b in sizes) + 1, 'fixed': 1, 'function': 0}[kind]


def _image(model, input_shape) -> torch.Tensor:
    """Return one image of noise, (1, C, H, W), of the type of the parameters; zeros would make ranges of 0."""
    return probe(model, input_shape, 1).to(next(model.parameters(), torch.empty(0)).dtype)


def _call_sizes(layer, inputs, output) -> tuple[int, int, int, int, int]:
    """Return how many images a call processed, and their in_h, in_w, out_h, out_w."""
    if isinstance(layer, nn.Linear):
        positions = inputs.numel() // layer.in_features
        return 1, positions, 1, positions, 1
    output = output[0] if isinstance(output, (tuple, list)) else output
    images = inputs.shape[0] if inputs.dim() == 4 else 1
    return images, *inputs.shape[-2:], *output.shape[-2:]


def _sizes(record) -> tuple[int, int, int, int]:
    return record.in_h, record.in_w, record.out_h, record.out_w


def _record(name, layer, calls, order, product) -> LayerRecord:
    if isinstance(layer, Product):
        shape = ('matmul', *product, (1, 1), (1, 1), 1)
    elif isinstance(layer, nn.Linear):
        shape = ('linear', layer.in_features, layer.out_features, (1, 1), (1, 1), 1)
    else:
        shape = ('conv', layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.groups)
    return merge(name, [LayerRecord(name, *shape, *sizes, num_weights=_num_weights(layer), calls=images, order=order)
                        for images, *sizes in calls or [(0, 0, 0, 0, 0)]])


def _num_weights(layer) -> int:
    """Return the size of the weight, which reading `layer.weight` may compute."""
    if isinstance(layer, Product):
        return 0
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.out_channels * (layer.in_channels // layer.groups) * prod(layer.kernel_size)
