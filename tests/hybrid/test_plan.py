"""The configuration of hybrid quantization: what its keys take, and which tensors its block lists mean."""

import pytest
import yaml

import models
from lib.hybrid.config import SECTIONS, complete_config, default_config, override, read_config, with_strategy
from lib.hybrid.plan import make_plan, residual_blocks
from tests.meta import on_meta


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / 'config.yaml'
        path.write_text(text)
        return path
    return write


def network(name='hybrid_cnn', **options):
    with on_meta():
        return models.create_model(name, num_classes=10, **options)


def plan(name='hybrid_cnn', **sections):
    config = default_config()
    for section, keys in sections.items():
        config[section].update(keys)
    return make_plan(network(name), config, name)


def test_every_default_is_a_value_that_its_key_takes():
    for section, keys in SECTIONS.items():
        for name, key in keys.items():
            assert key.rule.accepts(key.default), f'{section}.{name}'


def test_a_file_changes_what_it_names_and_options_go_before_it(write):
    path = write('training: {lr: 1e-2, epochs: 7}\nqat:\n  w_bit_width: [3, [1, 2]]\n')
    config = read_config(path)
    for text in ('epochs=9', 'qat.a_bit_width=1', 'layers.layer1.0.conv1=[4, 4]'):
        override(config, text)
    assert config['training']['lr'] == 0.01 and config['training']['epochs'] == 9
    assert config['qat']['w_bit_width'] == [3, [1, 2]] and config['qat']['a_bit_width'] == 1
    assert config['layers'] == {'layer1.0.conv1': [4, 4]} and config['training']['batch_size'] == 128


