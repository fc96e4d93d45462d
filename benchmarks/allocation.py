"""What a strategy by the integer linear program costs, in seconds of one core: sensitivities of the Hessian, solution.

ResNet-20 on 32 x 32 images (512 of them) and MobileNetV2 on 224 x 224 (32), both flows; random weights and images take
as long as real ones. docs/results.md has the table. About two minutes on one core:

    python benchmarks/allocation.py
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models  # noqa: E402
from lib.data.tensor_loader import TensorLoader  # noqa: E402
from lib.env.episode import EpisodeSettings  # noqa: E402
from lib.env.linear_quantize_env import LinearQuantizeEnv  # noqa: E402
from lib.env.quantize_env import QuantizeEnv  # noqa: E402
from lib.env.space import Space  # noqa: E402
from lib.network.records import profile_layers  # noqa: E402
from lib.search.allocation import greedy_allocation, ilp_allocation  # noqa: E402
from lib.search.sensitivity import measure_sensitivity  # noqa: E402
from lib.simulator.backends import find_hardware  # noqa: E402
from lib.simulator.budget import Constraint  # noqa: E402
from lib.simulator.counting import model_size  # noqa: E402
from lib.simulator.hardware import make_table  # noqa: E402
from lib.simulator.inventory import Inventory  # noqa: E402
from lib.simulator.layer_bits import LayerBits  # noqa: E402
from lib.utils.quantize_utils import convert_to_quantized, weight_counts  # noqa: E402

CASES = [('resnet20', 32, 512), ('mobilenetv2', 224, 32)]  # network, side of the images, images


def make_env(name, side, count, linear):
    """Returns an environment under a budget of 0.1 of the size, or 0.6 of the latency."""
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=10)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    loader = TensorLoader(images, torch.arange(count) % 10, batch_size=16, shuffle=False, mean=(0.5,) * 3,
                          std=(0.25,) * 3)
    if linear:
        model = convert_to_quantized(model, loader.first_batch()[:2])
    records = profile_layers(model, (3, side, side))
    cost = make_table(records, find_hardware('edge')) if linear else model_size(list(weight_counts(model).values()))
    budgets, episodes = [Constraint.of_ratio(cost, 0.6 if linear else 0.1)], EpisodeSettings(finetune_flag=False)
    if linear:
        space = Space.of(Inventory(records, linear=True), budgets, min_bit=2)
        return LinearQuantizeEnv(model, loader, loader, space, episodes)
    return QuantizeEnv(model, loader, loader, Space(budgets, LayerBits.span(2, pairs=False), records=records), episodes)


def seconds(work):
    """Returns (processor time, result)."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main():
    """Prints a row for each network and flow."""
    torch.set_num_threads(1)
    for name, side, count in CASES:
        for linear in (False, True):
            env = make_env(name, side, count, linear)
            measured, found = seconds(lambda env=env, n=count: measure_sensitivity(env, 'hessian', num_images=n))
            solved, _ = seconds(lambda env=env, table=found.table: ilp_allocation(table, env.space))
            greedy, _ = seconds(lambda env=env, table=found.table: greedy_allocation(table, env.space))
            print(f'{name}, {"linear" if linear else "K-means"}: sensitivities on {count} images {measured:.1f} s, '
                  f'integer program {solved:.2f} s, greedy {greedy:.2f} s', flush=True)


if __name__ == '__main__':
    main()
