"""HAQ's definitions implemented plainly: what a search costs that does nothing cleverly.

Every function is its definition written down with scikit-learn, NumPy and autograd, vectorised where the definition is,
without copies that it does not ask for. `benchmarks/speed.py` times them beside the fast paths of lib, and
`tests/benchmarks/test_straightforward.py` checks that both give the same results.
"""

import random
from collections import deque

import numpy as np
import torch
from scipy import stats
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

# ---- K-means: scikit-learn, a mask per centroid


def cluster(weight, bits, max_iter=3, seed=0, start=None):
    """Returns (centroids (k,), labels int64 of the weight's shape): scikit-learn's K-means of k = min(2^bits, n).

    With `start`, the centroids of an earlier call, it goes on from there.
    """
    points = weight.detach().cpu().numpy().reshape(-1, 1)
    init = 'k-means++' if start is None else start.cpu().numpy().reshape(-1, 1)
    fitted = KMeans(min(2**bits, len(points)), init=init, n_init=1, max_iter=max_iter, random_state=seed)
    labels = fitted.fit_predict(points)
    centroids = torch.from_numpy(fitted.cluster_centers_[:, 0]).to(weight)
    return centroids, torch.from_numpy(labels).long().view(weight.shape).to(weight.device)


@torch.no_grad()
def cluster_network(layers, bits, max_iter=3, seed=0):
    """Clusters the weights of {name: layer} in place; returns {name: (number of centroids, labels)}."""
    books = {}
    for (name, layer), b in zip(layers.items(), bits, strict=True):
        centroids, labels = cluster(layer.weight, b, max_iter, seed)
        layer.weight.copy_(centroids[labels])
        books[name] = len(centroids), labels
    return books


@torch.no_grad()
def project(layers, books):
    """After a step: gives the weights of every cluster their mean, a mask per centroid; empty clusters are skipped."""
    for name, (count, labels) in books.items():
        weight = layers[name].weight
        projected = torch.zeros_like(weight)
        for label in range(count):
            mask = (labels == label).to(weight.dtype)
            members = mask.sum()
            if members:
                projected.add_(mask, alpha=((weight * mask).sum() / members).item())
        weight.copy_(projected)


# ---- linear quantization: the formulas, differentiated by autograd


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class ActivationFormula(nn.Module):
    """y = 0.5 (|x| - |x - r| + r) or, signed, 0.5 (|x + r| - |x - r|); then round(y / s) * s, s without gradient.

    Args:
        bits: at least 2 where signed.
        signed: whether one bit is the sign.
        clip: the range r, which learns.
    """

    def __init__(self, bits, signed, clip):
        super().__init__()
        self.signed, self.top = signed, 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        self.range = nn.Parameter(clip.detach().clone())

    def forward(self, x):
        r = self.range
        y = 0.5 * ((x + r).abs() - (x - r).abs()) if self.signed else 0.5 * (x.abs() - (x - r).abs() + r)
        scale = (r / self.top).detach()
        return _Round.apply(y / scale) * scale


class WeightFormula(nn.Module):
    """round(clamp(w, -r, r) / s) * s with s = r / (2^(bits-1) - 1); the gradient passes to the unclamped weight."""

    def __init__(self, bits, clip):
        super().__init__()
        self.register_buffer('range', clip.detach().clone())
        self.top = 2 ** (bits - 1) - 1

    def forward(self, w):
        r, scale = self.range.item(), self.range / self.top
        quantized = torch.round(torch.clamp(w, -r, r) / scale) * scale
        return w + (quantized - w).detach()


def set_formulas(layers, strategy, signs, ranges):
    """Gives {name: `QConv2d` or `QLinear`} the formulas as quantizers; activation bits of -1 leave the input alone.

    Args:
        layers: of a converted network.
        strategy: [w_bit, a_bit] per layer.
        signs: {name: whether the input is signed}.
        ranges: {name: (weight range, activation range)}, floats.
    """
    for (name, layer), (w_bit, a_bit) in zip(layers.items(), strategy, strict=True):
        w_range, a_range = (layer.weight.new_tensor([clip]) for clip in ranges[name])
        layer.weight_quantizer = WeightFormula(w_bit, w_range)
        layer.input_quantizer = nn.Identity() if a_bit == -1 else ActivationFormula(a_bit, signs[name], a_range)


# ---- calibration: NumPy on the host, a loop over the thresholds


