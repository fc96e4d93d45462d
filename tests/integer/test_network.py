"""Integer networks of the three DoReFa/PACT networks, against the fake-quantized networks that they come from."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.engine.operand_search import find_operands
from lib.integer.compare import compare_codes, fake_quantized_codes
from lib.integer.lowering import lower_network
from lib.integer.network import IntegerNetwork
from lib.qat.placement import Quantizers, quantize_blocks
from lib.quantize.dorefa import DoReFaActivationQuantizer
from lib.quantize.grids import Grids
from lib.quantize.pact import PACTActivationQuantizer
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers
from tests.integer.scenarios import SHAPE, batch, ready, settle, small_network

NAMES = ('toynet', 'mobilenetv2_cifar', 'resnet20_projection')
LENGTHS = {name: len(small_network(name).bit_entries()) for name in NAMES}


def bit_lists(name, kind):
    """Returns weight and activation bits: of one width, float ends with a 16-bit classifier, or mixed."""
    n = LENGTHS[name]
    lists = {'ends': ([32] + [8] * (n - 3) + [16, 16], [32] + [8] * (n - 3) + [32, 32]),
             'mixed': ([8, 6] + [3, 5, 4, 2] * 3, [8, 7] + [4, 6, 5] * 4)}
    return [bits[:n] for bits in lists[kind]] if kind in lists else (kind, kind)


@pytest.fixture(scope='module')
def networks():
    """Gives (fake-quantized network, images) by name and bits, made once."""
    made = {}

    def get(name, kind=8):
        if (name, kind) not in made:
            made[name, kind] = ready(name, *bit_lists(name, kind))
        return made[name, kind], batch(16, seed=7)
    return get


def share(differences):
    return sum(difference.equal for difference in differences.values()) / len(differences)


@torch.no_grad()
def same_classes(model, network, images):
    return (network(images).argmax(1) == model(images).argmax(1)).double().mean().item()


@pytest.mark.parametrize('kind', [8, 4, 2, 'ends', 'mixed'])
@pytest.mark.parametrize('name', NAMES)
def test_codes_are_those_of_the_fake_quantized_network(networks, name, kind):
    model, images = networks(name, kind)
    network = lower_network(model, SHAPE, block_format='mantissa:24')
    found = compare_codes(model, network, images)
    assert len(found) >= LENGTHS[name] - 3
    assert max(difference.largest for difference in found.values()) <= 1
    assert min(difference.equal for difference in found.values()) > 0.997  # of the smallest, two codes
    assert share(found) > 0.9998
    assert same_classes(model, network, images) > 0.99


@pytest.mark.parametrize('name', NAMES)
def test_multipliers_of_16_bits_are_enough(networks, name):
    model, images = networks(name)
    network = lower_network(model, SHAPE, block_format='mantissa:16')
    found = compare_codes(model, network, images)
    assert max(difference.largest for difference in found.values()) <= 1 and share(found) > 0.999
    assert all(int(array.min()) > -2**15 and int(array.max()) < 2**15 for operation in network.operations
               if operation.name in network.quantizers and len(operation.inputs) == 1
               for key, array in operation.arrays.items() if key != 'offset')
    assert same_classes(model, network, images) > 0.99


@pytest.mark.parametrize('name', NAMES)
def test_logits_are_real_values_in_integers(networks, name):
    model, images = networks(name, 4)
    network = lower_network(model, SHAPE, block_format='mantissa:24')
    logits = network(images)
    with torch.no_grad():
        expected = model(images)
    assert logits.dtype == torch.int64
    torch.testing.assert_close(logits.double() * network.scale, expected.double(), atol=2e-3, rtol=0)


def test_floor_and_truncation_cost_half_of_the_codes_and_two_steps_at_most(networks):
    model, images = networks('resnet20_projection')
    for rounding in ('floor', 'trunc'):
        found = compare_codes(model, lower_network(model, SHAPE, rounding=rounding), images)
        assert max(difference.largest for difference in found.values()) <= 2
        assert 0.3 < share(found) < 0.95


def test_original_formats(networks):
    model, images = networks('resnet20_projection', 'ends')
    network = lower_network(model, SHAPE, block_format='original')
    shifts = {operation.name: operation.options['shift'] for operation in network.operations
              if operation.name in network.quantizers}
    assert shifts['blocks.2.output1'] == 22 and shifts['blocks.2.output'] == 22
    found = compare_codes(model, network, images)
    assert max(difference.largest for difference in found.values()) <= 1 and share(found) > 0.998


def test_fixed_point_of_16_bits_collapses_and_a_mantissa_of_16_does_not(networks):
    model, images = networks('resnet20_projection')

    def multipliers(network):
        return [operation.arrays['multiplier0'].abs().max() for operation in network.operations
                if operation.name in network.quantizers and operation.name.startswith('blocks.')]

    rough = lower_network(model, SHAPE, block_format='16,8', saturate=True)
    assert max(multipliers(rough)) <= 3 and share(compare_codes(model, rough, images)) < 0.5
    dead = lower_network(model, SHAPE, block_format='16,10', saturate=True)
    assert multipliers(dead).count(0) >= 8
    codes = dead.codes(images)['blocks.5.output1']
    assert codes.equal(codes[:1].expand_as(codes))  # whatever the image
    good = lower_network(model, SHAPE, block_format='mantissa:16')
    assert min(multipliers(good)) >= 2**14 and share(compare_codes(model, good, images)) > 0.999


def test_constants_that_do_not_fit_name_layer_value_and_format(networks, caplog):
    model, images = networks('toynet')
    with pytest.raises(ValueError, match=r'blocks\.\d\.\w+: offset -?\d+\S* does not fit <24,4>.*saturate') as caught:
        lower_network(model, SHAPE, block_format='24,4')
    assert abs(caught.value.__cause__.value) > 8
    assert not caplog.records
    network = lower_network(model, SHAPE, block_format='24,4', saturate=True)
    assert re.search(r'blocks\.0\.depthwise_output: \d+ of 8 offsets do not fit <24,4> and were clipped', caplog.text)
    assert network(images).shape == (16, 4)


@pytest.mark.parametrize('kind', [8, 'ends'])
@pytest.mark.parametrize('name', NAMES)
def test_floating_point_gives_the_same_integers(networks, name, kind):
    model, images = networks(name, kind)
    network = lower_network(model, SHAPE)
    assert network(images, arithmetic='float64', batch=7).equal(network(images))
    expected = network.codes(images)
    codes = network.codes(images, arithmetic='float64')
    assert all(codes[key].equal(expected[key]) for key in expected)
    if kind == 'ends':
        assert any(operation.bound > 2**53 for operation in network.operations)  # float weights stay in int64
    with pytest.raises(ValueError, match='arithmetic'):
        network(images, arithmetic='float16')


@pytest.mark.parametrize('name', NAMES)
def test_no_integer_leaves_its_bounds(networks, name):
    model, _ = networks(name, 'ends')
    network = lower_network(model, SHAPE)
    generator, largest = torch.Generator().manual_seed(0), {}
    images = 8.0 * (torch.randint(0, 2, (8, *SHAPE), generator=generator) * 2 - 1)  # as large as they may be

    def watch(operation, result):
        largest[operation.name] = result.abs().amax().item() / operation.bound

    network.forward(network.encode(images), watch=watch)
    assert max(largest.values()) <= 1
    stem = next(operation for operation in network.operations if operation.kind == 'conv')
    assert largest[stem.name] > 0.1 and stem.bound < 2**46  # tight enough to be of use


class NoFloat(TorchDispatchMode):
    """Refuses every operation on or into a tensor that is not of integers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.dtype not in (torch.int64, torch.int32, torch.bool):
                raise AssertionError(f'{function} works on {leaf.dtype}')
        return result


