"""Recipes of a search: haq changes nothing, fast changes many defaults at once, and what is given goes before both."""

import json

from tests.runs import log_without_seconds


def parsed(names, *argv):
    found = names('rl_quantize.py')
    return vars(found['run'].__globals__['parse'](found['make_search_parser'](), argv, found['recipe_defaults']))


def test_a_recipe_is_a_set_of_defaults(names):
    plain, recipes = parsed(names), names('rl_quantize.py')['RECIPES']
    assert plain == parsed(names, '--recipe', 'haq') and plain['finetune_flag'] and plain['reward'] == 'accuracy'
    assert parsed(names, '--recipe', 'fast') == {**plain, 'recipe': 'fast', **recipes['fast']}
    assert all(plain[name] != value for name, value in recipes['fast'].items())
    assert parsed(names, '--recipe', 'fast', '--candidates', '1,4')['min_bit'] == 1
    given = parsed(names, '--recipe', 'fast', '--no-fill', '--reward', 'loss', '--warmup', '20')
    assert given == {**plain, 'recipe': 'fast', **recipes['fast'], 'fill': False, 'reward': 'loss', 'warmup': 20}


def test_a_search_by_the_fast_recipe_goes_on_with_it(succeed, call, crash, small, small_weights, tmp_path):
    options = (*small, '--weights', small_weights, '--train_size', '64', '--val_size', '32', '--data_bsize', '32',
               '--hidden1', '32', '--hidden2', '32', '--warmup', '1', '--max_bit', '4', '--preserve_ratio', '0.1',
               '--recipe', 'fast', '--output', 'save')
    succeed('rl_quantize.py', *options, '--suffix', 'whole', '--train_episode', '4', cwd=tmp_path)
    crash('search.pth.tar', 3, 'rl_quantize.py', *options, '--suffix', 'part', '--train_episode', '4', cwd=tmp_path)
    folder = tmp_path / 'save' / 'small_digits_part'
    settings = json.loads((folder / 'args.json').read_text())
    assert settings['recipe'] == 'fast' and settings['fill'] and settings['reward'] == 'kl'
    done = call('rl_quantize.py', '--resume', folder, '--recipe', 'haq', cwd=tmp_path)
    assert done.code and '--recipe was fast, now haq' in done.err
    succeed('rl_quantize.py', '--resume', folder, cwd=tmp_path)
    whole, part = (log_without_seconds(tmp_path / 'save' / f'small_digits_{name}') for name in ('whole', 'part'))
    assert whole == part and ' kl ' in whole
    found = json.loads((folder / 'strategy.json').read_text())
    assert found['rewarded'] == 'kl' and found['ratio'] <= 0.1
