"""What the two walls make of 8/8 bits everywhere: prices on three machines and mean bits, without any training.

MobileNetV2 (width 0.5, 32 x 32) under the latency of 4/4 bits on each machine; then MobileNetV2 at 224 under three
budgets at once. docs/results.md and docs/hardware.md quote it. Ten seconds on one core:

    python benchmarks/walls.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models  # noqa: E402
from lib.network.records import profile_layers  # noqa: E402
from lib.record.strategy import uniform_strategy  # noqa: E402
from lib.simulator.backends import find_hardware  # noqa: E402
from lib.simulator.budget import WALLS, Constraint, fit  # noqa: E402
from lib.simulator.counting import size_of  # noqa: E402
from lib.simulator.hardware import make_table  # noqa: E402
from lib.simulator.inventory import Inventory  # noqa: E402
from lib.simulator.layer_bits import LayerBits, bits_of_layers  # noqa: E402

MACHINES = ('edge', 'cloud', 'bitfusion')


def layers_of(width, side, classes):
    """Returns the layers of MobileNetV2."""
    model = models.create_model('mobilenetv2', num_classes=classes, width_mult=width)
    return profile_layers(model.to('meta'), (3, side, side))


def fitted(constraints, wall, min_bit):
    """Returns what a wall makes of 8/8 bits, with the first and the last layer pinned."""
    layers = constraints[0].cost.num_layers
    ends = {0: LayerBits.of([8, -1]), layers - 1: LayerBits.of([8, 8])}
    return fit([[8, 8]] * layers, constraints, bits_of_layers(layers, LayerBits.span(min_bit), ends), wall=wall)


def mean_bits(strategy):
    """Returns the mean weight and activation bits as text; an input that is left alone counts 8."""
    w_bits, a_bits = zip(*strategy, strict=True)
    return f'{sum(w_bits) / len(w_bits):.1f} / {sum(8 if a == -1 else a for a in a_bits) / len(a_bits):.1f}'


def one_machine(layers):
    """Prints one row per wall and machine."""
    tables = {name: make_table(layers, find_hardware(name)) for name in MACHINES}
    print(f'| wall | machine | mean bits w/a | {" | ".join(f"on {name}" for name in MACHINES)} |')
    print('|---|---|---|' + '---|' * len(MACHINES))
    for wall in WALLS:
        for name, table in tables.items():
            limit = table.cost(uniform_strategy(len(layers), 4, linear=True))
            strategy = fitted([Constraint(table, limit)], wall, min_bit=3)
            prices = ' | '.join(f'{other.ratio(strategy):.4f}' for other in tables.values())
            print(f'| {wall} | {name} | {mean_bits(strategy)} | {prices} |')


def three_budgets(layers):
    """Prints one row per wall."""
    costs = [(make_table(layers, find_hardware('cloud')), 0.6), (size_of(Inventory(layers)), 0.2),
             (make_table(layers, find_hardware('bitfusion'), 'energy'), 0.6)]
    constraints = [Constraint.of_ratio(cost, ratio) for cost, ratio in costs]
    print(f'\n| wall | mean bits w/a | {" | ".join(f"{cost.name}, at most {ratio}" for cost, ratio in costs)} |')
    print('|---|---|' + '---|' * len(costs))
    for wall in WALLS:
        strategy = fitted(constraints, wall, min_bit=1)
        ratios = ' | '.join(f'{cost.ratio(strategy):.4f}' for cost, _ in costs)
        print(f'| {wall} | {mean_bits(strategy)} | {ratios} |')


if __name__ == '__main__':
    one_machine(layers_of(0.5, 32, 10))
    three_budgets(layers_of(1.0, 224, 1000))
