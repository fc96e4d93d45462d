"""Operations in place: which other tensors of a traced network they change."""

import operator

import torch
from torch import Tensor, fx, nn

from lib.integer.network import noise_images


class InPlaceProxy(fx.Proxy):
    """A symbol that notes `x += y` as what it is; that of torch.fx takes it for `x = x + y`, a new tensor."""

    def __iadd__(self, other):
        return self.tracer.create_proxy('call_function', operator.iadd, (self, other), {})


class Aliases:
    """Run a graph node by node on noise and watches which tensors share memory.

    PyTorch counts the changes of a tensor's memory (`_version`), so whatever works in place is found: methods with an
    underscore, `+=`, `inplace=True`, `out=`, and modules that change their input.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, input_shape: tuple[int, int, int]):
        self.runner = fx.Interpreter(model, garbage_collect_values=False, graph=graph)
        self.values = self.runner.env  # {node: tensor or anything else}
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.images = noise_images(input_shape, 2).to(next(model.parameters(), torch.empty(0)))

    def run(self, node: fx.Node) -> list[fx.Node]:
        """Run the next node; return the earlier ones that are the tensor which it changed and returned.

        Raises:
            ValueError: it changed memory that a tensor of another form, read later, shares.
        """
        if node.op == 'placeholder':
            self.values[node], self.images = self.images, None
            return []
        before = {other: value._version for other, value in self.values.items() if isinstance(value, Tensor)}
        result = self.values[node] = self.runner.run_node(node)
        changed = [other for other, version in before.items() if self.values[other]._version != version]
        same = [other for other in changed if isinstance(result, Tensor) and _form(self.values[other]) == _form(result)]
        written = same[:1] or [other for other in changed if other in node.all_input_nodes]
        self._check(node, [other for other in changed if other not in same], written)
        return same

    def _check(self, node, others, written):
        for other in others:
            later = [user for user in other.users if self.place[user] > self.place[node]]
            if later and any(_overlap(self.values[other], self.values[part]) for part in written):
                raise ValueError(f'{title(node)} changes {title(other)} in place, which {title(later[0])} reads later '
                                 'in another shape: this has no integer form; let it make a new tensor (no '
                                 'inplace=True, no +=, no underscore, no out=)')


def title(node: fx.Node) -> str:
    """Return the name of a module or attribute; of a function or method that in the graph with its own."""
    if node.op in ('call_module', 'get_attr'):
        return str(node.target)
    if node.op in ('placeholder', 'output'):
        return node.name
    return f'{node.name} ({getattr(node.target, "__name__", node.target)})'


def owner(node: fx.Node) -> str:
    """Return the module in whose forward a node stands, with its class, in words."""
    stack = list((node.meta.get('nn_module_stack') or {}).values())
    name, kind = stack[-1] if stack else ('', None)
    return f'{name} ({getattr(kind, "__name__", kind)})' if name else 'the network'


def _form(tensor: Tensor):
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have an element in common."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    cells = torch.arange(one.untyped_storage().nbytes() // one.element_size())
    return bool(torch.isin(*(cells.as_strided(x.shape, x.stride(), x.storage_offset()) for x in (one, other))).any())
