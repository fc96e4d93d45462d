"""The agent: DDPG and its replay memory. This room knows torch and numpy only."""
