"""Weights that are multiplied outside of their layers, and products of activations, against what torch computes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.network.conversion import all_layers, convert_to_quantized, quantized_layers
from lib.network.coverage import inventory_of
from lib.network.reach import reach_weights
from lib.network.records import profile_network
from lib.quantize.products import attention, inside
from lib.simulator.backends import PRESETS
from lib.simulator.counting import bit_operations, size_of
from lib.simulator.hardware import make_table
from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization

SHAPE, WIDTH, TOKENS = (3, 8, 8), 12, 16


class Tokens(nn.Module):
    """A patch embedding, one module on tokens, a head."""

    def __init__(self, block):
        super().__init__()
        self.patches, self.block, self.head = nn.Conv2d(3, WIDTH, 2, 2), block, nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention` with the same tokens three times, or with others as keys and values."""

    def __init__(self, same, **options):
        super().__init__()
        self.attention, self.same = nn.MultiheadAttention(WIDTH, 3, batch_first=True, **options), same

    def forward(self, x):
        others = x if self.same else x.flip(1)[..., :self.attention.kdim] + 1
        return self.attention(x, others, others, need_weights=self.same)[0]


class Fused(nn.Module):
    """BEiT's way: the weight of `qkv` is read, a bias is put together; the products are torch's, or written out."""

    def __init__(self, fused):
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH), fused
        self.q_bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros(2 * WIDTH)])
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))


class Views(nn.Module):
    """Rows of a weight as operands: a slice, a transposed one on either side, one of a Parameter without a layer."""

    def __init__(self):
        super().__init__()
        self.both, self.table = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        first, second = self.both.weight.chunk(2)
        x = F.linear(input=x, weight=first) + x @ second.t() + (second @ x.transpose(1, 2)).transpose(1, 2)
        return torch.einsum('btc,oc->bto', F.linear(x, self.table), first)


class StandardisedConv(nn.Conv2d):
    """A weight that is computed in a forward of its own."""

    def weight_of(self, weight):
        return (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight_of(self.weight), self.bias, self.stride)


def converted(block, reach='weights', bits=(4, 4)):
    """Return (float network, its converted copy with these bits everywhere, calibrated, images)."""
    torch.manual_seed(0)
    net = (block if isinstance(block, nn.Sequential) else Tokens(block)).eval()
    images = torch.randn(6, *SHAPE)
    net = reach_weights(net, images[:2], reach)
    twin = convert_to_quantized(copy.deepcopy(net), images[:2])
    with torch.no_grad():
        assert torch.equal(twin(images), net(images)), 'without bits it is the float network, to the bit'
    LinearQuantization(twin, [list(bits)] * len(quantized_layers(twin)), images, method='max')
    return net, twin, images


BLOCKS = {
    'self': lambda: TorchAttention(True), 'cross': lambda: TorchAttention(False),
    'kdim': lambda: TorchAttention(False, kdim=8, vdim=8), 'fused': lambda: Fused(True),
    'written out': lambda: Fused(False), 'views': Views,
    'standardised': lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), StandardisedConv(8, 8, 2, 2), nn.Flatten(),
                                          nn.Linear(72, 5)),
}
NAMES = {'self': ['out_proj', 'in_proj'], 'cross': ['out_proj', 'in_proj'],
         'kdim': ['out_proj', 'q_proj', 'k_proj', 'v_proj'], 'fused': ['qkv', 'proj'], 'written out': ['qkv', 'proj'],
         'views': ['both', 'table_layer'], 'standardised': ['2']}


@pytest.mark.parametrize('name', BLOCKS)
def test_every_weight_is_reached_trained_and_reloaded(name):
    torch.manual_seed(0)
    keys = list(Tokens(BLOCKS[name]()).state_dict()) if name != 'standardised' else list(BLOCKS[name]().state_dict())
    net, twin, images = converted(BLOCKS[name]())
    assert list(net.state_dict()) == keys, 'names are given to weights, not to state dicts'
    assert set(NAMES[name]) <= {layer.rpartition('.')[2] for layer in quantized_layers(twin)}
    found = inventory_of(net, SHAPE, True)
    assert found.coverage.weights == 1
    assert found.names == list(quantized_layers(twin)) == inventory_of(net, SHAPE, False).names
    with torch.no_grad():
        assert not torch.equal(twin(images), net(images))
        again = convert_to_quantized(copy.deepcopy(net), images[:2])
        LinearQuantization(again, [[4, 4]] * len(found.names))
        again.load_state_dict(twin.state_dict())
        assert torch.equal(again.to(memory_format=torch.channels_last)(images), twin(images))
        assert torch.equal(copy.deepcopy(twin)(images), twin(images))
    twin.train()(images).square().sum().backward()
    missing = [key for key, parameter in twin.named_parameters() if parameter.grad is None]
    assert not missing