def kl_threshold(x, bits):
    """Returns the threshold of least distance sum((c - q) log2(c / q)) over all i; quadratic in the number of bins."""
    magnitude = x.detach().cpu().abs().flatten().numpy()
    top = float(magnitude.max())
    counts, _ = np.histogram(magnitude, bins='sqrt', range=(0, top))
    bins, levels = len(counts), 2 ** (bits - 1)
    if levels + 1 > bins:
        return top
    c = counts.cumsum() / counts.sum()
    log_c = np.log2(np.maximum(c, 1e-12))
    distances = []
    for i in range(levels + 1, bins + 1):
        p = np.append(c[: i - 1], 1.0)
        coarse = np.interp(np.arange(levels) * ((i - 1) / max(levels - 1, 1)), np.arange(i), p)
        q = np.ones(bins)
        q[:i] = np.interp(np.arange(i) * ((levels - 1) / (i - 1)), np.arange(levels), coarse)
        distances.append(((c - q) * (log_c - np.log2(np.maximum(q, 1e-12)))).sum())
    return (levels + 1 + int(np.argmin(distances)) + 0.5) * top / bins


def find_range(x, bits):
    """Returns the range of 'kl' calibration: the maximum from 5 (magnitude) bits on, else the threshold."""
    return float(x.detach().abs().max()) if bits >= 5 else kl_threshold(x, bits)


@torch.no_grad()
def calibrate(model, layers, strategy, signs, images):
    """Returns {name: (weight range, activation range)} from one pass over a batch; the network is to be float now."""
    ranges = {}

    def look(name, w_bit, a_bit):
        def hook(layer, inputs):
            x = inputs[0]
            clip = 0.0 if a_bit == -1 else min(find_range(x, a_bit - int(signs[name])), float(x.abs().max()))
            ranges[name] = find_range(layer.weight, w_bit), clip
        return hook

    hooks = [layer.register_forward_pre_hook(look(name, *bits))
             for (name, layer), bits in zip(layers.items(), strategy, strict=True)]
    model.eval()
    model(images)
    for hook in hooks:
        hook.remove()
    return ranges


# ---- the agent


class Actor(nn.Module):
    """state -> hidden1 -> hidden2 -> action in [0, 1]."""

    def __init__(self, num_states, hidden1=300, hidden2=300):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(num_states, hidden1), nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, 1)

    def forward(self, s):
        return torch.sigmoid(self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(s))))))


class Critic(nn.Module):
    """relu(W1 s + W2 a) -> hidden2 -> value."""

    def __init__(self, num_states, hidden1=300, hidden2=300):
        super().__init__()
        self.fc_state, self.fc_action = nn.Linear(num_states, hidden1), nn.Linear(1, hidden1)
        self.fc2, self.fc3 = nn.Linear(hidden1, hidden2), nn.Linear(hidden2, 1)

    def forward(self, s, a):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc_state(s) + self.fc_action(a)))))


class Agent:
    """DDPG as the original has it: a list of transitions, networks and targets, Adam, SciPy's truncated normal."""

    def __init__(self, num_states, capacity, *, bsize=64, lr_a=1e-4, lr_c=1e-3, tau=0.01, discount=1.0, seed=0,
                 device='cpu'):
        self.bsize, self.tau, self.discount, self.device = bsize, tau, discount, device
        self.actor, self.actor_target = Actor(num_states).to(device), Actor(num_states).to(device)
        self.critic, self.critic_target = Critic(num_states).to(device), Critic(num_states).to(device)
        self.copy_targets()
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr_a)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr_c)
        self.memory, self.baseline = deque(maxlen=capacity), None
        self.random, self.rng = random.Random(seed), np.random.default_rng(seed)

    def copy_targets(self):
        """Makes the target networks equal to the trained ones."""
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.critic_target.load_state_dict(self.critic.state_dict())

    @torch.no_grad()
    def select_action(self, state, delta):
        """Returns an action from the normal of this sigma around the policy's, truncated to [0, 1]."""
        mu = float(self.actor(self._tensor([state]))[0, 0])
        if delta == 0:
            return mu
        return stats.truncnorm.rvs(-mu / delta, (1 - mu) / delta, loc=mu, scale=delta, random_state=self.rng)

    def observe(self, *transition):
        """Stores (state, action, reward, next state, terminal)."""
        self.memory.append(transition)

    def update_policy(self):
        """Takes one gradient step on both networks and moves the targets; returns both losses."""
        batch = self.random.sample(list(self.memory), min(self.bsize, len(self.memory)))
        s, a, r, s_next, terminal = (self._tensor(column) for column in zip(*batch, strict=True))
        a, r, terminal = a.view(-1, 1), r.view(-1, 1), terminal.view(-1, 1)
        mean = r.mean().item()
        self.baseline = mean if self.baseline is None else 0.5 * self.baseline + 0.5 * mean
        with torch.no_grad():
            q_next = self.critic_target(s_next, self.actor_target(s_next))
            target = r - self.baseline + self.discount * (1 - terminal) * q_next
        value_loss = F.mse_loss(self.critic(s, a), target)
        self._step(self.critic_optimizer, value_loss)
        policy_loss = -self.critic(s, self.actor(s)).mean()
        self._step(self.actor_optimizer, policy_loss)
        for network, slow in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            for parameter, average in zip(network.parameters(), slow.parameters(), strict=True):
                average.data.copy_((1 - self.tau) * average.data + self.tau * parameter.data)
        return value_loss.item(), policy_loss.item()

    def _step(self, optimizer, loss):
        self.actor.zero_grad()
        self.critic.zero_grad()
        loss.backward()
        optimizer.step()

    def _tensor(self, values):
        return torch.as_tensor(np.array(values, np.float32), device=self.device)


