"""Networks, images and training steps that the rows share."""

import torch

import models
from lib.network.hooks import batch_norms
from lib.record.checkpoint import load_weights, read_checkpoint
from lib.training.loop import loss_function, train_one_epoch
from lib.utils.quantize_utils import quantizable_layers

TAIL = 4  # degrees of freedom of Student's t; trained weights have such tails, initial ones have none
LR = 1e-3  # of the search


def network(name, device='cpu', weights=None, classes=1000):
    """Returns a float network: with the weights of a checkpoint, else with random ones with heavy tails.

    Those are the initial weights replaced by Student's t numbers of the same spread, and BatchNorms with statistics
    and scales near 1, so that activations differ between channels.
    """
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=classes)
    if weights:
        load_weights(model, read_checkpoint(weights), weights)
    else:
        _make_heavy(model)
    return model.to(device)


@torch.no_grad()
def _make_heavy(model):
    generator = torch.Generator().manual_seed(1)
    for layer in quantizable_layers(model).values():
        normal = torch.randn(layer.weight.shape, generator=generator)
        chi2 = sum(torch.randn(layer.weight.shape, generator=generator).square_() for _ in range(TAIL))
        spread = layer.weight.std() * (1 - 2 / TAIL) ** 0.5
        layer.weight.copy_(normal.div_((chi2 / TAIL).sqrt_()).mul_(spread))
    for norm in batch_norms(model).values():
        norm.weight.copy_(0.75 + 0.5 * torch.rand(norm.weight.shape, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))


def batches(count, size, side, device='cpu', classes=1000, seed=0):
    """Returns a list of (images (size, 3, side, side), labels) of noise."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 3, side, side, generator=generator).to(device),
             torch.randint(classes, (size,), generator=generator).to(device)) for _ in range(count)]


@torch.no_grad()
def settle(model, data):
    """Gives BatchNorms the statistics of a few batches, so that activations in evaluation are those of training."""
    from lib.training.batch_norm import reestimate_batch_norm
    reestimate_batch_norm(model, data, len(data), data[0][0].device)


def sgd(parameters):
    """Returns the optimizer of the search."""
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=4e-5)


def trainer(model, data, device, quantization=None):
    """Returns a function that trains over `data` once, by the loop of all scripts."""
    optimizer = sgd(quantization.parameters() if quantization else model.parameters())
    hooks = {'after_step': quantization.after_step, 'before_step': quantization.before_step} if quantization else {}
    criterion = loss_function()
    return lambda: train_one_epoch(model, data, criterion, optimizer, device, **hooks)
