"""Tables of the user's own numbers: what a CSV file means, and which line is wrong."""

import csv
import random

import numpy as np
import pytest

from lib.simulator.layer import LayerRecord
from lib.simulator.table_files import COLUMNS, load_table, read_csv_table, save_table

HEAD = 'layer,w_bit,a_bit,cost\n'
REST = 'block.1,*,*,2\nfc,*,*,3\n'  # the lines that HEAD + a good line for stem still lacks


def conv(name):
    return LayerRecord(name, 'conv', 4, 4, (3, 3), (1, 1), 1, 8, 8, 8, 8, num_weights=144)


LAYERS = [conv('stem'), conv('block.1'), conv('fc')]


@pytest.fixture
def read(tmp_path):
    """`read(text)`: the table of a file with this text (or these bytes)."""
    def run(text, layers=LAYERS, **options):
        (tmp_path / 'mine.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_csv_table(tmp_path / 'mine.csv', layers, **{'unit': 'ms', 'name': 'board', **options})
    return run


def write(path, lines):
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([COLUMNS, *lines])


def test_every_cell_given_comes_back(tmp_path):
    """In any order, by name or by number."""
    cells = np.random.default_rng(0).random((3, 8, 8))
    lines = [(random.Random(w).choice([LAYERS[layer].name, layer]), w, a, repr(float(cells[layer, w - 1, a - 1])))
             for layer in range(3) for w in range(1, 9) for a in range(1, 9)]
    random.Random(0).shuffle(lines)
    write(tmp_path / 'mine.csv', lines)
    table = read_csv_table(tmp_path / 'mine.csv', LAYERS, unit='mJ', name='board', about={'network': 'net'})
    assert np.array_equal(table.table, cells)
    assert (table.name, table.unit, table.layer_names) == ('board', 'mJ', ['stem', 'block.1', 'fc'])
    assert table.reference == cells[:, 7, 7].sum()
    assert table.about['network'] == 'net' and table.about['source'] == 'mine.csv'
    assert 'mJ of one layer' in table.meaning and 'mine.csv' in table.meaning
    save_table(tmp_path / 'mine.npy', table)
    again = load_table(tmp_path / 'mine.npy', LAYERS)
    assert np.array_equal(again.table, cells) and (again.unit, again.name) == ('mJ', 'board')
    with pytest.raises(ValueError, match='another network'):
        load_table(tmp_path / 'mine.npy', [conv('stem'), conv('block.2'), conv('fc')])


def test_a_star_stands_for_all_bits_without_a_line_of_their_own(read):
    cells = read(HEAD + 'stem,*,*,1\n1,8,8,64\n1,3,*,8\n1,*,5,7\n1,*,*,4\nfc,*,*,0\n').table
    assert (cells[0] == 1).all() and not cells[2].any()
    expected = np.full((8, 8), 4.0)
    expected[:, 4] = 7
    expected[2, :] = 8  # a line for the weight bits wins over one for the activation bits
    expected[7, 7] = 64
    assert np.array_equal(cells[1], expected)


def test_stars_in_one_column_make_a_whole_table(read):
    by_weight = read(HEAD + ''.join(f'{layer},{w},*,{w}\n' for layer in range(3) for w in range(1, 9))).table
    assert np.array_equal(by_weight[2], np.repeat(np.arange(1.0, 9)[:, None], 8, axis=1))


def test_order_columns_blanks_and_byte_order_marks_do_not_matter(read):
    expected = read(HEAD + 'stem,*,*,1.5\n' + REST).table
    for text in ('cost,layer,note,a_bit,w_bit\n1.5,stem,first,*,*\n2,block.1,,*,*\n3,fc,,*,*\n',
                 HEAD + '\n stem , * , * , 1.5 \n\n' + REST + '\n', '\ufeff' + HEAD + 'stem,*,*,1.5\n' + REST,
                 (HEAD + 'stem,*,*,1.5\n' + REST).replace('\n', '\r\n'), HEAD + 'stem,*,*,15e-1,\n' + REST,
                 HEAD + '"stem","*","*","1.5"\n' + REST):
        assert np.array_equal(read(text).table, expected), text


def test_a_name_comes_before_a_number(read):
    """The layers of an nn.Sequential are called 0, 2, 5: such a name is meant, not the number of the layer."""
    layers = [conv('0'), conv('2'), conv('5')]
    cells = read(HEAD + '0,*,*,1\n2,*,*,2\n5,*,*,3\n', layers).table
    assert cells[:, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match='line 4: 2 at .* is there twice'):
        read(HEAD + '0,*,*,1\n1,*,*,2\n2,*,*,3\n', layers)


@pytest.mark.parametrize(('line', 'words'), [
    ('conv9,8,8,1', ["unknown layer 'conv9'", 'stem ... fc', '0 to 2']), ('3,8,8,1', ["unknown layer '3'"]),
    ('-1,8,8,1', ["unknown layer '-1'"]), (',8,8,1', ["unknown layer ''"]), ('²,8,8,1', ["'²'"]),
    ('stem,0,8,1', ["bits '0'", '1..8 or *']), ('stem,8,9,1', ["bits '9'"]), ('stem,8.0,8,1', ["bits '8.0'"]),
    ('stem,,8,1', ["bits ''"]), ('stem,-1,8,1', ["bits '-1'"]), ('stem,²,8,1', ["bits '²'"]), ('stem,8', ["bits ''"]),
    ('stem,8,8,-1', ["cost '-1'", 'not negative']), ('stem,8,8,nan', ["cost 'nan'"]), ('stem,8,8,inf', ["cost 'inf'"]),
    ('stem,8,8,1e999', ["cost '1e999'"]), ('stem,8,8,fast', ["cost 'fast'"]), ('stem,8,8,', ["cost ''"]),
    ('stem,8,8,"1,5"', ["cost '1,5'"]), ('stem,8,8,1_0', ["cost '1_0'"]),
    ('stem,8,8,٣', ["cost '٣'"]),
    ('٢,8,8,1', ["unknown layer '٢'"]), ('stem,٨,8,1', ['bits']), (f'{"9" * 5000},8,8,1', ['unknown layer']),
    ('stem,8,8,0x10', ["cost '0x10'"]), ('stem,8,8,1,234', ['more cells than columns', "'234'"]),
    ('stem,*,*,5', ['stem at */* bits is there twice']), ('0,*,*,5', ['0 at */* bits is there twice']),
])
def test_a_wrong_line_is_named(read, line, words):
    with pytest.raises(ValueError) as error:
        read(HEAD + 'stem,*,*,1\n' + line + '\n' + REST)
    message = str(error.value)
    assert all(word in message for word in ('mine.csv, line 3', *words)), message


@pytest.mark.parametrize(('text', 'words'), [
    (HEAD + 'stem,*,*,1\nfc,*,*,1\n', ['no line for block.1 at 1 weight and 1 activation bits', '*']),
    (HEAD + 'stem,*,*,1\nblock.1,*,8,1\nblock.1,8,*,1\nfc,*,*,1\n', ['no line for block.1 at 1 weight']),
    (HEAD, ['no line for stem']),
    (HEAD + ''.join(f'{layer},{w},{a},1\n' for layer in range(3) for w in range(1, 9) for a in range(1, 9)
                    if (layer, w, a) != (2, 3, 5)), ['no line for fc at 3 weight and 5 activation bits']),
])
def test_a_missing_cell_is_named(read, text, words):
    with pytest.raises(ValueError) as error:
        read(text)
    assert all(word in str(error.value) for word in ('mine.csv', *words)), error.value


@pytest.mark.parametrize(('text', 'words'), [
    ('layer,w_bit,cost\nstem,*,1\n', ['no column a_bit', 'layer,w_bit,a_bit,cost']),
    ('', ['no column layer, w_bit, a_bit, cost']), (HEAD.replace(',', ';') + 'stem;*;*;1\n', ['no column']),
    (HEAD.upper(), ['no column']), ('stem,*,*,1\n' + REST, ['no column']),
    (b'\xff\xfe\x00\x01', ['cannot be read as a CSV']), (HEAD.encode() + b'stem,*,*,\xb5\n', ['no UTF-8']),
    (HEAD + f'stem,*,*,{"1" * 200_000}\n', ['cannot be read as CSV', 'limit']),
    (HEAD + 'stem,*,*,0\nblock.1,*,*,0\nfc,*,*,0\n', ['reference cost is 0']),
])
def test_a_file_that_is_no_table(read, text, words):
    with pytest.raises(ValueError) as error:
        read(text)
    assert all(word in str(error.value) for word in words), error.value
    assert '\n' not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.csv does not exist'):
        read_csv_table(tmp_path / 'none.csv', LAYERS, unit='ms', name='board')
