"""Which tensor of a network hybrid quantization gives which quantizer: from block lists, or layer by layer."""

import logging
from dataclasses import asdict, dataclass, field

from torch import nn

from lib.hybrid.config import SLOPE
from lib.network.conversion import all_layers
from lib.network.hooks import names_of
from lib.record.values import BITS, BOOL, RANGE

logger = logging.getLogger(__name__)

ACTIVATIONS = (nn.ReLU, nn.ReLU6)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
QAT_BELOW = 4  # bits: with a strategy, fewer are trained with DSQ, others quantized after training with ACIQ
FIRST = -1  # the block number that stands for the first layer
SITES = {  # what block numbers stand for, in words and by type; bounds of DSQ, and its range if each part has its own
    'w': ('convolution', nn.Conv2d, 'minmax', (-0.2, 0.2)), 'a': ('ReLU', ACTIVATIONS, 'fixed', (0, 2))}


@dataclass
class Plan:
    """The quantizers of a network, plain values: {name: {'method': 'dsq' or 'aciq', 'bits': ..., settings}}.

    Attributes:
        weights: of layers.
        activations: behind ReLUs; `names` are all of one that is registered several times.
        inputs: of layers.
    """

    weights: dict = field(default_factory=dict)
    activations: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return it as plain values, from which `Plan(**values)` makes it again."""
        return asdict(self)

    def of(self, method: str) -> 'Plan':
        """Return the part of the plan whose tensors are quantized by one method."""
        return Plan(*({name: entry for name, entry in group.items() if entry['method'] == method}
                      for group in (self.weights, self.activations, self.inputs)))

    @property
    def compensated(self) -> list[str]:
        """Names of the layers whose weights are rounded with compensation after training."""
        return [name for name, entry in self.weights.items() if entry.get('clipping') == 'compensated']

    def __bool__(self):
        return bool(self.weights or self.activations or self.inputs)

    def report(self, network: str) -> None:
        """Say what is quantized, how, and where edge and cloud meet."""
        for name, group in (('weights', self.weights), ('activations', self.activations), ('inputs', self.inputs)):
            for method, words in (('dsq', 'trained with DSQ'), ('aciq', 'after training with ACIQ')):
                bits = [entry['bits'] for entry in group.values() if entry['method'] == method]
                if bits:
                    width = f'{min(bits)} bits' if min(bits) == max(bits) else f'{min(bits)} to {max(bits)} bits'
                    logger.info('%s of %d layers: %s, %s', name, len(bits), width, words)
        for name, entry in self.activations.items():
            if 'names' in entry:
                logger.info('%s is quantized under all its names: %s', name, ', '.join(entry['names']))
        trained = [name for name, entry in self.activations.items() if entry['method'] == 'dsq']
        if trained:
            logger.info('the edge device ends with %s', trained[-1])
        if not self:
            logger.info('%s stays float: no block list names a block', network)


def residual_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: block}: the outermost modules, but for plain containers, that hold two or more convolutions."""
    found = {}

    def visit(module, prefix):
        for name, child in module.named_children():
            path = f'{prefix}{name}'
            convolutions = sum(isinstance(part, nn.Conv2d) for part in child.modules())
            if convolutions > 1 and type(child) not in CONTAINERS:
                found[path] = child
            else:
                visit(child, f'{path}.')

    visit(model, '')
    return found


def make_plan(model: nn.Module, config: dict, network: str = 'the network') -> Plan:
    """Return the `Plan` that a configuration means for a network.

    Raises:
        ValueError: names a key of wrong length, a block or layer that the network has not, or a layer that is to be
            quantized both in training and after it.
    """
    lists = [f'{section}.{key}' for section, key in (
        ('qat', 'quantize_w_blocks'), ('qat', 'quantize_a_blocks'), ('ptq', 'post_quantize_w_layers'),
        ('ptq', 'post_quantize_a_layers')) if config[section][key]]
    if config['layers']:
        if lists:
            raise ValueError(f'the section layers says what each layer gets: leave {", ".join(lists)} empty')
        return _plan_of_layers(model, config, network)
    return _plan_of_blocks(model, config, network) if lists or config['ptq']['post_image_bit_width'] else Plan()


