"""Rows 3, 4 and 5: training with centroids, linear fake quantization and calibration against the float network."""

import copy

import torch
from torch.nn import functional as F

from benchmarks import straightforward
from benchmarks.rows.measure import Row, alternate, distance, peak_bytes, seconds, timed, within
from benchmarks.rows.networks import batches, network, settle, sgd, trainer
from lib.quantize.kmeans import CodebookCache
from lib.training.loop import evaluate, loss_function
from lib.utils.quantize_utils import (
    KMeansQuantization,
    LinearQuantization,
    calibrate,
    convert_to_quantized,
    quantizable_layers,
    quantized_layers,
)

BATCH, SIDE, AGREEMENT = 32, 224, 4  # images in a batch, pixels, images that are compared
CENTROIDS, EVALUATION, TRAINING, MEMORY, CALIBRATION = 1.05, 1.25, 1.35, 1.3, 4  # times the float network


def _names(settings):
    return ['mobilenetv2', 'resnet50'] if settings.full else ['mobilenetv2']


# ---- row 3


def centroid_rows(settings):
    """Returns row 3: at 4 bits, and at 8, where a mask per centroid costs most."""
    return [row for name in _names(settings) for row in _centroid_rows(settings, name)]


def _centroid_rows(settings, name):
    data, device = batches(1, BATCH, SIDE, settings.device), settings.device
    base = network(name, device, settings.weights_of(name))
    sides, pairs = {'float': trainer(copy.deepcopy(base), data, device)}, {}
    for bits in (4, 8):
        model, plain = copy.deepcopy(base), copy.deepcopy(base)
        layers, cache = quantizable_layers(plain), CodebookCache()
        quantization = KMeansQuantization(model, [bits] * len(layers), cache=cache)
        books = _same_codebooks(layers, cache, bits)
        sides[f'ours {bits}'] = trainer(model, data, device, quantization)
        sides[f'masks {bits}'] = _masked_trainer(plain, layers, books, data)
        pairs[bits] = model, plain
    masks, gaps = {}, {}
    for bits, pair in pairs.items():
        masks[bits], gaps[bits] = _two_steps(sides[f'ours {bits}'], sides.pop(f'masks {bits}'), *pair, device)
    times = alternate(sides, device)
    return [within(3, f'training step of {name}, K-means at {bits} bits', times, CENTROIDS,
                   f'weights after two steps: {gaps[bits]:.1e} from those projected after every step (relative); '
                   f'a mask per centroid takes {masks[bits] / times["float"]:.2f}x (once)',
                   sides=(f'ours {bits}', 'float')) for bits in pairs]


def _same_codebooks(layers, cache, bits):
    """Gives a network the clusters of the cache; returns the books of the straightforward way."""
    books = {}
    for layer_name, layer in layers.items():
        codebook = cache.get(layer_name, layer.weight, bits)
        layer.weight.data.copy_(codebook.decode())
        books[layer_name] = len(codebook.centroids), codebook.labels.long()
    return books


def _masked_trainer(model, layers, books, data):
    optimizer = sgd(model.parameters())

    def step():
        model.train()
        for images, labels in data:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            straightforward.project(layers, books)
    return step


def _two_steps(ours, masks, model, plain, device):
    """Returns the seconds of the second step with masks, and how far apart the weights are then."""
    for _ in range(2):
        ours()
        taken = timed(masks, device)
    return taken, distance([layer.weight for layer in quantizable_layers(model).values()],
                           [layer.weight for layer in quantizable_layers(plain).values()])


# ---- row 4


def linear_rows(settings):
    """Returns row 4 at 4/4 bits: evaluation, training step and its memory."""
    return [row for name in _names(settings) for row in _linear_rows(settings, name)]


def _linear_rows(settings, name):
    data, device = batches(1, BATCH, SIDE, settings.device), settings.device
    base = network(name, device, settings.weights_of(name))
    settle(base, data)
    model, plain = (convert_to_quantized(copy.deepcopy(base), data[0][0][:2], quiet=True) for _ in range(2))
    layers = quantized_layers(plain)
    strategy = [[8, -1], *([4, 4] for _ in range(len(layers) - 2)), [8, 8]]
    quantization = LinearQuantization(model, strategy, data[0][0], method='max')
    _take_ranges(layers, strategy, model)
    networks = {'float': base, 'ours': model, 'formulas': plain}
    agreement = _agreement(model, plain, data)
    criterion = loss_function()
    sides = {key: _evaluation(net, data, criterion, device) for key, net in networks.items()}
    formulas = min(timed(sides['formulas'], device) for _ in range(2))
    times = alternate({key: sides[key] for key in ('float', 'ours')}, device)
    found = [within(4, f'evaluation of {name} at 4/4 bits', times, EVALUATION,
                    f'{agreement}; the formulas take {formulas / times["float"]:.2f}x (the faster of two)')]
    sides = {key: trainer(net, data, device, quantization if key == 'ours' else None)
             for key, net in networks.items()}
    formulas = min(timed(sides['formulas'], device) for _ in range(2))
    times = alternate({key: sides[key] for key in ('float', 'ours')}, device)
    found.append(within(4, f'training step of {name} at 4/4 bits', times, TRAINING,
                        f'the formulas take {formulas / times["float"]:.2f}x (the faster of two)'))
    found.append(_memory_row(name, networks, sides, device))
    return found


