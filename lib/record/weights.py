"""Weights in the wrappings in which trainers save them, found and brought to the names of a network.

The parts of a checkpoint are its dicts of tensors, wherever they lie. The names in a part differ from the network's by
what wraps a network: `module.` (DataParallel), `_orig_mod.` (torch.compile), or a prefix such as `model.` (Lightning),
`net.` or `backbone.`. The network decides: names are changed only where they do not fit as they are, and the part and
the prefix are taken under which most of its names are found.
"""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.record.pickles import STATE_KEYS

PREFIXES = ('', 'model.', 'net.', 'network.', 'backbone.', 'encoder.')  # of equally good ones the first is taken
WRAPPERS = ('module', '_orig_mod')
DEPTH = 4  # of dicts in dicts, and of a prefix
AVERAGES = {'ema', 'swa', 'avg', 'average', 'averaged', 'shadow', 'polyak'}
WORDS = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+')
NO_WEIGHTS = re.compile('optim|sched|scaler|rng|callback|loops|codebook|agent|history|hyper|config|args', re.IGNORECASE)


class Weights(NamedTuple):
    """Weights that were found in a file.

    Attributes:
        state_dict: tensors by name, under the network's names where they fit; `_metadata` has versions of modules.
        where: in words, the keys under which they lie and what their names begin with; '' if there is nothing to say.
        average: they are a running average.
        beside: where the average lies beside raw weights, or the raw weights beside an average; None: nowhere.
        notes: what was done to them, a clause each.
    """

    state_dict: 'OrderedDict[str, Tensor]'
    where: str = ''
    average: bool = False
    beside: str | None = None
    notes: tuple[str, ...] = ()

    def words(self, ema: bool = True) -> Iterator[str]:
        """Yield what is to be said of them, of those that lie as usual nothing; `ema`: the script has this option."""
        if self.where:
            yield f'taken: {self.where}' + (', an average' if self.average else '')
        elif self.beside:
            yield 'taken: the raw weights'
        if self.beside:
            kind, advice = ('the raw weights', '') if self.average else ('an average', ' (--ema takes it)' * ema)
            yield f'beside them: {self.beside}, {kind}{advice}'
        yield from self.notes


class _Candidate(NamedTuple):
    where: str
    prefix: str | None  # None: the names are left as they are
    average: bool
    hits: int  # names of the network that are found
    fits: int  # and have its shapes
    names: dict[str, str]  # {name in the file: name in the network}

    def order(self) -> tuple:
        """Return what the best candidate is least in."""
        key = self.where.rpartition('.')[2]
        unusual = len(STATE_KEYS) + (self.where != '') + (' ' in self.where)
        prefix = self.prefix or ''
        return (-self.hits, -self.fits, STATE_KEYS.index(key) if key in STATE_KEYS else unusual, self.where.count('.'),
                PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES))

    def place(self) -> str:
        """Return the candidate in words, '' where its names are the network's, in the usual place."""
        where = '' if self.where in ('', 'state_dict') and not self.average else self.where or 'the whole file'
        prefix = f'names without {self.prefix}' if self.prefix else ''
        return ', '.join(filter(None, (where or prefix and self.where, prefix)))


