"""Candidates and pins by name: what a layer may have, and what is said where nothing is named."""

import pytest

from lib.env.layer_choices import texts_of
from lib.env.space import Space
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from lib.simulator.inventory import Inventory
from lib.simulator.layer import LayerRecord

NAMES = ('stem', 'blocks.0.qkv', 'blocks.0.proj', 'blocks.1.qkv', 'head')


def space_of(linear, ratio=1.0, **asked):
    layers = [LayerRecord(name, 'linear', 4, 4, (1, 1), (1, 1), 1, 1, 1, 1, 1, 16) for name in NAMES]
    return Space.of(Inventory(layers, linear=linear), [Constraint.of_ratio(model_size([16] * 5), ratio)], **asked)


@pytest.mark.parametrize(('linear', 'asked', 'expected'), [
    (False, {}, ['1..8'] * 5),
    (True, {}, ['8', '1..8', '1..8', '1..8', '8']),
    (False, {'min_bit': 2, 'candidates': ['*.qkv=4,8'], 'pins': ['head=8']}, ['2..8', '4,8', '2..8', '4,8', '8']),
    (False, {'candidates': '2,4,8', 'pins': {'stem': 8, 'head': 6}}, ['8', '2,4,8', '2,4,8', '2,4,8', '6']),
    (False, {'candidates': [2, 4, 8]}, ['2,4,8'] * 5),
    (True, {'candidates': ['2,4,8', '*=4,8/8', 'head=4,8']}, ['8', '4,8/8', '4,8/8', '4,8/8', '4,8']),
    (True, {'candidates': ['8,4', '*.proj=2,8', 'blocks.*=4,8/-1']}, ['8', '4,8', '4,8', '4,8', '8']),
    (True, {'candidates': '4,8', 'pins': ['*.qkv=4,4', 'blocks.1.qkv=5,-1', 'stem=6,7']},
     ['6/7', '4', '4,8', '5', '8']),
])
def test_what_each_layer_may_have(linear, asked, expected):
    assert [str(bits) for bits in space_of(linear, **asked).layer_bits] == expected


def test_the_ends_of_the_linear_flow_and_a_pin_that_wins():
    assert space_of(True).fixed == {0: [8, -1], 4: [8, 8]}
    assert space_of(True, pins=['stem=8,8', '*d=4,8']).fixed == {0: [8, 8], 4: [4, 8]}
    assert space_of(True, candidates=['*k*=4,8/-1']).choices(1) == [[4, -1], [8, -1]]
    assert space_of(True, candidates=['*k*=4,8/-1', '4,8']).asked == {'candidates': ['*k*=4,8/-1', '4,8']}
    assert texts_of({'*.qkv': (4, 8), 'head': 8}) == ['*.qkv=4,8', 'head=8'] and texts_of(()) == texts_of(None) == []


@pytest.mark.parametrize(('linear', 'asked', 'said'), [
    (False, {'candidates': ['*.qvk=4,8']}, r'candidates \*.qvk=4,8: no layer .* similar ones are blocks.0.qkv'),
    (False, {'pins': ['haed=8']}, 'pin haed=8: no layer .* similar ones are head'),
    (False, {'pins': ['*xyz*=8']}, 'pin .xyz.=8: no layer of the strategy has this name; it has stem, blocks.0.qkv'),
    (False, {'pins': ['head=8,8']}, 'pin .head=8,8.: 2 numbers; expected NAME=W with weight bits in 1..8'),
    (True, {'pins': ['head=8']}, 'pin .head=8.: 1 numbers; expected NAME=W,A'),
    (True, {'pins': ['head=8,0']}, 'bits of the inputs are 0, expected some of 1..8, or -1 alone'),
    (True, {'pins': ['head=-1,8']}, 'bits of the weights are -1, expected some of 1..8'),
    (True, {'pins': ['8,8']}, 'pin .8,8.: no name'),
    (False, {'candidates': ['2,x']}, "candidates '2,x': '2,x' are no whole numbers separated by commas; expected"),
    (False, {'candidates': ['2,9']}, 'bits of the weights are 2,9, expected some of 1..8'),
    (False, {'candidates': ['']}, 'no whole numbers'),
    (False, {'candidates': ['=4,8']}, 'no name before the ='),
    (False, {'candidates': ['4,4']}, 'one is given twice'),
    (False, {'candidates': ['4,8/8']}, 'no activation bits are searched here'),
    (True, {'candidates': ['4,8/-1,8']}, 'or -1 alone, which leaves the input alone'),
    (True, {'candidates': ['*e*d=4,8']}, r'\*e\*d=4,8: the first and the last layer have bits of their own'),
    (False, {'min_bit': 2, 'candidates': [4, 8]}, 'candidates 4,8 take the place of the range min_bit 2 .. max_bit 8'),
    (False, {'candidates': [4, 8], 'ratio': 0.1}, 'cheapest strategy of 4,8 bits costs 320 .* possible is 0.12500'),
    (False, {'pins': {'*': 4}, 'ratio': 0.1}, 'cheapest strategy of 4 bits costs 320'),
    (False, {'pins': {'s*': 8, '*.*': 4}, 'ratio': 0.1}, '1..8 bits with 4 layers fixed .* possible is 0.13125'),
])
def test_what_cannot_be_asked_for(linear, asked, said):
    with pytest.raises(ValueError, match=said):
        space_of(linear, **asked)