def _plan_of_layers(model, config, network):
    layers, plan = all_layers(model), Plan()
    for name, entry in config['layers'].items():
        if name not in layers:
            raise ValueError(f'layers: {network} has no layer {name}; it has {", ".join(list(layers)[:4])}, ...')
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or not all(BITS.accepts(bits) or bits in (-1, 32) for bits in entry):
            raise ValueError(f'layers: {name} is {entry!r:.60}: expected [weight bits, input bits], each 1 to 8, or -1 '
                             'for float')
        for group, bits, letter in ((plan.weights, entry[0], 'w'), (plan.inputs, entry[1], 'a')):
            if BITS.accepts(bits):
                group[name] = {**(_dsq if bits < QAT_BELOW else _aciq)(config, letter), 'bits': bits}
    return plan


def _plan_of_blocks(model, config, network):
    sites, plan, ptq = _Sites(model, network), Plan(), config['ptq']
    groups = {'w': plan.weights, 'a': plan.activations}
    for letter, group in groups.items():
        _add_qat(group, config, letter, sites)
    for letter, group in groups.items():
        if ptq[f'post_quantize_{letter}']:
            _add_ptq(group, config, letter, sites)
    if ptq['post_image_bit_width']:
        first = sites.of('w', FIRST, 'post_image_bit_width')[0]
        plan.inputs[first] = {**_aciq(config, 'a'), 'bits': ptq['post_image_bit_width']}
    for name, entry in plan.activations.items():
        if len(sites.names[name]) > 1:
            entry['names'] = sites.names[name]
    return plan


class _Sites:
    """The layers and activations that block numbers stand for; a module of several names is known by its first.

    Attributes:
        names: {first name: all names} of every module.
    """

    def __init__(self, model: nn.Module, network: str):
        self.network, self.blocks = network, residual_blocks(model)
        self.names = {names[0]: names for names in names_of(model).values()}
        self._found = {letter: self._find(model, kind) for letter, (_, kind, *_) in SITES.items()}

    def _find(self, model, kind):
        names = [name for name, module in model.named_modules() if isinstance(module, kind)]
        inside = [[name for name in names if any(each.startswith(f'{block}.') for each in self.names[name])]
                  for block in self.blocks]
        outside = [name for name in names if not any(name in part for part in inside)]
        return {FIRST: outside[:1], **dict(enumerate(inside))}

    def of(self, letter: str, block: int, key: str) -> list[str]:
        """Return the names for a letter and a block number; ValueError, naming `key`, where there are none."""
        found = self._found[letter]
        if block not in found:
            known = f', 0 ({next(iter(self.blocks))}) to {len(self.blocks) - 1}' if self.blocks else \
                ': give the bits layer by layer, in the section layers or by --strategy'
            raise ValueError(f'{key}: there is no block {block}, {self.network} has {len(self.blocks)} residual '
                             f'blocks{known}')
        if not found[block]:
            where = 'outside of the blocks' if block == FIRST else f'in block {block}'
            raise ValueError(f'{key}: {self.network} has no {SITES[letter][0]} {where}')
        return found[block]


