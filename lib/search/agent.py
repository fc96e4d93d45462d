"""HAQ's agent as a searcher: an episode is a proposal, its reward what the agent learns from."""

import numpy as np

from lib.runtime.distributed import broadcast
from lib.search.allocation import ilp_allocation
from lib.search.searcher import Searcher
from lib.search.space import Space

PERTURBATION = 1.0  # standard deviation of the logarithm of a layer's factor


class AgentSearcher(Searcher):
    """Chooses bits layer by layer with a DDPG agent; the strategy of an episode is walled.

    It is to be told rewards as HAQ has them, 0.1 * (accuracy - float accuracy): the networks learn at that scale.
    """

    name = 'ddpg'

    def __init__(self, env, agent, store_action='chosen', table=None):
        """Takes over an agent.

        Args:
            env: `SearchEnv` that makes states of choices; nothing is evaluated in it.
            agent: `DDPG` for its states.
            store_action: what goes to the replay: the actions 'chosen', or those of the strategy as 'executed' behind
                the wall.
            table: (layers, 8, 8) sensitivities, for a warm start: instead of random actions the agent's warm-up has the
                strategies of least total sensitivity, for sensitivities that are each multiplied by a random factor.
        """
        super().__init__(Space.of(env))
        self.table = table
        self.env, self.agent, self.store_action = env, agent, store_action
        self.losses = {'value_loss': None, 'policy_loss': None}
        self._acted = []

    @property
    def episode(self):
        """Number of the episode that runs or comes next, from 0."""
        return len(self.history)

    def propose(self):
        if self.table is not None and not self.agent.learning(self.episode):
            strategy = broadcast(self._promising())
            self._acted = self.env.trajectory(strategy)
            return strategy
        state, strategy, self._acted = self.env.reset(), None, []
        while strategy is None:
            action = broadcast(self.agent.act(state, self.episode))
            self._acted.append((state, action))
            state, strategy = self.env.choose(action)
        return strategy

    def _promising(self):
        """Returns the strategy of least sensitivity, in episodes after the first under a random perturbation."""
        spread = PERTURBATION if self.episode else 0.0
        factors = np.exp(spread * self.agent.rng.standard_normal((len(self.table), 1, 1)))
        return ilp_allocation(self.table * factors, self.space)

    def observe(self, strategy, score):
        """Stores the transitions with the episode's reward; updates the agent after each once warm-up is over."""
        transitions = self.env.trajectory(strategy) if self.store_action == 'executed' else self._acted
        losses, last = [], len(transitions) - 1
        for step, (state, action) in enumerate(transitions):
            next_state = transitions[min(step + 1, last)][0]
            self.agent.observe(state, action, score, next_state, terminal=step == last)
            if self.agent.learning(self.episode):
                losses.append(self.agent.update_policy())
        if losses:
            value, policy = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            self.losses = {'value_loss': value, 'policy_loss': policy}
        super().observe(strategy, score)

    def resume(self, history, agent_state):
        """Goes on after `history`, [(strategy, score)], with the agent's state dict of that moment."""
        self.history = list(history)
        self.agent.load_state_dict(agent_state)