def _evaluation(model, data, criterion, device):
    return lambda: evaluate(model, data, criterion, device)


def _take_ranges(layers, strategy, model):
    """Gives the layers of the straightforward side the ranges and signs of the calibrated network."""
    own = quantized_layers(model)
    signs = {name: layer.input_quantizer.signed for name, layer in own.items()}
    ranges = {name: (layer.weight_quantizer.range.item(), layer.input_quantizer.range.item())
              for name, layer in own.items()}
    straightforward.set_formulas(layers, strategy, signs, ranges)


def _agreement(model, plain, data):
    """Says how far the logits of evaluation and the gradients of training are from those of the formulas.

    In float64 on a few images: in float32 a number next to a tie may round to the other side, and 53 layers make much
    of that.
    """
    images, labels = data[0][0][:AGREEMENT].double(), data[0][1][:AGREEMENT]
    logits, gradients = [], []
    for net in (copy.deepcopy(model).double(), copy.deepcopy(plain).double()):
        net.eval()
        with torch.no_grad():
            logits.append(net(images))
        net.train()
        F.cross_entropy(net(images), labels).backward()
        gradients.append([layer.weight.grad for layer in quantized_layers(net).values()])
    return f'in float64 the logits are {distance(*[[x] for x in logits]):.1e} and the gradients of the weights ' \
           f'{distance(*gradients):.1e} from those of the formulas (relative)'


def _memory_row(name, networks, sides, device):
    """Returns the row of the peak of a training step, with weights, gradients, momentum and images."""
    held = {key: 3 * sum(p.nbytes for p in net.parameters()) for key, net in networks.items()}
    peaks = {key: held[key] + peak_bytes(side, device) for key, side in sides.items()}
    ratio = {key: peak / peaks['float'] for key, peak in peaks.items()}
    megabytes = {key: f'{peak / 2**20:.0f} MiB' for key, peak in peaks.items()}
    return Row(4, f'memory of a training step of {name} at 4/4 bits', megabytes['ours'],
               f'{megabytes["float"]} (float)', f'{ratio["ours"]:.2f}x', f'at most {MEMORY:.2f}x',
               ratio['ours'] <= MEMORY,
               'peak of what the allocator gave out, with weights, gradients and momentum; the formulas take '
               f'{ratio["formulas"]:.2f}x')


# ---- row 5


def calibration_rows(settings):
    """Returns row 5: calibration at 4 bits by the KL threshold against one float forward pass of the same batch."""
    return [_calibration_row(settings, name) for name in _names(settings)]


def _calibration_row(settings, name):
    data, device = batches(1, BATCH, SIDE, settings.device), settings.device
    base, images = network(name, device, settings.weights_of(name)), data[0][0]
    settle(base, data)
    base.eval()
    model = convert_to_quantized(copy.deepcopy(base), images[:2], quiet=True)
    layers, plain = quantized_layers(model), quantizable_layers(base)
    strategy = [[8, -1], *([4, 4] for _ in range(len(layers) - 2)), [8, 8]]
    for layer, (w_bit, a_bit) in zip(layers.values(), strategy, strict=True):
        layer.w_bit, layer.a_bit = w_bit, a_bit
    calibrate(model, images)
    signs, ranges = {key: layer.input_quantizer.signed for key, layer in layers.items()}, {}

    @torch.no_grad()
    def forward():
        base(images)
    loop = timed(lambda: ranges.update(straightforward.calibrate(base, plain, strategy, signs, images)), device)
    times = alternate({'float': forward, 'ours': lambda: calibrate(model, images)}, device)
    gap, same = _thresholds_apart(layers, ranges)
    return within(5, f'calibration of {name} at 4/4 bits', times, CALIBRATION,
                  f'{same} of the thresholds are those of the loop to 1e-5, the largest relative difference is '
                  f'{gap:.1e}; the loop takes {seconds(loop)} = {loop / times["float"]:.1f}x (once)')


def _thresholds_apart(layers, ranges):
    gaps = []
    for name, layer in layers.items():
        for quantizer, range_ in zip((layer.weight_quantizer, layer.input_quantizer), ranges[name], strict=True):
            if range_ and quantizer.active:
                gaps.append(abs(quantizer.range.item() / range_ - 1))
    return max(gaps), f'{sum(gap < 1e-5 for gap in gaps)} of {len(gaps)}'