def _add_qat(group, config, letter, sites):
    qat, settings, blocks_key = config['qat'], _dsq(config, letter), f'quantize_{letter}_blocks'
    blocks = qat[blocks_key]
    parts = [sites.of(letter, block, f'qat.{blocks_key}') for block in blocks]
    values = {name: _spread(qat[key], f'qat.{key}', f'qat.{blocks_key}', blocks, parts, leaf) for name, key, leaf in (
        ('chosen', f'quantize_{letter}', BOOL.accepts), ('bits', f'{letter}_bit_width', BITS.accepts),
        ('range', f'q_{letter}_range', RANGE.accepts), ('slope', f'{letter}_slope', SLOPE.accepts))}
    for i, names in enumerate(parts):
        for j, name in enumerate(names):
            if not values['chosen'][i][j]:
                continue
            lower, upper = values['range'][i][j]
            bits = values['bits'][i][j]
            if letter == 'a' and bits == 1 and lower < 0:
                raise ValueError(f'qat.q_a_range: {name} gets 1 bit in the signed range [{lower:g}, {upper:g}]: behind '
                                 'a ReLU that is one level; take a range from 0 on, or 2 bits')
            entry = {**settings, 'bits': bits, 'lower': lower, 'upper': upper, 'slope': values['slope'][i][j]}
            if group.setdefault(name, entry) != entry:
                raise ValueError(f'{name} is in several of the blocks of qat.{blocks_key}, which give it different '
                                 'settings: give it the same in all of them')


def _add_ptq(group, config, letter, sites):
    ptq, settings, key, bits_key = (config['ptq'], _aciq(config, letter), f'post_quantize_{letter}_layers',
                                    f'post_{letter}_bit_width')
    blocks = ptq[key]
    parts = [sites.of(letter, block, f'ptq.{key}') for block in blocks]
    bits = _spread(ptq[bits_key], f'ptq.{bits_key}', f'ptq.{key}', blocks, parts, BITS.accepts)
    for i, names in enumerate(parts):
        for j, name in enumerate(names):
            entry = {**settings, 'bits': bits[i][j]}
            if name in group and group[name] != entry:
                raise ValueError(f'{name} is in qat.quantize_{letter}_blocks and, as block {blocks[i]}, in ptq.{key}: '
                                 'a layer is quantized in training or after it, and in all blocks alike; take it out '
                                 'of one of them')
            group[name] = entry


def _spread(value, key, blocks_key, blocks, parts, leaf):
    """Return, per block, a list with one value for each of its parts."""
    if leaf(value):
        return [[value] * len(names) for names in parts]
    if len(value) != len(blocks):
        raise ValueError(f'{key} has {len(value)} entries, {blocks_key} lists {len(blocks)}: expected one value, or '
                         'one entry for each of them')
    rows = []
    for block, names, entry in zip(blocks, parts, value, strict=True):
        if leaf(entry):
            entry = [entry] * len(names)
        if len(entry) != len(names):
            raise ValueError(f'{key}: the entry of block {block} has {len(entry)} values, the block has {len(names)} '
                             f'parts: {", ".join(names)}')
        rows.append(entry)
    return rows


def _dsq(config, letter):
    """Return the entry of a weight ('w') or an activation ('a') that is trained with DSQ, but for its bits."""
    qat, (_, _, bounds, default) = config['qat'], SITES[letter]
    lower, upper = qat[f'q_{letter}_range'] if RANGE.accepts(qat[f'q_{letter}_range']) else default
    slope = qat[f'{letter}_slope'] if SLOPE.accepts(qat[f'{letter}_slope']) else 2.0
    learned = {f'learn_{name}': qat[f'learn_{letter}_{name}'] for name in ('lower', 'upper', 'slope')}
    fold = {'fold': qat['fold_bn']} if letter == 'w' else {}
    return {'method': 'dsq', 'bits': None, **fold, 'bounds': bounds, 'lower': lower, 'upper': upper, 'slope': slope,
            **learned}


def _aciq(config, letter):
    """Return the entry of a tensor that is quantized after training with ACIQ, but for its bits."""
    ptq = config['ptq']
    own = {name: ptq[name] for name in ('per_channel', 'bit_alloc', 'bias_corr')} if letter == 'w' else \
        {'center': ptq['relu_center'], 'spread': ptq['relu_spread']}
    clipping = ptq['weight_method' if letter == 'w' else 'activation_method']
    return {'method': 'aciq', 'bits': None, 'clipping': clipping, 'prior': ptq['prior'], **own}
