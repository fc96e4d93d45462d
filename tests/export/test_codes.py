"""Weights as codes: the very numbers of every quantizer, through the arrays of a file, and what is refused."""

import numpy as np
import pytest
import torch

from lib.export.codes import code_codebook, code_quantized, from_tensors
from lib.quantize import Codebook, Quantizer, fit_codebook
from tests.quantize.rows import ROWS, weights

WEIGHTS = {name: row for name, row in ROWS.items() if row.weights}
W = torch.from_numpy(weights(6, 3, 3, 3)).float()


def through_a_file(coded, entropy=False):
    return from_tensors('layer', coded.tensors(entropy))


@pytest.mark.parametrize('name', WEIGHTS)
@pytest.mark.parametrize('bits', [*range(1, 9), 16])
def test_every_quantizer_gives_the_same_numbers_from_its_codes(name, bits):
    row = WEIGHTS[name]
    if 'allocated' in name and bits > 8:
        pytest.skip('channels have at most 8 bits')
    for size in row.sizes:
        quantizer = row.made(bits, size)
        for weight in (W, -W.abs(), torch.zeros_like(W), W[:1, :1, 0, 0]):
            quantizer.is_found = False
            if hasattr(quantizer, 'found_bits'):
                quantizer.found_bits.zero_()
            with torch.no_grad():
                values = quantizer(weight)
            coded = code_quantized(quantizer, weight, values)
            for entropy in (False, True):
                assert np.array_equal(through_a_file(coded, entropy).decode(), values.numpy())
            if weight is W and 'channel' not in name and 'allocated' not in name:
                words, needed = coded.tensors()['packed'].size, -(-weight.numel() * bits // 32)
                assert words == needed and coded.codebook is None or len(coded.bits) > 1 and words + 2 < needed


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('is_pruned', [False, True])
def test_codebooks(bits, is_pruned):
    weight = torch.from_numpy(weights(40, 3, 3, 3)).float()
    weight *= (torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.6)
    book = fit_codebook(weight, bits, is_pruned=is_pruned)
    coded = code_codebook(book)
    tensors = coded.tensors()
    count = int((weight != 0).sum()) if is_pruned else weight.numel()
    assert tensors['packed'].size == -(-count * book.bits // 32)
    assert ('mask' in tensors) == is_pruned and tensors['codebook'].size == min(2**bits, len(book.centroids))
    for entropy in (False, True):
        assert np.array_equal(through_a_file(coded, entropy).decode(), book.decode().numpy())


def test_huffman_is_taken_where_it_is_shorter():
    uneven = Codebook(torch.tensor([0.5, 1, 2, 3]), torch.tensor([0] * 900 + [1, 2, 3] * 10, dtype=torch.uint8))
    coded = code_codebook(uneven)
    assert 'huffman' in coded.tensors(entropy=True) and 'packed' in coded.tensors()
    dense, short = coded.bytes_of_codes()
    assert dense == 4 * (930 * 2 // 32 + 1) and short == coded.tensors(True)['huffman'].nbytes + 4 < dense
    even = code_codebook(Codebook(torch.arange(4.0), torch.arange(4, dtype=torch.uint8).repeat(100)))
    assert 'packed' in even.tensors(entropy=True) and len(set(even.bytes_of_codes())) == 1


class Rounded(Quantizer):
    """Powers of 2: levels that are no multiples of a scale, and no codes."""

    def fake_quantize(self, x):
        return torch.sign(x) * 2.0 ** x.abs().clamp(0.2, 1.9).log2().round()


class Free(Quantizer):
    """As many values as weights."""

    def fake_quantize(self, x):
        return x * 1.1


def test_a_quantizer_without_codes_has_its_levels_as_a_codebook():
    values = Rounded(4)(W)
    coded = code_quantized(Rounded(4), W, values)
    assert coded.codebook is not None and np.array_equal(through_a_file(coded).decode(), values.numpy())
    with pytest.raises(ValueError, match='Free of 4 bits gives 162 values'):
        code_quantized(Free(4), W, Free(4)(W))


def good():
    return {name: array.copy() for name, array in code_codebook(fit_codebook(W, 3)).tensors().items()}


def of_scale():
    row = WEIGHTS['linear weights'].made(3)
    return {name: array.copy() for name, array in code_quantized(row, W, row(W)).tensors().items()}


@pytest.mark.parametrize(('made', 'change', 'words'), [
    (good, {'shape': None}, 'no weight_shape'), (good, {'packed': None}, 'no weight_packed'),
    (good, {'bits': None}, 'no weight_bits'), (good, {'codebook': None}, 'either a codebook or a scale'),
    (good, {'bits': np.array([0], np.uint8)}, 'from 1 to 16'), (good, {'bits': np.full(5, 3, np.uint8)}, '5 numbers'),
    (good, {'bits': np.array([17], np.uint8)}, 'from 1 to 16'),
    (good, {'bits': np.array([4], np.uint8)}, 'expected int32'),
    (good, {'shape': np.array([2**31 - 1] * 8, np.int32)}, 'expected int32 of shape'),
    (good, {'shape': np.array([-6, 27], np.int32)}, 'no shape'), (good, {'shape': np.array([], np.int32)}, 'no shape'),
    (good, {'shape': np.array([6, 27], np.int64)}, 'vector of int32'),
    (good, {'codebook': np.ones(5, np.float32)}, 'code 7 of a codebook of 5'),
    (good, {'codebook': np.full(8, np.inf, np.float32)}, 'not finite'),
    (good, {'scale': np.ones(1, np.float32)}, 'either a codebook or a scale'),
    (good, {'mask': np.zeros((1, 5), np.int32)}, 'weight_mask is int32 of shape'),
    (good, {'lengths': np.ones(3, np.uint8)}, 'weight_lengths, which does not belong'),
    (of_scale, {'scale': np.ones(5, np.float32)}, 'one number, or one for each'),
    (of_scale, {'scale': None}, 'either a codebook or a scale'),
    (of_scale, {'mask': np.zeros((1, 6), np.int32)}, 'mask'),
    (of_scale, {'shift': np.array([np.nan], np.float32)}, 'not finite'),
    (good, {'packed': None, 'huffman': np.zeros(9, np.uint8), 'lengths': np.ones(2, np.uint8)}, 'cannot hold 162'),
    (good, {'packed': None, 'huffman': np.zeros(99, np.uint8), 'lengths': np.ones(9, np.uint8)}, 'no Huffman code'),
])
def test_arrays_that_do_not_belong_together_are_refused(made, change, words):
    tensors = {key: array for key, array in {**made(), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=words):
        from_tensors('layer', tensors)
