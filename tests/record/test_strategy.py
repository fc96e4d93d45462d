"""Strategies: parsed, checked, saved."""

import json

import pytest

from lib.record.strategy import check_strategy, find_strategy, save_strategy, uniform_strategy

NAMES = ['conv1', 'conv2', 'fc']
SINGLE, PAIRS = [8, 3, 5], [[8, -1], [3, 4], [8, 8]]


def test_uniform_pins_first_and_last_of_a_linear_strategy():
    assert uniform_strategy(3, 4) == [4, 4, 4]
    assert uniform_strategy(4, 5, linear=True) == [[8, -1], [5, 5], [5, 5], [8, 8]]


@pytest.mark.parametrize(('strategy', 'linear', 'words'), [
    ([4, 4], False, ['2 entries', '3 quantizable layers']),
    ([4, 4, 4, 4], False, ['4 entries']),
    ([4, 9, 4], False, ['conv2', '9', '1 to 8']),
    ([4, 0, 4], False, ['conv2', '0']),
    ([4, 4.0, 4], False, ['conv2']),
    ([4, True, 4], False, ['conv2']),
    ([[8, -1], [4, 4], [8, 8]], False, ['pairs', '--linear_quantization']),
    ([4, 4, 4], True, ['K-means', 'pairs']),
    ([[8, -1], [4, 4, 4], [8, 8]], True, ['conv2']),
    ([[8, -1], [4, 0], [8, 8]], True, ['conv2', 'activation']),
    ([[-1, 8], [4, 4], [8, 8]], True, ['conv1', 'weight bits']),
    ('444', False, ['no list']),
    ({'a': 1}, False, ['no list']),
    ([], False, ['no list']),
])
def test_bad_strategies_are_refused_by_name(strategy, linear, words):
    with pytest.raises(ValueError, match='.*'.join(words)):
        check_strategy(strategy, NAMES, linear=linear)


def test_strategy_of_another_network_names_the_first_difference():
    with pytest.raises(ValueError, match='2 entries, net has 3 quantizable layers; first difference at entry 1, fc'):
        check_strategy([4, 4], NAMES, linear=False, names_in_file=['conv1', 'fc'], network='net')
    with pytest.raises(ValueError, match='entry 2, fc'):
        check_strategy([4, 4], NAMES, linear=False, names_in_file=['conv1', 'conv2'], network='net')


def found(text, linear=False, **options):
    return find_strategy(str(text), NAMES, linear=linear, published={'net': SINGLE, 'qnet': tuple(map(tuple, PAIRS))},
                         **options)


def test_what_is_saved_is_read_back(tmp_path):
    save_strategy(tmp_path, PAIRS, NAMES, accuracy=90.0)
    assert json.loads((tmp_path / 'strategy.txt').read_text(encoding='utf-8')) == PAIRS  # the line to paste
    for name in ('strategy.json', 'strategy.txt'):
        assert found(tmp_path / name, linear=True) == PAIRS


@pytest.mark.parametrize(('text', 'strategy'), [
    ('net', SINGLE), ('qnet', PAIRS), (' [8, 3, 5] ', SINGLE), ('[8,3,5]', SINGLE),
    ('[\n    8, 3,\n    5,\n],', SINGLE), ('(8, 3, 5)', SINGLE), ('[(8, -1), (3, 4), (8, 8,),]', PAIRS),
    (json.dumps(PAIRS), PAIRS), ('\ufeff[8, 3, 5]', SINGLE), ('uniform:4', [4, 4, 4]),
])
def test_every_form_is_read_from_a_text_and_from_a_file(tmp_path, text, strategy):
    """As JSON or Python write it, with a byte-order mark and with line ends of Windows."""
    assert found(text, either=True) == strategy
    if '[' in text or '(' in text:
        for mark in ('', '\ufeff'):
            (tmp_path / 'list.txt').write_text(mark + text.lstrip('\ufeff').replace('\n', '\r\n'), encoding='utf-8')
            assert found(tmp_path / 'list.txt', either=True) == strategy


