"""DDPG, the agent that chooses the bits of one layer after the other.

Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016, with the two changes of HAQ
(CVPR 2019, section 3.5): exploration by a truncated normal whose width decays per episode, and a moving-average
baseline in the critic's target. See docs/agent.md.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch.nn import functional as F

from lib.record.files import atomic_path
from lib.record.finite import not_finite
from lib.record.torch_files import read_torch_file
from lib.rl.memory import ReplayMemory
from lib.rl.networks import Actor, Critic

BASELINE_RATE = .5  # alpha of the moving average b of the batch's mean reward
SAVED_PARTS = ('actor', 'critic', 'actor_target', 'critic_target', 'actor_optimizer', 'critic_optimizer', 'memory')


def truncated_normal(mean: float, sigma: float, uniform: float) -> float:
    """Map a uniform number in [0, 1) to a normal one around `mean` that is truncated to [0, 1], by the inverse CDF.

    Args:
        mean: centre of the normal before truncation, in [0, 1].
        sigma: its standard deviation, >= 0; 0 gives `mean`, infinity the uniform distribution.
        uniform: the random number, in [0, 1).

    Raises:
        ValueError: `mean` is outside [0, 1] or `sigma` is negative; either is not a number.
    """
    if not (0 <= mean <= 1 and sigma >= 0):
        raise ValueError(f'expected a mean in [0, 1] and sigma >= 0, got mean {mean} and sigma {sigma}')
    if sigma == 0:
        return mean
    sigma = min(sigma, 1e6)  # uniform to 13 digits from here on, while the CDF of a wider one would lose digits
    normal = NormalDist(mean, sigma)
    low, high = normal.cdf(0.), normal.cdf(1.)
    probability = low + (high - low) * uniform
    probability = min(max(probability, 2.**-60), 1 - 2.**-53)  # the inverse has no value at 0 and 1
    return min(max(normal.inv_cdf(probability), 0.), 1.)


def decay_to(end: float, start: float, episodes: int) -> float:
    """Return the factor per episode by which sigma comes from `start` to `end` within so many episodes.

    Raises:
        ValueError: `end` is not above 0, or above `start`.
    """
    if not 0 < end <= start:
        raise ValueError(f'delta_end {end:g}: expected a sigma above 0 and not above init_delta {start:g}')
    return (end / start) ** (1 / max(episodes, 1))


class DDPG:
    """Deep deterministic policy gradient for actions in [0, 1] and rewards at the end of an episode.

    The loop of an episode is::

        for each layer:  action = agent.act(state, episode)
        for each layer:  agent.observe(state, action, reward, next_state, terminal)
                         if agent.learning(episode): value_loss, policy_loss = agent.update_policy()

    Args:
        num_states: numbers in a state.
        hidden1: units in the first hidden layer of actor and critic.
        hidden2: units in the second.
        lr_a: learning rate of the actor (Adam).
        lr_c: learning rate of the critic (Adam).
        tau: share of the online networks in each soft update of the target networks, in (0, 1].
        discount: weight of the next state's value, in [0, 1].
        bsize: transitions per update; all stored ones where there are fewer.
        capacity: transitions that the replay memory keeps.
        init_delta: sigma of the exploration when warm-up ends.
        delta_decay: factor on sigma per episode after that.
        warmup: the last episode whose actions are uniformly random; updates start with the next one.
        n_update: gradient steps per `update_policy`.
        seed: seeds initialisation, exploration and replay, each with a generator of its own.

    Raises:
        ValueError: a size is below 1, or tau, discount, init_delta or delta_decay is out of its range.
    """

    def __init__(self, *, num_states: int, hidden1: int = 300, hidden2: int = 300, lr_a: float = 1e-4,
                 lr_c: float = 1e-3, tau: float = .01, discount: float = 1., bsize: int = 64, capacity: int,
                 init_delta: float = .5, delta_decay: float = .99, warmup: int = 20, n_update: int = 1, seed: int = 0):
        _check_sizes(num_states=num_states, hidden1=hidden1, hidden2=hidden2, bsize=bsize, capacity=capacity,
                     n_update=n_update)
        _check_fractions(tau=tau, discount=discount, delta_decay=delta_decay)
        if not (tau > 0 and init_delta >= 0):
            raise ValueError(f'expected tau > 0 and init_delta >= 0, got {tau} and {init_delta}')
        self.tau, self.discount, self.bsize, self.n_update = tau, discount, bsize, n_update
        self.init_delta, self.delta_decay, self.warmup = init_delta, delta_decay, warmup

        init_seed, noise_seed, memory_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
        self.actor, self.critic = _create_networks(num_states, hidden1, hidden2, init_seed)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr_a, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr_c, fused=True)
        self.memory = ReplayMemory(capacity, num_states, memory_seed)
        self.rng = np.random.default_rng(noise_seed)
        self.baseline = None  # b, the moving average of the reward; None before the first update

    # ---- acting

    def act(self, state: Sequence[float], episode: int) -> float:
        """Explore: a uniformly random action up to episode `warmup`, later the noisy policy."""
        return self.select_action(state, episode) if self.learning(episode) else self.random_action()

    def learning(self, episode: int) -> bool:
        """Tell whether warm-up is over, that is, whether the agent acts by its policy and updates it."""
        return episode > self.warmup

    def delta(self, episode: int) -> float:
        """Sigma of the exploration: init_delta * delta_decay ** (episode - warmup), init_delta during warm-up."""
        return self.init_delta * self.delta_decay ** max(episode - self.warmup, 0)

    def random_action(self) -> float:
        """Draw an action uniformly from [0, 1)."""
        return self.rng.random()

    def select_action(self, state: Sequence[float], episode: int, deterministic: bool = False) -> float:
        """Ask the policy: a ~ truncated normal on [0, 1] around mu(s) with sigma delta(episode).

        Args:
            state: one-dimensional, `num_states` numbers.
            episode: counts from 0; sets the sigma.
            deterministic: give mu(s) itself and draw nothing.

        Raises:
            ValueError: mu(s) is not a number, because the state or the actor holds one that is not.
        """
        with torch.no_grad():
            mu = self.actor(_tensor(state)).item()
        return mu if deterministic else truncated_normal(mu, self.delta(episode), self.rng.random())

    # ---- learning

    def observe(self, state: Sequence[float], action: float, reward: float,
                next_state: Sequence[float], terminal: bool) -> None:
        """Remember one transition; in HAQ every transition of an episode carries the episode's final reward."""
        self.memory.add(state, action, reward, next_state, terminal)

    def update_policy(self) -> tuple[float, float]:
        """Do `n_update` gradient steps on both networks and move the targets after them.

        Returns:
            value_loss and policy_loss, each the mean over the steps.

        Raises:
            FloatingPointError: a loss is not finite; the network that it would have trained is left as it was.
            ValueError: nothing has been observed yet.
        """
        losses = [self.update() for _ in range(self.n_update)]
        value_loss, policy_loss = (sum(column) / self.n_update for column in zip(*losses, strict=True))
        return value_loss, policy_loss

    def update(self) -> tuple[float, float]:
        """Do one gradient step on the critic, one on the actor, and move both targets; return the two losses."""
        s, a, r, s_next, terminal = map(_tensor, self.memory.sample(self.bsize))
        mean_reward = r.mean().item()
        previous = mean_reward if self.baseline is None else self.baseline
        self.baseline = previous + BASELINE_RATE * (mean_reward - previous)

        loss_q = self.compute_loss_q(s, a, r, s_next, terminal)
        value_loss = _step(self.critic, self.critic_optimizer, loss_q, 'value_loss')
        loss_pi = self.compute_loss_pi(s)
        policy_loss = _step(self.actor, self.actor_optimizer, loss_pi, 'policy_loss')
        with torch.no_grad():
            for target, online in ((self.critic_target, self.critic), (self.actor_target, self.actor)):
                for theta_target, theta in zip(target.parameters(), online.parameters(), strict=True):
                    theta_target.lerp_(theta, self.tau)  # theta' <- (1 - tau) theta' + tau theta
        return value_loss, policy_loss

    def compute_loss_q(self, s: torch.Tensor, a: torch.Tensor, r: torch.Tensor, s_next: torch.Tensor,
                       terminal: torch.Tensor) -> torch.Tensor:
        """Mean of (Q(s, a) - y)^2 with y = (r - b) + discount * (1 - terminal) * Q'(s', mu'(s'))."""
        with torch.no_grad():
            q_next = self.critic_target(s_next, self.actor_target(s_next))
            y = (r - self.baseline) + self.discount * (1 - terminal) * q_next
        return F.mse_loss(self.critic(s, a), y)

    def compute_loss_pi(self, s: torch.Tensor) -> torch.Tensor:
        """-mean Q(s, mu(s)): the policy climbs what the critic expects of it."""
        return -self.critic(s, self.actor(s)).mean()

    # ---- saving

    def state_dict(self) -> dict:
        """Everything that a search needs to continue bit for bit; `torch.load(..., weights_only=True)` reads it."""
        parts = {name: getattr(self, name).state_dict() for name in SAVED_PARTS}
        return copy.deepcopy({**parts, 'baseline': self.baseline, 'rng': self.rng.bit_generator.state})

    def load_state_dict(self, state: dict) -> None:
        """Continue where the agent that gave `state` was; its learning rates come with its optimizers.

        Raises:
            ValueError: the replay memory or a network has another shape, or a part is missing or none of an agent.
        """
        try:
            for name in SAVED_PARTS:
                part = getattr(self, name)
                saved = _of_torch(state[name], part) if 'optimizer' in name else state[name]
                _load(part, saved, name)
            self.baseline, self.rng.bit_generator.state = state['baseline'], state['rng']
        except (TypeError, AttributeError, LookupError) as error:
            raise ValueError(f'this is no state of an agent ({type(error).__name__}: {error})') from error

    def save_model(self, folder: str | os.PathLike) -> None:
        """Write the networks' state dicts to actor.pkl and critic.pkl in `folder`."""
        for name in ('actor', 'critic'):
            with atomic_path(Path(folder, f'{name}.pkl')) as temporary:
                torch.save(getattr(self, name).state_dict(), temporary)

    def load_weights(self, folder: str | os.PathLike) -> None:
        """Read actor.pkl and critic.pkl from `folder` into the networks and their targets.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: a file cannot be read, or holds a network of another shape or values that are not finite.
        """
        for name in ('actor', 'critic'):
            path = Path(folder, f'{name}.pkl')
            weights = read_torch_file(path, 'network of an agent')
            if problem := not_finite(weights):
                raise ValueError(f'{path} is damaged: {problem}')
            _load(getattr(self, name), weights, path)
            _load(getattr(self, f'{name}_target'), weights, path)