def test_a_matrix_that_is_multiplied_from_the_right():
    """CLIP's projection: x @ proj, (12, 5). Both operands are quantized, and the record has inputs and outputs."""
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.proj = nn.Conv2d(3, WIDTH, 2, 2), nn.Parameter(torch.randn(WIDTH, 5))

        def forward(self, x):
            return self.patches(x).mean((2, 3)) @ self.proj

    net, images = Projected().eval(), torch.randn(6, *SHAPE)
    reach_weights(net, images[:2])
    record = profile_network(net, SHAPE).layers[-1]
    assert (record.name, record.in_channels, record.out_channels, record.macs) == ('proj_layer', WIDTH, 5, 5 * WIDTH)
    convert_to_quantized(net, images[:2])
    LinearQuantization(net, [[8, 8], [3, 4]], images, method='max')
    with torch.no_grad():
        x, weight = quantized(net.proj_layer, net.patches(images).mean((2, 3)), net.proj)
        assert torch.equal(net(images), x @ weight) and len(weight.unique()) <= 7


def test_kmeans_clusters_the_parameters_where_they_lie():
    net = reach_weights(Tokens(TorchAttention(True)), torch.randn(2, *SHAPE))
    KMeansQuantization(net, [2] * 4)
    assert len(net.block.attention.in_proj_weight.unique()) <= 4 and len(net.state_dict()) == 8
    assert list(all_layers(net)) == ['patches', 'block.attention.out_proj', 'block.attention.in_proj', 'head']


def quantized(layer, x, weight):
    """Return what the quantizers of a layer make of two tensors."""
    return layer.input_quantizer(x), layer.weight_quantizer(weight)


@torch.no_grad()
def test_torch_attention_multiplies_with_quantized_weights():
    _, twin, images = converted(TorchAttention(False), bits=(3, 5))
    tokens, mha = twin.patches(images).flatten(2).transpose(1, 2), twin.block.attention
    others = tokens.flip(1) + 1
    weights = mha.in_proj.weight_quantizer(mha.in_proj_weight).chunk(3)
    x, y = mha.in_proj.input_quantizer(tokens), mha.in_proj.input_quantizer(others)
    q, k, v = (F.linear(z, w, b).unflatten(-1, (3, 4)).transpose(1, 2) for z, w, b in zip(
        (x, y, y), weights, mha.in_proj_bias.chunk(3), strict=True))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = mha.out_proj
    expected = F.linear(*quantized(out, mixed, out.weight), out.bias)
    torch.testing.assert_close(twin.block(tokens), expected)


@torch.no_grad()
def test_a_standardised_weight_is_quantized_after_it_is_computed():
    _, twin, images = converted(BLOCKS['standardised'](), bits=(3, 5))
    x, layer = twin[1](twin[0](images)), twin[2]
    x, weight = quantized(layer, F.pad(x, (0, 1, 0, 1)), layer.weight_of(layer.weight))
    assert torch.equal(layer(twin[1](twin[0](images))), F.conv2d(x, weight, layer.bias, layer.stride))
    assert layer.computes_weight and len(weight.unique()) <= 7


@torch.no_grad()
@pytest.mark.parametrize('fused', [True, False])
def test_products_of_attention_have_both_operands_quantized(fused):
    _, twin, images = converted(Fused(fused), 'products', bits=(3, 5))
    block, tokens = twin.block, twin.patches(images).flatten(2).transpose(1, 2)
    assert list(quantized_layers(block)) == ['qkv', 'proj', 'product1', 'product2']
    assert block.product2.input_quantizer.signed is False, 'a softmax is not negative'
    bias = torch.cat([block.q_bias, torch.zeros(2 * WIDTH)])
    q, k, v = F.linear(*quantized(block.qkv, tokens, block.qkv.weight), bias).unflatten(-1, (3, 3, 4)).permute(
        2, 0, 3, 1, 4)
    a, b = quantized(block.product1, q, k.transpose(-2, -1))
    a, b = quantized(block.product2, (a @ b * 0.5).softmax(-1), v)
    expected = block.proj((a @ b).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block(tokens), expected)


