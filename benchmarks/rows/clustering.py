"""Rows 1 and 2: K-means of a whole network, for the first time and inside a search."""

import copy
from dataclasses import replace

from benchmarks import straightforward
from benchmarks.rows.measure import alternate, faster
from benchmarks.rows.networks import network
from lib.quantize.kmeans import CodebookCache, fit_codebook
from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers

FIRST = {4: 4, 6: 15, 8: 50}  # bits: times faster, at the first time
LATER = 100  # times faster, from the second episode on
ITERATIONS, REFERENCE_ITERATIONS = 3, 50  # of scikit-learn: that is timed, whose error is not to be exceeded


def rows(settings):
    """Returns rows 1 and 2 of MobileNetV2 at 4, 6 and 8 bits and ResNet-50 at 4; with `full` at all of them."""
    found = []
    for name in ('mobilenetv2', 'resnet50'):
        model = network(name, settings.device, settings.weights_of(name))
        bits = FIRST if settings.full or name == 'mobilenetv2' else [4]
        cache = CodebookCache()
        for b in bits:
            found += _rows(settings, name, model, b, cache)
    return found


def _rows(settings, name, model, bits, cache):
    layers, found = quantizable_layers(model), {}

    def ours():
        found['ours'] = {key: fit_codebook(layer.weight, bits).decode() for key, layer in layers.items()}

    def plain():
        found['plain'] = {key: straightforward.cluster(layer.weight, bits, ITERATIONS) for key, layer in layers.items()}

    times = alternate({'ours': ours, 'straightforward': plain}, settings.device)
    what, (not_above, errors) = f'K-means of {name} at {bits} bits', _errors(layers, bits, found)
    first = faster(1, f'{what}, first time', times, FIRST[bits], errors)
    first = replace(first, met=first.met and not_above)
    state, strategy = copy.deepcopy(model.state_dict()), [bits] * len(layers)
    KMeansQuantization(model, strategy, cache=cache)  # the first episode
    later = alternate({'ours': lambda: KMeansQuantization(model, strategy, cache=cache)}, settings.device)
    model.load_state_dict(state)
    weights = sum(layer.weight.numel() for layer in layers.values())
    bound = 8 * weights + 4 * 510 * len(layers)  # 1 byte a weight at each of 1..8 bits; 2 + 4 + ... + 256 centroids
    note = f'with writing the centroids to the weights; the cache never holds more than {bound / 1e6:.1f} MB, a byte ' \
           'a weight and bits'
    second = faster(2, f'{what}, from episode 2 on', {**times, **later}, LATER, note)
    return [first, second]


def _errors(layers, bits, found):
    """Returns whether the total squared error is at most that of 50 iterations of scikit-learn, and it in words."""
    ours = {name: _error(layer.weight, found['ours'][name]) for name, layer in layers.items()}
    more = REFERENCE_ITERATIONS - ITERATIONS
    many = {name: straightforward.cluster(layer.weight, bits, more, start=found['plain'][name][0])
            for name, layer in layers.items()}
    text = []
    for iterations, clusters in ((ITERATIONS, found['plain']), (REFERENCE_ITERATIONS, many)):
        other = {name: _error(layer.weight, clusters[name][0][clusters[name][1]]) for name, layer in layers.items()}
        ratio, worse = sum(ours.values()) / sum(other.values()), sum(ours[name] > other[name] for name in layers)
        text.append(f"{ratio:.4f} of scikit-learn's at max_iter {iterations} ({worse} of {len(layers)} layers above)")
    return ratio <= 1, f'total squared error {" and ".join(text)}; target: also not above 1 at {REFERENCE_ITERATIONS}'


def _error(weight, quantized):
    return float((weight.detach().double() - quantized.double()).square().sum())
