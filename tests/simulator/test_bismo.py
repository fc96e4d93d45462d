import heapq
import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from lib.simulator import bismo
from lib.simulator.bismo import PRESETS, Bismo, Pass, pass_cycles
from lib.simulator.gemm import Gemm
from lib.simulator.hardware import make_table
from lib.simulator.layer import LayerRecord

PYNQ, ULTRA96 = PRESETS['bismo_pynq'], PRESETS['bismo_ultra96']


def conv(cin, cout, kernel, out, groups=1):
    """A square convolution with an `out` x `out` result; the model ignores stride and input size."""
    count = cout * cin // groups * kernel**2
    return LayerRecord('body', 'conv', cin, cout, (kernel, kernel), (1, 1), groups, out, out, out, out, count)


def linear(cin, cout, positions=1):
    return LayerRecord('fc', 'linear', cin, cout, (1, 1), (1, 1), 1, positions, 1, positions, 1, cin * cout)


def overlay(dm, dk, dn, clock_mhz=200.0, **changes):
    return Bismo(lhs_rows=dm, chunk_bits=dk, rhs_rows=dn, clock_mhz=clock_mhz, op_energy=1, **changes)


# The overlay played event by event: three stages that run their instructions and meet in queues of tokens.


def play(stages, tokens):
    """Return the time when the last instruction ends.

    Args:
        stages: iterables of ('get', queue), ('run', cycles) and ('put', queue, delay).
        tokens: a Counter of the tokens in the queues at the start.
    """
    number = itertools.count()
    events = [(0, next(number), iter(stage)) for stage in stages]  # a stage goes on; or a token, see below
    heapq.heapify(events)
    waiting, last = {}, 0

    def get_on(now, stage):
        for kind, *details in stage:
            if kind == 'run':
                heapq.heappush(events, (now + details[0], next(number), stage))
                return
            queue, *delay = details
            if kind == 'put':
                heapq.heappush(events, (now + delay[0], next(number), queue))
            elif tokens[queue]:
                tokens[queue] -= 1
            else:
                waiting[queue] = stage
                return

    while events:
        now, _, what = heapq.heappop(events)
        last = max(last, now)
        if not isinstance(what, str):
            get_on(now, what)
        elif what in waiting:
            get_on(now, waiting.pop(what))
        else:
            tokens[what] += 1
    return last


def beats(rows, chunks, bits, hardware):
    return math.ceil(rows * chunks * hardware.chunk_bits * bits / hardware.port_bits)


def play_product(m, n, k, lhs_bits, rhs_bits, hardware):
    """Play a product that fits the buffers on an overlay, as the three instruction streams of the runtime."""
    chunks = math.ceil(k / hardware.chunk_bits)
    lhs_slices, rhs_slices = range(0, m, hardware.lhs_rows), range(0, n, hardware.rhs_rows)

    def fetch():
        for _ in rhs_slices:
            yield 'get', 'rhs region'
            yield 'run', beats(hardware.rhs_rows, chunks, rhs_bits, hardware)
            for _ in lhs_slices:
                yield 'get', 'lhs region'
                yield 'run', beats(hardware.lhs_rows, chunks, lhs_bits, hardware)
                yield 'put', 'fetched', 0

    def execute():
        for _ in rhs_slices:
            for _ in lhs_slices:
                yield 'get', 'fetched'
                yield 'get', 'result tile'
                yield 'run', len(list(itertools.product(range(lhs_bits), range(rhs_bits), range(chunks))))
                yield 'put', 'lhs region', 0
                yield 'put', 'executed', hardware.pipeline_latency
            yield 'put', 'rhs region', 0

    def write():
        for _ in itertools.product(rhs_slices, lhs_slices):
            yield 'get', 'executed'
            results = hardware.lhs_rows * hardware.rhs_rows
            yield 'run', math.ceil(results * hardware.accumulator_bits / hardware.port_bits)
            yield 'put', 'result tile', 0

    tokens = Counter({'lhs region': 4, 'rhs region': 4, 'result tile': hardware.result_tiles})
    return play([fetch(), execute(), write()], tokens)


def random_overlay(draw):
    return overlay(
        draw.randint(1, 6), draw.choice([1, 3, 8, 32]), draw.randint(1, 6), port_bits=draw.choice([1, 2, 8, 32, 100]),
        accumulator_bits=draw.randint(1, 40), result_tiles=draw.randint(1, 3), pipeline_registers=draw.randint(0, 30),
    )  # fmt: skip