@pytest.mark.parametrize('fused', [True, False])
def test_products_have_entries_and_prices(fused):
    """16 tokens, 3 heads of 4: q k^T is 3 times (16 x 4)(4 x 16), times v 3 times (16 x 16)(16 x 4)."""
    net = reach_weights(Tokens(Fused(fused)), torch.randn(2, *SHAPE), 'products')
    found = inventory_of(net, SHAPE, True)
    products = {layer.name: layer for layer in found.layers if layer.kind == 'matmul'}
    sizes = {name[-8:]: (layer.in_h, layer.in_channels, layer.out_channels, layer.calls, layer.num_weights)
             for name, layer in products.items()}
    assert sizes == {'product1': (16, 4, 16, 3, 0), 'product2': (16, 16, 4, 3, 0)}
    assert found.coverage.macs == 1 and not found.floats and found.macs == profile_network(Tokens(Fused(fused)),
                                                                                           SHAPE).macs
    assert inventory_of(net, SHAPE, False).names == [name for name in found.names if name not in products]
    strategy = [[2, 3] if name in products else [4, 4] for name in found.names]
    rest = sum(layer.macs for layer in found.layers if layer.kind != 'matmul')
    assert bit_operations(found.layers).cost(strategy) == 16 * rest + 6 * 2 * 3 * 16 * 16 * 4
    assert size_of(found).cost(strategy) == 4 * sum(found.weights)
    assert found.ends == ((found.names.index('patches'),), (found.names.index('head'),))
    one, two = products.values()
    for name in ('cloud', 'edge', 'bitfusion', 't4'):
        assert (make_table([one, two], PRESETS[name]).table > 0).all()
    for name in ('isaac', 'measured'):
        with pytest.raises(ValueError, match='product1 multiplies two activations'):
            make_table([one, two], PRESETS[name])


def test_a_price_of_a_product_is_that_of_a_layer_for_each_image():
    """Of 16 images: 16 times the linear layer of one image, for its second operand is not kept from image to image."""
    net = reach_weights(Tokens(Fused(True)), torch.randn(2, *SHAPE), 'products')
    product = next(layer for layer in inventory_of(net, SHAPE, True).layers if layer.kind == 'matmul')
    values = {**product.to_dict(), 'kind': 'linear', 'num_weights': product.operands}
    layer = type(product).from_dict(values)
    for name in ('cloud', 'bitfusion'):
        one, many = (copy.copy(PRESETS[name]) for _ in range(2))
        object.__setattr__(one, 'batch', 1)
        object.__setattr__(many, 'batch', 16)
        assert many.layer_cost(product, 4, 4).latency == 16 * one.layer_cost(layer, 4, 4).latency


class Nested(nn.Module):
    """A module with a product of its own around another one that has two, and layers between."""

    def __init__(self):
        super().__init__()
        self.inner, self.mix = Fused(False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = self.mix(self.inner(x))
        return y @ (x.transpose(1, 2) @ y) / TOKENS


@torch.no_grad()
def test_products_are_those_of_the_module_that_computes_them():
    net, twin, images = converted(Nested(), 'products', bits=(8, 8))
    assert [name for name in quantized_layers(twin) if 'product' in name] == [
        'block.inner.product1', 'block.inner.product2', 'block.product1', 'block.product2']
    records = {layer.name: layer.macs for layer in profile_network(net, SHAPE).layers}
    assert records['block.product1'] == records['block.product2'] == TOKENS * WIDTH * WIDTH
    assert (twin(images) - net(images)).norm() < 0.05 * net(images).norm()
    inner, tokens = twin.block.inner, twin.patches(images).flatten(2).transpose(1, 2)
    y = twin.block.mix(inner(tokens))
    a, b = quantized(twin.block.product1, tokens.transpose(1, 2), y)
    a, b = quantized(twin.block.product2, y, a @ b)
    torch.testing.assert_close(twin.block(tokens), a @ b / TOKENS)


@pytest.mark.parametrize('options', [
    {}, {'is_causal': True}, {'scale': 0.3}, {'enable_gqa': True}, {'attn_mask': torch.randn(5, 7)},
    {'attn_mask': torch.rand(5, 7) < 0.7},
])
def test_attention_in_its_parts_is_that_of_torch(options):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 3), *torch.randn(2, 2, 2 if options.get('enable_gqa') else 4, 7, 3)
    if mask := options.get('attn_mask') is not None and options['attn_mask'].dtype == torch.bool:
        options['attn_mask'][:, 0] = mask  # no row without any
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(attention(q, k, v, torch.matmul, torch.matmul, **options), expected)


