"""Integer networks as ONNX graphs: the same integers, bit for bit."""

import numpy as np
import pytest
import torch

pytest.importorskip('onnxruntime', reason='onnxruntime is not installed (requirements-export.txt)')
pytest.importorskip('onnx_ir', reason='onnx-ir is not installed (requirements-export.txt)')

from lib.export.onnx_integer import INTEGERS, LARGEST_SUM, integer_graph
from lib.export.onnx_packages import ir
from lib.export.onnx_runtimes import OnnxNetwork
from lib.integer.lowering import lower_network
from lib.integer.values import Operation
from tests.integer.scenarios import SHAPE as QAT_SHAPE
from tests.integer.scenarios import ready
from tests.integer.test_lowering import NETWORKS, SHAPE, Functional, quantized
from tests.integer.test_more_operations import Everything


def onnx_of(network):
    return OnnxNetwork(ir.to_proto(integer_graph(network)).SerializeToString())


def check_equal(network, images):
    """The two of an image more than one time, and at the ends of what is taken."""
    images = torch.cat([images, torch.full_like(images[:1], 8), torch.full_like(images[:1], -8)])
    onnx, expected = onnx_of(network), network(images)
    found = onnx.session.run([INTEGERS], {'images': images.numpy()})[0]
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_allclose(onnx(images), expected.numpy() * network.scale, rtol=1e-6)


def noise(shape, count=6):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).clamp_(-8, 8)


@pytest.mark.parametrize('rounding', ['round', 'floor', 'trunc'])
@pytest.mark.parametrize('bits', [1, 4, 8])
def test_quantized_networks(bits, rounding):
    torch.manual_seed(0)
    images = noise(SHAPE)
    check_equal(lower_network(quantized(NETWORKS['resnet8' if bits == 4 else 'vgg'](), images, bits), SHAPE,
                              rounding=rounding), images)


@pytest.mark.parametrize('variant', range(4))
def test_functional_forms_on_wide_integers(variant):
    torch.manual_seed(variant)
    check_equal(lower_network(Functional(variant).eval(), SHAPE), noise(SHAPE))


@pytest.mark.parametrize('form', ['mantissa:24', 'original'])
def test_depthwise_convolutions_of_qat(form):
    check_equal(lower_network(ready('mobilenetv2_cifar', 5, 6), QAT_SHAPE, block_format=form), noise(QAT_SHAPE, 2))


@pytest.mark.parametrize('rounding', ['round', 'floor', 'trunc'])
def test_products_tables_and_joined_channels(rounding):
    torch.manual_seed(0)
    model, images = Everything(), noise(QAT_SHAPE)
    check_equal(lower_network(quantized(model, images), QAT_SHAPE, rounding=rounding), images)


def test_a_sum_that_int32_does_not_hold_is_refused_by_name():
    network = lower_network(quantized(NETWORKS['vgg'](), noise(SHAPE)), SHAPE)
    (first, *_) = [operation for operation in network.operations if operation.kind == 'conv']
    wide = torch.ones(1, LARGEST_SUM + 1, 1, 1, dtype=torch.int64)
    at = network.operations.index(first)
    network.operations[at] = Operation(**{**vars(first), 'arrays': {'weight': wide}})
    with pytest.raises(ValueError, match=rf'{first.name} adds {LARGEST_SUM + 1} products'):
        integer_graph(network)
