"""What the quantizers of a network take over from those of a checkpoint: learned clips and steps."""

import re
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path

from torch import nn

from lib.qat.bit_lists import is_quantized
from lib.quantize.quantizer import Quantizer

FORMS = {'weights': ('weight_scales', 'tensor'), 'activations': ('activation_grid', 'symmetric')}  # and the usual one
LEARNED = ('pact', 'mpact', 'lsq', 'linear')  # quantizers with clips or steps
OF_LAYERS = re.compile(r'_quantizer\.|(^|\.)(weight|activation)_range$')  # of the original's layers, too
QUANTIZER_KEY = re.compile(r'(^|[._])(range|step|low|_extra_state)$')  # in a state dict


def check_quantizers(model: nn.Module, state_dict: Mapping, source: str | Path) -> None:
    """Raise ValueError where a state dict has what some quantizers learned and lacks the same of others.

    A float network's has nothing of theirs, which is right: they begin anew.
    """
    keys = [f'{name}.{key}' for name, module in model.named_modules() if isinstance(module, Quantizer)
            for key in module.state_dict()]
    there = {key.rpartition('.')[2] for key in keys if key in state_dict}
    left = [key for key in keys if key not in state_dict and key.rpartition('.')[2] in there]
    if left:
        raise ValueError(f'{source} is damaged: it has no {left[0]}'
                         f'{f" and {len(left) - 1} more" if left[1:] else ""}, which other quantizers in it have; take '
                         'another checkpoint of the run')


def kept_quantizers(checkpoint: object, settings: Mapping, strategy: list | dict) -> list[str]:
    """Return which quantizers' clips and steps a checkpoint passes on to this run: 'weights', 'activations'."""
    if not isinstance(checkpoint, dict) or 'qat' not in checkpoint or not is_quantized(checkpoint['strategy']):
        return []
    theirs, ours = checkpoint['qat']['quantizers'], settings['quantizers']
    return [which for which, form in FORMS.items() if theirs[which] == ours[which] in LEARNED
            and theirs.get(*form) == ours.get(*form) and (ours[which] != 'lsq' or checkpoint['strategy'] == strategy)]


def begin_anew(state_dict: MutableMapping) -> None:
    """Take everything that belongs to quantizers out of a state dict, so that they begin anew."""
    for key in [key for key in state_dict if OF_LAYERS.search(key)]:
        del state_dict[key]


def not_inherited(model: nn.Module, state_dict: Mapping, kept: Collection[str], float_names: Collection[str]
                  ) -> list[str]:
    """Return the keys of a state dict that belong to quantizers which begin anew in the network.

    Args:
        model: the network with its quantizers.
        state_dict: of the weights that it begins with.
        kept: quantizers whose clips and steps come along, of 'weights' and 'activations'.
        float_names: keys of the network's state dict before it had quantizers.
    """
    taken = {key for key in model.state_dict()
             if key in float_names or ('weights' if '.weight_quantizer.' in key else 'activations') in kept}
    return [key for key in state_dict if key not in taken and QUANTIZER_KEY.search(key)]