def _tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))


def _create_networks(num_states: int, hidden1: int, hidden2: int, seed: int) -> tuple[Actor, Critic]:
    """Initialise actor and critic as torch does by default, from `seed` and not from torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return Actor(num_states, hidden1, hidden2), Critic(num_states, hidden1, hidden2)


def _step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor, name: str) -> float:
    """Do a gradient step on `net` alone and return the loss; one that is not finite changes nothing."""
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f'{name} is {value}: look for a reward or a state that is not finite, '
                                 'else lower lr_a and lr_c')
    optimizer.zero_grad()
    loss.backward(inputs=list(net.parameters()))
    optimizer.step()
    return value


def _of_torch(state: dict, optimizer: torch.optim.Adam) -> dict:
    """Return the state of an optimizer as torch.optim.Adam has it; searches of before kept one flat tensor each."""
    if 'exp_avg' not in state:
        return state
    parameters = optimizer.param_groups[0]['params']
    sizes = [p.numel() for p in parameters]
    if state['exp_avg'].numel() != sum(sizes):
        raise ValueError(f'saved exp_avg of Adam has {state["exp_avg"].numel()} values, expected {sum(sizes)}; '
                         'build the agent with the sizes of the saved one (num_states, hidden1, hidden2)')
    moments = {name: [part.view(p.shape) for part, p in zip(state[name].split(sizes), parameters, strict=True)]
               for name in ('exp_avg', 'exp_avg_sq')}
    groups = [{**optimizer.state_dict()['param_groups'][0], 'lr': state['lr']}]
    if not state['steps']:
        return {'state': {}, 'param_groups': groups}
    return {'param_groups': groups, 'state': {
        i: {'step': state['steps'].clone(), **{name: parts[i] for name, parts in moments.items()}}
        for i in range(len(parameters))}}


def _load(part, state: dict, origin: str | os.PathLike) -> None:
    try:
        part.load_state_dict(copy.deepcopy(state))  # Adam would train the caller's tensors
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f'{origin} does not fit this agent; build it with the sizes of the saved one '
                         f'(num_states, hidden1, hidden2, capacity): {" ".join(str(error).split())}') from error


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f'{name} must be in [0, 1], got {value}')
