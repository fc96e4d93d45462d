"""Who reads the image, and whose products the network returns: the data flow between weights in one forward pass."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.network.operations import READERS
from lib.quantize.reading import memory_of


class Made(NamedTuple):
    """What a tensor is made of, with no product of a weight in between.

    Attributes:
        image: the image is in it.
        products: products of weights are: (number, names of the weight).
        weights: names of the weights that it is computed from, where nothing else is in it.
    """

    image: bool = False
    products: frozenset = frozenset()
    weights: frozenset = frozenset()


class FlowMode(TorchDispatchMode):
    """While active, follows the image and the products of weights: of all Parameters of two dimensions at least.

    Attributes:
        first: names of the weights that multiply the image, and nothing that another weight has multiplied.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.first, self._read, self._owners, self._count = set(), set(), {}, 0
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not is_lazy(parameter) and parameter.dim() > 1:
                self._owners.setdefault(memory_of(parameter), set()).add(name)

    def follow(self, image: Tensor) -> Tensor:
        """Return the image, followed from now on."""
        image._made = Made(image=True)
        return image

    def last(self, output: Any) -> set[str]:
        """Return the names of the weights whose products are in what the network returns, and in no other product."""
        returned = {product for tensor in _tensors(output) for product in self._made_of(tensor).products}
        return {name for _, names in returned - self._read for name in names}

    def _made_of(self, tensor) -> Made:
        if found := getattr(tensor, '_made', None):
            return found
        return Made(weights=frozenset(self._owners.get(memory_of(tensor), ())))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.startswith('new_') or func.overloadpacket.__name__.endswith('_like'):
            return output  # of its shape alone
        made = self._make(func, [self._made_of(tensor) for tensor in _tensors((args, kwargs))])
        for tensor in _tensors(output) if any(made) else ():
            tensor._made = made
            if (base := tensor._base) is not None:
                base._made = _together([made, self._made_of(base)])  # a view may be written to
        return output

    def _make(self, func, parts) -> Made:
        made, weights = _together(parts), frozenset().union(*(part.weights for part in parts))
        if not (made.image or made.products) or not weights or func.overloadpacket not in READERS:
            return made
        self._read |= made.products
        if made.image and not made.products:
            self.first |= weights
        self._count += 1
        return Made(products=frozenset({(self._count, weights)}))


def _together(parts) -> Made:
    image = any(part.image for part in parts)
    products = frozenset().union(*(part.products for part in parts))
    return Made(image, products, frozenset() if image or products else frozenset().union(*(p.weights for p in parts)))


def _tensors(values) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def of_layer(name: str, weights: set[str]) -> bool:
    """Return whether one of these weights is a layer's, by its name, or the Parameter of this name itself."""
    return any(weight == name or weight.startswith(f'{name}.') for weight in weights)
