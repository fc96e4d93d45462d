"""Figures and lines about cost tables: what is drawn and written equals the table, for any number of layers."""

import re
from dataclasses import dataclass

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

from lib.record import plots
from lib.simulator import table_report
from lib.simulator.backends import PRESETS
from lib.simulator.cost import CostTable
from lib.simulator.hardware import Hardware, LayerCost, parameter, table_from_cells
from lib.simulator.layer import LayerRecord
from lib.simulator.table_report import summarize_cells, summarize_table


@dataclass(frozen=True)
class Toy(Hardware):
    """A machine of 100 MHz, 2 GB/s and 1 GMAC/s at 8/8 bits."""

    backend = 'toy'
    clock_mhz: float = parameter('clock', 'MHz', default=100)

    def layer_cost(self, layer, w_bit, a_bit):
        bound = 'memory' if layer.kind == 'linear' else 'compute'
        return LayerCost(1000 * w_bit * a_bit * layer.out_h, 2e6 * w_bit, bound, 8 * layer.macs * w_bit)

    def peak_macs(self, w_bit, a_bit):
        return 64e9 / (w_bit * a_bit)

    def memory_bandwidth(self):
        return 2e9


def conv(name, size=8, groups=1, calls=1):
    return LayerRecord(name, 'conv', 8, 8, (3, 3), (1, 1), groups, size, 8, size, 8, 8 * 8 // groups * 9, calls=calls)


def linear(name, calls=1):
    return LayerRecord(name, 'linear', 64, 10, (1, 1), (1, 1), 1, min(calls, 1), 1, min(calls, 1), 1, 640, calls=calls)


LAYERS = [conv('stem', 4), conv('twice', 8, calls=2), conv('dw', 4, groups=8), conv('same', 4), linear('fc')]


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are saved."""
    saved = []

    def collect(figure, path):
        saved.append(figure)
        plots.save_figure(figure, path)
    monkeypatch.setattr(table_report, 'save_figure', collect)
    return saved


@pytest.fixture
def sketches(monkeypatch):
    """Collects the figures, without the time that writing a file takes."""
    saved = []
    monkeypatch.setattr(table_report, 'save_figure', lambda figure, path: saved.append(figure))
    return saved


def priced(layers, hardware=None, metric='latency'):
    """Returns (table, cells, hardware)."""
    hardware = hardware or Toy()
    cells = hardware.cells(layers)
    return table_from_cells(cells, layers, hardware, metric), cells, hardware


def drawn(path):
    """Whether the file is a picture with something in it."""
    picture = matplotlib.image.imread(path)
    return min(picture.shape[:2]) > 100 and picture.std() > 0


def maps(figure):
    """Returns {title: cells} of the heat maps of a figure."""
    return {ax.get_title(): np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images and ax.get_title()}


# ---- heat maps


def test_heat_maps_hold_the_cells_relative_to_8_bits(sketches):
    table, _, _ = priced(LAYERS)
    table_report.plot_heat_maps(table, 'heat.png')
    found = maps(sketches[0])
    # 64,000 cycles times 4, 2 x 8, 4, 4, 1: equal rows of three layers are one map
    assert list(found) == ['twice\n55.2%', 'stem ×3\n41.4%', 'fc\n3.4%']
    expected = np.outer(np.arange(1, 9), np.arange(1, 9)) / 64
    for cells in found.values():
        assert cells == pytest.approx(expected)
    assert sketches[0].get_suptitle().startswith('latency on toy of each layer')


def test_weight_bits_go_up_and_activation_bits_to_the_right(sketches):
    cells = np.zeros((1, 8, 8))
    cells[0, 7, 7], cells[0, 1, 6] = 1, 0.5  # 2 weight bits, 7 activation bits
    table_report.plot_heat_maps(CostTable(cells, reference=1, name='t', unit='ms'), 'heat.png')
    ax = next(ax for ax in sketches[0].axes if ax.images and ax.get_title())
    (image,) = ax.images
    assert image.origin == 'lower' and image.get_extent() == [0.5, 8.5, 0.5, 8.5]
    assert image.get_array()[1, 6] == 0.5
    assert sketches[0].get_supxlabel() == 'activation bits' and sketches[0].get_supylabel() == 'weight bits'
    assert ax.get_title() == '0\n100.0%', 'without names it is the number of the layer'


@pytest.mark.parametrize('count', [1, 120])
def test_any_number_of_equal_layers_is_one_map(figures, tmp_path, count):
    table, cells, hardware = priced([conv(f'b{i}') for i in range(count)])
    table_report.plot_heat_maps(table, tmp_path / 'heat.png')
    table_report.plot_roofline(cells, [conv(f'b{i}') for i in range(count)], hardware, tmp_path / 'roof.png')
    assert list(maps(figures[0])) == [f'b0{f" ×{count}" if count > 1 else ""}\n100.0%']
    assert drawn(tmp_path / 'heat.png') and drawn(tmp_path / 'roof.png')


def test_of_many_different_layers_the_most_expensive_are_drawn(sketches, monkeypatch):
    monkeypatch.setattr(table_report, 'MAX_MAPS', 11)  # 60 take seconds
    table, _, _ = priced([conv(f'stage.block.{i:03}.convolution', size=i + 1) for i in range(120)])
    table_report.plot_heat_maps(table, 'heat.png')
    found = list(maps(sketches[0]))
    total = sum(range(1, 121))
    assert found == [f'…k.{i:03}.convolution\n{(i + 1) / total:.1%}' for i in range(119, 108, -1)]
    assert sum(ax.get_visible() for ax in sketches[0].axes) == 11 + 1, 'empty places are left empty; one is the scale'


def test_layers_that_cost_nothing(figures, tmp_path):
    layers = [conv('used'), conv('never', calls=0), linear('nor', calls=0)]
    table, cells, hardware = priced(layers)
    table_report.plot_heat_maps(table, tmp_path / 'heat.png')
    table_report.plot_roofline(cells, layers, hardware, tmp_path / 'roof.png')
    assert list(maps(figures[0])) == ['used\n100.0%', 'never ×2\n0.0%']
    assert len(points(figures[1])) == 2, 'one layer at two pairs of bits'
    assert drawn(tmp_path / 'heat.png') and drawn(tmp_path / 'roof.png')


# ---- roofline


def points(figure):
    """Returns [(x, y, colour, marker)] of the layers."""
    return [(line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color()).upper(), line.get_marker())
            for line in figure.axes[0].lines if len(line.get_xdata()) == 1]


def roofs(figure):
    return [np.array(line.get_data()) for line in figure.axes[0].lines if len(line.get_xdata()) > 1]


def test_the_roofline_holds_layers_and_roofs(sketches):
    layers = [conv('stem', 4), conv('twice', 8, calls=2), linear('fc')]
    _, cells, hardware = priced(layers, Toy(batch=3))
    table_report.plot_roofline(cells, layers, hardware, 'roof.png')
    found = points(sketches[0])
    expected = []
    for bits, marker in ((8, 'o'), (4, 's')):
        for layer, rows in zip(layers, (4, 8, 1), strict=True):
            seconds = layer.calls * 1000 * bits**2 * rows / 100e6
            intensity = 3 * layer.macs / (layer.macs * bits * layer.calls)  # the traffic of a call is that of all macs
            kind = 'linear' if layer.kind == 'linear' else 'conv'
            expected.append((intensity, 3 * layer.macs / seconds / 1e9, plots.KIND_COLORS[kind], marker))
    assert [point[2:] for point in found] == [point[2:] for point in expected]
    assert [point[:2] for point in found] == [pytest.approx(point[:2]) for point in expected]
    for (x, y), peak in zip(roofs(sketches[0]), (1, 4), strict=True):
        assert y == pytest.approx(np.minimum(2 * x, peak))
        assert x[0] <= min(point[0] for point in found) and x[-1] >= max(point[0] for point in found)
    ax = sketches[0].axes[0]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_title(loc='left')) == ('log', 'log', 'toy, batch 3')


def test_no_roof_has_the_colour_of_a_kind_of_layer_or_hides_the_other(sketches):
    _, cells, hardware = priced(LAYERS)
    table_report.plot_roofline(cells, LAYERS, hardware, 'roof.png')
    lines = [line for line in sketches[0].axes[0].lines if len(line.get_xdata()) > 1]
    legend = sketches[0].legends[0].get_lines()[:2]
    for line, entry in zip(lines, legend, strict=True):
        assert to_hex(line.get_color()) == to_hex(entry.get_color()) and line.get_linestyle() == entry.get_linestyle()
        assert to_hex(line.get_color()).upper() not in plots.KIND_COLORS.values()
    wide, narrow = lines  # where they coincide, both are seen
    assert wide.get_linewidth() > 2 * narrow.get_linewidth() and to_hex(wide.get_color()) != to_hex(narrow.get_color())


@pytest.mark.parametrize(('peak', 'bandwidth', 'roof'), [(None, 2e9, lambda x: 2 * x), (5e9, None, lambda x: 0 * x + 5),
                                                         (None, None, None)])
def test_a_roof_that_is_not_known_is_left_out(sketches, monkeypatch, peak, bandwidth, roof):
    monkeypatch.setattr(Toy, 'peak_macs', lambda self, w, a: peak)
    monkeypatch.setattr(Toy, 'memory_bandwidth', lambda self: bandwidth)
    _, cells, hardware = priced(LAYERS)
    table_report.plot_roofline(cells, LAYERS, hardware, 'roof.png')
    drawn_roofs = roofs(sketches[0])
    assert len(drawn_roofs) == (2 if roof else 0)
    for x, y in drawn_roofs:
        assert y == pytest.approx(roof(x))


def test_a_figure_of_real_hardware(tmp_path):
    _, cells, hardware = priced(LAYERS, PRESETS['isaac'], 'energy')
    table_report.plot_roofline(cells, LAYERS, hardware, tmp_path / 'roof.svg')
    assert '<svg' in (tmp_path / 'roof.svg').read_text()


# ---- matrix


def test_the_matrix_holds_ratios_and_what_they_are_relative_to_the_cheapest(sketches):
    table_report.plot_matrix([[0.5, 0.8], [0.6, 0.4], [1, 0.6]], ['for a', 'for b', 'uniform'],
                            ['edge_latency', 'model_size'], 'matrix.png')
    ax = sketches[0].axes[0]
    assert np.asarray(ax.images[0].get_array()) == pytest.approx(np.array([[1, 2], [1.2, 1], [2, 1.5]]))
    assert [text.get_text() for text in ax.texts] == ['0.500\n×1.00', '0.800\n×2.00', '0.600\n×1.20', '0.400\n×1.00',
                                                    '1.000\n×2.00', '0.600\n×1.50']
    assert [label.get_text() for label in ax.get_xticklabels()] == ['latency on edge\nrelative to 8/8 bits',
                                                                        'model size\nrelative to float']
    assert [label.get_text() for label in ax.get_yticklabels()] == ['for a', 'for b', 'uniform']


def test_a_matrix_of_one(tmp_path):
    table_report.plot_matrix([[0.5]], ['only'], ['one'], tmp_path / 'matrix.png')
    assert drawn(tmp_path / 'matrix.png')


# ---- lines


def cells_of(line):
    """Returns the columns of a line, which two spaces and more set apart."""
    return re.split(r'\s{2,}', line.strip())


def test_the_summary_of_cycles():
    table, cells, hardware = priced(LAYERS)
    lines = summarize_cells(table, cells, LAYERS, hardware)
    rows = {cells_of(line)[0]: cells_of(line)[1:] for line in lines}
    assert rows['toy_latency, cycles'] == ['8/8 bits', '4/4 bits', '2/2 bits']
    rows_of_64 = 4 + 2 * 8 + 4 + 4 + 1
    assert rows['all layers'] == [f'{rows_of_64 * 64_000:,} = 18.560 ms', f'{rows_of_64 * 16_000:,} = 4.640 ms',
                                  f'{rows_of_64 * 4_000:,} = 1.160 ms']
    assert rows['without first and last'][0] == f'{24 * 64_000:,} = 15.360 ms'
    macs = {'conv': 576 * 8 * (4 + 16 + 4), 'depthwise': 72 * 8 * 4, 'linear': 640}
    for kind, count, rows_of_kind in (('conv', 3, 24), ('depthwise', 1, 4), ('linear', 1, 1)):
        share = f'{macs[kind] / sum(macs.values()):.1%}'
        cost = f'{rows_of_kind / rows_of_64:.1%}'
        assert rows[f'{count} {kind}'] == [share, cost, cost, 'saves 50%', 'saves 50%']
    assert rows['compute'] == ['4', '96.6%', 'stem, twice, dw, same']
    assert rows['memory'] == ['1', '3.4%', 'fc']
    assert lines[-1] == f'A cell [l, w - 1, a - 1] is {table.meaning}.'
    assert lines[0].startswith('toy (toy), batch 1')


def test_the_summary_of_energy_is_in_millijoule():
    table, cells, hardware = priced(LAYERS, metric='energy')
    rows = {cells_of(line)[0]: cells_of(line)[1:] for line in summarize_cells(table, cells, LAYERS, hardware)}
    assert rows['all layers'] == ['9.6e+07 = 96 mJ', '4.8e+07 = 48 mJ', '2.4e+07 = 24 mJ']  # 6 calls of 2 mJ per bit
    assert rows['3 conv'][-2:] == ['saves 50%', 'saves 0%']


def test_the_summary_of_own_numbers_in_their_own_unit():
    cells = np.full((2, 8, 8), 1.5)
    cells[0, 3, 7] = 1.507  # a little more at fewer bits
    cells[1, :, 3] = 3
    table = CostTable(cells, reference=3, name='board', unit='furlongs', meaning='furlongs of one layer')
    lines = summarize_table(table, [conv('a'), linear('b')])
    rows = {cells_of(line)[0]: cells_of(line)[1:] for line in lines}
    assert rows['board, furlongs'] == ['8/8 bits', '4/4 bits', '2/2 bits']
    assert rows['all layers'] == ['3', '4.5', '3'] and rows['without first and last'] == ['0', '0', '0']
    assert rows['1 conv'][-2:] == ['saves 0%', 'saves 0%'] and rows['1 linear'][-2:] == ['saves 0%', 'costs 100% more']
    assert lines[-1].endswith('furlongs of one layer.')


@pytest.mark.parametrize('layers', [[conv('only')], [conv('a'), linear('never', calls=0), conv('b')],
                                    [conv(f'b{i}', i + 1) for i in range(120)]])
def test_the_summary_of_any_number_of_layers(layers):
    table, cells, hardware = priced(layers)
    text = '\n'.join(summarize_cells(table, cells, layers, hardware))
    assert f'{table.table[:, 7, 7].sum():,} = ' in text and 'nan' not in text
    assert f'{sum(layer.kind == "conv" for layer in layers)} conv ' in text
    assert all(len(line) < 250 for line in text.splitlines())
