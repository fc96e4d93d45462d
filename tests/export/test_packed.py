"""Packed files of whole networks: bit-identical logits, sizes, and files that somebody damaged or made up."""

import hashlib
import json
import random
import struct
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations

import models
from lib.export.about import make_about
from lib.export.container import MAX_HEADER, ZEROS, is_packed, to_bytes
from lib.export.packed import pack_network, round_to_float16
from lib.export.stored import install, parse_packed, read_packed
from lib.hybrid.placement import (
    calibrate_after_training,
    finish_training,
    place_after_training,
    prepare_training,
    rebuild,
)
from lib.hybrid.plan import Plan, make_plan
from lib.network.coverage import inventory_of
from lib.network.reach import reach_weights
from lib.qat.placement import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, Quantizers, quantize_blocks
from lib.quantize import ACIQWeightQuantizer, Grids, Quantizer, fit_codebook
from lib.simulator.counting import file_size
from lib.utils.quantize_utils import (
    LinearQuantization,
    convert_to_quantized,
    quantizable_layers,
    quantized_layers,
)
from tests.hybrid.test_placement import IMAGES as HYBRID_IMAGES
from tests.hybrid.test_placement import MIXED, configured, network
from tests.own_models import ZOO

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NETWORK = {'arch': 'some', 'width_mult': 1.0, 'mode': None, 'tensorflow': False, 'model_file': None}
STEPS = {'resize': 32, 'crop': 32, 'rescale': None, 'mean': [0] * 3, 'std': [1] * 3}
SIZES = 0.01  # of a file from 1 MB on, what is neither a weight nor the rest


def about(shape=(3, 32, 32), classes=5, **saved):
    return make_about({'quantization': 'float', 'strategy': None, 'input': list(shape), 'classes': classes, **saved},
                      NETWORK, None, None)


