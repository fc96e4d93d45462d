"""The settings of a run: its options as args.json has them, and what of them a resumed run brings."""

import argparse
import json
from pathlib import Path

from _option_types import DefaultFloat, checked

from lib.record.settings import read_settings

# Options that came after runs had an identity, and the values by which they change nothing: a run of before has no line
# for them in its args.json.
YOUNGER = {'sensitivities': None, 'sensitivity': 'kl', 'pareto': None, 'accuracy_drop': None,
           'attention_products': False, 'activation_grid': 'symmetric', 'weight_scales': 'tensor', 'candidates': None,
           'rounding': 'nearest', 'calibration_images': 512, 'bias_correction': None, 'keep_bn': False,
           'pin': None, 'warmup_type': 'constant', 'clip_norm': None, 'decay_norms': None, 'label_smoothing': 0.0,
           'mixup': 0.0, 'cutmix': 0.0, 'randaugment': None, 'randaugment_ops': 2, 'ema_decay': 0.0, 'policy': None,
           'reward': 'accuracy', 'fill': False, 'delta_end': None, 'recipe': 'haq',
           'decay_steps': None, 'lsq_init': 'formula', 'dampening': 0.0,
           'kmeans_weights': 'none', 'distill': 'none', 'distill_temperature': 4.0, 'distill_weight': 1.0,
           'teacher': None, 'teacher_weights': None}
NOT_RESUMED = ('resume', 'overwrite', 'debug', 'evaluate', 'device', 'gpu_id', 'workers', 'download',
               'keep_memory')
BEFORE = {'attention_products': None}  # what runs mean that were begun before there was the option


def plain_value(value):
    """Return `value` as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def settings_path(resume):
    """Return the path of the args.json of the run to resume, which is given by its folder or a file in it."""
    folder = Path(resume)
    return (folder if folder.is_dir() else folder.parent) / 'args.json'


def saved_settings(parser, resume, known):
    """Return the settings of the run to resume, each checked as the command line's are; {} where there are none.

    Only those with `known` names are taken. The parser refuses an args.json that is damaged or was changed, and a value
    that an option does not take.
    """
    if not resume:
        return {}
    try:
        path = settings_path(resume)
        if not path.is_file():
            return {}
        saved, _ = read_settings(path)
        return {**{name: value for name, value in BEFORE.items() if name in known and name not in saved},
                **{name: checked_setting(parser, name, value, path) for name, value in saved.items()
                   if name in known and name not in (*NOT_RESUMED, *parser.not_resumed)}}
    except (ValueError, OSError) as error:
        parser.error(str(error))


def checked_setting(parser, name, value, source):
    """Return a value of args.json; raise ValueError unless it is one that the command line could have given."""
    action = next((action for action in parser._actions if action.dest == name
                   and action.default is not argparse.SUPPRESS), None)
    try:
        if action is None:  # none of the command line
            default = parser.get_default(name)
            if value is not None and not isinstance(value, dict if default is None else type(default)):
                raise ValueError('it is of another type')
        elif not (value is None and isinstance(action.default, DefaultFloat)):  # which another option may replace
            read = plain_value(checked(action, value))
            if read != value or isinstance(read, str) != isinstance(value, str):
                raise ValueError(f'expected {read!r}')
    except (ValueError, TypeError, OverflowError, argparse.ArgumentTypeError) as error:
        raise ValueError(f'{source}: --{name} is {value!r:.80}: {error}; the file was changed, or is of '
                         'another script: put it back, or start another run') from error
    return value


def missing_settings(parser, resume, known, saved):
    """Return the options that an args.json without a record has no line for: they have their defaults."""
    if not saved or read_settings(settings_path(resume))[1]:
        return []
    options = {action.dest for action in parser._actions if action.default is not argparse.SUPPRESS}
    return sorted(name for name in options & known.keys() if name not in (*saved, *NOT_RESUMED))
