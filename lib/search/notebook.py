"""Search, quantize, train and evaluate from Python: a network and its loaders in memory, no files and no options."""

import copy
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lib.env.episode import EpisodeSettings
from lib.env.linear_quantize_env import LinearQuantizeEnv
from lib.env.quantize_env import QuantizeEnv
from lib.env.space import Space
from lib.network.coverage import inventory_of
from lib.network.hooks import probe
from lib.network.reach import reach_weights
from lib.quantize.grids import Grids
from lib.runtime.seeds import own_generators
from lib.search.loop import search as search_env
from lib.search.searcher import Searcher
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from lib.simulator.counting import COUNTED
from lib.training.fit import fit
from lib.training.loop import evaluate as evaluate_loader
from lib.training.loop import loss_function
from lib.training.settings import TrainingSettings
from lib.utils.quantize_utils import (
    KMeansQuantization,
    LinearQuantization,
    Quantization,
    convert_to_quantized,
    quantized_layers,
)
from lib.utils.utils import Metrics


class Batches:
    """Batches of (images, labels), such as a `DataLoader`, with what the loaders of this repository have beside them.

    An epoch is reproducible where the global generators decide it, which are seeded for each, or a sampler that has
    `set_epoch`.
    """

    def __init__(self, batches: Iterable):
        self.batches = batches
        images, _ = self._first()
        self.input_shape, self.batch_size = tuple(images.shape[1:]), len(images)
        dataset = getattr(batches, 'dataset', None)
        self.num_images = len(dataset) if dataset is not None else sum(len(labels) for _, labels in batches)

    @classmethod
    def of(cls, loaders: Sequence) -> list:
        """Return loaders that are as they have to be; those of this repository are."""
        return [loader if hasattr(loader, 'first_batch') else cls(loader) for loader in loaders]

    def _first(self):
        with own_generators('first batch'):
            return next(iter(self.batches))

    def first_batch(self) -> Tensor:
        """Return the images of the first batch, always the same ones."""
        return self._first()[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves."""
        for sampler in (getattr(self.batches, 'sampler', None), getattr(self.batches, 'batch_sampler', None)):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def search(model: nn.Module, loaders: Sequence, *, budget: float = 0.1, cost: str | CostTable = 'model_size',
           linear: bool = False, attention_products: bool = False, searcher: str | Searcher = 'ddpg',
           episodes: int = 60, folder=None, settings: EpisodeSettings | None = None, grids: Grids | None = None,
           **bits) -> list:
    """Return the best strategy that a search finds for a float network, which stays as it is.

    Args:
        model: the network.
        loaders: (training loader, validation loader), each of (images, labels).
        budget: what a strategy may cost, relative to the reference of the cost.
        cost: a name in `counting.COUNTED`, or the table of the layers.
        linear: search pairs [weight bits, activation bits] for linear quantization, instead of weight bits for K-means.
        attention_products: linear: products of two activations have entries of their own, see `reach_weights`.
        searcher, episodes, folder: see `loop.search`.
        settings: how a strategy is evaluated.
        grids: `Grids` of linear quantization; None: HAQ's.
        bits: `min_bit`, `max_bit`, `candidates`, `pins` and `wall` as `Space.of` takes them.
    """
    loaders, model = Batches.of(loaders), copy.deepcopy(model)
    images = probe(model, loaders[0].input_shape)
    reach_weights(model, images, 'products' if linear and attention_products else 'weights')
    if linear:
        _convert(model, loaders[0], grids)
    inventory = inventory_of(model, loaders[0].input_shape, linear)
    table = COUNTED[cost](inventory) if isinstance(cost, str) else cost
    space = Space.of(inventory, [Constraint.of_ratio(table, budget, 'a budget of')], **bits)
    env = (LinearQuantizeEnv if linear else QuantizeEnv)(model, *loaders, space, settings)
    return search_env(env, searcher, episodes, folder=folder).strategy


def quantize(model: nn.Module, strategy: list, loader, attention_products: bool = False, grids: Grids | None = None
             ) -> Quantization:
    """Quantize a float network in place; the first images of the `loader` calibrate a linear strategy.

    `attention_products` is what the strategy was searched with; `grids` are those of linear quantization, None: HAQ's.
    """
    (loader,) = Batches.of([loader])
    reach_weights(model, probe(model, loader.input_shape), 'products' if attention_products else 'weights')
    if not isinstance(strategy[0], (list, tuple)):
        return KMeansQuantization(model, strategy)
    _convert(model, loader, grids)
    return LinearQuantization(model, strategy, loader.first_batch().to(_device(model)))


def train(quantization: Quantization, loaders: Sequence, folder=None, **settings) -> Metrics:
    """Train a quantized network; return the `Metrics` of the last validation.

    Args:
        quantization: what `quantize` returned; of a float network `Quantization(model)`.
        loaders: (training loader, validation loader).
        folder: where the training is recorded; None: nowhere.
        settings: of `TrainingSettings`, such as `epochs` and `lr`.
    """
    model = quantization.model
    metrics, _ = fit(model, Batches.of(loaders), TrainingSettings(**settings), quantization=quantization, folder=folder,
                     device=_device(model))
    return metrics


def evaluate(model: nn.Module, loader: Iterable) -> Metrics:
    """Return loss and accuracies of a network over a loader."""
    return evaluate_loader(model, loader, loss_function(), _device(model))


def _convert(model, loader, grids):
    convert_to_quantized(model, probe(model, loader.input_shape), quiet=True)
    (grids or Grids()).use(quantized_layers(model).values())


def _device(model):
    return next(model.parameters()).device
