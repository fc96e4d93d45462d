"""The multiplications of a forward pass, as torch executes them: convolutions and matrix products."""

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from lib.quantize.reading import memory_of
from lib.simulator.layer import LayerRecord

aten = torch.ops.aten


class Operation(NamedTuple):
    """A product outside of all layers' forwards: its `LayerRecord`, and the Parameter that is its weight, if any.

    It has the name of that Parameter, else that of the module that computes it.
    """

    record: LayerRecord
    weight: nn.Parameter | None = None


class Product(NamedTuple):
    """What one operation of torch multiplies: operands, and the record but for its name."""

    operands: tuple[Tensor, ...]  # those that may be a weight
    records: tuple[dict, ...]
    owner: nn.Module | None = None  # the layer or `Product` that it is, where a reader computes it


class OperationMode(TorchDispatchMode):
    """While active, gives every product that torch executes to `take(Product)`, every tensor that is read to `see`.

    What it does not know is taken apart into what torch makes of it. Elementwise products and scalar products of two
    vectors are none.
    """

    def __init__(self, take: Callable[[Product], None], see: Callable[[Tensor], None]):
        super().__init__()
        self.take, self.see = take, see

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        read = READERS.get(func.overloadpacket)
        if read is None and func is not torch.ops.prim.device.default:
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        for tensor in _tensors((*args, *kwargs.values())):
            self.see(tensor)
        output = func(*args, **kwargs)
        if read is not None:
            self.take(read(*args, **kwargs, output=output))
        return output


def _tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def owned_tensors(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Return {key of the memory: (name, Parameter or buffer)}; `memory_of` gives the key of any view, on meta too."""
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_lazy(tensor):
            found.setdefault(memory_of(tensor), (name, tensor))
    found.pop(None, None)
    return found


def linear(positions: int, inputs: int, outputs: int, calls: int = 1) -> dict:
    """Return the record, but for its name, of (positions, inputs) x (inputs, outputs), so many times."""
    return {'kind': 'linear', 'in_channels': inputs, 'out_channels': outputs, 'kernel': (1, 1), 'stride': (1, 1),
            'groups': 1, 'in_h': positions, 'in_w': 1, 'out_h': positions, 'out_w': 1,
            'num_weights': inputs * outputs, 'calls': calls}


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, *_, output, **__):
    spatial, kernel = weight.shape[2:], prod(weight.shape[2:])
    images = x.shape[0] if x.dim() == weight.dim() else 1
    if transposed:  # a matrix product with the pixels of the input as its positions
        record = linear(prod(x.shape[-len(spatial):]), weight.shape[0] // groups, weight.shape[1] * kernel,
                        images * groups)
    elif len(spatial) > 2:
        record = linear(prod(output.shape[-len(spatial):]), weight[0].numel(), weight.shape[0] // groups,
                        images * groups)
    else:
        one = (1,) * (2 - len(spatial))
        in_size, out_size = (*x.shape[-len(spatial):], *one), (*output.shape[-len(spatial):], *one)
        record = {'kind': 'conv', 'in_channels': weight.shape[1] * groups, 'out_channels': weight.shape[0],
                  'kernel': (*spatial, *one), 'stride': (*stride, *one), 'groups': groups, 'in_h': in_size[0],
                  'in_w': in_size[1], 'out_h': out_size[0], 'out_w': out_size[1], 'num_weights': weight.numel(),
                  'calls': images}
    return Product((weight,), (record,))


def _product(a, b) -> Product:
    """Return the product of (..., m, k) and (..., k, n); vectors are matrices of one row or column."""
    rows = a.shape[-2] if a.dim() > 1 else 1
    columns = b.shape[-1] if b.dim() > 1 else 1
    batch = a.shape[0] if a.dim() > 2 else 1
    return Product((b, a), (linear(rows, a.shape[-1], columns, batch),))


def _matrices(a, b, *_, output, **__):
    return _product(a, b)


def _added(_bias, a, b, *_, output, **__):
    return _product(a, b)


def _linear(x, weight, *_, output, **__):
    return _product(x.flatten(0, -2) if x.dim() > 1 else x, weight.t())


def _attention(query, key, value, *_, output, **__):
    *batch, rows, width = query.shape
    calls = prod(batch)
    return Product((), (linear(rows, width, key.shape[-2], calls), linear(rows, key.shape[-2], value.shape[-1], calls)))


def _recurrent(x, w_input, w_hidden, *_, output, **__):
    rows = x.numel() // x.shape[-1]
    return Product((w_input,), tuple(linear(rows, w.shape[1], w.shape[0]) for w in (w_input, w_hidden)))


READERS = {
    aten.convolution: _convolution, aten._convolution: _convolution, aten.convolution_overrideable: _convolution,
    aten.mm: _matrices, aten.bmm: _matrices, aten.mv: _matrices,
    aten.addmm: _added, aten.baddbmm: _added, aten.addbmm: _added, aten.addmv: _added, aten._addmm_activation: _added,
    aten.linear: _linear, aten.mkldnn_rnn_layer: _recurrent,
    **{getattr(aten, name): _attention for name in (
        '_scaled_dot_product_flash_attention', '_scaled_dot_product_flash_attention_for_cpu',
        '_scaled_dot_product_efficient_attention', '_scaled_dot_product_cudnn_attention',
        '_scaled_dot_product_fused_attention_overrideable')},
}
