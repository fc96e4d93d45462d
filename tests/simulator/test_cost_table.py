import json
import random

import numpy as np
import pytest
import torch
import torchvision

from lib.simulator.cost import CostTable
from lib.simulator.counting import model_size
from lib.simulator.layer import LayerRecord
from lib.simulator.table_files import checksum, load_table, save_table
from tests.meta import on_meta
from tests.spaces import ranged

# Published for ResNet-50 at a ratio of 0.1: HAQ's README, and the other list in its finetune script.
README = '665555455455555535435434442543353253243253253425234234'
FINETUNE = '666655655655655555454454443444344344344344343323233234'


def table_of(layers=3, dtype=np.int64, seed=0, **changes):
    cells = np.random.default_rng(seed).integers(1, 1000, (layers, 8, 8)).astype(dtype)
    facts = dict(reference=cells[:, 7, 7].sum().item(), name='latency', unit='cycles')
    return CostTable(cells, **{**facts, 'layer_names': [f'block.{i}' for i in range(layers)], **changes})


def records(count=3):
    return [
        LayerRecord(f'block.{i}', 'conv', 4, 4, (3, 3), (1, 1), 1, 8, 8, 8, 8, num_weights=144) for i in range(count)
    ]


def test_cost_is_the_sum_of_the_cells():
    cost = table_of()
    expected = [cost.table[0, 7, 7], cost.table[1, 2, 4], cost.table[2, 4, 7]]
    strategy = [[8, -1], (3, 5), 5]  # the image, a pair, weights only
    assert cost.breakdown(strategy).tolist() == expected
    assert cost.cost(strategy) == sum(expected)
    assert type(cost.cost(strategy)) is int
    assert cost.ratio([[8, 8]] * 3) == 1
    assert cost.cost(np.array([[8, 8], [3, 5], [5, 8]])) == sum(expected)


def test_sums_of_integers_are_exact_and_sums_of_floats_correctly_rounded():
    big = np.full((3, 8, 8), 2**61 + 1, dtype=np.int64)
    assert CostTable(big, reference=1, name='n', unit='u').cost([8, 8, 8]) == 3 * 2**61 + 3  # above int64's range
    tiny = np.full((10, 8, 8), 0.1)
    assert CostTable(tiny, reference=1, name='n', unit='u').cost([8] * 10) == 1.0


def test_the_table_cannot_be_changed_from_outside():
    cells = np.ones((2, 8, 8), dtype=np.int32)
    cost = CostTable(cells, reference=2, name='n', unit='u')
    cells[:] = 5
    assert cost.cost([8, 8]) == 2
    assert cost.table.dtype == np.int64
    with pytest.raises(ValueError, match='read-only'):
        cost.table[0, 0, 0] = 7


@pytest.mark.parametrize(
    'strategy, message',
    [
        ([8, 8], r'2 entries.*3 layers.*layer 2 \(block\.2\)'),
        ([8, 8, 8, 8], r'4 entries.*3 layers.*layer 2 \(block\.2\)'),
        ([8, 0, 8], r'layer 1 \(block\.1\) is 0.*1\.\.8'),
        ([8, 9, 8], r'layer 1 \(block\.1\)'),
        ([8, [8, 0], 8], r'layer 1 \(block\.1\)'),
        ([8, [-1, 8], 8], r'layer 1 \(block\.1\)'),
        ([8, 8, [8, 8, 8]], r'layer 2 \(block\.2\).*expected an int'),
        ([8, 8, '8'], r'layer 2 \(block\.2\).*expected an int'),
        ([8, 8, 4.0], r'layer 2 \(block\.2\).*expected an int'),
        ([8, 8, [True, 8]], r'layer 2 \(block\.2\).*expected an int'),
        ('888', 'a list with one entry per layer'),
        (None, 'a list with one entry per layer'),
    ],
)
def test_wrong_strategies_name_the_layer(strategy, message):
    with pytest.raises(ValueError, match=message):
        table_of().cost(strategy)


@pytest.mark.parametrize(
    'cells, message',
    [
        (np.ones((3, 8, 7)), r'\(3, 8, 7\)'),
        (np.ones((0, 8, 8)), r'\(0, 8, 8\)'),
        (np.full((1, 8, 8), 'a'), 'expected integers or floats'),
        (np.where(np.arange(64).reshape(1, 8, 8) == 10, np.nan, 1), 'layer 0 costs nan at 2 weight and 3 activation'),
        (np.where(np.arange(64).reshape(1, 8, 8) == 10, -4, 1), 'layer 0 costs -4 at 2 weight and 3 activation'),
    ],
)
def test_impossible_tables_are_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        CostTable(cells, reference=1, name='latency', unit='cycles')


@pytest.mark.parametrize('reference', [0, -1, float('nan'), float('inf')])
def test_impossible_references_are_refused(reference):
    with pytest.raises(ValueError, match='reference'):
        table_of(reference=reference)


