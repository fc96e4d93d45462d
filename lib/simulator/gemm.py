"""Layers as matrix products, for the hardware that multiplies matrices."""

from typing import NamedTuple

from lib.simulator.layer import LayerRecord


class Gemm(NamedTuple):
    """`repeats` products of an (m, k) matrix of activation rows and an (n, k) matrix of weight rows."""

    repeats: int
    m: int
    n: int
    k: int


def layer_gemm(layer: LayerRecord, batch: int) -> Gemm:
    """Return the matrix products that one call of a layer amounts to for a whole batch, as HAQ's simulator maps them.

    A convolution is one product per image (im2col rows). In a depthwise convolution each channel is one product: the
    images of the batch lie side by side in a row and the filter is repeated for each of them (block diagonal). A linear
    layer is a single product over all positions of the batch. Our extensions, as the original's networks have neither:
    a grouped convolution is a dense one per group; several filters per depthwise channel are so many more weight rows;
    a product of activations is one for each image, whose second operand no other image has.
    """
    pixels = layer.out_h * layer.out_w
    taps = layer.kernel[0] * layer.kernel[1]
    in_channels, out_channels = layer.in_channels // layer.groups, layer.out_channels // layer.groups  # of one group
    if layer.kind == 'matmul':
        return Gemm(batch, pixels, out_channels, in_channels)
    if layer.kind == 'linear':
        return Gemm(1, batch * pixels, out_channels, in_channels)
    if layer.is_depthwise:
        return Gemm(layer.groups, pixels, batch * out_channels, taps * batch)
    return Gemm(batch * layer.groups, pixels, out_channels, in_channels * taps)


def split(total: int, size: int) -> list[int]:
    """Return the sizes of the pieces of `total` cut every `size`: 7 by 3 gives [3, 3, 1]."""
    full, rest = divmod(total, size)
    return [size] * full + ([rest] if rest else [])


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient of two whole numbers, rounded up."""
    return -(-numerator // denominator)
