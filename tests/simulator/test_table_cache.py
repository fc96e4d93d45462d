"""Tables are found by what they describe, kept where one may write, and refused when they were changed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lib.record.files import file_stem
from lib.simulator import table_cache
from lib.simulator.backends import PRESETS
from lib.simulator.hardware import make_table
from lib.simulator.layer import LayerRecord
from lib.simulator.table_cache import digest_of_about, digest_of_table, find_or_make, user_folder
from lib.simulator.table_files import load_table, save_table

EDGE = PRESETS['edge']


def layers(classes=4):
    def conv(name, cin, cout, size):
        return LayerRecord(name, 'conv', cin, cout, (3, 3), (1, 1), 1, size, size, size, size, cin * cout * 9)
    head = LayerRecord('head', 'linear', 8, classes, (1, 1), (1, 1), 1, 1, 1, 1, 1, 8 * classes)
    return [conv('stem', 3, 8, 8), conv('body', 8, 8, 8), head]


def find(folders, records, hardware=EDGE, metric='latency', stem='net_folder'):
    return find_or_make(stem, records, hardware, metric, folders, {'network': 'net'})


def test_tables_of_one_name_live_side_by_side(tmp_path):
    """Two image folders of 4 and 3 classes, two chips, two metrics: one name for all, no table in another's way."""
    wanted = [(layers(4), EDGE, 'latency'), (layers(3), EDGE, 'latency'), (layers(4), EDGE, 'energy'),
              (layers(4), replace(EDGE, depth=512), 'latency')]
    for _ in range(2):  # made, then found
        for records, hardware, metric in wanted:
            found, right = find([tmp_path], records, hardware, metric), make_table(records, hardware, metric)
            assert np.array_equal(found.table, right.table) and found.reference == right.reference
        assert len(list(tmp_path.glob('*.npy'))) == len(wanted)


def test_a_table_is_found_under_any_name_and_not_made_again(tmp_path, monkeypatch):
    save_table(tmp_path / 'as the user calls it.npy', make_table(layers(), EDGE))
    (tmp_path / 'noise.json').write_text('{"layers": 1')
    monkeypatch.setattr(table_cache, 'make_table', None)
    found = find([tmp_path], layers(), replace(EDGE, status='what one says of it'))
    assert np.array_equal(found.table, make_table(layers(), EDGE).table)


def test_a_bare_table_of_the_conventional_name_is_the_users_own(tmp_path):
    np.save(tmp_path / 'net_folder.npy', np.full((3, 8, 8), 7))
    assert find([tmp_path], layers()).cost([1, 1, 1]) == 21
    with pytest.raises(ValueError, match='net_folder.npy has 3 layers, the network has 2'):
        find([tmp_path], layers()[1:])


@pytest.mark.parametrize('damage', ['cells', 'description'])
def test_a_damaged_table_is_replaced_by_a_right_one_and_not_used(tmp_path, damage, caplog):
    right = find([tmp_path], layers())
    (path,) = tmp_path.glob('*.npy')
    if damage == 'cells':
        np.save(path, right.table * 2)
    else:
        about = path.with_suffix('.json')
        about.write_text(about.read_text().replace(f'"reference": {right.reference}', '"reference": 1'))
    again = find([tmp_path], layers())
    assert (again.reference, again.cost([4] * 3)) == (right.reference, right.cost([4] * 3))
    assert load_table(path, layers()).reference == right.reference  # mended on disk, too


def test_a_read_only_checkout_leads_to_the_next_folder_and_a_read_only_home_to_memory(tmp_path, caplog):
    (tmp_path / 'checkout').write_text('a file, in which no folder can be made')
    folders = [tmp_path / 'checkout' / 'tables', tmp_path / 'home' / 'tables']
    right = make_table(layers(), EDGE)
    assert np.array_equal(find(folders, layers()).table, right.table)
    assert len(list(folders[1].glob('*.npy'))) == 1
    assert np.array_equal(find(folders[:1], layers()).table, right.table)
    assert 'is not kept' in caplog.text and str(folders[0]) in caplog.text and '--output' in caplog.text


def test_the_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert user_folder() == tmp_path / 'haq' / 'lookup_tables'
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')  # the specification says: ignore it
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert user_folder() == tmp_path / 'home' / '.cache' / 'haq' / 'lookup_tables'


def test_a_saved_table_describes_what_it_was_asked_for(tmp_path):
    for hardware in (EDGE, replace(EDGE, clock_mhz=200.0), PRESETS['bitfusion'], PRESETS['t4']):
        save_table(tmp_path / 't.npy', make_table(layers(), hardware))
        about = json.loads((tmp_path / 't.json').read_text())
        assert digest_of_about(about) == digest_of_table(layers(), hardware, 'latency')
    assert digest_of_table(layers(), replace(EDGE, clock_mhz=200.0), 'latency') == \
        digest_of_table(layers(), replace(EDGE, clock_mhz=200), 'latency')


@pytest.mark.parametrize('part', ['x/../../evil', '..', '/etc/x', 'a\\b', 'new\nline', 'n' * 400])
def test_a_name_stays_in_its_folder(part, tmp_path):
    stem = file_stem(part, 'table')
    assert (tmp_path / f'{stem}.npy').resolve().parent == tmp_path.resolve() and len(stem) < 200
