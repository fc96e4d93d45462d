"""Environments from settings of all kinds, for tests."""

from dataclasses import fields

import torch

from lib.env.episode import EpisodeSettings
from lib.env.linear_quantize_env import LinearQuantizeEnv
from lib.env.quantize_env import QuantizeEnv
from lib.env.space import Space
from lib.network.records import profile_layers
from lib.simulator.backends import find_hardware
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from lib.simulator.hardware import make_table
from lib.simulator.inventory import Inventory
from lib.utils.quantize_utils import convert_to_quantized, weight_counts

SHAPE = (3, 8, 8)


SPACE = ('min_bit', 'max_bit', 'candidates', 'pins', 'wall')


def taken_of(names, settings):
    """Takes these names out of the settings."""
    return {name: settings.pop(name) for name in names if name in settings}


def taken(kind, settings):
    """Takes the fields of a dataclass out of the settings."""
    return taken_of([field.name for field in fields(kind)], settings)


def kmeans_env(net, loaders, preserve_ratio=0.12, **settings):
    """Returns a `QuantizeEnv` under a budget of the model size."""
    sizes = model_size(list(weight_counts(net, settings.get('is_pruned', False)).values()))
    space = Space.of(Inventory(profile_layers(net, SHAPE)), [Constraint.of_ratio(sizes, preserve_ratio)],
                     **taken_of(SPACE, settings))
    return QuantizeEnv(net, *loaders, space, EpisodeSettings(**taken(EpisodeSettings, settings)), **settings)


def linear_env(net, loaders, preserve_ratio=0.7, constraints=(), **settings):
    """Returns a `LinearQuantizeEnv` under a budget of the latency on edge, and others."""
    net = convert_to_quantized(net, torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)))
    records = profile_layers(net, SHAPE)
    budgets = [Constraint.of_ratio(make_table(records, find_hardware('edge')), preserve_ratio), *constraints]
    space = Space.of(Inventory(records, linear=True), budgets, **taken_of(SPACE, settings))
    return LinearQuantizeEnv(net, *loaders, space, EpisodeSettings(**taken(EpisodeSettings, settings)), **settings)


ENVS = {'kmeans': kmeans_env, 'linear': linear_env}