def find_weights(checkpoint: Any, own: Mapping[str, Tensor] | None = None, source: str = 'checkpoint', *,
                 average: bool = False) -> Weights:
    """Return the weights in a checkpoint, under the names of a network.

    Args:
        checkpoint: what a file holds.
        own: state dict of the network; None: wrappers are removed from all names.
        average: take the running average (EMA, SWA), not the raw weights beside it.

    Raises:
        ValueError: there are no weights, no average, or several parts that fit the network equally well.
    """
    parts = {where: _unpruned(tensors, own) for where, tensors in _all_parts(checkpoint, joined=own is None)}
    if not parts:
        held = f'; it has {first_few(checkpoint)}' if isinstance(checkpoint, dict) and checkpoint else ''
        raise ValueError(f'{source} holds no state dict: expected a dict of tensors, or one under "state_dict"{held}')
    found = [candidate for where, (tensors, _) in parts.items() for candidate in _candidates(where, tensors, own)]
    needed = len(own or ()) / 2
    raw, averaged = (_best([c for c in found if c.average == kind], needed, source) for kind in (False, True))
    if average and not averaged:
        raise ValueError(f'{source} holds no average of its weights, under state_dict_ema, model_ema or the like')
    taken = averaged if average or not raw or averaged and averaged.hits > 2 * raw.hits else raw
    other = raw if taken is averaged else averaged
    tensors, pruned = parts[taken.where]
    state_dict = OrderedDict((name, tensors[key]) for key, name in taken.names.items())
    state_dict._metadata = _versions(tensors, taken.prefix)
    return Weights(state_dict, taken.place(), taken.average,
                   (other.place() or 'state_dict') if other and 2 * other.hits > taken.hits else None,
                   tuple(_notes(taken, found, tensors, pruned)))


def _notes(taken: _Candidate, found: list[_Candidate], tensors: Mapping, pruned: int) -> Iterator[str]:
    if pruned:
        yield f'{pruned} pruned tensors are multiplied by their masks'
    equal = {c.where for c in found if c.average == taken.average and c.hits == taken.hits and ' ' not in c.where}
    if others := sorted(equal - {taken.where}):
        yield f'{first_few(others)} would fit, too'
    if left := [key for key in tensors if key not in taken.names and key != 'n_averaged']:
        yield f'{len(left)} entries outside {taken.prefix or "it"} are left out ({first_few(left)})'


def _best(candidates: list[_Candidate], needed: float, source: str) -> _Candidate | None:
    ranked = sorted(candidates, key=_Candidate.order)
    if len(ranked) > 1 and ranked[0].order() == ranked[1].order() and ranked[0].hits > needed:
        places = ' and '.join(c.place() or 'state_dict' for c in ranked[:2])
        raise ValueError(f'{source} holds several parts that fit the network equally well: {places}; save the one that '
                         'is meant, by itself')
    return ranked[0] if ranked else None


# ---- the parts of a checkpoint

def _all_parts(checkpoint: Any, joined: bool) -> list[tuple[str, 'OrderedDict[str, Tensor]']]:
    """Return (where, tensors) of every dict of tensors; several under unusual keys as one, too, or `joined` only."""
    parts = list(_parts(checkpoint, (), set()))
    unusual = [(where, tensors) for where, tensors in parts
               if where and not _is_average(where) and where.rpartition('.')[2] not in STATE_KEYS]
    if len(unusual) > 1:
        whole = OrderedDict((f'{where}.{key}', tensor) for where, tensors in unusual for key, tensor in tensors.items())
        whole._metadata = {}
        alone = [part for part in parts if not joined or part[0] not in {where for where, _ in unusual}]
        return [*alone, (' + '.join(where for where, _ in unusual), whole)]
    return parts


def _parts(value: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, 'OrderedDict[str, Tensor]']]:
    while isinstance(value, (list, tuple)) and len(value) == 1 and id(value) not in seen:
        seen.add(id(value))
        value = value[0]
    if not isinstance(value, dict) or len(keys) > DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    tensors = OrderedDict((key, tensor) for key, entry in value.items() if isinstance(key, str)
                          and (tensor := _tensor(entry)) is not None)
    tensors._metadata = dict(getattr(value, '_metadata', None) or {})
    if any(tensor.dim() for tensor in tensors.values()):
        yield '.'.join(keys), tensors
    for key, entry in value.items():
        if isinstance(key, str) and not NO_WEIGHTS.search(key):
            yield from _parts(entry, (*keys, key), seen)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiub':
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder('=')))
    return value.detach() if isinstance(value, Tensor) else None


