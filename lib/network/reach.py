"""Finding the weights that are multiplied outside of their layers, and the products of activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.network.hooks import evaluating, hooked
from lib.quantize.layers import obstacle
from lib.quantize.products import Compute, ProductMode, attention
from lib.quantize.quantizer import check_choice
from lib.quantize.reading import READS, BorrowedLinear, Product, Use, Uses, memory_of

LAYERS = (nn.Conv2d, nn.Linear)
REACH = ('layers', 'weights', 'products')


class Following(ProductMode):
    """Follows a forward pass of a network and gives the products of readers to `note(use, x, weight)`.

    What `note` returns, if not None, takes the place of x. Attention in one function is computed in its parts where
    these have places in strategies.
    """

    def __init__(self, note: Callable[[Use, Tensor, Tensor], Tensor | None]):
        super().__init__()
        self.note, self.running = note, []

    @contextmanager
    def through(self, model: nn.Module) -> Iterator[None]:
        """Follow the forward passes of `model` within this context."""
        with hooked(dict(model.named_modules()), self._enter, self._leave), self:
            yield

    def _enter(self, _name, module, _x):
        self.running.append((module, Uses(module)))

    def _leave(self, _name, module, _x, _output):
        while self.running and self.running.pop()[0] is not module:  # one whose forward failed is still there
            pass

    def product(self, first: Tensor, second: Tensor, compute: Compute) -> Tensor:
        use = self.running[-1][1].of(first, second) if self.running else None
        if use is None:
            return compute(first, second)
        x, weight = (second, first) if use.swapped else (first, second)
        other = self.note(use, x, weight)
        x = x if other is None else other
        return compute(weight, x) if use.swapped else compute(x, weight)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, options: dict, compute: Callable) -> Tensor:
        if not (self.running and self.running[-1][1].products):
            return compute(query, key, value)

        def multiply(first, second):
            return self.product(first, second, torch.matmul)

        return attention(query, key, value, multiply, multiply, **options)


class _Finder(Following):
    """Finds who multiplies with which weights, and how many products of activations a module has."""

    def __init__(self, model):
        super().__init__(None)
        self.owners = {memory_of(parameter): (module, key) for module in model.modules()
                       for key, parameter in module._parameters.items() if parameter is not None}
        self.constant = {memory_of(buffer) for buffer in model.buffers()}
        self.weights = {}  # {module: {(owner, key) of weights that it reads: whether its rows are inputs}}
        self.products = {}  # {module: products in one of its forwards}
        self.counts = []  # of the modules that run, innermost last

    def _enter(self, _name, module, _x):
        super()._enter(_name, module, _x)
        self.counts.append(0)

    def _leave(self, _name, module, _x, _output):
        while len(self.counts) > len(self.running):
            self.counts.pop()
        self.products[module] = max(self.products.get(module, 0), self.counts.pop() if self.counts else 0)
        super()._leave(_name, module, _x, _output)

    def product(self, first, second, compute):
        if self.running:
            self._see(self.running[-1][0], first, second)
        return compute(first, second)

    def attention(self, query, key, value, options, compute):
        if self.counts:
            self.counts[-1] += 2
        return compute(query, key, value)

    def _see(self, module, first, second):
        owned = [self.owners.get(memory_of(operand)) for operand in (second, first)]
        if isinstance(module, LAYERS):
            if obstacle(module) and module.weight.shape in (first.shape, second.shape):
                self._note(module, (module, 'weight'))
                module.computes_weight = not any(owned)
        elif any(owned):
            (owner, key), weight, x = (owned[0], second, first) if owned[0] else (owned[1], first, second)
            if isinstance(owner, LAYERS) and key == 'weight' or _is_matrix(owner._parameters[key], weight):
                rows_are_inputs = weight is second and x.shape[-1] != weight.shape[-1]  # of x @ w, not of F.linear
                self._note(module, (owner, key), rows_are_inputs)
        elif not {memory_of(first), memory_of(second)} & self.constant:
            self.counts[-1] += 1

    def _note(self, module, weight, rows_are_inputs=False):
        self.weights.setdefault(module, {})[weight] = rows_are_inputs


def _is_matrix(parameter, operand) -> bool:
    """Return whether a product takes a matrix, or rows of it, as the weight of a linear layer."""
    return parameter.dim() == 2 and operand.dim() == 2 and operand.shape[1] == parameter.shape[1] \
        and operand.stride() == parameter.stride()


@contextmanager
def slow_attention() -> Iterator[None]:
    """Keep torch's transformers from the path that hides their layers from hooks and modes."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def explained(model: nn.Module, shape: Sequence[int]) -> Iterator[None]:
    """Raise ValueError, with the shape of the image, where the forward pass within this context fails."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{type(model).__name__} fails on one image of {"x".join(map(str, shape))} (channels x height '
                         f'x width): {error}') from error


@torch.no_grad()
def reach_weights(model: nn.Module, images: Tensor, reach: str = 'weights') -> nn.Module:
    """Let strategies reach the weights that are not multiplied by the forward of a convolution or linear layer.

    One forward pass on `images` finds them. The modules that multiply with them get the attribute `weights_read`, and
    are converted with their layers (`convert_to_quantized`). A weight of no layer, such as `in_proj_weight` of
    `nn.MultiheadAttention`, gets a layer of its own, named without `_weight`: a child of its owner that borrows the
    Parameter. Neither what the network computes nor its state dict changes.

    Args:
        images: probe (N, C, H, W) on the model's device.
        reach: 'weights'; 'products' also gives every product of two activations a place in strategies: children
            `product1`, `product2` ... of the modules that compute them; 'layers' changes nothing, now or later: what
            networks had that were quantized before other weights were reached.

    Returns:
        The model, whose attribute `weights_reached` keeps the first choice.
    """
    check_choice('reach', reach, REACH)
    if hasattr(model, 'weights_reached'):
        return model
    model.weights_reached = reach
    if reach == 'layers':
        return model
    finder = _Finder(model)
    with evaluating(model), slow_attention(), explained(model, images.shape[1:]), finder.through(model):
        model(images.clone())
    for module in list(model.modules()):
        reads = [_layer_of(*weight, rows) for weight, rows in finder.weights.get(module, {}).items()]
        if reach == 'products' and not isinstance(module, LAYERS):
            reads += _add_products(module, finder.products.get(module, 0), images.device)
        if reads:
            setattr(module, READS, tuple(reads))
    return model


def _layer_of(owner, key, rows_are_inputs) -> nn.Module:
    """Return the layer of a weight; a new one, where it belongs to none."""
    if isinstance(owner, LAYERS):
        return owner
    name = key.removesuffix('weight').rstrip('_') or 'matrix'
    name = name if not hasattr(owner, name) else f'{key}_layer'
    if not hasattr(owner, name):
        owner.add_module(name, BorrowedLinear(owner._parameters[key], rows_are_inputs).train(owner.training))
    return owner.get_submodule(name)


def _add_products(module, count, device) -> list:
    products = [Product(device).train(module.training) for _ in range(count)]
    for number, product in enumerate(products, 1):
        module.add_module(f'product{number}', product)
    return products
