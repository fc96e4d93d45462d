"""Compensated rounding in a search: each layer for the inputs of the float network, so that it is rounded once."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.network.codebooks import has_one_value
from lib.network.layer_inputs import from_matrix, weight_matrix
from lib.quantize.codebook import Codebook
from lib.quantize.compensate import Problem, compensate
from lib.quantize.kmeans import CodebookCache
from lib.quantize.reading import Product
from lib.training.compensation import codebook_for, mean_error, nearest_on, obstacle
from lib.training.moments import calls_of, collect_moments

logger = logging.getLogger(__name__)


class FloatProblems:
    """The problems of a float network's layers, each without the errors of other layers.

    A layer rounded for the inputs that it has in the float network depends on its bits alone, as a codebook does, so a
    search rounds it once.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Tensor],
                 keep_bn: bool = False):
        """Run the float network on the calibration images; the weights are those that the layers have now.

        `keep_bn` as in `collect_moments`.
        """
        calls = calls_of(model, layers, batches[0])
        self.layers = {name: layers[name] for name in calls}
        self.weights = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.moments = collect_moments(model, self.layers, batches, calls=calls, keep_bn=keep_bn)
        self._problems, self._biases = {}, {}

    def problem(self, name: str) -> Problem:
        """Return the `Problem` of a layer."""
        if name not in self._problems:
            moments = self.moments[name]
            self._problems[name] = Problem(weight_matrix(self.layers[name], self.weights[name]), moments)
            self.moments[name] = moments._replace(second=None)  # the problem has it
        return self._problems[name]

    @torch.no_grad()
    def correct_bias(self, name: str, bits: int) -> None:
        """Let the bias of a layer, which holds its rounded weight, take over the mean error of its outputs.

        The correction is kept for the next time.
        """
        layer, key = self.layers[name], (name, bits)
        if getattr(layer, 'bias', None) is None:
            return
        if key not in self._biases:
            matrices = (weight_matrix(layer, each).double() for each in (self.weights[name], layer.weight.detach()))
            self._biases[key] = mean_error(*matrices, self.moments[name]).to(layer.bias)
        layer.bias += self._biases[key]


class CompensatedCodebooks(CodebookCache):
    """The compensated codebooks of a float network, each found once; layers that no forward calls have plain ones."""

    def __init__(self, problems: FloatProblems, **options):
        super().__init__(**options)
        self.problems = problems

    def find(self, name: str, weight: Tensor, bits: int) -> Codebook:
        layer = self.problems.layers.get(name)
        if layer is None or has_one_value(layer.weight, self._options['is_pruned']):
            return super().find(name, weight, bits)
        return codebook_for(layer, bits, self.problems.problem(name), **self._options)


class CompensatedWeights:
    """The compensated weights of linear quantizers whose ranges are those of the float weights, each found once."""

    def __init__(self, problems: FloatProblems, corrects_bias: bool = True):
        self.problems, self.corrects_bias, self._weights, self._named = problems, corrects_bias, {}, set()

    @torch.no_grad()
    def put(self, name: str, layer: nn.Module) -> None:
        """Give a layer with float weights, whose bits and ranges are set, the rounded ones, if they can be had.

        A layer that keeps rounding to nearest is named in the log, once.
        """
        if name not in self.problems.layers or not layer.weight_quantizer.active or isinstance(layer, Product):
            return
        if reason := obstacle(layer):
            if name not in self._named:
                logger.warning('%s keeps rounding to nearest: %s', name, reason)
            self._named.add(name)
            return
        key = name, layer.w_bit
        if key not in self._weights:
            nearest = nearest_on(layer.weight_quantizer, layer.weight.detach())
            self._weights[key] = from_matrix(layer, compensate(self.problems.problem(name), nearest)).to(layer.weight)
        layer.weight.copy_(self._weights[key])
        if self.corrects_bias:
            self.problems.correct_bias(name, layer.w_bit)