@pytest.mark.parametrize('pairs', [True, False])
def test_minimum_is_the_cheapest_of_all_strategies(pairs):
    cost = table_of(seed=4)
    choices = [[w, a] for w in range(2, 7) for a in range(2, 7)] if pairs else list(range(2, 7))
    lowest, strategy = cost.minimum([choices] * 3)
    assert lowest == cost.cost(strategy)
    assert all(entry in choices for entry in strategy)
    for layer in range(3):
        others = [strategy[:layer] + [entry] + strategy[layer + 1 :] for entry in choices]
        assert lowest == min(cost.cost(other) for other in others)


def test_minimum_keeps_fixed_layers_and_checks_the_range():
    cost = table_of()
    lowest, strategy = cost.minimum([each.entries() for each in ranged(3, fixed={0: [8, -1], 2: [8, 8]})])
    assert strategy[0] == [8, -1] and strategy[2] == [8, 8]
    assert lowest == cost.table[0, 7, 7] + cost.table[1].min() + cost.table[2, 7, 7]
    for bits in ((0, 8), (1, 9), (5, 4), (2.5, 8)):
        with pytest.raises(ValueError, match='no range within 1..8'):
            ranged(3, *bits)


def test_model_size_of_the_published_resnet50_strategies():
    with on_meta():
        model = torchvision.models.resnet50()
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    cost = model_size([layer.weight.numel() for layer in layers])
    assert cost.num_layers == 54 and cost.reference == 32 * 25_502_912 and cost.unit == 'bits'
    assert round(cost.ratio([int(bits) for bits in README]), 5) == 0.09958
    assert round(cost.ratio([int(bits) for bits in FINETUNE]), 5) == 0.09884
    for bits in range(1, 9):
        assert cost.ratio([bits] * 54) == bits / 32


def test_save_and_load_round_trip(tmp_path):
    cost = table_of(about={'network': 'net', 'dataset': 'digits', 'layers': [layer.to_dict() for layer in records()]})
    path = tmp_path / 'deep' / 'table.npy'
    save_table(path, cost)
    again = load_table(path, records())
    assert np.array_equal(again.table, cost.table) and again.table.dtype == np.int64
    assert (again.reference, again.name, again.unit) == (cost.reference, 'latency', 'cycles')
    assert again.layer_names == cost.layer_names
    about = json.loads(path.with_suffix('.json').read_text())
    assert (about['network'], about['dataset'], about['version']) == ('net', 'digits', 2)
    assert sorted(file.name for file in path.parent.iterdir()) == ['table.json', 'table.npy']


def test_a_loaded_table_saves_its_own_facts_not_stale_ones(tmp_path):
    save_table(tmp_path / 'a.npy', table_of(seed=1, about={'network': 'net'}))
    old = load_table(tmp_path / 'a.npy')
    save_table(tmp_path / 'b.npy', table_of(seed=2, about=old.about))
    assert np.array_equal(load_table(tmp_path / 'b.npy').table, table_of(seed=2).table)


def test_float_tables_keep_their_reference(tmp_path):
    cost = table_of(dtype=np.float64, reference=np.float64(12345.5), unit='mJ')
    save_table(tmp_path / 't.npy', cost)
    again = load_table(tmp_path / 't.npy', records())  # no layer records in this one: only their number is checked
    assert again.table.dtype == np.float64 and again.reference == 12345.5 and again.unit == 'mJ'


def test_a_bare_table_as_the_originals_is_priced_relative_to_8_bits(tmp_path):
    cells = table_of().table
    np.save(tmp_path / 't.npy', cells)
    cost = load_table(tmp_path / 't.npy', records())
    assert cost.reference == cells[:, 7, 7].sum()
    assert cost.layer_names == ['block.0', 'block.1', 'block.2']
    with pytest.raises(ValueError, match='3 layers, the network has 4'):
        load_table(tmp_path / 't.npy', records(4))


def change(index, **changes):
    layers = [layer.to_dict() for layer in records()]
    layers[index].update(changes)
    return [LayerRecord.from_dict(entries) for entries in layers]


