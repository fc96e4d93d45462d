"""Settings of a training refuse what cannot be trained with."""

import math

import pytest

from lib.training.settings import TrainingSettings


@pytest.mark.parametrize(('name', 'value'), [
    ('epochs', -1), ('lr', 0), ('lr', math.nan), ('lr_type', 'linear'), ('opt', 'rmsprop'), ('lr_min', -1e-3),
    ('warmup_epoch', -1), ('momentum', -0.1), ('weight_decay', -1), ('weight_decay', math.nan), ('grad_clip', 0),
    ('bn_batches', -1), ('mixup', -1), ('cutmix', math.inf),
    ('label_smoothing', 1), ('ema_decay', math.nan), ('ema_decay', 1), ('warmup_type', 'linear'), ('warmup_type', 'x'),
    ('evaluate_every', 0), ('keep_every', -1)])
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        TrainingSettings(**{name: value})
