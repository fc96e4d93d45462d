"""How to time many short calls on a noisy machine: warm-up, runs in turns, medians and spread."""

import math
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

Clock = Callable[[Callable[[], object]], float]  # runs a call once and returns how many seconds that took
WARM_UP_BLOCKS = 20  # at most; a machine that is still not steady then is measured as it is


class Timing(NamedTuple):
    """The times of one call, in ms."""

    median: float
    p10: float
    p90: float
    minimum: float
    min_of_medians: float  # of the rounds: what disturbs the machine only now and then is not in it
    runs: int


@dataclass(frozen=True)
class Protocol:
    """How often and in which order to measure.

    Args:
        warm_up: calls of a warm-up block; blocks follow until the medians of two in a row agree within `tolerance`.
        runs: of every call in all, in `rounds` equal parts, each with a median of its own; at least one per round.
        max_seconds: about the limit per call, for the warm-up and again for the runs: a slow call has fewer runs.
        seed: of the order.
    """

    warm_up: int = 10
    tolerance: float = 0.1
    rounds: int = 50
    runs: int = 500
    max_seconds: float = 10.0
    seed: int = 0

    def runs_per_round(self, seconds: float) -> int:
        """Return how often each round runs a call that takes so many seconds."""
        return math.ceil(min(self.runs, max(1, self.max_seconds / max(seconds, 1e-9))) / self.rounds)


def measure(
    calls: Mapping[Hashable, Callable[[], object]], protocol: Protocol, clock: Clock | None = None
) -> dict[Hashable, Timing]:
    """Return the times of every call.

    The calls take turns, one run each in an order drawn anew: a disturbance does not fall on one of them alone, and
    each finds the caches as other layers leave them, much as in a network. (In blocks of runs of one layer its operands
    stay in the caches; MobileNetV2's layers then add up to a quarter less in int8, a third less in fp32.)

    Args:
        calls: {key: call without arguments}.
        clock: times a call; None = `wall_clock`.
    """
    clock = clock or wall_clock
    shares = {key: protocol.runs_per_round(warm_up(call, protocol, clock)) for key, call in calls.items()}
    draw = random.Random(protocol.seed)
    rounds = [_round(calls, shares, draw, clock) for _ in range(protocol.rounds)]
    return {key: summarize([times[key] for times in rounds]) for key in calls}


def _round(calls, shares, draw, clock) -> dict[Hashable, list[float]]:
    """Return the seconds of each run of a round; every sweep runs the calls that still have a share left."""
    times = {key: [] for key in calls}
    for sweep in range(max(shares.values(), default=0)):
        order = [key for key in calls if sweep < shares[key]]
        draw.shuffle(order)
        for key in order:
            times[key].append(clock(calls[key]))
    return times


def warm_up(call: Callable[[], object], protocol: Protocol, clock: Clock) -> float:
    """Run the call until it takes a steady time, and return that in seconds: the median of the last block."""
    previous, seconds = None, 0.0
    for _ in range(WARM_UP_BLOCKS):
        times = []
        while len(times) < protocol.warm_up and seconds < protocol.max_seconds:
            times.append(clock(call))
            seconds += times[-1]
        median = float(np.median(times))
        steady = previous is not None and abs(median - previous) <= protocol.tolerance * previous
        if steady or seconds >= protocol.max_seconds:
            break
        previous = median
    return median


def summarize(rounds: list[list[float]]) -> Timing:
    """Return the statistics, in ms, of the seconds measured in each round."""
    times = 1e3 * np.concatenate(rounds)
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    lowest = 1e3 * min(np.median(times) for times in rounds)
    return Timing(float(median), float(p10), float(p90), float(times.min()), float(lowest), len(times))


def wall_clock(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes on the processor."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_clock(call: Callable[[], object]) -> float:
    """Return the seconds that a call keeps the GPU busy, between two events in its stream, after waiting for both."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3

