"""A quick look at a strategy before it is fine-tuned: can it still become the best?"""

import numpy as np

MIN_PAIRS = 10  # strategies that are fine-tuned before the look decides anything
MARGIN = 2.0  # standard deviations that a strategy may turn out better than predicted


class Screen:
    """Predicts the accuracy after fine-tuning from that before it, by a straight line through what was seen.

    A strategy is not promising if the prediction and `MARGIN` standard deviations of what it missed by so far stay
    below the best accuracy. The first `MIN_PAIRS` are always promising.
    """

    def __init__(self):
        self.pairs = []  # (accuracy at first sight, accuracy after fine-tuning), percent

    def add(self, screened: float, accuracy: float) -> None:
        """Take what became of a strategy that was fine-tuned."""
        self.pairs.append((screened, accuracy))

    def predict(self, screened: float) -> tuple[float, float]:
        """Return (expected accuracy, standard deviation of the error of such predictions)."""
        before, after = np.array(self.pairs, dtype=float).T
        spread = np.var(before)
        slope = np.mean((before - before.mean()) * (after - after.mean())) / spread if spread else 0.0
        misses = after - after.mean() - slope * (before - before.mean())
        freedom = max(len(after) - 2, 1)
        expected = after.mean() + slope * (screened - before.mean())
        return float(np.clip(expected, 0, 100)), float(np.sqrt(np.sum(misses**2) / freedom))

    def promising(self, screened: float) -> bool:
        """Return whether a strategy of this accuracy at first sight can still become the best."""
        if len(self.pairs) < MIN_PAIRS:
            return True
        expected, deviation = self.predict(screened)
        return expected + MARGIN * deviation >= max(after for _, after in self.pairs)
