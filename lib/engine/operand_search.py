"""Which layers of a quantized network are products of integers, and the grid of each one's input."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.engine.mvm_engine import CODE_BITS
from lib.engine.operands import InputGrid, LayerOperands, computing
from lib.network.conversion import activation_quantizers, all_layers, listed
from lib.network.hooks import evaluating, hooked
from lib.network.tracking import MOVING, TensorTracker, arguments_of
from lib.quantize.layers import QuantizedLayer

logger = logging.getLogger(__name__)

# Functions of which what comes out is on the grid of what goes in; dropping out does nothing in evaluation.
ON_GRID = MOVING | {'__getitem__', 'dropout', 'dropout2d', 'feature_dropout', 'stochastic_depth'}
OFF_GRID = 0.01  # of a step: values in single precision are on it within 2^-8 of a step for 16 bits


@torch.no_grad()
def find_operands(model: nn.Module, images: Tensor) -> tuple[dict[str, LayerOperands], dict[str, str]]:
    """Find which layers of a quantized network are products of integers, by one forward pass.

    The quantizer that made a layer's input is the layer's own or any before it, as long as only pooling by the
    maximum, reshaping, concatenation and the like lie between.

    Args:
        model: network with calibrated quantizers.
        images: probe (N, C, H, W) on its device.

    Returns:
        ({name: `LayerOperands`}, {name: why not, as a predicate}) of all convolutions and linear layers, in the order
        of `model.modules()`.

    Raises:
        ValueError: no layer is quantized.
    """
    layers = all_layers(model)
    quantized = {name: layer for name, layer in layers.items() if _weights_obstacle(layer) is None}
    if not quantized:
        raise ValueError(f'none of the {len(layers)} convolutions and linear layers of {type(model).__name__} has '
                         'quantized weights: a dot-product engine needs a network of finetune.py '
                         '--linear_quantization, qat_train.py or hybrid_train.py')
    grids, found, reasons = _input_grids(model, quantized, images), {}, {}
    for name, layer in layers.items():
        reason = _weights_obstacle(layer) or _grid_obstacle(grids[name])
        if reason:
            reasons[name] = reason
        else:
            found[name] = LayerOperands(name, layer, layer.weight_quantizer.to_affine(layer.weight), grids[name][0])
    return found, reasons


def check_chosen(chosen: Mapping[str, LayerOperands], num_layers: int, reasons: Mapping[str, str]) -> None:
    """Check the layers that are chosen (`LayerOperands.check`); say which they are, and why others stay digital."""
    for operand in chosen.values():
        operand.check()
    for reason in dict.fromkeys(reasons.values()):
        logger.info('stays digital: %s (%s)', listed(name for name in reasons if reasons[name] == reason), reason)
    logger.info('on the engine: %d of %d layers: %s', len(chosen), num_layers, listed(chosen))


def _weights_obstacle(layer) -> str | None:
    if not isinstance(layer, QuantizedLayer) or not layer.weight_quantizer.active:
        return 'has float weights'
    if layer.w_bit > CODE_BITS:
        return f'has weights of {layer.w_bit} bits, the engine takes 1 to {CODE_BITS}'
    own = isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward
    own = own or type(layer).forward is not QuantizedLayer.forward
    return f'is a {type(layer).__name__} with a forward of its own' if own else None


def _grid_obstacle(grids) -> str | None:
    if not grids:
        return 'is never called'
    if None in grids:
        return 'has an input that no quantizer put on a grid'
    if said := [grid for grid in grids if isinstance(grid, str)]:
        return said[0]
    if len(set(grids)) > 1:
        return 'is called with inputs on different grids'
    bits = grids[0].bits
    return f'has an input of {bits} bits, the engine takes 1 to {CODE_BITS}' if bits > CODE_BITS else None


def _input_grids(model, layers, images) -> dict[str, list]:
    """Return what is known of the input of every call of each layer: its grid, None, or the reason why not."""
    grids, tracker = {name: [] for name in layers}, _GridTracker()

    def compute(name, x, digital):
        grids[name].append(_confirmed(tracker.fact(x), x))
        return digital()

    with hooked(activation_quantizers(model), after=tracker.mark), computing(layers, compute), evaluating(model), \
            tracker:
        model(images.clone())
    return grids


def _confirmed(grid, x) -> InputGrid | str | None:
    """Return the grid of an input if its values are on it."""
    if not isinstance(grid, InputGrid):
        return grid
    positions = grid.positions(x)
    return grid if bool(((positions - positions.round()).abs() < OFF_GRID).all()) else None


class _GridTracker(TensorTracker):
    """While active, follows the outputs of quantizers through functions that only move or pick values."""

    def mark(self, _name: str, quantizer: nn.Module, x: Tensor, output: Tensor) -> None:
        """Note the grid of what a quantizer returned."""
        affine = quantizer.to_affine(x)
        grid = InputGrid(affine.scale.item(), affine.zero_point.item(), affine.bits) \
            if affine.scale.numel() == affine.zero_point.numel() == 1 else 'has an input with a scale per channel'
        self.note(output, grid)

    def derive(self, name: str, args: tuple, kwargs: Mapping) -> InputGrid | str | None:
        """Return the grid of all tensors among the arguments of a function that moves them, None if there is none."""
        if name not in ON_GRID:
            return None
        grids = {self.fact(leaf) for leaf in arguments_of(args, kwargs) if isinstance(leaf, torch.Tensor)}
        return grids.pop() if len(grids) == 1 else None
