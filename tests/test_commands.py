"""Every command line that the repository shows or runs is one that its script accepts; `--help` explains everything."""

import argparse
import contextlib
import functools
import io
import os
import re
import resource
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / 'scripts').glob('[!_]*.py'))
SHELL = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'run').rglob('*.sh'))
DEPLOYS = ('scripts/export.py', 'lib/utils/make_data.py', 'scripts/predict.py')  # of a trained network: of no seed
LAST = ['scripts/summarize.py', *DEPLOYS]  # of the quick start, whatever was done before
PARTS = ('run/environment.sh', 'run/cifar10/weights.sh')  # sourced by the others
PAGES = sorted(str(path.relative_to(ROOT)) for pattern in ('*.md', 'docs/*.md', 'data/*.md', 'lib/**/*.md')
               for path in ROOT.glob(pattern))


@functools.cache
def module_of(path):
    """Returns the globals of a script that is not run."""
    scripts = str(ROOT / 'scripts')
    sys.path.insert(0, scripts)
    try:
        return runpy.run_path(str(ROOT / path))
    finally:
        sys.path.remove(scripts)


def parser_in(names):
    """Returns the parser of a script with these globals."""
    if '_parser' in names:
        return names['_parser']()
    (make,) = [value for name, value in names.items() if re.fullmatch('make_(?!parser)\\w+_parser', name)]
    return make()


def parser_of(path):
    """Returns the parser of `scripts/x.py` or `lib/utils/make_data.py`."""
    return parser_in(module_of(path))


def parsed(path, options):
    """Returns the parsed options, after a configuration of `run/` that they name; fails with what the script says."""
    said, names = io.StringIO(), module_of(path)
    sys.path.insert(0, str(ROOT / 'scripts'))  # what a configuration imports
    parser = parser_in(names)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            args = parser.parse_args(options)
            if 'configure' in names and ':' not in getattr(args, 'config', ':'):
                parser.set_defaults(**names['configure'](args, parser))
            return parser.parse_args(options)
    except SystemExit as stop:
        assert stop.code == 0, f'{path} {shlex.join(options)}\n{said.getvalue().splitlines()[-1]}'
        return None
    finally:
        sys.path.remove(str(ROOT / 'scripts'))


# ---- pages

def commands_in(page):
    """Returns the shell commands of a page: lines of code blocks (joined where they continue) and inline code."""
    text = re.sub(r'\s*\\\n\s*', ' ', (ROOT / page).read_text(encoding='utf-8'))
    found = re.findall(r'^[ \t>]*(?:\$ )?((?:\w+=\S+ )*(?:python|bash) (?:scripts|lib|run)/.*)$', text, re.MULTILINE)
    found += re.findall(r'`((?:\w+=\S+ )*(?:python|bash) (?:scripts|lib|run)/[^`]*)`', text)
    return [re.sub(r'`.*|\s{2,}(?=[^-\s]).*| \.\.\.$|…$', '', command) for command in found]


