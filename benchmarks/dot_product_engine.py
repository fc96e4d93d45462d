"""What the dot-product engine costs: ResNet-20's convolutions on it, against the plain float convolutions.

Random codes at W8A8 through the 19 convolutions of 3 x 3 (40.8 million multiply-accumulates per image). The engines and
the float layers take turns in one process; medians of several repeats, a line per configuration, with the errors of the
last. docs/dot_product_engine.md has the table. Some three minutes on two cores:

    python benchmarks/dot_product_engine.py
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.engine.array import ArrayConfig  # noqa: E402
from lib.engine.dot_product import ConvMVMEngine, make_engine  # noqa: E402

LAYERS = ([(3, 16, 32, 1)] + [(16, 16, 32, 1)] * 6 + [(16, 32, 32, 2)] + [(32, 32, 16, 1)] * 5 + [(32, 64, 16, 2)]
          + [(64, 64, 8, 1)] * 5)  # in, out, side of the input, stride
CONFIGS = {  # name: (backend, configuration)
    'ideal': ('ideal', {}),
    'simulated, the default': ('simulated', {}),
    'range max': ('simulated', {'adc_range': 'max'}),
    'range calibrated': ('simulated', {'adc_range': 'calibrated'}),
    'offset mapping': ('simulated', {'mapping': 'offset'}),
    'read noise': ('simulated', {'read_noise': 0.01}),
    'PCM after a day': ('simulated', {'device': 'pcm', 'drift_seconds': 86400.0}),
    '2-bit DAC': ('simulated', {'dac_bits': 2}),
    'exact arrays, no ADC': ('simulated', {'adc_bits': 0}),
}


def build(backend, values, weights, inputs):
    """Returns the layers' engines, programmed, their ranges calibrated on one image where they have to be."""
    factory = make_engine(ArrayConfig(**values), backend)
    engines = []
    for (_, _, _, stride), weight, codes in zip(LAYERS, weights, inputs, strict=True):
        engine = ConvMVMEngine(factory)
        engine.program(weight, 8, 128, stride=stride, padding=1)
        if values.get('adc_range') == 'calibrated':
            engine.calibrate_range(codes[:1], 8)
        engines.append(engine)
    return engines


def float_layers(inputs, weights):
    """Returns the outputs of the plain convolutions."""
    return [torch.conv2d(codes, weight, stride=stride, padding=1)
            for (_, _, _, stride), codes, weight in zip(LAYERS, inputs, weights, strict=True)]


def timed(function):
    """Returns seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def operands(images):
    """Returns random codes of the layers: weights around the zero point 128, inputs half of which are 0 (ReLU)."""
    generator = torch.Generator().manual_seed(0)
    weights = [(128 + 30 * torch.randn(out, cin, 3, 3, generator=generator)).round().clamp(1, 255)
               for cin, out, _, _ in LAYERS]
    inputs = [(60 * torch.randn(images, cin, side, side, generator=generator)).round().clamp(0, 255)
              for cin, _, side, _ in LAYERS]
    return weights, inputs


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--images', type=int, default=8, help='images per repeat (default: 8)')
    parser.add_argument('--repeats', type=int, default=3, help='repeats (default: 3)')
    parser.add_argument('--only', nargs='*', default=list(CONFIGS), help='names of configurations (default: all)')
    args = parser.parse_args()
    weights, inputs = operands(args.images)
    exact = float_layers(*([t.double() for t in part] for part in (inputs, [weight - 128 for weight in weights])))
    engines = {name: build(*CONFIGS[name], weights, inputs) for name in args.only}
    times, errors = {name: [] for name in ['float', *engines]}, {}
    for _ in range(args.repeats + 1):
        times['float'].append(timed(lambda: float_layers(inputs, weights))[0])
        for name, layers in engines.items():
            taken, sums = timed(lambda layers=layers: [e(c, 8) for e, c in zip(layers, inputs, strict=True)])
            times[name].append(taken)
            errors[name] = median(relative_error(*pair) for pair in zip(sums, inputs, exact, strict=True))
    print(f'{torch.get_num_threads()} threads\n\n| configuration | s per 1,000 images | times float | relative error |')
    print('|---|---|---|---|')
    plain = median(times['float'][1:])  # the first repeat warms up
    for name, taken in times.items():
        seconds = median(taken[1:])
        print(f'| {name} | {1000 * seconds / args.images:.1f} | {seconds / plain:.1f} | {errors.get(name, 0):.4f} |')


def relative_error(sums, codes, exact):
    """Returns the root mean squared error of S over the spread of the layer's output, without its zero-point term."""
    kernel = torch.ones(1, codes.shape[1], 3, 3, dtype=torch.float64)
    stride = codes.shape[-1] // exact.shape[-1]
    product = sums - 128 * torch.conv2d(codes.double(), kernel, stride=stride, padding=1)
    return ((product - exact).square().mean().sqrt() / exact.std()).item()


if __name__ == '__main__':
    main()