def _unpruned(tensors: 'OrderedDict[str, Tensor]', own: Mapping | None) -> tuple['OrderedDict[str, Tensor]', int]:
    """Return the tensors, each `x_orig` multiplied by its `x_mask` (torch.nn.utils.prune) and called `x`; how many."""
    pruned = {key[:-5] for key in tensors if key.endswith('_orig') and f'{key[:-5]}_mask' in tensors
              and tensors[key].shape == tensors[f'{key[:-5]}_mask'].shape}
    if not pruned or any(key.endswith('_orig') for key in own or ()):
        return tensors, 0
    kept = OrderedDict((key, tensor) for key, tensor in tensors.items()
                       if not (key.endswith(('_orig', '_mask')) and key[:-5] in pruned))
    for key in pruned:
        kept[key] = tensors[f'{key}_orig'] * tensors[f'{key}_mask'].to(tensors[f'{key}_orig'].dtype)
    kept._metadata = tensors._metadata
    return kept, len(pruned)


# ---- names

def _candidates(where: str, tensors: Mapping[str, Tensor], own: Mapping | None) -> Iterator[_Candidate]:
    """Yield the ways to name the tensors of a part that find most of the network's names: raw ones and averages."""
    plain_own = _plain_names(own if own is not None else tensors)
    kept = [key for key in tensors if key != 'n_averaged' or own is not None and key in own]
    if own is None:
        yield _candidate(where, '', tensors, {key: name for name, key in plain_own.items() if key in kept}, {})
        return
    found = _prefixes(kept, plain_own)
    exact = sum(key in own for key in kept)
    for kind in (False, True):
        hits = {prefix: len(names) for prefix, names in found.items() if _is_average(prefix) == kind}
        most = max(hits.values(), default=0)
        if kind is False and exact >= most:
            yield _candidate(where, None, tensors, {key: key for key in kept}, own)
            continue
        for prefix in sorted(prefix for prefix in hits if hits[prefix] == most):
            names = {key: plain_own.get(rest := _plain(key)[len(prefix):], rest) for key in kept
                     if _plain(key).startswith(prefix)}
            if len(set(names.values())) == len(names):
                yield _candidate(where, prefix, tensors, names, own)


def _candidate(where: str, prefix: str | None, tensors: Mapping, names: dict[str, str], own: Mapping) -> _Candidate:
    average = _is_average(where) or _is_average(prefix or '') or 'n_averaged' in tensors and 'n_averaged' not in own
    found = [(tensors[key], own[name]) for key, name in names.items() if name in own]
    return _Candidate(where, prefix, average, len(found), sum(o is None or t.shape == o.shape for t, o in found), names)


def _prefixes(keys: Iterable[str], plain_own: Mapping[str, str]) -> dict[str, set[str]]:
    """Return {prefix of names: the network's names that are found behind it}."""
    found = defaultdict(set)
    for key in keys:
        segments = _plain(key).split('.', DEPTH)
        for start in range(len(segments)):
            name = '.'.join(segments[start:])
            if name in plain_own:
                found['.'.join((*segments[:start], ''))].add(name)
    return found


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return {name without wrappers: name}; all as they are, where two become the same."""
    plain = {_plain(name): name for name in names}
    return plain if len(plain) == len(list(names)) else {name: name for name in names}


def _plain(name: str) -> str:
    """Return a name without the segments that DataParallel and torch.compile add, wherever they are."""
    *modules, last = name.split('.')
    return '.'.join((*(module for module in modules if module not in WRAPPERS), last))


def _versions(tensors: 'OrderedDict[str, Tensor]', prefix: str | None) -> dict:
    if prefix is None:
        return tensors._metadata
    plain = {_plain(f'{key}.')[:-1] if key else '': value for key, value in tensors._metadata.items()}
    return {key.removeprefix(prefix): value for key, value in plain.items()}


def _is_average(text: str) -> bool:
    return not AVERAGES.isdisjoint(word.lower() for word in WORDS.findall(text))


def first_few(items: Iterable, limit: int = 4) -> str:
    """Return the first items separated by commas, and how many more there are."""
    items = [str(item)[:80] for item in items]
    return ', '.join(items[:limit]) + (f' and {len(items) - limit} more' if len(items) > limit else '')