@pytest.mark.parametrize(
    'layers, message',
    [
        (records(4), r'layer 3 \(block\.3\): only the network has it'),
        (records(2), r'layer 2 \(block\.2\): only the table has it'),
        (change(1, name='other'), r"layer 1 \(other\): name is 'block\.1' in the table and 'other' in the network"),
        (change(2, in_h=32), r'layer 2 \(block\.2\): in_h is 8 in the table and 32 in the network'),
    ],
)
def test_a_table_of_another_network_is_refused_by_name(tmp_path, layers, message):
    save_table(tmp_path / 't.npy', table_of(about={'layers': [layer.to_dict() for layer in records()]}))
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / 't.npy', layers)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / 't.npy'
    save_table(path, table_of())
    whole = path.read_bytes()
    for size in (0, 5, 90, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='not a complete .npy file'):
            load_table(path)
    np.save(path, table_of(seed=9).table)
    with pytest.raises(ValueError, match='not the table that the .json'):
        load_table(path)
    path.with_suffix('.json').write_text('{')
    with pytest.raises(ValueError, match='no JSON that can be read'):
        load_table(path)
    path.with_suffix('.json').write_text('{"version": 99}')
    with pytest.raises(ValueError, match='version 1'):
        load_table(path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='make_lookup_table'):
        load_table(tmp_path / 'none.npy')
    with pytest.raises(ValueError, match=r'\.npy file, got'):
        load_table(tmp_path / 'table.json')
    np.savez(tmp_path / 'archive.npz', np.ones((1, 8, 8)))
    (tmp_path / 'archive.npz').rename(tmp_path / 'archive.npy')
    with pytest.raises(ValueError, match='not a complete .npy file'):
        load_table(tmp_path / 'archive.npy')
    np.save(tmp_path / 'flat.npy', np.ones(64))
    with pytest.raises(ValueError, match=r'shape \(64,\)'):
        load_table(tmp_path / 'flat.npy')


def test_a_failed_write_leaves_the_old_files_alone(tmp_path):
    save_table(tmp_path / 't.npy', table_of())
    with pytest.raises(TypeError):
        save_table(tmp_path / 't.npy', table_of(seed=3, about={'made_by': object()}))  # not JSON
    assert np.array_equal(load_table(tmp_path / 't.npy').table, table_of().table)
    assert sorted(file.name for file in tmp_path.iterdir()) == ['t.json', 't.npy']


@pytest.mark.parametrize('cell', [2**63, 2**80])
def test_cells_beyond_64_bits_are_refused_and_do_not_wrap(cell):
    with pytest.raises(ValueError, match='layer 0 costs 9223372036854775808|whole numbers beyond 64 bits'):
        CostTable([[[cell] * 8] * 8] * 2, reference=1, name='n', unit='u')


# ---- digests


def layered(**options):
    return table_of(about={'layers': [layer.to_dict() for layer in records()], 'hardware': {'name': 'chip'}}, **options)


def version_1(path, cost):
    """Write a table as the program did before it had a digest of everything."""
    save_table(path, cost)
    about = json.loads(path.with_suffix('.json').read_text())
    del about['digest'], about['cells']
    about |= {'version': 1, 'sha256': checksum(cost.table)}
    path.with_suffix('.json').write_text(json.dumps(about))
    return about


def test_every_number_and_word_of_a_table_is_under_its_digest(tmp_path):
    path = tmp_path / 't.npy'
    save_table(path, layered())
    about = json.loads(path.with_suffix('.json').read_text())
    for change in ({'reference': about['reference'] * 1.5}, {'combine': 'max'}, {'name': 'other'}, {'unit': 'ms'},
                   {'layers': about['layers'][::-1]}, {'hardware': {}}, {'digest': None}, {'cells': 'x'}):
        path.with_suffix('.json').write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match='damaged|was changed|not the table'):
            load_table(path)
    del about['digest']
    path.with_suffix('.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match='lost its digest'):
        load_table(path)


@pytest.mark.parametrize('suffix', ['.npy', '.json'])
def test_no_flipped_bit_of_a_table_passes_as_another_table(tmp_path, suffix):
    """Among them that of the header which makes floats of the same bytes."""
    path, draw, cost = tmp_path / 't.npy', random.Random(0), layered()
    save_table(path, cost)
    whole = path.with_suffix(suffix).read_bytes()
    places = [(i, b) for i in range(len(whole)) for b in range(8)]
    for index, bit in draw.sample(places, 400) + ([(i, b) for i, b in places if i < 128] if suffix == '.npy' else []):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << bit
        path.with_suffix(suffix).write_bytes(damaged)
        try:
            found = load_table(path)
        except ValueError as error:
            assert '\n' not in str(error)
            continue
        assert np.array_equal(found.table, cost.table) and found.table.dtype == cost.table.dtype
        assert (found.reference, found.combine, found.name) == (cost.reference, cost.combine, cost.name)


def test_a_table_of_before_still_loads_and_is_checked_like_a_strangers(tmp_path):
    path, cost = tmp_path / 't.npy', layered()
    about = version_1(path, cost)
    again = load_table(path, records())
    assert np.array_equal(again.table, cost.table) and again.reference == cost.reference
    for change in ({'reference': about['reference'] * 1.5}, {'combine': 'max'}, {'combine': []}, {'reference': '1'},
                   {'reference': True}, {'reference': -1}, {'name': 3}, {'layers': {}}, {'layers': [3]},
                   {'layers': [{**about['layers'][0], 'in_h': '8'}, *about['layers'][1:]]},
                   {'layers': about['layers'][1:]}, {'sha256': 'x'}, {'hardware': 3}, {'version': 0}):
        path.with_suffix('.json').write_text(json.dumps({**about, **change}))
        with pytest.raises(ValueError, match=r'make a table for this network'):
            load_table(path)