def test_cycles_equal_the_overlay_played_event_by_event():
    draw = random.Random(0)
    bounds = Counter()
    for _ in range(250):
        hardware = random_overlay(draw)
        m, n, k = draw.randint(1, 60), draw.randint(1, 30), draw.randint(1, 32)
        lhs_bits, rhs_bits = draw.randint(1, 8), draw.randint(1, 8)
        (one,) = hardware.passes(m, n, k, lhs_bits, rhs_bits)
        cycles = pass_cycles(one, hardware.pipeline_latency, hardware.result_tiles)
        assert cycles == play_product(m, n, k, lhs_bits, rhs_bits, hardware), (hardware, m, n, k, lhs_bits, rhs_bits)
        layer = linear(k, m, positions=n)
        bounds[replace(hardware, weights_as='lhs').layer_cost(layer, lhs_bits, rhs_bits).bound] += 1
    assert min(bounds[stage] for stage in ('compute', 'read port', 'write port')) > 10  # all of them were played


def test_skipping_the_repeating_part_changes_nothing(monkeypatch):
    def walk(step, state, times, period):
        for _ in range(times):
            state = step(state)
        return state

    draw = random.Random(1)
    cases = [
        (Pass(draw.randint(1, 9), draw.randint(1, 300), *(draw.randint(1, 50) for _ in range(4))), draw.randint(0, 60),
         draw.randint(1, 4))
        for _ in range(150)
    ]  # fmt: skip
    quick = [pass_cycles(*case) for case in cases]
    monkeypatch.setattr(bismo, 'repeat', walk)
    assert quick == [pass_cycles(*case) for case in cases]


