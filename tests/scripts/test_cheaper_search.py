"""Cheaper episodes of rl_quantize.py: strategies that come again, a look first, a warm start; all resumable."""

import json

import pytest

from tests.runs import history, log_without_seconds


@pytest.mark.parametrize('reuse', ['--reuse', '--no-reuse'])
def test_a_strategy_that_comes_again_keeps_its_result(succeed, small_search, tmp_path, reuse):
    """With one choice for every layer all episodes have the same strategy, but train on images in another order."""
    succeed('rl_quantize.py', *small_search, '--min_bit', '3', '--max_bit', '3', reuse, '--train_episode', '2',
            '--output', tmp_path, cwd=tmp_path)
    records = history(tmp_path / 'small_digits')
    assert len(records) == 2
    losses = {record['loss'] for record in records}
    assert len(losses) == (1 if reuse == '--reuse' else 2)
    (first, _), (second, _) = (record['images'] for record in records)
    assert second == first if reuse == '--reuse' else second > first


def test_screen_and_warm_start_go_on_to_the_same_numbers(succeed, small_search, tmp_path, monkeypatch):
    from lib.env import screen
    monkeypatch.setattr(screen, 'MIN_PAIRS', 2)
    monkeypatch.setattr(screen, 'MARGIN', 0.0)
    options = (*small_search, '--screen', '32', '--warm_start', 'sensitivity', '--sensitivity_images', '8',
               '--warmup', '4', '--output', 'save')
    succeed('rl_quantize.py', *options, '--train_episode', '9', '--suffix', 'whole', cwd=tmp_path)
    for episodes in ('4', '9'):
        begin = ('--resume', 'save/small_digits_part') if episodes == '9' else (*options, '--suffix', 'part')
        succeed('rl_quantize.py', *begin, '--train_episode', episodes, cwd=tmp_path)
    whole, part = (tmp_path / f'save/small_digits_{name}' for name in ('whole', 'part'))
    assert log_without_seconds(whole) == log_without_seconds(part)
    records = history(whole)
    assert [record['images'] for record in records] == [record['images'] for record in history(part)]
    assert all(record['screened'] is not None for record in records)
    assert not all(record['finetuned'] for record in records)
    best = json.loads((whole / 'results.json').read_text())
    assert best['finetuned']


def test_a_warm_start_begins_with_the_integer_program(succeed, small_search, tmp_path):
    options = (*small_search, '--sensitivity_images', '8', '--no-finetune_flag', '--output', tmp_path)
    succeed('rl_quantize.py', *options, '--searcher', 'hessian', '--suffix', 'hessian', cwd=tmp_path)
    succeed('rl_quantize.py', *options, '--warm_start', 'sensitivity', '--warmup', '2', '--train_episode', '3',
            '--suffix', 'warm', cwd=tmp_path)
    hessian, warm = (history(tmp_path / f'small_digits_{name}') for name in ('hessian', 'warm'))
    assert warm[0]['strategy'] == hessian[0]['strategy']
    assert len({str(record['strategy']) for record in warm[:3]}) == 3
    assert all(record['ratio'] <= 0.13 for record in warm)