def words_of(command):
    """Returns the words of a shell command, without comments, variables before it, and what follows a pipe."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars='|&;<>')
    lexer.whitespace_split = True
    words = list(lexer)
    words = words[next(i for i, word in enumerate(words) if word in ('python', 'bash')):]
    return words[:next((i for i, word in enumerate(words) if set(word) <= set('|&;<>')), len(words))]


PAGE_COMMANDS = [(page, command) for page in PAGES for command in dict.fromkeys(commands_in(page))]


def test_the_pages_show_commands():
    assert len(PAGE_COMMANDS) > 10


@pytest.mark.parametrize(('page', 'command'), PAGE_COMMANDS)
def test_a_command_on_a_page_is_accepted(page, command):
    program, path, *options = words_of(command)
    assert (ROOT / path).is_file(), f'{page} names {path}, which does not exist'
    if program == 'python':
        parsed(path, options)


# ---- shell scripts

@pytest.mark.parametrize('path', SHELL)
def test_a_shell_script_is_valid_and_says_what_it_does(path):
    done = subprocess.run(['bash', '-n', path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *rest = (ROOT / path).read_text(encoding='utf-8').splitlines()
    if path not in PARTS:
        assert first == '#!/usr/bin/env bash' and 'set -euo pipefail' in rest
        assert rest[0].startswith('# ')


@pytest.fixture
def rehearse(tmp_path):
    """`rehearse(path, *options)`: runs a script of run/ with a `python` that only notes how it was called.

    No input file need be there. Returns the command lines [[script, options ...]].
    """
    shutil.copytree(ROOT / 'run', tmp_path / 'run')
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, tmp_path)
    with open(tmp_path / 'run' / 'environment.sh', 'a') as file:
        file.write('\nneed_file() { :; }\n')
    fake = tmp_path / 'environment' / 'bin' / 'python'
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$NOTES/$(date +%s%N).$$"\n')  # calls may overlap
    fake.chmod(0o755)

    def run(path, *options):
        notes = tmp_path / 'notes'
        shutil.rmtree(notes, ignore_errors=True)
        notes.mkdir()
        variables = {'PATH': f'{fake.parent}:{os.environ["PATH"]}', 'VIRTUAL_ENV': str(fake.parents[1]),
                     'NOTES': str(notes), 'HOME': str(tmp_path)}
        done = subprocess.run(['bash', str(tmp_path / path), *options], cwd='/', env=variables, capture_output=True,
                              text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        calls = [note.read_text().splitlines() for note in sorted(notes.iterdir())]
        return [call for call in calls if call and call[0].endswith('.py')]
    return run


RUN = [path for path in SHELL if path not in (*PARTS, 'run/setup.sh', 'run/test.sh')]


@pytest.mark.parametrize(('page', 'command'), [pair for pair in PAGE_COMMANDS if re.match(r'bash run/\S+ -', pair[1])])
def test_further_options_of_a_shell_script_on_a_page_are_accepted(page, command, rehearse):
    for script, *options in rehearse(*words_of(command)[1:]):
        parsed(script, options)


def test_ci_has_the_variables_of_a_fresh_machine_alone(tmp_path):
    """None of whoever starts it, but for those that say where things are."""
    for name in ('.ci', 'run'):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, tmp_path)
    programs = tmp_path / 'environment' / 'bin'
    programs.mkdir(parents=True)
    for name in ('python', 'ruff'):
        (programs / name).write_text('#!/bin/sh\nenv > "$VIRTUAL_ENV/$1"\n')
        (programs / name).chmod(0o755)
    given = {'PATH': f'{programs}:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'PIP_CERT': 'x',
             'VIRTUAL_ENV': str(programs.parent)}
    strange = {'PYTHONDONTWRITEBYTECODE': '1', 'LC_ALL': 'C', 'RANK': '1', 'OMP_NUM_THREADS': '7', 'PYTHONPATH': 'x'}
    done = subprocess.run(['bash', tmp_path / '.ci' / 'run'], env=given | strange, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tests, linter = (dict(line.partition('=')[::2] for line in (programs.parent / name).read_text().splitlines())
                     for name in ('-m', 'check'))
    assert given.keys() <= tests.keys() and tests['OMP_NUM_THREADS'] == '1'
    assert not strange.keys() & (tests.keys() - {'OMP_NUM_THREADS'}) and not strange.keys() & linter.keys()


@pytest.mark.parametrize('path', RUN)
def test_a_shell_script_calls_python_with_options_that_exist(path, rehearse):
    extra = ('--copy',) if path.endswith('prepare.sh') else ('--seed', '7')
    extra = ('resnet20_float', *extra) if path == 'run/qat/train.sh' else extra
    calls = rehearse(path, *extra)
    assert calls, 'it runs no command'
    for script, *options in calls:
        args = parsed(script, options)
        if script in DEPLOYS:
            continue
        assert getattr(args, 'seed', 7) == 7 and getattr(args, 'copy', True), 'further options are passed on'


def test_the_configurations_that_train_sh_names_are_all_there_are():
    named = re.findall(r'\b(?:toynet|resnet20|mobilenetv2)_\w+', (ROOT / 'run' / 'qat' / 'train.sh').read_text())
    assert sorted(named) == sorted(module_of('run/qat/config_train.py')['CONFIGS'])


def test_the_quick_start_continues_where_it_was_interrupted(rehearse, tmp_path):
    """Given the checkpoints of unfinished runs it resumes each; the folders are those that the first call named."""
    pytest.importorskip('torch')
    first = rehearse('run/quickstart.sh')
    folders = {}
    for script, *options in first[:-len(LAST)]:
        if script.endswith('rl_quantize.py'):
            folders[str(module_of(script)['run_path'](parsed(script, options)))] = 'search.pth.tar'
        elif script.endswith('compare_searchers.py'):
            folders[parsed(script, options).output] = 'args.json'
        else:
            folders[parsed(script, options).checkpoint] = 'checkpoint.pth.tar'
    assert len(folders) == len(first) - len(LAST) == 9
    for folder, name in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).touch()
    second = rehearse('run/quickstart.sh')
    assert sorted(call[0] for call in second) == sorted(call[0] for call in first)  # two flows run side by side
    resumed = {parsed(script, options).resume for script, *options in second[:-len(LAST)]}
    assert resumed == {f'{folder}/{name}' if name == 'checkpoint.pth.tar' else folder
                       for folder, name in folders.items()}
    for folder, name in folders.items():
        (tmp_path / folder / ('comparison.csv' if name == 'args.json' else 'results.json')).write_text(8 * '\n')
    assert [call[0] for call in rehearse('run/quickstart.sh')] == LAST


def test_the_summary_of_the_quick_start_reads_the_runs_that_it_makes(rehearse):
    calls = rehearse('run/quickstart.sh')
    runs, (script, *options) = calls[:-len(LAST)], calls[-len(LAST)]
    made, curves = set(), set()
    for name, *rest in runs:
        if name.endswith('compare_searchers.py'):
            curves.add(parsed(name, rest).output)
        elif not name.endswith('rl_quantize.py'):
            made.add(parsed(name, rest).checkpoint)
    assert {text.partition('=')[2] for text in parsed(script, options).runs} == made
    assert set(parsed(script, options).curve) == curves and len(curves) == 2


# ---- help

@pytest.mark.parametrize('script', SCRIPTS)
def test_help_answers_at_once_and_explains_every_option(script, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, ROOT / 'scripts' / script, '--help'], cwd=tmp_path, capture_output=True,
                          text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime - before.ru_utime < 5  # of processor time, which other programs do not stretch
    shown = re.sub(r'\s+', ' ', re.sub(r'-\n\s+', '-', done.stdout))
    for action in parser_of(f'scripts/{script}')._actions:
        sentence = re.sub(r'\s+', '', (action.help or '').replace('%%', '%'))
        if action.help == argparse.SUPPRESS:  # without effect
            assert not any(f'{option} ' in shown for option in action.option_strings), action.dest
            continue
        assert len(sentence) > 7, f'{action.dest} has no help'
        assert sentence[:30] in shown.replace(' ', ''), action.dest
        assert all(option in shown for option in action.option_strings)
        if action.option_strings and action.default not in (None, argparse.SUPPRESS):
            default = re.sub(r'\s', '', f'(default:{action.default})')
            assert default in re.sub(r'\s', '', done.stdout) or '(default' in action.help


@pytest.mark.parametrize('script', SCRIPTS)
def test_an_option_without_a_default_says_what_happens_without_it(script):
    silent = [action.option_strings[0] for action in parser_of(f'scripts/{script}')._actions
              if action.option_strings and action.default is None and not action.required
              and not re.search(r'default|without this option', action.help)]
    plain = {'--weights', '--suffix', '--resume', '--model_file', '--dataset_file', '--from_csv', '--unit', '--compare',
             '--onnx'}
    assert set(silent) <= plain, 'of these it is plain: nothing'


# ---- the options of the originals

# name on the command line, value given, attribute, default
MODEL_AND_DATA = [
    ('-a', 'resnet18', 'arch'), ('--arch', 'resnet18', 'arch'),
    ('--dataset', 'cifar10', 'dataset'), ('--data_name', 'cifar10', 'dataset'),
    ('--dataset_root', 'x', 'dataset_root'), ('--data', 'x', 'dataset_root'), ('-d', 'x', 'dataset_root'),
    ('--workers', 3, 'workers'), ('-j', 3, 'workers'), ('--n_worker', 3, 'workers'),
    ('--train_batch', 3, 'train_batch'), ('--data_bsize', 3, 'train_batch'), ('--test_batch', 3, 'test_batch'),
    ('--seed', 3, 'seed'), ('--manualSeed', 3, 'seed'), ('--gpu_id', '2', 'gpu_id'), ('--half_type', 'O2', 'half_type'),
    ('--resume', 'x', 'resume'), ('--dataset_path', 'x', 'dataset_root'), ('-b', 3, 'train_batch'),
    ('--batch_size', 3, 'train_batch'), ('--num_workers', 3, 'workers'),
]
SEARCH_DEFAULTS = {
    'suffix': None, 'dataset': 'imagenet', 'preserve_ratio': 0.1, 'min_bit': 1, 'max_bit': 8, 'float_bit': None,
    'linear_quantization': False, 'is_pruned': False, 'hidden1': 300, 'hidden2': 300, 'lr_c': 1e-3, 'lr_a': 1e-4,
    'warmup': 20, 'discount': 1.0, 'bsize': 64, 'rmsize': 128, 'window_length': 1, 'tau': 0.01, 'init_delta': 0.5,
    'delta_decay': 0.99, 'n_update': 1, 'max_episode_length': 1e9, 'debug': False, 'init_w': 0.003,
    'train_episode': 600, 'epsilon': 50000, 'seed': 234, 'train_batch': 256, 'finetune_epoch': 1,
    'finetune_gamma': 0.8, 'finetune_lr': 0.001, 'finetune_flag': True, 'use_top5': False, 'train_size': 20000,
    'val_size': 10000, 'resume': None, 'arch': 'mobilenet_v2', 'gpu_id': None, 'output': 'save', 'workers': 32,
}
TRAINING_DEFAULTS = {
    'dataset': 'imagenet', 'workers': 16, 'epochs': 100, 'start_epoch': 0, 'warmup_epoch': 0, 'train_batch': 256,
    'test_batch': 512, 'lr': 0.1, 'lr_type': 'cos', 'schedule': [31, 61, 91], 'gamma': 0.1, 'momentum': 0.9,
    'checkpoint': 'checkpoint', 'resume': None, 'pretrained': False, 'half': False, 'arch': 'resnet50',
    'evaluate': False, 'gpu_id': None, 'dataset_root': 'data/imagenet',
}
DEFAULTS = {
    'rl_quantize.py': SEARCH_DEFAULTS, 'pretrain.py': {**TRAINING_DEFAULTS, 'weight_decay': 1e-4},
    'finetune.py': {**TRAINING_DEFAULTS, 'weight_decay': 1e-5, 'linear_quantization': False, 'free_high_bit': True},
    'qat_train.py': {  # of its config_train.py, with which the original starts
        'arch': 'toynet', 'dataset': 'cifar10', 'epochs': 300, 'train_batch': 128, 'workers': 4, 'lr': 0.01,
        'lr_min': 0.001, 'lr_type': 'cos', 'opt': 'sgd', 'momentum': 0.9, 'weight_decay': 5e-4, 'strides': [1, 2, 1, 2],
        'num_layer_list': [1, 3, 3, 3], 'num_channel_list': [16, 32, 32, 64], 'stem_channel': 16, 'header_channel': 512,
        'layer_abit': [32] + [8] * 11 + [16], 'layer_wbit': [8] * 13, 'clip_decay': 2e-4, 'evaluate': False,
    },
}
TRAINING = [
    ('--epochs', 3, 'epochs'), ('--start_epoch', 3, 'start_epoch'), ('--warmup_epoch', 3, 'warmup_epoch'),
    ('--lr', 0.3, 'lr'), ('--learning-rate', 0.3, 'lr'), ('--lr_type', 'exp', 'lr_type'), ('--gamma', 0.3, 'gamma'),
    ('--momentum', 0.3, 'momentum'), ('--wd', 0.3, 'weight_decay'), ('--weight-decay', 0.3, 'weight_decay'),
    ('-c', 'x', 'checkpoint'), ('--checkpoint', 'x', 'checkpoint'), ('--nepochs', 3, 'epochs'),
    ('--learning_rate_min', 0.3, 'lr_min'),
]
BOOLEANS = {
    'rl_quantize.py': ['linear_quantization', 'is_pruned', 'finetune_flag', 'use_top5', 'debug', 'half'],
    'finetune.py': ['linear_quantization', 'free_high_bit', 'pretrained', 'half', 'evaluate'],
    'pretrain.py': ['pretrained', 'half', 'evaluate'],
    'qat_train.py': ['rescale', 'branch_out', 'relu_after_add', 'evaluate'],
}


@pytest.mark.parametrize('script', DEFAULTS)
def test_the_defaults_are_those_of_the_original(script):
    args = vars(parsed(f'scripts/{script}', []))
    assert {name: args[name] for name in DEFAULTS[script]} == DEFAULTS[script]


@pytest.mark.parametrize('script', DEFAULTS)
def test_both_historic_spellings_are_accepted(script):
    training = [] if script == 'rl_quantize.py' else TRAINING
    for option, value, name in MODEL_AND_DATA + training:
        assert getattr(parsed(f'scripts/{script}', [option, str(value)]), name) == value, option
    if training:
        assert parsed(f'scripts/{script}', ['--schedule', '3', '5']).schedule == [3, 5]
        assert all(parsed(f'scripts/{script}', [option]).evaluate for option in ('-e', '--eval', '--evaluate'))


def test_every_option_of_the_search_takes_a_value():
    for name, default in SEARCH_DEFAULTS.items():
        if isinstance(default, bool) or name in ('train_batch', 'workers'):
            continue
        value = {'suffix': 'x', 'resume': 'x', 'gpu_id': '1', 'float_bit': 16}.get(name, default)
        given = f'{value:g}' if isinstance(value, float) else str(value)
        assert getattr(parsed('scripts/rl_quantize.py', [f'--{name}', given]), name) == value


@pytest.mark.parametrize(('script', 'name'), [(script, name) for script, names in BOOLEANS.items() for name in names])
def test_a_boolean_takes_all_four_forms(script, name):
    for options, value in (([f'--{name}'], True), ([f'--no-{name}'], False), ([f'--{name}', 'True'], True),
                           ([f'--{name}', 'False'], False), ([f'--{name}=false'], False)):
        assert getattr(parsed(f'scripts/{script}', options), name) is value, options


def test_a_default_folder_is_the_repositorys_wherever_the_user_is():
    names = module_of('scripts/pretrain.py')
    common = sys.modules['_cli']
    args = common.parse(names['make_pretrain_parser'](), ['--data', 'mine', '--dataset', 'digits'])
    assert args.checkpoint == str(ROOT / 'checkpoint') and args.dataset_root.endswith('mine')


def test_a_file_is_made_absolute_and_what_only_looks_like_one_is_not(tmp_path, monkeypatch):
    for name in ('uniform', 'mine.json', 'chip.yaml'):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    make, common = module_of('scripts/finetune.py')['make_finetune_parser'], sys.modules['_cli']
    long = str([[8, 8]] * 60)  # no name of a file can be as long
    for option, given, found in (
            ('strategy', 'mine.json', f'{tmp_path}/mine.json'), ('strategy', 'uniform:4', 'uniform:4'),
            ('strategy', long, long), ('cost', long, long), ('cost', 'cloud_latency', 'cloud_latency'),
            ('cost', 'chip.yaml:energy', f'{tmp_path}/chip.yaml:energy')):
        assert getattr(common.parse(make(), [f'--{option}', given]), option) == found
