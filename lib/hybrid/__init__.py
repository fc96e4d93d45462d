"""The hybrid system: configuration, plan, placement."""