@pytest.mark.parametrize('name', NAMES)
def test_no_floating_point_number_between_image_and_logits(networks, name):
    model, images = networks(name, 'ends')
    network = lower_network(model, SHAPE)
    codes = network.encode(images[:2])
    with NoFloat():
        logits = network.forward(codes)
    assert logits.dtype == torch.int64
    with pytest.raises(AssertionError), NoFloat():
        network.forward(codes, arithmetic='float64')


@pytest.mark.parametrize('rescale', [True, False])
def test_dorefa_activations(rescale):
    model = ready('resnet20_projection', 4, 8, lambda bits: DoReFaActivationQuantizer(bits, rescale=rescale))
    network, images = lower_network(model, SHAPE, block_format='mantissa:24'), batch(16, seed=3)
    found = compare_codes(model, network, images)
    assert max(difference.largest for difference in found.values()) <= 1 and share(found) > 0.999
    assert all(int(codes.min()) >= 0 for codes in network.codes(images).values())
    with torch.no_grad():
        assert (network(images) * network.scale - model(images)).abs().max() < 0.2


@pytest.mark.parametrize(('weights', 'activations'), [('lsq', 'lsq'), ('dorefa', 'pact'), ('linear', 'mpact')])
def test_other_quantizers(weights, activations):
    model, n = small_network('toynet'), LENGTHS['toynet']
    quantize_blocks(model, [5] * n, [6] * n, Quantizers(weights, activations))
    settle(model, batch())
    network, images = lower_network(model, SHAPE, block_format='mantissa:24'), batch(16, seed=3)
    found = compare_codes(model, network, images)
    assert max(difference.largest for difference in found.values()) <= 1 and share(found) > 0.9998
    assert same_classes(model, network, images) > 0.99


