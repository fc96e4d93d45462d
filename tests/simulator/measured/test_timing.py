from collections import Counter

import pytest

from lib.simulator.measured.timing import WARM_UP_BLOCKS, Protocol, measure, summarize, wall_clock, warm_up


class Stopwatch:
    """Calls that say themselves how many seconds they took, and a log of who was called."""

    def __init__(self):
        self.log = []

    def call(self, key, seconds):
        def run():
            self.log.append(key)
            return seconds(len(self.log)) if callable(seconds) else seconds

        return run

    @staticmethod
    def clock(call):
        return call()


def run(times, seed=0, **protocol):
    watch = Stopwatch()
    protocol = Protocol(**{'warm_up': 2, 'rounds': 3, 'runs': 12, 'max_seconds': 100.0, 'seed': seed, **protocol})
    timings = measure({key: watch.call(key, seconds) for key, seconds in times.items()}, protocol, watch.clock)
    return timings, watch.log


def test_every_call_runs_in_turn_after_all_are_warm():
    keys = list('abcde')
    timings, log = run(dict.fromkeys(keys, 0.001))
    warm_ups = len(keys) * 4  # two blocks of two, as the time is steady
    assert log[:warm_ups] == [key for key in keys for _ in range(4)]
    sweeps = [log[start : start + 5] for start in range(warm_ups, len(log), 5)]
    assert len(sweeps) == 12 and all(sorted(sweep) == keys for sweep in sweeps)
    assert len({tuple(sweep) for sweep in sweeps}) > 6  # the order is drawn anew
    assert all(timing.runs == 12 and timing.median == pytest.approx(1.0) for timing in timings.values())


def test_the_order_depends_on_the_seed_alone():
    times = dict.fromkeys('abcdefg', 0.001)
    assert run(times)[1] == run(times)[1] != run(times, seed=1)[1]


def test_a_slow_call_runs_less_often_but_once_a_round():
    timings, log = run({'fast': 0.001, 'slow': 2.0, 'slower': 70.0}, max_seconds=10.0)
    assert [timings[key].runs for key in ('fast', 'slow', 'slower')] == [12, 6, 3]
    assert Counter(log)['slower'] == 3 + 1  # warm-up stops at the limit
    assert [key for key in log if key != 'fast'][-1] == 'slow'  # the last sweep of a round is without the slowest


def test_statistics():
    timing = summarize([[0.001, 0.002, 0.003], [0.010, 0.020, 0.030], [0.0005, 0.009, 0.010]])
    assert (timing.runs, timing.median, timing.minimum) == (9, pytest.approx(9.0), pytest.approx(0.5))
    assert timing.min_of_medians == pytest.approx(2.0)
    assert (timing.p10, timing.p90) == (pytest.approx(0.9), pytest.approx(22.0))  # linear between ranks


def test_a_disturbance_of_some_rounds_does_not_move_the_lowest_median():
    def seconds(count):  # 3 rounds of 4 runs after 4 warm-ups; the last two rounds are disturbed
        return 0.001 if count <= 4 + 4 else 0.005

    timing = run({'a': seconds})[0]['a']
    assert timing.median == pytest.approx(5.0) and timing.min_of_medians == pytest.approx(1.0)


def test_warm_up_ends_when_two_medians_agree():
    watch = Stopwatch()
    blocks = [9.0, 4.0, 2.0, 1.9, 1.0]
    call = watch.call('a', lambda count: blocks[(count - 1) // 10])
    assert warm_up(call, Protocol(max_seconds=1e4), watch.clock) == 1.9 and len(watch.log) == 40


def test_warm_up_gives_up_on_a_machine_that_never_settles():
    watch = Stopwatch()
    call = watch.call('a', lambda count: 1.0 + (count - 1) // 10 % 2)
    warm_up(call, Protocol(max_seconds=1e4), watch.clock)
    assert len(watch.log) == 10 * WARM_UP_BLOCKS


def test_wall_clock_runs_the_call_once():
    watch = Stopwatch()
    assert wall_clock(watch.call('a', 1)) >= 0 and watch.log == ['a']