def test_one_tile_by_hand():
    (one,) = PYNQ.passes(8, 8, 256, 2, 3)
    assert one == Pass(1, 1, fetch_rhs=8 * 256 * 3 // 64, fetch_lhs=8 * 256 * 2 // 64, execute=6, write=64 * 32 // 64)
    assert PYNQ.pipeline_latency == 3 + 4 + 3
    assert pass_cycles(one, 10, 2) == 96 + 64 + 6 + 10 + 32


def test_a_layer_that_waits_for_the_read_port_by_hand():
    """The stem of MobileNetV2 at 8/8 bits: 12544 rows of pixels, 32 of weights, 27 values in one chunk."""
    layer = conv(3, 32, 3, 112)
    fetch, tail = 8 * 256 * 8 // 64, 64 + 10 + 32  # a slice of either side; execute, pipeline and write of one tile
    weights_once, pixels_once = 4 * (1 + 1568) * fetch + tail, 1568 * (1 + 4) * fetch + tail
    assert replace(PYNQ, weights_as='rhs').layer_cost(layer, 8, 8).latency == weights_once == 1_606_762
    assert replace(PYNQ, weights_as='lhs').layer_cost(layer, 8, 8).latency == pixels_once == 2_007_146
    assert PYNQ.layer_cost(layer, 8, 8).latency == 1_606_762


def test_limits_of_long_products():
    """T ~ first fetch + slices * the slowest stage: each stage in turn far slower than the others."""
    assert pass_cycles(Pass(1, 1000, 5, 100, 3, 2), 7, 2) == 5 + 1000 * 100 + 3 + 7 + 2
    assert pass_cycles(Pass(1, 1000, 5, 2, 100, 3), 7, 2) == 5 + 2 + 1000 * 100 + 7 + 3
    assert pass_cycles(Pass(1, 1000, 5, 2, 3, 100), 7, 2) == 5 + 2 + 3 + 7 + 1000 * 100
    assert pass_cycles(Pass(3, 1000, 50, 100, 3, 2), 7, 2) == 3 * (50 + 1000 * 100) + 3 + 7 + 2
    # With one result tile nothing overlaps the write: every tile takes 3 + 7 + 100 cycles.
    assert pass_cycles(Pass(1, 1000, 5, 2, 3, 100), 7, 1) == 5 + 2 + 1000 * 110


def test_the_total_is_between_the_busiest_stage_and_the_sum():
    draw = random.Random(2)
    for _ in range(200):
        one = Pass(*(draw.randint(1, 20) for _ in range(6)))
        tiles = one.rhs_slices * one.lhs_slices
        stages = one.rhs_slices * one.fetch_rhs + tiles * one.fetch_lhs, tiles * one.execute, tiles * one.write
        assert max(stages) < pass_cycles(one, 4, 2) <= sum(stages) + 4 * tiles


def test_a_long_k_is_cut_into_passes():
    # 8 bits in regions of 1024 / 4 entries: 32 chunks. 25088 values are 98 of them: 32 + 32 + 32 + 2.
    passes = PYNQ.passes(8, 8, 25088, 8, 8)
    assert [one.execute for one in passes] == [64 * 32, 64 * 32, 64 * 32, 64 * 2]
    assert len(PYNQ.passes(8, 8, 32 * 256, 8, 8)) == 1 and len(PYNQ.passes(8, 8, 32 * 256 + 1, 8, 8)) == 2
    narrow = replace(PYNQ, lhs_depth=256)  # 64 entries in a region of the left, 256 of the right
    assert [len(narrow.passes(8, 8, 64 * 256, *bits)) for bits in ((1, 1), (1, 8), (2, 1), (8, 8))] == [1, 2, 2, 8]

    cost = PYNQ.layer_cost(linear(25088, 8), 8, 8)
    assert cost.latency == sum(pass_cycles(one, PYNQ.pipeline_latency, 2) for one in passes)
    results = 4 * 64 * 32  # written by every pass
    assert cost.traffic_bits == 98 * 256 * 8 * (8 + 8) + results


def test_a_layer_is_refused_by_name_when_one_chunk_does_not_fit():
    shallow = replace(PYNQ, lhs_depth=16, rhs_depth=1024)  # 4 entries: up to 4 bits on the left
    assert shallow.layer_cost(linear(256, 8), 8, 4) == replace(shallow, weights_as='rhs').layer_cost(
        linear(256, 8), 8, 4
    )
    with pytest.raises(ValueError, match='fc does not fit bismo_pynq.*lhs_depth = 16.*fewer bits'):
        shallow.layer_cost(linear(256, 8), 8, 5)
    with pytest.raises(ValueError, match='fc'):
        replace(shallow, weights_as='lhs').layer_cost(linear(256, 8), 8, 4)


def test_bytes_moved():
    """RHS once, LHS once per RHS slice, results once; whole slices and chunks."""
    layer = linear(1000, 100, positions=49)  # 4 chunks, 13 slices of weights, 7 of activations
    lhs, rhs, results = 13 * 8 * 1024 * 3, 7 * 8 * 1024 * 5, 13 * 7 * 64 * 32
    cost = replace(PYNQ, weights_as='lhs').layer_cost(layer, 3, 5)
    assert cost.traffic_bits == rhs + lhs * 7 + results
    cost = replace(PYNQ, weights_as='rhs').layer_cost(layer, 3, 5)
    assert cost.traffic_bits == lhs + rhs * 13 + results


def test_weights_on_either_side():
    layer = conv(64, 96, 3, 14)
    for w_bit, a_bit in ((2, 8), (8, 2), (5, 5)):
        left, right, best = (
            replace(PYNQ, weights_as=side).layer_cost(layer, w_bit, a_bit) for side in ('lhs', 'rhs', 'best')
        )
        assert best == min(left, right, key=lambda cost: cost.latency)
        (one,) = PYNQ.passes(96, 196, 576, w_bit, a_bit)
        assert left.latency == pass_cycles(one, PYNQ.pipeline_latency, 2)
        (one,) = PYNQ.passes(196, 96, 576, a_bit, w_bit)
        assert right.latency == pass_cycles(one, PYNQ.pipeline_latency, 2)
        # The left-hand side is read once per slice of the other: best is the operand of fewer bits there.
        assert left.latency < right.latency if w_bit < a_bit else w_bit == a_bit or right.latency < left.latency


@pytest.mark.parametrize(
    'layer, gemm',
    [(conv(8, 32, 3, 10), Gemm(4, 100, 32, 72)), (conv(8, 8, 3, 10, groups=8), Gemm(8, 100, 4, 36)),
     (linear(64, 10, positions=50), Gemm(1, 200, 10, 64))],
)  # fmt: skip
def test_layers_run_as_their_products(layer, gemm):
    hardware = replace(PYNQ, batch=4, weights_as='rhs')
    (one,) = hardware.passes(gemm.m, gemm.n, gemm.k, 6, 3)
    cost = hardware.layer_cost(layer, 3, 6)
    assert isinstance(cost.latency, int)
    assert cost.latency == gemm.repeats * pass_cycles(one, hardware.pipeline_latency, 2)
    tiles = one.lhs_slices * one.rhs_slices
    words = one.rhs_slices * one.fetch_rhs + tiles * (one.fetch_lhs + one.write)
    assert cost.traffic_bits == gemm.repeats * 64 * words
    assert cost.energy == pytest.approx(
        gemm.repeats * (words * 64 * 20 + tiles * one.execute * 2 * 8 * 256 * 8 * 0.714) / 1e3
    )


def test_presets_wait_for_the_read_port():
    """On an 8 x 256 x 8 array, a slice of l bits loads in 32 l cycles per chunk and computes in l r: r / 32 busy."""
    one = PYNQ.passes(800, 8, 256, 8, 8)[0]
    assert (one.fetch_lhs, one.execute) == (256, 64)
    assert PYNQ.layer_cost(conv(256, 256, 3, 14), 8, 8).bound == 'read port'
    wide = replace(PYNQ, port_bits=1024)
    assert wide.layer_cost(conv(256, 256, 3, 14), 8, 8).bound == 'compute'
    assert replace(wide, accumulator_bits=2048).layer_cost(linear(256, 800, 80), 1, 1).bound == 'write port'


def test_peaks():
    assert PYNQ.peak_binary_tops == pytest.approx(6.5536, rel=1e-12)
    assert ULTRA96.peak_binary_tops == pytest.approx(15.36, rel=1e-12)
    assert PYNQ.peak_macs(4, 2) == pytest.approx(6.5536e12 / 16)
    assert PYNQ.memory_bandwidth() == 2 * 1.6e9
    # The instances of the FPL 2018 paper at 200 MHz, in GOPS.
    instances = {(8, 64, 8): 1638, (8, 128, 8): 3277, (8, 256, 8): 6554, (4, 256, 4): 1638, (8, 256, 4): 3277,
                 (4, 512, 4): 3277}  # fmt: skip
    assert {sizes: round(overlay(*sizes).peak_binary_tops * 1e3) for sizes in instances} == instances


def test_cost_in_luts_and_block_rams():
    assert PYNQ.lut_cost('fpl18') == pytest.approx(48_112, abs=1)  # 64 * (2.04 * 256 + 109.41 + 120.1)
    assert PYNQ.lut_cost('trets19') == pytest.approx(29_678, abs=1)  # 64 * (1.17 * 256 + 44.1 + 120.1)
    assert PYNQ.bram_cost() == 128
    assert overlay(4, 48, 2, lhs_depth=1025, rhs_depth=512).bram_cost() == 2 * (4 * 2 + 2)
    with pytest.raises(ValueError, match='fpl18 or trets19'):
        PYNQ.lut_cost('fpl19')


def test_pipeline_latency_follows_the_compressor():
    depths = {width: overlay(2, width, 2, pipeline_registers=0).pipeline_latency - 3 for width in
              (1, 32, 33, 64, 128, 256, 257, 512, 1024)}  # fmt: skip
    assert depths == {1: 2, 32: 2, 33: 3, 64: 3, 128: 3, 256: 4, 257: 5, 512: 5, 1024: 6}


def test_energy():
    layer = linear(512, 8)  # 2 chunks, one slice on either side
    cost = replace(PYNQ, op_energy=0.5, dram_energy=10, board_power=2).layer_cost(layer, 3, 5)
    binary_ops = 3 * 5 * 2 * (2 * 8 * 256 * 8)
    traffic = 8 * 512 * (3 + 5) + 64 * 32
    assert cost.traffic_bits == traffic
    assert cost.energy == pytest.approx((0.5 * binary_ops + 10 * traffic) / 1e3 + 2 * cost.latency / 0.2)  # W / GHz: nJ


def test_a_table_of_whole_cycles():
    layers = [conv(3, 16, 3, 32), conv(16, 16, 3, 32, groups=16), conv(16, 32, 1, 32), linear(32, 10)]
    table = make_table(layers, PYNQ)
    assert (table.name, table.unit, table.table.dtype.kind) == ('bismo_pynq_latency', 'cycles', 'i')
    assert table.about['hardware']['weights_as'] == 'best'
    never = replace(layers[0], name='never', calls=0, in_h=0, in_w=0, out_h=0, out_w=0)
    assert PYNQ.layer_cost(never, 8, 8).latency == 0
    assert make_table([*layers, never], PYNQ).table[4].sum() == 0


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="weights_as is 'left', expected lhs or rhs or best"):
        replace(PYNQ, weights_as='left')
    with pytest.raises(ValueError, match='result_tiles is 0'):
        replace(PYNQ, result_tiles=0)


def test_resources_are_said_in_a_line():
    said = PRESETS['bismo_pynq'].resources([])
    assert said.startswith('peak 6.5536 binary TOPS') and '128 block RAMs' in said and '29,6' in said
