"""HAQ's agent as a searcher: an episode is a proposal, its reward what the agent learns from."""

from collections.abc import Callable, Sequence

import numpy as np

from lib.env.space import Space
from lib.env.state import bits_from_action
from lib.rl.ddpg import DDPG
from lib.runtime.distributed import broadcast
from lib.search.allocation import ilp_allocation
from lib.search.searcher import Searcher

PERTURBATION = 1.0  # standard deviation of the logarithm of a layer's factor


class AgentSearcher(Searcher):
    """Chooses bits layer by layer with a DDPG agent; the strategy of an episode is walled.

    Tell it rewards as HAQ has them, 0.1 * (accuracy - float accuracy): the networks learn at that scale.
    """

    name = 'ddpg'

    def __init__(self, space: Space, agent: DDPG, store_action: str = 'chosen', table: np.ndarray | None = None,
                 fill: Callable[[list], list] | None = None, teacher: Searcher | None = None):
        """Take over an agent.

        Args:
            space: with the records of its layers.
            agent: for states of `space.num_states`.
            store_action: what goes to the replay: the actions 'chosen', or those of the strategy as 'executed' behind
                the wall.
            table: (layers, 8, 8) sensitivities, for a warm start: instead of random actions the agent's warm-up has the
                strategies of least total sensitivity, for sensitivities that are each multiplied by a random factor.
            fill: returns a strategy within the budgets with more bits, as far as they allow; what it returns is
                executed. None: what the wall leaves of a budget is left, as in HAQ.
            teacher: a searcher that proposes in place of the agent during its warm-up, one whose proposals depend on
                its history alone.
        """
        super().__init__(space)
        self.agent, self.store_action, self.table = agent, store_action, table
        self.fill, self.teacher = fill or (lambda strategy: strategy), teacher
        self.losses = {'value_loss': None, 'policy_loss': None}
        self._acted = []  # (state, action) of the episode that runs

    @property
    def episode(self) -> int:
        """Number of the episode that runs or comes next, from 0."""
        return len(self.history)

    @property
    def _taught(self):
        return not self.agent.learning(self.episode)

    def propose(self) -> list:
        if self._taught and (self.teacher or self.table is not None):
            strategy = broadcast(self.fill(self.teacher.propose() if self.teacher else self._promising()))
            self._acted = self.space.trajectory(strategy)
            return strategy
        bits, self._acted = [], []
        for candidates in self.space.steps:
            state = self.space.state(bits)
            action = broadcast(self.agent.act(state, self.episode))
            self._acted.append((state, action))
            bits.append(bits_from_action(action, candidates))
        return self.fill(self.space.within_budget(self.space.of_bits(bits)))

    def _promising(self):
        """Return the strategy of least sensitivity, in episodes after the first under a random perturbation."""
        spread = PERTURBATION if self.episode else 0.0
        factors = np.exp(spread * self.agent.rng.standard_normal((len(self.table), 1, 1)))
        return ilp_allocation(self.table * factors, self.space)

    def observe(self, strategy: list, reward: float) -> None:
        """Store the transitions with the episode's reward; update the agent after each once warm-up is over."""
        transitions = self.space.trajectory(strategy) if self.store_action == 'executed' else self._acted
        losses, last = [], len(transitions) - 1
        for step, (state, action) in enumerate(transitions):
            next_state = transitions[min(step + 1, last)][0]
            self.agent.observe(state, action, reward, next_state, terminal=step == last)
            if self.agent.learning(self.episode):
                losses.append(self.agent.update_policy())
        if losses:
            value, policy = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            self.losses = {'value_loss': value, 'policy_loss': policy}
        if self.teacher and self._taught:
            self.teacher.observe(strategy, reward)
        super().observe(strategy, reward)

    def resume(self, history: Sequence[tuple[list, float]], agent_state: dict) -> None:
        """Go on after `history`, [(strategy, reward)], with the agent's state dict of that moment."""
        for strategy, reward in history:
            if self.teacher and self._taught:
                self.teacher.observe(strategy, reward)
            self.history.append((strategy, reward))
        self.agent.load_state_dict(agent_state)