def test_a_list_longer_than_a_file_name_may_be():
    """HAQ's own has 55 layers, others have more; 4096 characters are the longest path of Linux."""
    for count in (100, 5000):
        names, bits = [f'layer{i}' for i in range(count)], [i % 8 + 1 for i in range(count)]
        assert find_strategy(json.dumps(bits), names, linear=False, published={}) == bits
    with pytest.raises(FileNotFoundError, match='no such file; expected a list'):
        found('x' * 5000)


def test_what_is_expected_decides_about_uniform_bits_and_about_the_layers_with_an_entry():
    names = {False: NAMES, True: NAMES[:2]}
    for text, linear, strategy in (('uniform:3', False, [3, 3, 3]), ('uniform:3', True, [[8, -1], [8, 8]]),
                                   ('[8, 3, 5]', True, SINGLE), ('[[8, -1], [2, 7]]', False, [[8, -1], [2, 7]])):
        assert find_strategy(text, names.get, linear=linear, either=True, published={}) == strategy
    with pytest.raises(ValueError, match='net has no layer'):
        find_strategy('uniform:3', [], linear=True, published={}, network='net')


DEEP = '[' * 100000


def refused(text, words):
    """Fails unless the text is refused in one line with these words, which does not repeat all of it."""
    with pytest.raises((ValueError, OSError), match=words) as error:
        found(text)
    assert '\n' not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(('text', 'words'), [
    ('uniform:9', 'weight bits 9: expected a whole number from 1 to 8'), ('uniform:x', 'expected uniform:K'),
    ('uniform:\u00b2', 'expected uniform:K'), ('uniform:' + '9' * 5000, 'expected uniform:K'),
    ('[1, 2', 'no JSON.*expected a list of bits'), ('[' + '9' * 5000 + ']', 'expected a list of bits'),
    (DEEP, 'nested too deeply'), ('[NaN, 1, 2]', 'NaN'), ('[[[[[1]]]], 1, 2]', 'holds pairs'),
    ('', 'no such file; expected a list'), ('no/such/file.json', r'no such file.*a name in STRATEGIES.*\(net, qnet\)'),
], ids=range(11))
def test_texts_that_are_no_strategy_say_what_is_expected(text, words):
    refused(text, words)


@pytest.mark.parametrize(('content', 'words'), [
    ('{"seed": 1}', 'no entry "strategy"'), ('{"strategy": 6}', 'is no list: got 6'), ('4', 'is no list: got 4'),
    ('null', 'no list'), ('', 'no JSON'), ('{"strategy": {"layer_wbit": [8]}}', 'no list'), (DEEP, 'nested too deeply'),
    ('{"strategy": [8, 3, 5], "layers": 4}', '"layers" is 4'), ('{"strategy": [1], "strategy": [2]}', 'stands twice'),
    ('{"strategy": [8, 3, 5], "layers": [1, 2, 3]}', '"layers" is'), ('\xff\xfe[\x008\x00]\x00', 'no UTF-8 text'),
], ids=range(11))
def test_files_that_hold_no_strategy_say_what_is_expected(tmp_path, content, words):
    (tmp_path / 'given.json').write_bytes(content.encode('latin1'))
    refused(tmp_path / 'given.json', words)
    refused(tmp_path, 'is a folder')


def test_a_strategy_file_that_was_changed_is_refused_and_one_of_before_is_read(tmp_path):
    save_strategy(tmp_path, PAIRS, NAMES, accuracy=90.0)
    path = tmp_path / 'strategy.json'
    value = json.loads(path.read_text())
    value['strategy'][0], value['strategy'][1] = value['strategy'][1], value['strategy'][0]
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match='strategy.json is damaged or was changed by hand.*give a strategy of your'):
        find_strategy(str(path), NAMES, linear=True, published={})
    del value['digest']
    path.write_text(json.dumps(value))
    assert find_strategy(str(path), NAMES, linear=True, published={}) == value['strategy']