def test_functions_of_torch_are_entered_unless_they_do_not_ask():
    assert inside(torch.matmul) is inside(F.max_pool2d) is inside(len) is None
    x = torch.randn(3, 4)
    assert torch.equal(inside(F.softmax)(x, dim=1), x.softmax(1))


def test_a_compiled_network_computes_the_same():
    _, twin, images = converted(TorchAttention(True))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(twin, backend='eager')(images), twin(images))


def test_a_network_that_fails_is_named():
    with pytest.raises(ValueError, match='Tokens fails on one image of 5x8x8'):
        reach_weights(Tokens(Fused(True)), torch.randn(2, 5, 8, 8))
    with pytest.raises(ValueError, match="reach is 'all'; expected one of layers, weights, products"):
        reach_weights(Tokens(Fused(True)), torch.randn(2, *SHAPE), 'all')


def timm_networks():
    """Return {name: function that builds a small network of timm with random weights}."""
    timm = pytest.importorskip('timm')
    tiny = {'img_size': 32, 'num_classes': 5}
    return {
        'ViT': lambda: timm.models.VisionTransformer(patch_size=8, embed_dim=24, depth=2, num_heads=2, **tiny),
        'BEiT': lambda: timm.models.Beit(patch_size=8, embed_dim=24, depth=1, num_heads=2, init_values=0.5, **tiny),
        'EVA': lambda: timm.models.Eva(patch_size=8, embed_dim=24, depth=1, num_heads=2, qkv_fused=True, **tiny),
        'Swin': lambda: timm.models.SwinTransformer(patch_size=4, embed_dim=12, depths=(1, 1), num_heads=(1, 2),
                                                    window_size=4, **tiny),
        'NFNet': lambda: timm.models.NormFreeNet(timm.models.nfnet.NfCfg(depths=(1, 1), channels=(16, 32),
                                                                         stem_type='3x3'), num_classes=5),
        'BiT': lambda: timm.models.ResNetV2(layers=(1, 1), channels=(128, 256), num_classes=5, stem_chs=32),
        'same': lambda: nn.Sequential(timm.layers.Conv2dSame(3, 8, 3, 2), timm.layers.BatchNormAct2d(8),
                                      timm.layers.StdConv2dSame(8, 8, 3, 2), nn.Flatten(), nn.Linear(512, 5)),
    }


@pytest.mark.parametrize('name', ['ViT', 'BEiT', 'EVA', 'Swin', 'NFNet', 'BiT', 'same'])
def test_networks_of_timm_are_covered_and_counted(name):
    """All weights but position tables; MACs as torch's own counter has them; saved and loaded to the bit."""
    torch.manual_seed(0)
    build, images = timm_networks()[name], torch.randn(4, 3, 32, 32)
    net = build().eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(images[:1])
    with torch.no_grad():
        expected = net(images)
    reach_weights(net, images[:2], 'products')
    found = inventory_of(net, images.shape[1:], True)
    assert counter.get_total_flops() == 2 * found.macs
    assert found.coverage.macs == 1 and not [name for name in found.float_names if 'pos' not in name]
    convert_to_quantized(net, images[:2], quiet=True)
    with torch.no_grad():
        assert torch.equal(net(images), expected)
        LinearQuantization(net, [[4, 8]] * len(found.names), images, method='max')
        again = convert_to_quantized(reach_weights(build(), images[:2], 'products'), images[:2], quiet=True)
        LinearQuantization(again.eval(), [[4, 8]] * len(found.names))
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(images), net(images))


def test_attributes_of_a_users_network_are_its_own():
    """A network may keep anything under common names; its weights are reached all the same."""
    net = Tokens(Fused(True))
    net.reached, net.block.reads = 3, 'a word'
    reach_weights(net, torch.randn(2, *SHAPE))
    assert inventory_of(net, SHAPE, True).coverage.weights == 1 and (net.reached, net.block.reads) == (3, 'a word')