def test_one_bit_activations_are_signs():
    model = ready('toynet', 8, 1, lambda bits: PACTActivationQuantizer(bits, signed=True))
    network, images = lower_network(model, SHAPE, block_format='mantissa:24'), batch(8, seed=3)
    found = compare_codes(model, network, images)
    assert share(found) > 0.999
    assert all(set(codes.unique().tolist()) <= {-1, 1} for codes in network.codes(images).values())


def test_a_file_gives_the_same_network(networks, tmp_path):
    model, images = networks('mobilenetv2_cifar', 'ends')
    network = lower_network(model, SHAPE)
    network.save(tmp_path / 'net.npz')
    again = IntegerNetwork.load(tmp_path / 'net.npz')
    assert again(images).equal(network(images)) and again.scale == network.scale
    assert again.quantizers == network.quantizers and again.operations[0].options == network.operations[0].options
    codes = again.codes(images)
    assert all(expected.equal(codes[name]) for name, expected in network.codes(images).items())
    assert [path.name for path in tmp_path.iterdir()] == ['net.npz']
    with np.load(tmp_path / 'net.npz') as file:
        assert {str(file[key].dtype) for key in file if key.endswith('expand.conv.weight')} == {'int8'}


def test_broken_files_are_refused(networks, tmp_path):
    network = lower_network(networks('toynet')[0], SHAPE)
    path = tmp_path / 'net.npz'
    network.save(path)
    whole = path.read_bytes()
    for content in (whole[:len(whole) // 2], b'', b'no file of ours', whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'net\.npz .*(cannot be read|not a complete)'):
            IntegerNetwork.load(path)
    np.savez(path, program=np.arange(3, dtype=np.uint8), other=np.array([None]))
    with pytest.raises(ValueError, match='not a complete .npy file'):
        IntegerNetwork.load(path)
    np.savez(path, weights=np.arange(3))
    with pytest.raises(ValueError, match='cannot be read as an integer network'):
        IntegerNetwork.load(path)
    with pytest.raises(FileNotFoundError, match='does not exist'):
        IntegerNetwork.load(tmp_path / 'none.npz')


def test_a_program_that_was_changed_is_refused(networks, tmp_path):
    """Under the digest any; in a file of before, which has none, what no lowering gives or what cannot be computed."""
    path = tmp_path / 'net.npz'
    lower_network(networks('toynet')[0], SHAPE).save(path)
    with np.load(path) as file:
        held = dict(file)
    program, weights = json.loads(bytes(held['program'])), next(name for name in held if name.endswith('weight'))

    def write(changes, sealed):
        text = np.frombuffer(json.dumps({**program, **changes.get('program', {})}).encode(), dtype=np.uint8)
        arrays = {**held, **{name: array for name, array in changes.items() if name != 'program'}, 'program': text}
        np.savez(path, **{name: array for name, array in arrays.items() if sealed or name != 'digest'})

    def operation(**changes):
        return {'program': {'operations': [{**program['operations'][0], **changes}, *program['operations'][1:]]}}

    write({weights: held[weights] + 1}, sealed=True)
    with pytest.raises(ValueError, match='its digest is of other values'):
        IntegerNetwork.load(path)
    write({}, sealed=False)
    assert IntegerNetwork.load(path)(batch(1)).dtype == torch.int64
    for change in (
            {'program': {'scale': 'NaN'}}, {'program': {'scale': -1}}, {'program': {'input_shape': [3, 8]}},
            {'program': {'input_shape': [3, 10**9, 10**9]}}, {'program': {'output': 10**6}},
            {'program': {'fraction': -1}}, {'program': {'operations': 3}}, {'program': {'quantizers': []}},
            operation(kind='exec'), operation(bound='x'), operation(inputs=[99]),
            operation(options={'stride': 'x'}), operation(arrays={'weight': 'none'}),
            {weights: held[weights].astype(float)}, {weights: held[weights][:, :1]}, {weights: np.array('x')}):
        write(change, sealed=False)
        with pytest.raises(ValueError, match='cannot be read as an integer network'):
            IntegerNetwork.load(path)


def test_the_header_holds_all_integers_and_compiles(networks, tmp_path):
    network = lower_network(networks('toynet', 'ends')[0], SHAPE)
    path = tmp_path / 'net.h'
    network.write_header(path)
    text = path.read_text()
    arrays = dict(re.findall(r'static const int\d+_t (\w+)\[\d+\] = \{ /\*.*?\*/\n(.*?)\};', text, re.S))
    plain = {name: [int(value) for value in re.sub(r'INT64_C\((.*?)\)', r'\1', body).split(',')]
             for name, body in arrays.items()}
    assert len(plain) == sum(len(operation.arrays) for operation in network.operations)
    for i, operation in enumerate(network.operations):
        for key, array in operation.arrays.items():
            assert plain[f'op{i}_{re.sub(r"[^a-z0-9A-Z]", "_", operation.name)}_{key}'] == array.flatten().tolist()
    assert 'int8_t' in text and '_SHIFT ' in text
    compiler = shutil.which('gcc') or shutil.which('cc')
    if compiler is None:
        pytest.skip('no C compiler')
    command = [compiler, '-fsyntax-only', '-Wall', '-Wextra', '-Werror', '-Wno-unused-const-variable', '-x', 'c']
    subprocess.run([*command, path], check=True)


def test_images_that_cannot_be_encoded(networks):
    network = lower_network(networks('toynet')[0], SHAPE)
    images = batch(4)
    assert (network.encode(images).double() / 2**20 - images).abs().max() <= 2**-21
    for bad in (images[:, :2], images[0], images[:, :, :8], images[:0]):
        with pytest.raises(ValueError, match='images have shape'):
            network(bad) if len(bad) else network.encode(bad)
    for value in (8.1, float('nan'), float('-inf')):
        images[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match='images reach'):
            network(images)


def test_comparing_with_another_network_is_refused(networks):
    (model, images), (other, _) = networks('toynet'), networks('toynet', 'ends')
    with pytest.raises(ValueError, match='differ in their quantizers'):
        compare_codes(other, lower_network(model, SHAPE), images)
    codes = fake_quantized_codes(model, images)
    assert 'blocks.3.output' in codes and not any('weight' in name for name in codes)


@pytest.mark.parametrize('grids', [Grids('affine'), Grids('symmetric', 'channel'), Grids('affine', 'channel')])
def test_zero_points_and_scales_per_channel(grids):
    """With padding and pooling between: a zero point must not come into the border. Operands stay as wide as asked."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=2, groups=8), nn.BatchNorm2d(8),
        nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.mul_(torch.linspace(0.2, 2, 8).view(-1, 1, 1, 1))
        model[1].bias.fill_(1.5)  # far from symmetric
        model[3].bias.fill_(-1.0)
        model.train()(batch(32))
    model = convert_to_quantized(model.eval(), batch(2))
    layers = quantized_layers(model)
    grids.use(layers.values())
    LinearQuantization(model, [[4, 4]] * len(layers), batch(), method='mse')
    zeros = [layer.input_quantizer.zero_point() for layer in layers.values()]
    assert (grids.activation_grid == 'affine') == any(zeros)
    network, images = lower_network(model, SHAPE), batch(16, seed=7)
    found = compare_codes(model, network, images)
    assert len(found) == 5 and max(difference.largest for difference in found.values()) <= 1
    assert share(found) > 0.999 and same_classes(model, network, images) == 1
    assert {operation.operand_bits for operation in network.operations if operation.operand_bits} == {(4, 4)}
    notes = [operation.note for operation in network.operations if 'stored as code' in operation.note]
    assert len(notes) == sum(map(bool, zeros))
    operands, _ = find_operands(model, images)
    for name, operand in operands.items():  # and as products of codes that are never negative
        x = {}
        hook = layers[name].register_forward_hook(lambda layer, args, y, x=x: x.update(x=args[0], y=y))
        with torch.no_grad():
            model(images)
        hook.remove()
        codes = operand.grid.codes(layers[name].input_quantizer(x['x']).detach())
        found = operand.finish(operand.dot_products(codes), codes).float()
        torch.testing.assert_close(found, x['y'], atol=1e-4, rtol=1e-4)
    assert len(operands) == 5