def shaken(model):
    """The network with BatchNorms as after some training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()
GRIDS = Grids(), Grids('affine', 'channel')


def check_same(model, twin, images=IMAGES, books=(), **options):
    """Pack a network, read it into its untrained twin, compare the logits; return (file, sizes)."""
    shape = tuple(images.shape[1:])
    data, sizes, _ = pack_network(model, images[:2], about(shape, 5), dict(books), **options)
    install(twin, parse_packed(data))
    with torch.no_grad():
        assert torch.equal(twin(images), model(images))
    assert sizes.file == len(data)
    return data, sizes


def clustered(model, bits=(3, 5, 8), is_pruned=False):
    """{layer: codebook} of a network, whose weights become the centroids."""
    books = {}
    for i, (name, layer) in enumerate(quantizable_layers(model).items()):
        if is_pruned:
            layer.weight.data *= torch.rand(layer.weight.shape) < 0.7
        books[name] = fit_codebook(layer.weight, bits[i % len(bits)], is_pruned=is_pruned)
        layer.weight.data.copy_(books[name].decode())
    return books


def linear(model, images=IMAGES, bits=(3, 5, 8, 1), grids=GRIDS[0]):
    """The network in the linear flow, calibrated; its untrained twin has been made before."""
    convert_to_quantized(model, images[:2], quiet=True)
    grids.use(quantized_layers(model).values())
    count = len(quantized_layers(model))
    strategy = [[bits[i % len(bits)], 4 + i % 4] for i in range(count)]
    LinearQuantization(model, strategy, images)
    return model.eval(), strategy


def linear_twin(model, strategy, images=IMAGES, grids=GRIDS[0]):
    convert_to_quantized(model, images[:2], quiet=True)
    grids.use(quantized_layers(model).values())
    LinearQuantization(model, strategy)
    return model


# ---- every kind of network

@pytest.mark.parametrize('is_pruned', [False, True])
@pytest.mark.parametrize('entropy', [False, True])
def test_kmeans(is_pruned, entropy):
    model = shaken(models.create_model('resnet20', num_classes=5))
    books = clustered(model, is_pruned=is_pruned)
    _, sizes = check_same(model, models.create_model('resnet20', num_classes=5), books=books, entropy=entropy)
    cost = file_size(inventory_of(model, (3, 32, 32), False, is_pruned=is_pruned))
    claimed = cost.cost([books[name].bits for name in quantizable_layers(model)])
    assert sizes.weights + sizes.rest <= claimed if entropy else sizes.weights + sizes.rest == claimed
    assert sizes.float32 == cost.reference


@pytest.mark.parametrize('fold', [False, True])
@pytest.mark.parametrize('grids', GRIDS)
def test_the_linear_flow(fold, grids):
    model, twin = (models.create_model('resnet20', num_classes=5) for _ in range(2))
    shaken(model)
    if fold:
        for each in (model, twin):
            finish_training(each, Plan(), IMAGES[:2])
    model, strategy = linear(model, grids=grids)
    data, sizes = check_same(model, linear_twin(twin, strategy, grids=grids))
    cost = file_size(inventory_of(model, (3, 32, 32), True))
    more = sizes.weights + sizes.rest - cost.cost(strategy)  # signed inputs or not; the zero point of one bit
    assert 0 <= more <= 5 * len(strategy)
    assert safetensors_agrees(data)


def safetensors_agrees(data):
    """Whether the library `safetensors` reads the same from a file."""
    theirs, packed = safetensors.torch.load(data), parse_packed(data)
    ours = {key: array for key, array in packed.rest.items() if key in theirs}
    ours |= {f'{name}.weight_packed': coded.tensors()['packed'] for name, coded in packed.weights.items()
             if f'{name}.weight_packed' in theirs}
    assert theirs.keys() - ours.keys() == {'__small__'} and len(ours) > 3
    return all(np.array_equal(theirs[key].numpy(), array) for key, array in ours.items())


@pytest.mark.parametrize('weights', WEIGHT_QUANTIZERS)
@pytest.mark.parametrize('activations', ACTIVATION_QUANTIZERS)
def test_quantization_aware_training(weights, activations):
    bits = [32, 8, 5, 4, 3, 2, 1, 16, 16, 16], [32, 8, 5, 4, 3, 2, 1, 16, 16, 16]
    quantizers = Quantizers(weights, activations)
    nets = []
    for seed in range(2):
        torch.manual_seed(seed)
        nets.append(models.create_model('toynet', num_classes=5, strides=[1, 2], num_layer_list=[1, 1],
                                        num_channel_list=[8, 16], stem_channel=8, header_channel=16))
        count = len(nets[-1].bit_entries())
        quantize_blocks(nets[-1], *[each[:count] for each in bits], quantizers)
    with torch.no_grad():
        nets[0].train()(IMAGES)  # finds steps and signs
    check_same(nets[0].eval(), nets[1])


@pytest.mark.parametrize('stage', ['trained', 'quantized'])
@pytest.mark.parametrize('ptq', [
    {}, {'weight_method': 'aciq'}, {'per_channel': True}, {'per_channel': True, 'bit_alloc': True},
    {'per_channel': True, 'bias_corr': False}])
def test_hybrid_quantization(stage, ptq):
    config = deepcopy(MIXED)
    config['ptq'].update(ptq)
    model = network()
    plan = make_plan(model, config)
    prepare_training(model, plan, HYBRID_IMAGES[:2])
    with torch.no_grad():
        model.train()(HYBRID_IMAGES)
    model.eval()
    if stage == 'quantized':
        finish_training(model, plan, HYBRID_IMAGES[:2])
        place_after_training(model, plan)
        calibrate_after_training(model, plan, [HYBRID_IMAGES])
    twin = models.create_model('hybrid_cnn', num_classes=5, blocks=[[4, 4, 1], [4, 8, 2], [8, 8, 1]])
    rebuild(twin, plan, HYBRID_IMAGES[:2], quantized=stage == 'quantized')
    check_same(model, twin, HYBRID_IMAGES)


@pytest.mark.parametrize('learned', [False, True])
def test_dsq_with_learned_bounds(learned):
    config = configured(qat={'quantize_w_blocks': [0, 1, 2], 'w_bit_width': [2, 3, 1], 'fold_bn': learned,
                             'learn_w_lower': learned, 'learn_w_upper': learned, 'q_w_range': [-0.3, 0.25]})
    model, twin = network(), network()
    plan = make_plan(model, config)
    for each in (model, twin):
        prepare_training(each, plan, HYBRID_IMAGES[:2])
    with torch.no_grad():
        model.train()(HYBRID_IMAGES)
    check_same(model.eval(), twin, HYBRID_IMAGES)


@pytest.mark.parametrize('name', ZOO)
@pytest.mark.parametrize('flow', ['kmeans', 'linear'])
def test_networks_of_others(name, flow):
    torch.manual_seed(0)
    model, twin = ZOO[name].build().eval(), ZOO[name].build()
    images = IMAGES[:, :ZOO[name].shape[0]]
    if flow == 'kmeans':
        check_same(model, twin, images, books=clustered(model))
    else:
        model, strategy = linear(model, images)
        check_same(model, linear_twin(twin, strategy, images), images)


@pytest.mark.parametrize('name', ['TorchAttention', 'OwnAttention', 'Residual'])
@pytest.mark.parametrize('reach', ['weights', 'products'])
@pytest.mark.parametrize('flow', ['kmeans', 'linear'])
def test_weights_that_other_code_reads(name, reach, flow):
    torch.manual_seed(0)
    model, twin = (reach_weights(ZOO[name].build().eval(), IMAGES[:2], reach) for _ in range(2))
    linear_flow = flow == 'linear'
    if not linear_flow:
        books = clustered(model)
        strategy = [books[layer].bits for layer in quantizable_layers(model)]
        _, sizes = check_same(model, twin, books=books)
    else:
        model, strategy = linear(model, bits=(3, 5, 8))
        _, sizes = check_same(model, linear_twin(twin, strategy))
    if reach == 'weights':  # a product of activations has a price, and no weight
        plain = reach_weights(ZOO[name].build().eval(), IMAGES[:2], reach)
        cost = file_size(inventory_of(plain, (3, 32, 32), linear_flow)).cost(strategy)
        assert abs(sizes.weights + sizes.rest - cost) <= 5 * len(strategy)


class Normed(nn.Module):
    """Weights that are computed, in two ways, and one that is shared."""

    def __init__(self):
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.b = torch.nn.utils.weight_norm(nn.Conv2d(6, 6, 3))
        self.c, self.d, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)
        self.d.weight = self.c.weight

    def forward(self, x):
        x = self.d(self.c(self.b(self.a(x).relu()).relu()).relu())
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings('ignore:.*weight_norm')
@pytest.mark.parametrize('flow', ['kmeans', 'linear'])
def test_weights_that_are_computed_or_shared(flow):
    if flow == 'kmeans':
        model = Normed().eval()
        data, _ = check_same(model, Normed(), books=clustered(model))
        assert parse_packed(data).about['aliases'] == {'d.weight': 'c.weight'}
    else:
        model, strategy = linear(Normed().eval())
        check_same(model, linear_twin(Normed(), strategy))


def test_float16_rounds_the_rest_alone():
    model = shaken(models.create_model('resnet20', num_classes=5))
    model.bn1.running_var[0] = 1e6  # more than float16 can hold
    model, strategy = linear(model)
    before = {name: layer.input_quantizer.range.clone() for name, layer in quantized_layers(model).items()}
    twin = linear_twin(models.create_model('resnet20', num_classes=5), strategy)
    plain = deepcopy(model)
    data, sizes = check_same(model, twin, float16=True)
    assert all(torch.equal(layer.input_quantizer.range, before[name])
               for name, layer in quantized_layers(model).items())
    kinds = {key: array.dtype for key, array in parse_packed(data).rest.items()}
    assert kinds['layer1.0.bn1.weight'] == np.float16 and kinds['bn1.running_var'] == np.float32
    assert sizes.rest < 0.6 * pack_network(plain, IMAGES[:2], about(), {})[1].rest
    round_to_float16(plain, {})
    assert torch.equal(plain.bn1.weight, plain.bn1.weight.half().float())


@pytest.mark.parametrize(('name', 'bits'), [('mobilenetv2', 2), ('mobilenetv2', 4), ('mobilenetv3', 5)])
@pytest.mark.parametrize('flow', ['kmeans', 'linear'])
def test_from_a_megabyte_on_a_file_is_as_large_as_its_cost_says(name, bits, flow):
    model = models.create_model(name, num_classes=1000)
    layers = quantizable_layers(model)
    if flow == 'kmeans':  # no clustering: codes at random
        books = {}
        for key, layer in layers.items():
            labels = torch.randint(2**bits, layer.weight.shape, dtype=torch.uint8)
            books[key] = fit_codebook(torch.arange(2.0**bits), bits).to('cpu')
            books[key].labels = labels
            layer.weight.data.copy_(books[key].decode())
        strategy = [bits] * len(layers)
    else:
        books, (model, strategy) = {}, linear(model, bits=[bits])
    said = {**about(classes=1000, quantization=flow, strategy=strategy), 'class_names': 'imagenet'}
    data, sizes, _ = pack_network(model.eval(), IMAGES[:2], said, books)
    cost = file_size(inventory_of(model, (3, 32, 32), flow == 'linear')).cost(strategy)
    assert abs(sizes.weights + sizes.rest - cost) <= 4 * len(parse_packed(data).rest)
    assert len(data) > 1e6 and abs(len(data) - cost) < SIZES * cost


class Odd(Quantizer):
    def fake_quantize(self, x):
        return x + 0.1


def test_what_cannot_be_packed_is_named():
    model = models.create_model('resnet20', num_classes=5).eval()
    with pytest.raises(ValueError, match='nothing to pack'):
        pack_network(model, IMAGES, about(), {})
    books = clustered(model)
    model.conv1.weight.data += 1e-3
    with pytest.raises(ValueError, match='conv1: its weights are not those of its codebook'):
        pack_network(model, IMAGES, about(), books)
    convert_to_quantized(model, IMAGES[:2])
    model.layer1[0].conv1.set_quantizers(weight=Odd(4))
    with pytest.raises(ValueError, match=r'layer1.0.conv1: a Odd of 4 bits gives \d+ values'):
        pack_network(model, IMAGES, about(), {})


def test_a_file_of_another_network_is_refused(small):
    packed = parse_packed(small)
    for twin, words in ((nn.Sequential(nn.Conv2d(3, 4, 3)), 'which the network has not'),
                        (tiny(channels=5), 'the network has'), (nn.Sequential(*tiny(), nn.ReLU(), nn.Linear(5, 5)),
                                                                'missing')):
        with pytest.raises(ValueError, match=words):
            install(twin, packed)


@pytest.mark.parametrize('kind', ['kmeans', 'pruned', 'linear', 'channels'])
def test_the_reader_in_the_documentation(kind, tmp_path):
    page = (Path(__file__).parents[2] / 'docs' / 'export.md').read_text(encoding='utf-8')
    theirs = {}
    blocks = [part.split('```')[0] for part in page.split('```python\n')]
    exec(next(block for block in blocks if 'def unpack' in block), theirs)
    model = shaken(models.create_model('resnet20', num_classes=5))
    books = clustered(model, is_pruned=kind == 'pruned') if kind in ('kmeans', 'pruned') else {}
    if kind == 'linear':
        model, _ = linear(model)
    elif kind == 'channels':
        convert_to_quantized(model, IMAGES[:2], quiet=True)
        for layer in quantized_layers(model).values():
            layer.weight.data *= torch.logspace(0, 2, len(layer.weight)).reshape(-1, *[1] * (layer.weight.dim() - 1))
            layer.set_quantizers(ACIQWeightQuantizer(3, per_channel=True, bit_alloc=True), Quantizer())
    (tmp_path / 'a').write_bytes(pack_network(model, IMAGES[:2], about(), books)[0])
    packed = read_packed(tmp_path / 'a')
    said, tensors = theirs['read'](tmp_path / 'a')
    assert said['classes'] == 5 and all(np.array_equal(tensors[key], array) for key, array in packed.rest.items())
    assert kind != 'channels' or any(len(coded.bits) > 1 for coded in packed.weights.values())
    for name, coded in packed.weights.items():
        assert np.array_equal(theirs['weight'](tensors, name), coded.decode())


# ---- files that somebody damaged or made up

def tiny(channels=4):
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(channels, 5))


@pytest.fixture(name='small', scope='module')
def small_fixture():
    """A packed file of few bytes."""
    torch.manual_seed(0)
    model = tiny().eval()
    return pack_network(model, IMAGES, {**about(quantization='kmeans', strategy=[3, 2]), 'class_names': list('abcde')},
                        clustered(model, (3, 2)))[0]


def same(packed, other):
    return packed.about == other.about and packed.rest.keys() == other.rest.keys() and all(
        np.array_equal(packed.rest[key], other.rest[key]) for key in packed.rest) and packed.weights.keys() == \
        other.weights.keys() and all(np.array_equal(packed.weights[key].decode(), other.weights[key].decode())
                                     for key in packed.weights)


def damage(data, rng):
    """Bits flipped, a range removed, doubled, zeroed or made random, or the end cut off."""
    kind, start = rng.randrange(6), rng.randrange(len(data))
    end = min(start + rng.choice((1, 2, 8, 100)), len(data))
    if kind == 0:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 10))):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    part = {1: b'', 2: 2 * data[start:end], 3: bytes(end - start), 4: rng.randbytes(end - start)}
    return data[:start] if kind == 5 else data[:start] + part[kind] + data[end:]


def resealed(data):
    """The file with the right digest, as one who means harm would make it; None where it has no place for one."""
    length = struct.unpack('<Q', data[:8])[0] if len(data) > 8 else 0
    place = data[:8 + length].find(b'sha256')
    start = data.find(b'"', place + 9) - 64
    if place < 0 or start < place:
        return None
    blank = data[:start] + ZEROS.encode() + data[start + 64:]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[start + 64:]


def test_ten_thousand_damaged_files(small):
    """Each is refused in one line, or holds what it held; with the digest made right again, refused or read."""
    expected, rng, read = parse_packed(small), random.Random(0), 0
    for number in range(10_000):
        data = damage(small, rng)
        if number % 2 and (made := resealed(data)):
            data = made
        try:
            found = parse_packed(data)
        except ValueError as error:
            assert '\n' not in str(error) and len(str(error)) < 600
            continue
        read += 1
        assert number % 2 or same(found, expected), number
    assert 50 < read < 5000


def remade(small, **changes):
    """The file with other entries in what it says of itself."""
    packed, _ = parse_packed(small), None
    tensors = {f'{name}.weight_{key}': array for name, coded in packed.weights.items()
               for key, array in coded.tensors().items()}
    return to_bytes({**tensors, **packed.rest}, {**packed.about, **changes})


def raw(header, data=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def entry(dtype='F32', shape=(1,), offsets=(0, 4)):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


SAID = {'__metadata__': {'haq': '{}'}}
HOSTILE = {
    'nothing': (b'', 'cut off'), 'eight bytes': (bytes(7), 'cut off'), 'no header': (bytes(8), 'no JSON'),
    'a huge header': (raw({}, length=2**63), 'cut off'), 'a header beyond the cap': (
        struct.pack('<Q', MAX_HEADER + 1) + bytes(MAX_HEADER + 9), 'cut off'),
    'deep': (raw(b'[' * 100_000), 'nested too deeply'), 'deep dicts': (raw(b'{"a":' * 50_000), 'nested too deeply'),
    'no dict': (raw([1]), 'no dict'), 'no text': (raw(b'\xff\xfe'), 'no UTF-8'),
    'a key twice': (raw(b'{"__metadata__":{"haq":"{}"},"a":1,"a":2}'), 'stands twice'),
    'NaN': (raw(b'{"__metadata__":{"haq":"{}"},"a":NaN}'), 'no number'),
    'a number without end': (raw(b'{"a":' + b'9' * 10_000 + b'}'), 'too large a number'),
    'no metadata': (raw({'a': entry()}, bytes(4)), 'metadata'),
    'other metadata': (raw({'__metadata__': {'haq': '{}', 'b': ''}}), 'metadata'),
    'metadata that is no JSON': (raw({'__metadata__': {'haq': '{'}}), 'no JSON'),
    'a path for a name': (raw({**SAID, '../../x': entry()}, bytes(4)), 'no name of a tensor'),
    'dots for a name': (raw({**SAID, 'a..b': entry()}, bytes(4)), 'no name of a tensor'),
    'a line for a name': (raw({**SAID, 'a\nb': entry()}, bytes(4)), 'no name of a tensor'),
    'a long name': (raw({**SAID, 'x' * 1000: entry()}, bytes(4)), 'no name of a tensor'),
    'another type': (raw({**SAID, 'a': entry('F128')}, bytes(4)), 'is of type'),
    'a huge shape': (raw({**SAID, 'a': entry(shape=(2**39, 2**39))}, bytes(4)), 'lies at'),
    'a negative shape': (raw({**SAID, 'a': entry(shape=(-1, -1))}, bytes(4)), 'has no shape'),
    'a shape of floats': (raw({**SAID, 'a': entry(shape=(1.0,))}, bytes(4)), 'has no shape'),
    'many dimensions': (raw({**SAID, 'a': entry(shape=[1] * 99)}, bytes(4)), 'has no shape'),
    'an overlap': (raw({**SAID, 'a': entry(), 'b': entry(offsets=(2, 6))}, bytes(6)), 'lies at'),
    'a hole': (raw({**SAID, 'a': entry(offsets=(4, 8))}, bytes(8)), 'lies at'),
    'too few bytes': (raw({**SAID, 'a': entry()}, bytes(3)), '3 bytes of tensors, its header says 4'),
    'too many bytes': (raw({**SAID, 'a': entry()}, bytes(5)), '5 bytes of tensors'),
    'true offsets': (raw({**SAID, 'a': entry('U8', (), (False, True))}, bytes(1)), 'lies at'),
    'no digest': (raw({**SAID, 'a': entry()}, bytes(4)), 'no SHA-256'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_file_made_to_do_harm_is_refused(name):
    data, words = HOSTILE[name]
    with pytest.raises(ValueError, match=words):
        parse_packed(data)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'version': 2}, 'version is 2, expected version 1'), ({'format': 'x'}, 'format'), ({'more': 1}, 'does not know'),
    ({'classes': 10**9}, 'classes'), ({'class_names': ['a']}, '1 names for 5 classes'),
    ({'input': [3, 10**6, 1]}, 'input'), ({'input': [1000, 4000, 4000]}, 'input'),
    ({'strategy': 'x'}, 'strategy'), ({'aliases': {'a': 'a'}}, 'aliases'),
    ({'network': {}}, 'network'), ({'network': {**NETWORK, 'seed': 1}}, 'does not know'),
    ({'network': {**NETWORK, 'width_mult': 1e9}}, 'width_mult'),
    ({'preprocessing': {**STEPS, 'crop': None}}, 'images of shape'),
    ({'preprocessing': {**STEPS, 'std': [0] * 3}}, 'std'),
])
def test_what_a_file_says_of_itself_is_checked(small, changes, words):
    with pytest.raises(ValueError, match=words):
        parse_packed(remade(small, **changes))


def test_a_changed_file_is_told_by_its_digest(small, tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(small)
    assert is_packed(path) and same(read_packed(path), parse_packed(small))
    path.write_bytes(small.replace(b'["a","b"', b'["b","a"').replace(rb'[\"a\",\"b\"', rb'[\"b\",\"a\"'))
    with pytest.raises(ValueError, match=f'{path} is damaged or was changed: its SHA-256 differs'):
        read_packed(path)
    safetensors.torch.save_file({'a': torch.zeros(1)}, tmp_path / 'b.safetensors')
    assert not is_packed(tmp_path / 'b.safetensors') and not is_packed(tmp_path / 'none')
    with pytest.raises(ValueError, match='metadata'):
        read_packed(tmp_path / 'b.safetensors')
