"""Strategies: parsed, checked, saved."""

import json

import pytest

from lib.utils.strategy import check_strategy, read_strategy, save_strategy, uniform_strategy

NAMES = ['conv1', 'conv2', 'fc']


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


def test_what_is_saved_is_read_back(tmp_path):
    strategy = [[8, -1], [3, 4], [8, 8]]
    save_strategy(tmp_path, strategy, NAMES, accuracy=90.0)
    assert read_strategy(tmp_path / 'strategy.json')[:2] == (strategy, NAMES)
    assert read_strategy(tmp_path / 'strategy.txt')[:2] == (strategy, None)
    assert json.loads((tmp_path / 'strategy.txt').read_text()) == strategy  # the line to paste
    assert read_strategy(' [[8, -1], [3, 4], [8, 8]]')[0] == strategy
    assert read_strategy('uniform:4')[0] == 4


@pytest.mark.parametrize('text', ['uniform:9', 'uniform:x', '[1, 2', 'no/such/file.json'])
def test_unreadable_strategies_say_what_is_expected(text):
    with pytest.raises(ValueError, match='expected'):
        read_strategy(text)


def test_a_json_without_strategy_is_refused(tmp_path):
    (tmp_path / 'args.json').write_text('{"seed": 1}')
    with pytest.raises(ValueError, match='no entry "strategy"'):
        read_strategy(tmp_path / 'args.json')
