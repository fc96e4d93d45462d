"""What a strategy costs by every count, and layer by layer: plain values, CSV, or a table to read."""

from collections.abc import Iterator, Mapping, Sequence

from lib.record.files import csv_text
from lib.simulator.cost import CostTable
from lib.simulator.inventory import Inventory
from lib.simulator.layer import LayerRecord


def report(strategy: list | None, inventory: Inventory, table: CostTable, counted: Mapping[str, CostTable]) -> dict:
    """Return all costs of one strategy (None: float) of this `Inventory` as a dict of plain values."""
    costs, eight = counted | {table.name: table}, [[8, 8]] * len(inventory.layers)
    sizes = costs['model_size']
    priced = {name: cost.cost(strategy or eight) for name, cost in costs.items()}
    ratios = {name: cost.ratio(strategy or eight) for name, cost in costs.items()}
    if strategy is None:  # float weights
        for name in {'model_size', 'file_size', 'proqha_ratio'} & costs.keys():
            priced[name], ratios[name] = costs[name].reference, 1.0
    return {
        'strategy': strategy, 'macs': inventory.macs, 'coverage': inventory.coverage.to_dict(),
        'size_bits': priced['model_size'], 'size_ratio': ratios['model_size'],
        'cost': priced[table.name], 'cost_ratio': ratios[table.name],
        'unit': table.unit, 'cost_name': table.name, 'batch': table.about['batch'],
        'costs': {name: {'cost': priced[name], 'ratio': ratios[name], 'unit': cost.unit}
                  for name, cost in costs.items()},
        'counted': {'parameters': 'all parameters, with biases and normalization',
                    'macs': 'multiply-accumulates of convolutions, linear layers and matrix products for one image',
                    'madds': 'macs, 2 per input value of a BatchNorm, and the additions of pooling modules, as thop '
                             'counts them',
                    **{name: rule(cost) for name, cost in costs.items()}},
        'layers': list(layer_rows(inventory, strategy, sizes, table)), 'float_layers': list(float_rows(inventory)),
    }


def rule(cost: CostTable) -> str:
    """Return what a cost counts, as a sentence about the total."""
    return f"{'largest' if cost.combine == 'max' else 'sum over all layers'}: {cost.meaning}"


def layer_rows(inventory: Inventory, strategy: list | None, sizes: CostTable, table: CostTable) -> Iterator[dict]:
    """Yield a dict of plain values per layer."""
    eight = [[8, 8]] * len(inventory.layers)
    bits = sizes.bits(strategy or eight)
    prices = table.breakdown(strategy or eight).tolist()
    for record, weights, (w_bit, a_bit), price in zip(inventory.layers, inventory.weights, bits, prices, strict=True):
        yield {**shape_row(record), 'calls': record.calls, 'weights': weights, 'macs': record.macs,
               'w_bit': w_bit if strategy else 32,
               'a_bit': None if not strategy or isinstance(strategy[0], int) else a_bit,
               'size_bits': weights * (w_bit if strategy else 32), 'cost': price}


def float_rows(inventory: Inventory) -> Iterator[dict]:
    """Yield a dict of plain values per product that stays float."""
    for record in inventory.floats:
        yield {**shape_row(record), 'calls': record.calls, 'macs': record.macs}


def shape_row(record: LayerRecord) -> dict:
    """Return the name and the sizes of a layer."""
    return {'name': record.name, 'type': record.type, 'in_channels': record.in_channels,
            'out_channels': record.out_channels, 'kernel': list(record.kernel), 'stride': list(record.stride),
            'groups': record.groups, 'in_size': [record.in_h, record.in_w], 'out_size': [record.out_h, record.out_w]}


def layers_csv(reports: Sequence[dict]) -> str:
    """Return the layers as CSV, the second strategy's bits and cost beside the first's."""
    rows = [dict(row) for row in reports[0]['layers']]
    for other in reports[1:]:
        for row, theirs in zip(rows, other['layers'], strict=True):
            row |= {f'{key}_2': theirs[key] for key in ('w_bit', 'a_bit', 'size_bits', 'cost')}
    for row in rows:
        row |= {key: 'x'.join(map(str, row[key])) for key in ('kernel', 'stride', 'in_size', 'out_size')}
    return csv_text(list(rows[0]), rows)


def report_text(reports: Sequence[dict]) -> str:
    """Return a table of layers and the totals, each with its counting rule."""
    return '\n'.join(_lines(reports)) + '\n'


def _lines(reports):
    first = reports[0]
    yield f'{first["network"]} for images of {" x ".join(map(str, first["input"]))}\n'
    yield from _layer_lines(reports)
    yield from _float_lines(first)
    yield '\n' + '\n'.join(first['about_coverage'])
    yield f'\n{"parameters":20}{first["parameters"]:>18,}   {first["counted"]["parameters"]}'
    yield f'{"macs":20}{first["macs"]:>18,}   {first["counted"]["macs"]}'
    yield f'{"madds":20}{first["madds"]:>18,}   {first["counted"]["madds"]}'
    for name, cost in first['costs'].items():
        line = f'{name:20}{number(cost["cost"]):>18} {cost["unit"]} = {cost["ratio"]:.4f}'
        for other in reports[1:]:
            theirs = other['costs'][name]
            change = theirs['cost'] / cost['cost'] - 1 if cost['cost'] else 0
            line += f'; second {number(theirs["cost"])} = {theirs["ratio"]:.4f} ({change:+.1%})'
        yield f'{line}\n{"":20}{first["counted"][name]}'


def _layer_lines(reports):
    name_width = max(len('layer'), *(len(row['name']) for row in reports[0]['layers'])) + 2
    unit = reports[0]['unit']
    head = f'{"layer":{name_width}}{"type":11}{"shape":>20}{"output":>10}{"weights":>12}{"MACs":>15}{"bits":>7}' \
           f'{"size (bits)":>14}{f"cost ({unit})":>18}'
    yield head + (f'{"bits 2":>9}{"cost 2":>15}' if len(reports) > 1 else '')
    for rows in zip(*(report['layers'] for report in reports), strict=True):
        row = rows[0]
        shape = f'{row["in_channels"]}->{row["out_channels"]} {"x".join(map(str, row["kernel"]))}'
        line = f'{row["name"]:{name_width}}{row["type"]:11}{shape:>20}{"x".join(map(str, row["out_size"])):>10}' \
               f'{row["weights"]:>12,}{row["macs"]:>15,}{bits_text(row):>7}{row["size_bits"]:>14,}' \
               f'{number(row["cost"]):>18}'
        yield line + ''.join(f'{bits_text(other):>9}{number(other["cost"]):>15}' for other in rows[1:])


def _float_lines(report):
    if not report['float_layers']:
        return
    yield '\nstays float:'
    width = max(len(row['name']) for row in report['float_layers']) + 2
    for row in report['float_layers']:
        yield (f'{row["name"]:{width}}{row["type"]:11}{row["in_channels"]}->{row["out_channels"]} '
              f'{"x".join(map(str, row["kernel"]))}, {"x".join(map(str, row["out_size"]))}, {row["calls"]} calls'
              f'{row["macs"]:>15,} MACs')


def bits_text(row: Mapping) -> str:
    """Return `4`, `4/6`, or `8/-` for an input that is left alone."""
    if row['a_bit'] is None:
        return f'{row["w_bit"]}'
    return f'{row["w_bit"]}/{"-" if row["a_bit"] == -1 else row["a_bit"]}'


def number(value: int | float) -> str:
    """Return a count with commas, or a number with six digits."""
    return f'{value:,}' if isinstance(value, int) else f'{value:,.6g}'
