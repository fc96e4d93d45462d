"""Codebook training against the definition: step all weights, then replace each cluster by its mean."""

import copy

import pytest
import torch
from torch import nn

from lib.quantize.codebook import CentroidTrainer, Codebook
from lib.quantize.kmeans import fit_codebook


def small_network(dtype, pruned):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 5)).to(dtype)
    if pruned:
        with torch.no_grad():
            for layer in (net[0], net[3]):
                layer.weight[layer.weight.abs() < 0.05] = 0
    return net


def weights_of(net):
    return {'conv': net[0].weight, 'fc': net[3].weight}


def project(weight, codebook):
    """The definition: every cluster of weights becomes its mean, pruned weights zero."""
    result = torch.zeros_like(weight)
    for label in range(len(codebook.centroids)):
        members = codebook.labels == label
        if codebook.kept is not None:
            members &= codebook.kept
        if members.any():
            result[members] = weight[members].mean()
    return result


@pytest.mark.parametrize('pruned', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_projection_after_every_step(dtype, tolerance, pruned):
    projected = small_network(dtype, pruned)
    bits = {'conv': 2, 'fc': 4}
    books = {name: fit_codebook(w, bits[name], is_pruned=pruned) for name, w in weights_of(projected).items()}
    trained = copy.deepcopy(projected)
    settings = {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 1e-2}

    trainer = CentroidTrainer({name: (w, books[name]) for name, w in weights_of(trained).items()})
    optimizers = [torch.optim.SGD(projected.parameters(), **settings),
                  torch.optim.SGD([*trainer.parameters(), trained[0].bias, trained[3].bias], **settings)]
    with torch.no_grad():
        for name, weight in weights_of(projected).items():
            weight.copy_(books[name].decode())

    for step in range(8):
        images, labels = torch.randn(7, 2, 6, 6, dtype=dtype), torch.randint(5, (7,))
        for net, optimizer in zip((projected, trained), optimizers, strict=True):
            optimizer.param_groups[0]['lr'] = 0.1 / (1 + step)
            net.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
        optimizers[0].step()
        with torch.no_grad():
            for name, weight in weights_of(projected).items():
                weight.copy_(project(weight, books[name]))
        trainer.before_step()
        optimizers[1].step()
        trainer.after_step()
        for ours, theirs in zip(trained.parameters(), projected.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for name, weight in weights_of(trained).items():
        assert not torch.equal(weight, books[name].decode().to(dtype))
        torch.testing.assert_close(trainer.codebooks()[name].decode(), weight.detach().float(), rtol=0, atol=0)
        if pruned:
            assert torch.equal(weight != 0, books[name].kept)


def test_starts_by_clustering_the_weights_and_moves_their_gradients():
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [10.0, 0.0]]))
    book = Codebook(torch.tensor([1.5, 5.0, 10.0]), torch.tensor([[0, 0], [2, 0]], dtype=torch.uint8), weight != 0)
    trainer = CentroidTrainer({'layer': (weight, book)})
    assert weight.tolist() == [[1.5, 1.5], [10, 0]]
    weight.grad = torch.tensor([[1.0, 3.0], [7.0, 100.0]])
    trainer.before_step()
    (centroids,) = trainer.parameters()
    assert centroids.grad.tolist() == [2, 0, 7]  # the empty cluster gets 0, the pruned weight nothing
    assert weight.grad is None


def test_layer_without_gradient_is_skipped():
    weight = nn.Parameter(torch.randn(20))
    trainer = CentroidTrainer({'layer': (weight, fit_codebook(weight, 2))})
    before = weight.detach().clone()
    trainer.before_step()
    torch.optim.SGD(trainer.parameters(), lr=1, weight_decay=1).step()
    trainer.after_step()
    assert trainer.parameters()[0].grad is None and torch.equal(weight, before)


def test_layer_that_is_pruned_altogether():
    weight = nn.Parameter(torch.zeros(3, 3))
    trainer = CentroidTrainer({'layer': (weight, fit_codebook(weight, 2, is_pruned=True))})
    weight.grad = torch.ones(3, 3)
    trainer.before_step()
    torch.optim.SGD(trainer.parameters(), lr=1, momentum=0.9).step()
    trainer.after_step()
    assert (weight == 0).all()


def test_memory_layout_does_not_matter():
    plain = nn.Parameter(torch.randn(4, 3, 3, 3))
    strided = nn.Parameter(plain.detach().to(memory_format=torch.channels_last))
    book = fit_codebook(plain, 2)
    trainer = CentroidTrainer({'plain': (plain, book), 'strided': (strided, book)})
    gradient = torch.randn(4, 3, 3, 3)
    plain.grad, strided.grad = gradient.clone(), gradient.to(memory_format=torch.channels_last)
    trainer.before_step()
    assert torch.equal(trainer.parameters()[0].grad, trainer.parameters()[1].grad)
    torch.optim.SGD(trainer.parameters(), lr=0.1).step()
    trainer.after_step()
    assert torch.equal(plain, strided)


def test_refuses_the_codebook_of_another_layer():
    with pytest.raises(ValueError, match='features.3'):
        CentroidTrainer({'features.3': (nn.Parameter(torch.ones(3, 2)), fit_codebook(torch.ones(2, 3), 1))})


@pytest.mark.parametrize('pruned', [False, True])
def test_codebook_round_trip_through_a_file(tmp_path, pruned):
    weight = torch.randn(5, 4) * (torch.rand(5, 4) > 0.4)
    book = fit_codebook(weight, 2, is_pruned=pruned)
    torch.save(book.state_dict(), tmp_path / 'book.pt')
    loaded = Codebook.from_state_dict(torch.load(tmp_path / 'book.pt', weights_only=True)).to('cpu')
    assert torch.equal(loaded.decode(), book.decode()) and (loaded.kept is None) == (not pruned)
