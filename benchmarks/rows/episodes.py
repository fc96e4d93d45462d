"""Row 8: whole episodes against a float training pass and a float validation pass over the same images."""

import copy

import torch
from torch.utils.data import DataLoader

from benchmarks import straightforward
from benchmarks.rows.agent import full_agent
from benchmarks.rows.images import BATCH, photographs, plain_loaders, search_loaders
from benchmarks.rows.measure import Row, alternate, seconds, timed, within
from benchmarks.rows.networks import network, settle, trainer
from lib.data.tensor_loader import Augment
from lib.env.linear_quantize_env import LinearQuantizeEnv
from lib.env.quantize_env import QuantizeEnv
from lib.env.space import Space
from lib.network.records import profile_layers
from lib.simulator.budget import Constraint
from lib.simulator.counting import bit_operations, model_size
from lib.simulator.inventory import Inventory
from lib.training.loop import evaluate, loss_function
from lib.utils.data_utils import TensorLoader
from lib.utils.quantize_utils import convert_to_quantized, quantizable_layers, quantized_layers

KMEANS, LINEAR = 1.10, 1.40  # times the float passes
AGENT = 0.04  # of a K-means episode
BITS = 4
SMALL = {'train': 512, 'val': 256, 'batch': 128}  # of ResNet-20 at 32 x 32


def rows(settings):
    """Returns row 8 of both flows, from the second episode on, on MobileNetV2 at 224 and ResNet-20 at 32."""
    large = 4 if settings.full else 1
    with photographs(3 * BATCH * large) as root:
        sizes = {'train': 2 * BATCH * large, 'val': BATCH * large}
        found = _rows(settings, 'mobilenetv2', 224, search_loaders(root, settings.device, **sizes),
                      plain_loaders(root, **sizes), sizes)
    return found + _rows(settings, 'resnet20', 32, *_small_loaders(settings.device), SMALL)


def _small_loaders(device):
    """Returns the loaders of random pixels in memory: the product's, and DataLoaders over PIL images."""
    generator = torch.Generator().manual_seed(0)
    statistics = {'mean': (0.5,) * 3, 'std': (0.25,) * 3}
    ours, plain = [], []
    for part in ('train', 'val'):
        images = torch.randint(256, (SMALL[part], 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels, training = torch.randint(10, (SMALL[part],), generator=generator), part == 'train'
        ours.append(TensorLoader(images, labels, batch_size=SMALL['batch'], shuffle=training, device=device,
                                 augment=Augment(flip=True) if training else None, **statistics))
        plain.append(DataLoader(straightforward.SmallImages(images, labels, training, **statistics), SMALL['batch'],
                                shuffle=training))
    return ours, plain


def _rows(settings, name, side, loaders, plain_loaders, sizes):
    device = settings.device
    base = network(name, device, settings.weights_of(name), classes=1000 if side == 224 else 10)
    settle(base, list(loaders[0])[:1])
    records = profile_layers(base, (3, side, side))
    sides = {'float': _float_passes(copy.deepcopy(base), [list(loader) for loader in loaders], device)}
    flows = {'K-means': (KMEANS, _kmeans_sides), 'linear': (LINEAR, _linear_sides)}
    plain, _accuracy = {}, {}
    for flow, (_, make) in flows.items():
        sides[flow], plain[flow] = make(copy.deepcopy(base), records, loaders, plain_loaders, device)
        sides[flow]()  # the first episode
    sides['agent'] = full_agent()
    once = {flow: timed(side, device) for flow, side in plain.items()}
    times = alternate(sides, device)
    what = f'{sizes["train"]} + {sizes["val"]} images'
    return [within(8, f'{flow} episode of {name} at {side}, {what}', times, target,
                   f'{BITS} bits; the straightforward episode takes {once[flow] / times[flow]:.2f}x as long as ours '
                   f'({once[flow]:.3g} s, once)', sides=(flow, 'float'))
            for flow, (target, _) in flows.items()] + ([_agent_row(times)] if side == 224 else [])


def _agent_row(times):
    share = times['agent'] / times['K-means']
    return Row(8, 'agent, its part of that K-means episode', seconds(times['agent']),
               f'{seconds(times["K-means"])} (episode)', f'{100 * share:.1f} %', f'at most {100 * AGENT:.0f} %',
               share <= AGENT, 'its replay is full')


def _float_passes(model, data, device):
    """Returns a function that trains on one list of batches and evaluates on the other."""
    training, criterion = trainer(model, data[0], device), loss_function()

    def passes():
        training()
        evaluate(model, data[1], criterion, device)
    return passes


def _kmeans_sides(model, records, loaders, plain_loaders, device):
    strategy, plain = [BITS] * len(records), copy.deepcopy(model)
    size = model_size([record.num_weights for record in records])
    env = QuantizeEnv(model, *loaders, Space([Constraint.of_ratio(size, 0.5)]))
    state, layers = copy.deepcopy(plain.state_dict()), quantizable_layers(plain)
    return (lambda: env.evaluate_strategy(strategy),
            lambda: straightforward.kmeans_episode(plain, layers, state, strategy, plain_loaders, device))


def _linear_sides(model, records, loaders, plain_loaders, device):
    probe = loaders[0].first_batch()
    plain = copy.deepcopy(model)
    for net in (model, plain):
        convert_to_quantized(net, probe[:2].to(device), quiet=True)
    strategy = [[8, -1], *([BITS, BITS] for _ in range(len(records) - 2)), [8, 8]]
    budget = Constraint.of_ratio(bit_operations(records), 1.0)
    env = LinearQuantizeEnv(model, *loaders, Space.of(Inventory(records, linear=True), [budget]))
    env.evaluate_strategy(strategy)  # finds the signs
    signs = {name: layer.input_quantizer.signed for name, layer in quantized_layers(model).items()}
    layers = quantized_layers(plain)
    for layer in layers.values():
        layer.weight_quantizer, layer.input_quantizer = torch.nn.Identity(), torch.nn.Identity()
    state = copy.deepcopy(plain.state_dict())

    def episode():
        for layer in layers.values():
            layer.weight_quantizer, layer.input_quantizer = torch.nn.Identity(), torch.nn.Identity()
        straightforward.linear_episode(plain, layers, state, strategy, signs, probe.to(device), plain_loaders, device)
    return lambda: env.evaluate_strategy(strategy), episode
