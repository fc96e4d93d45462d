"""What names of the program are called in a figure."""

COSTS = {
    'model_size': 'model size relative to float',
    'file_size': 'file size relative to float',
    'proqha_ratio': 'size of the quantized weights relative to float',
    'bitops': 'bit operations relative to 8/8 bits',
    'activation_memory': 'activation memory relative to 8/8 bits',
}
SEARCHERS = {
    'uniform': 'uniform bits',
    'random': 'random',
    'greedy': 'greedy (loss)',
    'ilp': 'integer program (loss)',
    'hessian': 'integer program (Hessian)',
    'fisher': 'integer program (Fisher)',
    'kl': 'integer program (KL)',
    'bayes': 'Bayesian linear model',
    'evolution': 'evolution',
    'progressive': 'progressive (ProQHA)',
    'ddpg': 'agent (DDPG)',
}
ENGINE = {
    'rows': 'rows of an array',
    'columns': 'columns of an array',
    'cell_bits': 'bits of a cell',
    'dac_bits': 'bits of an input that go in at once',
    'adc_bits': 'bits of the converters',
    'mapping': 'mapping of weights to cells',
    'adc_range': 'range of the converters',
    'device': 'memory cells',
    'programming_noise': 'programming noise, σ relative to the range of a cell',
    'read_noise': 'noise of every read, σ relative to the range of a cell',
    'on_off_ratio': 'on/off ratio of the cells',
    'drift_seconds': 'seconds since the cells were programmed',
    'stuck_low': 'share of the cells that stay off',
    'stuck_high': 'share of the cells that stay on',
    'gain_mismatch': 'gain mismatch of the converters, σ',
    'offset_mismatch': 'offset mismatch of the converters, σ relative to the largest sum',
    'seed': 'seed of the errors',
}


def cost_words(name: str, *, relative: bool = True) -> str:
    """Return what a cost is called on an axis: `cloud_latency` is 'latency on cloud relative to 8/8 bits'.

    A name that is not the program's own, such as that of a table of the user, stays as it is.

    Args:
        name: of a `CostTable`.
        relative: add what a ratio of 1 stands for.
    """
    place, _, metric = name.rpartition('_')
    if name in COSTS:
        words = COSTS[name]
    elif place and metric in ('latency', 'energy'):
        where = f'measured here {place[9:]}' if place.split('_')[0] == 'measured' else f'on {place}'
        words = f'{metric} {where.replace("_", " ").strip()} relative to 8/8 bits'
    else:
        words = f'{name} relative to its reference'
    return words if relative else words.split(' relative to ')[0]
