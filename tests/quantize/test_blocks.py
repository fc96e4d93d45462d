"""Block by block is the same as all at once, whatever the size of a tensor and the order of its elements in memory."""

import pytest
import torch

from lib.quantize.blocks import BLOCK, blocks, dense, like
from lib.quantize.linear import LinearActivationQuantizer
from tests.tiny import sample

LAYOUTS = {
    'contiguous': lambda x: x,
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(0, 3),
    'every second': lambda x: torch.cat((x, -x), 1)[:, ::2],
    'expanded': lambda x: x[:1].expand(3, *x.shape[1:]),
    'part of a tensor': lambda x: torch.stack((-x, x))[1],
}


def test_blocks_cover_every_element_once_and_in_the_same_order():
    step = BLOCK * torch.get_num_threads()
    a, b = sample(3, step), torch.zeros(3, step)
    sizes = []
    for part, copy in blocks(a, b):
        copy.add_(part)
        sizes.append(len(part))
    assert torch.equal(a, b)
    assert sizes == [step] * 3


def test_a_dense_tensor_is_not_copied():
    x = sample(2, 3, 4, 5)
    for layout in ('contiguous', 'channels last', 'transposed', 'part of a tensor'):
        view = LAYOUTS[layout](x)
        assert dense(view) is view
    assert like(x, x) is x


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('shape', [(4, 3, 5, 2), (2, 3, 200, 300)], ids=['small', 'several blocks'])
def test_fake_quantization_is_that_of_single_elements(shape, layout, signed):
    """Against the formula in float64 by autograd: dq/dx, dq/dr of a straight-through rounding."""
    x = LAYOUTS[layout](sample(*shape))
    upstream = sample(*x.shape[::-1]).permute(3, 2, 1, 0)  # in another order than x
    quantizer = LinearActivationQuantizer(4, signed=signed, initial_range=1.0)
    leaf = x.detach().requires_grad_()
    quantizer(leaf).backward(upstream)

    exact, clip = x.detach().double().requires_grad_(), torch.ones((), dtype=torch.float64, requires_grad=True)
    clipped = 0.5 * ((exact + clip).abs() - (exact - clip).abs()) if signed else \
        0.5 * (exact.abs() - (exact - clip).abs() + clip)
    clipped.backward(upstream.double())
    steps = 7 if signed else 15
    torch.testing.assert_close(quantizer(leaf).double(), (clipped.detach().float() * steps).round().double() / steps,
                               atol=1e-6, rtol=0)
    torch.testing.assert_close(leaf.grad.double(), exact.grad)
    torch.testing.assert_close(quantizer.range.grad.double().sum(), clip.grad, rtol=1e-5, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(quantizer(x), quantizer(x.contiguous()))
