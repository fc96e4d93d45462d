"""What a cost table says, in lines a person can read: totals, shares by type of layer, what binds the layers."""

from collections import defaultdict

from lib.simulator.hardware import NANOJOULE
from lib.simulator.layer import ends

PAIRS = ((8, 8), (4, 4), (2, 2))


def summarize_cells(table, cells, layers, hardware):
    """Returns the lines that describe a table made by a hardware model.

    Args:
        table: the `CostTable`.
        cells: `hardware.cells(layers)`.
        layers: the network's `LayerRecord`s.
        hardware: the `Hardware`.
    """
    lines = [f'{hardware.name} ({hardware.backend}), batch {hardware.batch}: {hardware.status}']
    lines += [hardware.resources(layers)] if hardware.resources(layers) else []
    lines.append('')
    convert = _converter(table, hardware)
    lines += _totals(table, layers, convert) + [''] + _shares(table, layers)
    bounds = [layer_cells[7][7].bound for layer_cells in cells]
    if set(bounds) - {'', 'measured'}:
        lines += ['', *_by_bound(table, layers, bounds)]
    return [*lines, '', f'A cell [l, w - 1, a - 1] is {table.meaning}.']


def summarize_table(table, layers):
    """Returns the lines that describe a table of the user's own numbers."""
    return ['', *_totals(table, layers, None), '', *_shares(table, layers), '',
            f'A cell [l, w - 1, a - 1] is {table.meaning}.']


def _converter(table, hardware):
    """Returns a function from the unit of the table to a text in ms or mJ, None where it is that already."""
    if table.unit == NANOJOULE:
        return lambda value: f'{value / 1e6:,.4g} mJ'
    return None if table.unit == 'ms' else lambda value: _milliseconds(hardware.milliseconds(value))


def _milliseconds(value):
    return f'{value:,.3f} ms' if value >= 0.1 else f'{value:.3g} ms'


def _totals(table, layers, convert):
    head = f'{table.name + ", " + table.unit:28}' + ''.join(f'{f"{w}/{a} bits":>30}' for w, a in PAIRS)
    lines = [head]
    inner = [index for index in range(len(layers)) if index not in ends(layers)]
    for title, rows in (('all layers', slice(None)), ('without first and last', inner)):
        texts = []
        for w_bit, a_bit in PAIRS:
            cost = table.table[rows, w_bit - 1, a_bit - 1].sum().item()
            texts.append(f'{cost:,}' if isinstance(cost, int) else f'{cost:,.6g}')
            texts[-1] += f' = {convert(cost)}' if convert else ''
        lines.append(f'{title:28}' + ''.join(f'{text:>30}' for text in texts))
    return lines


def _shares(table, layers):
    groups = defaultdict(list)
    for index, layer in enumerate(layers):
        groups[layer.type].append(index)
    macs = sum(layer.macs for layer in layers) or 1
    lines = [f'{"share by type of layer":28}{"operations":>12}{"cost at 8/8":>14}{"at 4/4":>10}'
             f'{"8 -> 4 weight bits":>22}{"8 -> 4 activation bits":>26}']
    for kind, indices in sorted(groups.items()):
        at = {(w, a): table.table[indices, w - 1, a - 1].sum() for w in (4, 8) for a in (4, 8)}
        shares = [sum(layers[i].macs for i in indices) / macs] + [
            at[b, b] / max(table.table[:, b - 1, b - 1].sum(), 1e-300) for b in (8, 4)]
        saved = [1 - at[pair] / at[8, 8] if at[8, 8] else 0 for pair in ((4, 8), (8, 4))]
        lines.append(f'{f"{len(indices)} {kind}":28}{shares[0]:>11.1%} {shares[1]:>13.1%} {shares[2]:>9.1%} '
                     f'{_saving(saved[0]):>22}{_saving(saved[1]):>26}')
    return lines


def _saving(part):
    percent = round(100 * part)
    return f'saves {percent}%' if percent >= 0 else f'costs {-percent}% more'


def _by_bound(table, layers, bounds):
    total = table.table[:, -1, -1].sum()
    lines = [f'{"what binds a layer at 8/8":28}{"layers":>12}{"cost":>14}']
    for bound in sorted(set(bounds), key=bounds.count, reverse=True):
        indices = [index for index, other in enumerate(bounds) if other == bound]
        names = ', '.join(layers[index].name for index in indices[:4]) + (', ...' if len(indices) > 4 else '')
        lines.append(f'{bound:28}{len(indices):>12}{table.table[indices, 7, 7].sum() / total:>13.1%}   {names}')
    return lines
