"""Layers on dot-product engines: against the digital network, brute-force integer sums, and NumPy."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lib.engine import plots as engine_plots
from lib.engine.array import ArrayConfig
from lib.engine.calibration import calibrate_columns
from lib.engine.dot_product import make_engine
from lib.engine.network_run import (
    LayerEngine,
    SumErrors,
    batches_of,
    on_engine,
    predict,
    sample_codes,
)
from lib.engine.operand_files import collect_operands, operand_arrays, operand_path, read_measured, replay
from lib.engine.operand_search import find_operands
from lib.engine.operands import choose_layers
from lib.network.conversion import all_layers
from lib.quantize import (
    ACIQWeightQuantizer,
    DoReFaActivationQuantizer,
    DoReFaWeightQuantizer,
    LinearActivationQuantizer,
    LinearWeightQuantizer,
    LSQQuantizer,
    PACTActivationQuantizer,
    QConv2d,
    QLinear,
    Quantizer,
)
from lib.quantize.quantizer import Affine
from tests.integer.scenarios import batch, prepare, small_network

EXACT = {'ideal': (ArrayConfig(), 'ideal'), 'simulated': (ArrayConfig(adc_bits=0, rows=32, columns=16), 'simulated'),
         'offset': (ArrayConfig(adc_bits=0, mapping='offset', cell_bits=3, dac_bits=2), 'simulated')}


def engines_of(factory, samples=None):
    """Returns what `on_engine` makes engines with."""
    return partial(LayerEngine, factory=factory, samples=samples)


def watched(operands, images):
    """Returns the errors of layers by name, and what `on_engine` calls to add them up."""
    errors = {name: SumErrors(name, images) for name in operands}
    return errors, lambda operand, codes, sums: errors[operand.name].add(operand, codes, sums)


def single(layer, image, weight, activation):
    """Returns a network of one quantized layer in double precision, and images that its input quantizer clips."""
    torch.manual_seed(0)
    layer = layer.double()
    x = torch.randn(3, *image, dtype=torch.float64)
    layer.weight_quantizer, layer.input_quantizer = weight.double(), activation.double()
    layer.weight_quantizer.calibrate(layer.weight.detach())
    network = nn.Sequential(layer).eval()
    with torch.no_grad():
        network(x)
    return network, x


WEIGHTS = {
    'linear': lambda: LinearWeightQuantizer(4), 'one bit': lambda: LinearWeightQuantizer(1),
    'dorefa': lambda: DoReFaWeightQuantizer(2), 'lsq': lambda: LSQQuantizer(3),
    'channels': lambda: ACIQWeightQuantizer(4, method='aciq', per_channel=True, bit_alloc=True, bias_corr=True),
}
INPUTS = {
    'unsigned': lambda: PACTActivationQuantizer(4, alpha=1.5), 'signed': lambda: LinearActivationQuantizer(5),
    'lsq': lambda: LSQQuantizer(8, signed=True, per='features'),
    'not rescaled': lambda: DoReFaActivationQuantizer(3, factor=0.5, rescale=False),
}
LAYERS = {
    'plain': lambda: (QConv2d(4, 6, 3), (4, 7, 8)),
    'padded': lambda: (QConv2d(4, 6, 3, stride=2, padding=(1, 2)), (4, 7, 8)),
    'grouped': lambda: (QConv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 6, 6)),
    'depthwise': lambda: (QConv2d(4, 4, 5, padding='same', dilation=2, groups=4), (4, 9, 9)),
    'reflected': lambda: (QConv2d(4, 6, 3, padding=1, padding_mode='reflect'), (4, 6, 6)),
    'linear': lambda: (QLinear(9, 5), (9,)), 'tokens': lambda: (QLinear(9, 5, bias=False), (4, 9)),
}


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize(('weight', 'activation'), itertools.product(WEIGHTS, INPUTS))
def test_an_exact_engine_gives_what_the_digital_layer_gives(layer, weight, activation):
    network, x = single(*LAYERS[layer](), WEIGHTS[weight](), INPUTS[activation]())
    operands, left = find_operands(network, x)
    assert list(operands) == ['0'] and not left
    with torch.no_grad():
        expected = network(x)
        with on_engine(network, operands, engines_of(make_engine(*EXACT['ideal']))):
            found = network(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() > 0.1


class MidRise(Quantizer):
    """Levels at odd multiples of half a step: 0 is none of them."""

    def fake_quantize(self, x):
        affine = self.to_affine(x)
        return (affine.scale * (affine.codes - affine.zero_point)).to(x.dtype)

    def to_affine(self, x):
        step, top = torch.tensor(0.25, dtype=torch.float64), 2**self.bits - 1
        codes = (x.double() / step + top / 2).round().clamp(0, top).long()
        return Affine(codes, step, torch.tensor(top / 2, dtype=torch.float64), self.bits)


@pytest.mark.parametrize('layer', LAYERS)
def test_padding_without_a_code_is_corrected_at_the_borders(layer):
    network, x = single(*LAYERS[layer](), LSQQuantizer(3), MidRise(4))
    operands, _ = find_operands(network, x)
    assert operands['0'].grid.zero_point == 7.5
    with torch.no_grad(), on_engine(network, operands, engines_of(make_engine(*EXACT['simulated']))):
        found = network(x)
    torch.testing.assert_close(found, network(x), rtol=1e-9, atol=1e-9)


def test_one_signed_bit_with_padding_is_refused_by_name():
    network, x = single(*LAYERS['padded'](), LSQQuantizer(3), LinearActivationQuantizer(1, signed=True))
    operands, _ = find_operands(network, x)
    with pytest.raises(ValueError, match='layer 0 pads its input with zeros, for which 1 signed bit has no code'), \
            on_engine(network, operands, engines_of(make_engine(*EXACT['ideal']))):
        pass
    with pytest.raises(ValueError, match='layer 0 pads'):
        operand_arrays(operands['0'], torch.zeros(1, 4, 7, 8, dtype=torch.uint8))
    assert 'compute' not in vars(network[0])


@pytest.mark.parametrize('layer', ['plain', 'linear'])
def test_one_signed_bit_without_padding_runs(layer):
    network, x = single(*LAYERS[layer](), LSQQuantizer(3), LinearActivationQuantizer(1, signed=True))
    operands, _ = find_operands(network, x)
    with torch.no_grad(), on_engine(network, operands, engines_of(make_engine(*EXACT['simulated']))):
        torch.testing.assert_close(network(x), operands['0'].layer.__class__.forward(network[0], x))
    assert operands['0'].grid.zero_point == 0.5


# ---- whole networks

def prepared(name, bits=4):
    """Returns a small network with quantizers inside, in double precision, its operands, and images."""
    model, images = prepare(small_network(name), bits, bits).double().eval(), batch(4).double()
    return model, find_operands(model, images), images


@pytest.mark.parametrize('name', ['toynet', 'mobilenetv2_cifar', 'resnet20_projection'])
@pytest.mark.parametrize('engine', EXACT)
def test_a_network_on_exact_engines_gives_its_digital_logits(name, engine):
    model, (operands, left), images = prepared(name)
    state, plain = {key: value.clone() for key, value in model.state_dict().items()}, {**vars(model)}
    assert len(operands) > 8 and len(operands) + len(left) == len(all_layers(model))
    with torch.no_grad():
        expected = model(images)
        with on_engine(model, operands, engines_of(make_engine(*EXACT[engine]))) as engines:
            found = model(images)
        assert list(engines) == list(operands) and all(engines[name].num_arrays > 0 for name in engines)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        assert torch.equal(model(images), expected)
    assert vars(model).keys() == plain.keys() and all(torch.equal(state[key], value)
                                                      for key, value in model.state_dict().items())
    assert not any('compute' in vars(module) for module in model.modules())


def test_noise_on_the_engine_changes_the_logits_and_its_seed_fixes_them():
    model, (operands, _), images = prepared('toynet')
    found = []
    for seed in (1, 1, 2):
        make = engines_of(make_engine(ArrayConfig(programming_noise=0.05, read_noise=0.01, seed=seed)))
        with torch.no_grad(), on_engine(model, operands, make):
            found.append(model(images))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    with torch.no_grad():
        assert not torch.allclose(found[0], model(images), atol=1e-3)


def test_only_the_chosen_layers_are_on_the_engine():
    model, (operands, _), images = prepared('resnet20_projection')
    names, called = list(operands)[2:4], []

    def zeros(operand):
        return lambda codes: called.append(operand.name) or torch.zeros(operand.output_shape(codes))

    with torch.no_grad(), on_engine(model, {name: operands[name] for name in names}, zeros):
        model(images)
    assert called == names


def test_engines_of_another_network_are_refused():
    model, (operands, _), images = prepared('toynet')
    other, _, _ = prepared('toynet')
    with pytest.raises(ValueError, match='none of this network'), on_engine(other, operands, lambda _: None):
        pass


def test_a_layer_that_fails_leaves_the_network_as_it_was():
    model, (operands, _), images = prepared('toynet')
    with pytest.raises(ZeroDivisionError), on_engine(model, operands, lambda _: lambda codes: 1 / 0):
        model(images)
    assert not any('compute' in vars(module) for module in model.modules())


# ---- finding the grids

class Branches(nn.Module):
    """Every way from a quantizer to a layer that keeps the grid, and some that do not."""

    def __init__(self):
        super().__init__()

        def conv(n_in, bits=4, **options):
            return QConv2d(n_in, 4, 1, weight_quantizer=LSQQuantizer(bits), input_quantizer=Quantizer(), **options)
        self.quantizer, self.other = PACTActivationQuantizer(3, alpha=2.0), PACTActivationQuantizer(3, alpha=1.0)
        self.wide = PACTActivationQuantizer(16, alpha=2.0)
        self.direct, self.pooled, self.joined, self.averaged = conv(4), conv(4), conv(8), conv(4)
        self.changed, self.mixed, self.twice, self.float_image = conv(4), conv(8), conv(4), conv(4)
        self.sixteen, self.wide_input, self.unused = conv(4, 16), conv(4), conv(4)
        self.plain, self.pool, self.drop = nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Dropout()
        self.fc = QLinear(4 * 16, 3, weight_quantizer=LSQQuantizer(4), input_quantizer=Quantizer())

    def forward(self, x):
        q, p = self.quantizer(x), self.other(x)
        outs = [self.direct(q), self.joined(torch.cat([q, q.flip(3)], 1)), self.mixed(torch.cat([q, p], 1)),
                self.twice(q), self.twice(p), self.float_image(x), self.sixteen(q), self.wide_input(self.wide(x)),
                self.plain(q)]
        pooled = self.drop(self.pool(q))
        logits = self.fc(pooled.flatten(1)) + self.pooled(pooled).mean() + self.averaged(q.mean(3, True)).mean()
        q.mul_(2)
        return logits + sum(out.mean() for out in outs) + self.changed(q).mean()


def test_which_layers_can_run_and_why_others_cannot():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(2, 4, 8, 8)
    operands, left = find_operands(model, x)
    assert list(operands) == ['direct', 'pooled', 'joined', 'fc']
    no_grid = 'has an input that no quantizer put on a grid'
    assert left == {
        'averaged': no_grid, 'changed': no_grid, 'mixed': no_grid, 'float_image': no_grid,
        'twice': 'is called with inputs on different grids', 'plain': 'has float weights', 'unused': 'is never called',
        'sixteen': 'has weights of 16 bits, the engine takes 1 to 8',
        'wide_input': 'has an input of 16 bits, the engine takes 1 to 8'}
    assert all(operand.grid == (pytest.approx(2 / 7), 0, 3) for operand in operands.values())


def test_a_network_without_quantized_weights_is_refused():
    with pytest.raises(ValueError, match='none of the 1 convolutions and linear layers.*has quantized weights'):
        find_operands(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8))


def test_an_input_scale_per_channel_is_named():
    class PerChannel(MidRise):
        def to_affine(self, x):
            affine = super().to_affine(x)
            return affine._replace(scale=affine.scale * torch.ones(1, x.shape[1], 1, 1))

    network, x = single(*LAYERS['plain'](), LSQQuantizer(3), PerChannel(4))
    assert find_operands(network, x) == ({}, {'0': 'has an input with a scale per channel'})


def test_layers_are_chosen_by_name_pattern_and_index():
    model, (operands, left), _ = prepared('toynet')
    names = list(all_layers(model))
    left = {**left, 'stem.conv': 'has a reason'}
    operands = {name: operand for name, operand in operands.items() if name != 'stem.conv'}
    assert list(choose_layers('all', names, operands, left)) == [name for name in names if name in operands]
    assert list(choose_layers('fc, 1', names, operands, left)) == [names[1], 'fc']
    picked = choose_layers('blocks.*.depthwise', names, operands, left)
    assert list(picked) == [name for name in names if name.endswith('depthwise')]
    for text in ('blocks', '99', '-1', 'fc,'):
        with pytest.raises(ValueError, match=r'is no layer; the network has 0 stem.conv, 1 '):
            choose_layers(text, names, operands, left)
    with pytest.raises(ValueError, match='stem.conv has a reason, so no dot-product engine can compute it; those'):
        choose_layers('stem.*', names, operands, left)


# ---- operands in files

@pytest.mark.parametrize('layer', ['padded', 'grouped', 'linear', 'tokens'])
def test_collected_operands_are_those_of_a_convolution_written_out(layer):
    network, x = single(*LAYERS[layer](), LSQQuantizer(3), INPUTS['signed']())
    operand = find_operands(network, x)[0]['0']
    arrays = operand_arrays(operand, sample_codes(network, {'0': operand}, x)['0'])
    products = np.einsum('igk,gkn->ign', arrays['inputs'].astype(int), arrays['weights'].astype(int))
    np.testing.assert_array_equal(products.reshape(len(products), -1), arrays['sums'])
    values = arrays['x_scale'] * (arrays['inputs'] - arrays['x_zero_point'])
    weights = arrays['w_scale'] * (arrays['weights'] - arrays['w_zero_point'])
    y = np.einsum('igk,gkn->ign', values, weights).reshape(len(values), -1) + arrays.get('bias', 0)
    with torch.no_grad():
        expected = network(x)
    assert arrays['output_shape'] == tuple(expected.shape)
    expected = (expected.movedim(1, -1) if operand.is_conv else expected).flatten(0, -2)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-9, atol=1e-9)


def test_a_sample_of_patches_is_part_of_all_of_them(tmp_path):
    model, (operands, _), images = prepared('toynet')
    chosen = {name: operands[name] for name in list(operands)[:3]}
    everything, sample, again = (tmp_path / name for name in ('all', 'some', 'again'))
    paths = collect_operands(model, chosen, images, everything)
    assert [path.stem for path in paths] == list(chosen)
    collect_operands(model, chosen, images, sample, patches=50, seed=3)
    collect_operands(model, chosen, images, again, patches=50, seed=3)
    for name in chosen:
        with np.load(everything / f'{name}.npz') as whole, np.load(sample / f'{name}.npz') as part, \
                np.load(again / f'{name}.npz') as same:
            assert len(part['rows']) == 50 and len(whole['rows']) == len(whole['sums']) > 50
            for key in ('inputs', 'sums'):
                np.testing.assert_array_equal(part[key], whole[key][part['rows']])
                np.testing.assert_array_equal(part[key], same[key])


@pytest.mark.parametrize('name', ['stem.conv', 'blocks.0.expand', 'blocks.1.depthwise', 'fc'])
def test_replaying_measured_sums_goes_on_as_an_engine_with_these_errors(name, tmp_path):
    model, (operands, _), images = prepared('toynet')
    collect_operands(model, {name: operands[name]}, images, tmp_path)
    with np.load(tmp_path / f'{name}.npz') as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / f'{name}.npz', measured=1.1 * arrays['sums'] + 5, **arrays)
    measured = read_measured(tmp_path, operands)
    with torch.no_grad(), on_engine(model, {name: operands[name]},
                                    lambda operand: lambda codes: 1.1 * operand.dot_products(codes) + 5):
        expected = model(images)
    found = replay(model, operands, images, measured)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found, model(images).detach())
    with pytest.raises(ValueError, match=f'measurements of {name} are too few'):
        replay(model, operands, images, {name: measured[name][:-1]})
    with pytest.raises(ValueError, match='replay the images that they were collected on'):
        replay(model, operands, images[:2], measured)
    with pytest.raises(ValueError, match='expected one row a column of inputs'):
        replay(model, operands, images, {name: measured[name][:, 1:]})
    with pytest.raises(ValueError, match='measurements of x: no such layer'):
        replay(model, operands, images, {'x': measured[name]})


def test_files_without_measurements_are_refused(tmp_path):
    with pytest.raises(ValueError, match='no file <layer>.npz with an array "measured"'):
        read_measured(tmp_path, ['fc'])
    (tmp_path / 'fc.npz').write_text('no file of arrays')
    with pytest.raises(ValueError, match='cannot be read'):
        read_measured(tmp_path, ['fc'])


# ---- errors, predictions, engines

def test_errors_are_those_that_numpy_finds():
    network, x = single(*LAYERS['plain'](), LSQQuantizer(3), INPUTS['signed']())
    operand, errors = find_operands(network, x)[0]['0'], SumErrors('seed')
    codes = sample_codes(network, {'0': operand}, x)['0']
    exact = operand.dot_products(codes)
    measured = 1.05 * exact - 3 + torch.randn_like(exact)
    for part in range(3):
        errors.add(operand, codes[part:part + 1], measured[part:part + 1])
    s, m = exact.flatten().numpy(), measured.flatten().numpy()
    rmse = np.sqrt(np.mean((m - s) ** 2))
    summary = errors.summary()
    assert summary['count'] == s.size and (summary['lowest'], summary['highest']) == (s.min(), s.max())
    for name, value in {'rmse': rmse, 'bias': (m - s).mean(), 'relative_error': rmse / s.std(),
                        'correlation': np.corrcoef(s, m)[0, 1],
                        'effective_bits': np.log2((s.max() - s.min()) / (np.sqrt(12) * rmse))}.items():
        assert summary[name] == pytest.approx(value, rel=1e-9), name
    pairs = set(zip(s, m, strict=True))
    assert errors.pairs().shape[0] == 2 and set(zip(*errors.pairs().tolist(), strict=True)) <= pairs


def test_errors_without_error_or_without_data_are_none():
    network, x = single(*LAYERS['plain'](), LSQQuantizer(3), INPUTS['signed']())
    operand, errors = find_operands(network, x)[0]['0'], SumErrors('fc')
    assert errors.summary() == {'count': 0}
    codes = sample_codes(network, {'0': operand}, x)['0']
    errors.add(operand, codes, operand.dot_products(codes))
    assert errors.summary()['rmse'] == 0 and errors.summary()['effective_bits'] is None
    assert errors.summary()['correlation'] == pytest.approx(1)


def test_errors_are_counted_on_the_first_images_only():
    model, (operands, _), images = prepared('toynet')
    errors, watch = watched(operands, 3)
    with torch.no_grad(), on_engine(model, operands, engines_of(make_engine(ArrayConfig(adc_bits=4))), watch):
        for part in images.split(2):
            model(part)
    shape = operands['stem.conv'].output_shape(images[:3])
    assert errors['stem.conv'].summary()['count'] == np.prod(shape)
    assert errors['fc'].summary()['count'] == 3 * 4 and errors['fc'].summary()['rmse'] > 0


def test_batches_are_cut():
    loader = [(torch.arange(5.0), torch.arange(5)), (torch.arange(5.0, 8), torch.arange(5, 8))]
    found = list(batches_of(loader, 4))
    assert [part.tolist() for part, _ in found] == [[0, 1, 2, 3], [4], [5, 6, 7]]
    assert [labels.tolist() for _, labels in found] == [[0, 1, 2, 3], [4], [5, 6, 7]]


def test_predictions_and_their_progress():
    model, _, images = prepared('toynet')
    seen, labels = [], torch.arange(4)
    batches = batches_of([(images[:3], labels[:3])], 2)
    found, classes = predict(model.train(), batches, lambda *now: seen.append(len(now[0])))
    assert model.training and seen == [2, 3] and found.tolist() == [0, 1, 2]
    with torch.no_grad():
        assert torch.equal(classes, model.eval()(images).argmax(1)[:3])


def test_ranges_of_converters_are_calibrated_on_the_layer_s_inputs():
    model, (operands, _), images = prepared('toynet')
    rmse = {}
    for kind in ('max', 'calibrated'):
        factory, (errors, watch) = make_engine(ArrayConfig(adc_bits=5, adc_range=kind)), watched(operands, 4)
        make = engines_of(factory, sample_codes(model, operands, images))
        with torch.no_grad(), on_engine(model, operands, make, watch):
            model(images)
        rmse[kind] = errors['stem.conv'].summary()['rmse']
    assert 0 < rmse['calibrated'] < rmse['max']


def test_a_calibration_takes_the_converters_errors_away():
    model, (operands, _), images = prepared('resnet20_projection')
    config = ArrayConfig(gain_mismatch=0.05, offset_mismatch=0.01, adc_bits=12, adc_range='max')
    rmse = {}
    for calibration in (None, calibrate_columns(config)):
        errors, watch = watched(operands, 4)
        make = engines_of(make_engine(config, calibration=calibration))
        with torch.no_grad(), on_engine(model, operands, make, watch):
            model(images)
        rmse[calibration is None] = errors['blocks.1.conv2'].summary()['rmse']
    assert rmse[False] < rmse[True] / 5


def test_an_array_that_is_too_small_names_the_layer():
    _, (operands, _), _ = prepared('toynet')
    with pytest.raises(ValueError, match='layer stem.conv: an array of 8 rows'):
        LayerEngine(operands['stem.conv'], make_engine(ArrayConfig(rows=8)))


def test_figures_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_plots, 'PANELS', 2)
    pairs = {f'layer{i}': np.stack([np.arange(50), np.arange(50) + i]) for i in range(3)}
    for kind in ('scatter', 'histogram'):
        paths = engine_plots.plot_layers(pairs, kind, tmp_path / f'{kind}.png')
        assert [path.name for path in paths] == [f'{kind}.png', f'{kind}_2.png']
        assert all(path.stat().st_size for path in paths)
    engine_plots.plot_calibration(calibrate_columns(ArrayConfig(rows=8, columns=8)), tmp_path / 'calibration.png')
    points = [{'value': value, 'top1': 50.0, 'agreement': 60.0} for value in (4, 6)]
    engine_plots.plot_sweep('adc_bits', points, tmp_path / 'sweep.png', 70.0, 80.0)
    assert (tmp_path / 'calibration.png').stat().st_size and (tmp_path / 'sweep.png').stat().st_size
    with pytest.raises(ValueError, match='nothing to plot'):
        engine_plots.plot_sweep('adc_bits', [], tmp_path / 'none.png')


@pytest.mark.parametrize('name', ['/etc/evil', 'conv/1 a', 'a/../../b', 'conv%2F1', 'layer1.0.conv1'])
def test_the_operands_of_a_layer_stay_in_their_folder(name, tmp_path):
    """Whatever the user has called it; names with a dot alone keep theirs."""
    path = operand_path(tmp_path, name)
    assert path.resolve().parent == tmp_path.resolve()
    others = {operand_path(tmp_path, other) for other in (name, name.replace('/', '%2F'), name.replace('/', '_'))}
    assert len(others) == (3 if '/' in name else 1)
    np.savez(path, measured=np.ones((2, 3)))
    assert list(read_measured(tmp_path, [name])) == [name]