# ---- the wall


def wall(strategy, table, limit, min_bit, fixed):
    """Returns the strategy lowered round by round from the last layer, and its cost; all is summed after every bit."""
    bits = [list(pair) for pair in strategy]
    for index, pair in fixed.items():
        bits[index] = list(pair)

    def cost():
        return sum(table[layer, w - 1, (8 if a == -1 else a) - 1] for layer, (w, a) in enumerate(bits))

    lowered = True
    while lowered and cost() > limit:
        lowered = False
        for index in reversed(range(len(bits))):
            for which in (1, 0):
                if index not in fixed and bits[index][which] > min_bit and cost() > limit:
                    bits[index][which] -= 1
                    lowered = True
    return bits, cost()


# ---- images: decoded anew in every epoch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph_loaders(root, train, val, *, batch, workers):
    """Returns the loaders of the images at the positions `train` and `val` of root/train, as in ImageNet's recipe."""
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise])
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *normalise])
    options = {'batch_size': batch, 'num_workers': workers}
    return (DataLoader(Subset(ImageFolder(f'{root}/train', augment), train), shuffle=True, **options),
            DataLoader(Subset(ImageFolder(f'{root}/train', view), val), **options))


class SmallImages(Dataset):
    """Images uint8 (N, 3, H, W) in memory, transformed one by one through PIL, as torchvision's CIFAR does."""

    def __init__(self, images, labels, augment, mean, std):
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        views = [transforms.RandomCrop(images.shape[-1], padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([transforms.ToPILImage(), *(views if augment else []),
                                             transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


# ---- episodes


def train(model, loader, device, parameters, after_step=None, lr=1e-3):
    """Trains for one epoch by SGD with the search's settings, in place."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=4e-5)
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if after_step:
            after_step()


@torch.no_grad()
def validate(model, loader, device):
    """Returns the top-1 accuracy in percent."""
    model.eval()
    hits, count = 0, 0
    for images, labels in loader:
        hits += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return 100 * hits / count


def kmeans_episode(model, layers, float_state, bits, loaders, device, books=None):
    """Clusters the float weights, trains with a projection after every step and validates; returns the accuracy.

    `books` are clusters of {name: (number, labels)} found elsewhere, whose centroids the weights are already.
    """
    if books is None:
        model.load_state_dict(float_state)
        books = cluster_network(layers, bits)
    train(model, loaders[0], device, model.parameters(), lambda: project(layers, books))
    return validate(model, loaders[1], device)


def linear_episode(model, layers, float_state, strategy, signs, images, loaders, device):
    """Calibrates the float network on `images`, trains with the formulas and validates; returns the accuracy.

    The quantizers of {name: `QConv2d` or `QLinear`} are replaced.
    """
    for layer in layers.values():
        layer.weight_quantizer, layer.input_quantizer = nn.Identity(), nn.Identity()
    model.load_state_dict(float_state)
    ranges = calibrate(model, layers, strategy, signs, images)
    set_formulas(layers, strategy, signs, ranges)
    train(model, loaders[0], device, model.parameters())
    return validate(model, loaders[1], device)