@pytest.mark.parametrize(('text', 'message'), [
    ('qat: {w_bit_widht: 2}', 'no key w_bit_widht in section qat; did you mean w_bit_width'),
    ('training: {w_slope: 2}', 'w_slope belongs to the section qat, not to training'),
    ('qta: {w_slope: 2}', 'w_slope belongs to the section qat'),
    ('engine: {}', 'no section engine; known are environment, model'),
    ('qat: {w_bit_width: 9}', 'qat.w_bit_width is 9, expected a number of bits from 1 to 8'),
    ('qat: {q_a_range: [2, 0]}', r'qat.q_a_range is \[2, 0\], expected a range'),
    ('qat: {learn_a_upper: 1}', 'learn_a_upper is 1, expected true or false'),
    ('ptq: {post_quantize_w_layers: [-2]}', 'post_quantize_w_layers is .* from -1 on'),
    ('qat: {quantize_w_blocks: [1, 1]}', 'different block numbers'),
    ('training: {lr: fast}', "training.lr is 'fast', expected a number above 0"),
    ('[1, 2]', 'expected the sections'),
    ('qat: {a: ]', 'is no valid YAML'),
    ('qat: {w_slope: 2, w_slope: 3}', "'w_slope' stands twice"), ('qat: {}\nqat: {w_slope: 3}', "'qat' stands twice"),
    ('training: {epochs: 10000000000}', 'training.epochs is 10000000000, expected a whole number'),
    ('training: {lr: .nan}', 'training.lr is nan'), ('training: {lr: .inf}', 'training.lr is inf'),
    ('3', 'expected the sections'), ('false', 'expected the sections'), ('qat: [1]', 'expected the sections'),
])
def test_wrong_files_are_refused_by_name(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(write(text))


def test_the_configuration_of_a_checkpoint_is_checked_like_that_of_a_file():
    given = default_config()
    assert complete_config(given, 'a.pth') == given
    given['qat'].pop('fold_bn')  # a key of later versions
    assert complete_config(given, 'a.pth')['qat']['fold_bn'] is True
    for wrong in ({'training': {'lr': 'x'}}, {'training': [1]}, {'other': {}}, {'qat': {'x': 1}}, []):
        with pytest.raises(ValueError, match='a.pth: '):
            complete_config(wrong, 'a.pth')


def test_layers_whose_names_are_numbers_are_named_as_they_stand(write):
    """nn.Sequential's; YAML alone makes an int of 0, the float 1.1 of 1.10 and True of on."""
    text = "layers:\n  0: [8, -1]\n  1.10: [4, 4]\n  '2': [4, 4]\n  on: [8, 8]\n"
    config = read_config(write(text))
    override(config, 'layers.3=[2, 2]')
    assert list(config['layers']) == ['0', '1.10', '2', 'on', '3']


@pytest.mark.parametrize('text', ['epochs', 'epochs=', 'nothing=3', 'training.seed=x', '=3'])
def test_wrong_changes_are_refused(text):
    with pytest.raises(ValueError, match='expected SECTION.KEY|no key|epochs is|seed is'):
        override(default_config(), text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing.yaml: there is no such file; run/hybrid/config.yaml'):
        read_config(tmp_path / 'nothing.yaml')


@pytest.mark.parametrize(('name', 'blocks', 'convolutions', 'relus'), [
    ('hybrid_cnn', 9, [2, 2, 2, 3, 2, 2, 3, 2, 2], [2] * 9),
    ('resnet20', 9, [2] * 9, [2] * 9),
    ('resnet18', 8, [2, 2, 3, 2, 3, 2, 3, 2], [1] * 8),  # one ReLU module, called twice
    ('mobilenetv2', 17, [2] + [3] * 16, [1] + [2] * 16),
])
def test_blocks_are_the_residual_blocks(name, blocks, convolutions, relus):
    model = network(name)
    assert len(residual_blocks(model)) == blocks
    for key, group, counts in (('w', 'weights', convolutions), ('a', 'activations', relus)):
        config = default_config()
        for block in range(blocks):
            config['qat'][f'quantize_{key}_blocks'] = [block]
            assert len(getattr(make_plan(model, config, name), group)) == counts[block]
            config['qat'][f'quantize_{key}_blocks'] = []


def test_bits_ranges_and_slopes_go_to_their_parts():
    made = plan(qat={'quantize_w_blocks': [0, 3], 'w_bit_width': [3, [1, 2, 3]], 'w_slope': [1.0, 4.0],
                     'quantize_a_blocks': [2], 'quantize_a': [[True, False]], 'a_bit_width': [[2, 1]],
                     'q_a_range': [[[0, 3], [0, 4]]]})
    assert {name: (entry['bits'], entry['slope']) for name, entry in made.weights.items()} == {
        'blocks.0.conv1': (3, 1.0), 'blocks.0.conv2': (3, 1.0), 'blocks.3.conv1': (1, 4.0), 'blocks.3.conv2': (2, 4.0),
        'blocks.3.shortcut.conv': (3, 4.0)}
    assert [(name, entry['bits'], entry['upper']) for name, entry in made.activations.items()] == [
        ('blocks.2.relu1', 2, 3)]
    assert {entry['method'] for entry in made.weights.values()} == {'dsq'}


def test_minus_one_is_the_first_layer_and_the_classifier_stays_float():
    every = list(range(-1, 9))
    made = plan(ptq={'post_quantize_w': True, 'post_quantize_w_layers': every, 'post_w_bit_width': 8,
                     'post_quantize_a': True, 'post_quantize_a_layers': every, 'post_image_bit_width': 8})
    assert len(made.weights) == 21 and 'conv0' in made.weights and 'fc' not in made.weights
    assert len(made.activations) == 19 and 'relu0' in made.activations
    assert list(made.inputs) == ['conv0'] and made.inputs['conv0']['bits'] == 8


def test_a_switch_turns_the_quantization_after_training_off():
    assert not plan(ptq={'post_quantize_w_layers': [0], 'post_quantize_a_layers': [0]})


@pytest.mark.parametrize(('keys', 'message'), [
    ({'qat': {'quantize_w_blocks': [9]}}, r'no block 9, hybrid_cnn has 9 residual blocks, 0 \(blocks.0\) to 8'),
    ({'qat': {'quantize_a_blocks': [0, 1], 'a_bit_width': [2]}}, 'qat.a_bit_width has 1 entries, .* lists 2'),
    ({'qat': {'quantize_a_blocks': [0], 'a_bit_width': [[2, 2, 2]]}}, 'block 0 has 3 values, .* blocks.0.relu1'),
    ({'qat': {'quantize_a_blocks': [0], 'quantize_a': [[True]]}}, 'quantize_a: the entry of block 0 has 1 values'),
    ({'qat': {'quantize_w_blocks': [1]}, 'ptq': {'post_quantize_w': True, 'post_quantize_w_layers': [1]}},
     'blocks.1.conv1 is in qat.quantize_w_blocks and, as block 1, in ptq.post_quantize_w_layers'),
    ({'qat': {'quantize_a_blocks': [1]}, 'ptq': {'post_quantize_a': True, 'post_quantize_a_layers': [0, 1]}},
     'blocks.1.relu1 is in qat.quantize_a_blocks'),
    ({'qat': {'quantize_a_blocks': [0], 'a_bit_width': 1, 'q_a_range': [-1, 1]}}, '1 bit in the signed range'),
    ({'layers': {'conv0': [8, 8]}, 'qat': {'quantize_w_blocks': [0]}}, 'leave qat.quantize_w_blocks empty'),
    ({'layers': {'conv9': [8, 8]}}, 'hybrid_cnn has no layer conv9; it has conv0'),
    ({'layers': {'conv0': [8]}}, r'conv0 is \[8\]: expected \[weight bits, input bits\]'),
    ({'layers': {'conv0': [9, 8]}}, 'each 1 to 8, or -1'),
])
def test_what_does_not_fit_the_network_is_refused_by_name(keys, message):
    with pytest.raises(ValueError, match=message):
        plan(**keys)


def test_an_activation_that_blocks_share_belongs_to_all_of_them():
    model = network('resnet20')
    model.layer1[1].relu1 = model.layer1[0].relu1
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is model.layer1[0].relu1]
    config = default_config()
    config['qat'].update(quantize_a_blocks=[1], a_bit_width=2)
    found = make_plan(model, config).activations
    assert found[names[0]]['names'] == names and len(names) == 2 and names[0].startswith('layer1.0')
    config['qat'].update(quantize_a_blocks=[0, 1])
    assert make_plan(model, config).activations[names[0]]['bits'] == 2
    config['qat'].update(a_bit_width=[2, 3])
    with pytest.raises(ValueError, match='layer1.0.relu1 is in several of the blocks .* different settings'):
        make_plan(model, config)


def test_networks_without_blocks_say_what_to_do():
    with pytest.raises(ValueError, match='0 residual blocks: give the bits layer by layer'):
        plan('vgg11', qat={'quantize_w_blocks': [0]})
    with pytest.raises(ValueError, match='no ReLU outside of the blocks'):
        plan('toynet', ptq={'post_quantize_a': True, 'post_quantize_a_layers': [-1]})


def test_a_strategy_is_trained_below_4_bits_and_quantized_after_training_from_4():
    config = with_strategy(default_config(), [[8, -1], [3, 4], [4, 3]], ['conv0', 'blocks.0.conv1', 'fc'])
    made = plan(layers=config['layers'])
    assert {name: (entry['method'], entry['bits']) for name, entry in made.weights.items()} == {
        'conv0': ('aciq', 8), 'blocks.0.conv1': ('dsq', 3), 'fc': ('aciq', 4)}
    assert {name: (entry['method'], entry['bits']) for name, entry in made.inputs.items()} == {
        'blocks.0.conv1': ('aciq', 4), 'fc': ('dsq', 3)}
    assert with_strategy(config, [5, 6], ['a', 'b'])['layers'] == {'a': [5, -1], 'b': [6, -1]}


def test_the_example_is_complete_and_fits_its_network():
    path = 'run/hybrid/config.yaml'
    from pathlib import Path
    path = Path(__file__).resolve().parents[2] / path
    config = read_config(path)
    given = yaml.safe_load(path.read_text())
    assert set(given) | {'layers'} == set(SECTIONS)
    options = {name: config['model'][name] for name in ('blocks', 'kernel_size', 'bottleneck_type')}
    made = make_plan(network(**options), config, 'hybrid_cnn')
    assert len(made.weights) == 21 and len(made.activations) == 19
    assert [entry['bits'] for entry in made.of('dsq').activations.values()] == [2, 2, 2, 2, 2, 1]
