"""Searchers of strategies, all on one bench: uniform, random, by sensitivity, evolutionary, progressive, the agent."""
