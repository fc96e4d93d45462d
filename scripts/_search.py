"""What the scripts that search share: options of search and agent, the flow, and whose value an error speaks of."""

import argparse
import copy
import re
from dataclasses import dataclass
from pathlib import Path

from _cli import logger
from _option_types import MAX_UNITS, CollectedOption, at_least, fraction, positive
from _option_types import BooleanOption as Bool
from _options import add_distillation_options, add_unused_options, check_kmeans_weights

from lib.record.strategy import find_strategy
from lib.record.words import SEARCHERS

AGENT = ('hidden1', 'hidden2', 'lr_a', 'lr_c', 'tau', 'discount', 'bsize', 'init_delta', 'delta_decay', 'warmup',
         'n_update')  # options that are those of `DDPG`

# Defaults that --recipe chooses together; what is given on the command line goes before them. `haq` is the paper to the
# letter, `fast` what we would do (docs/agent.md): a way to quantize or a searcher that turns out better belongs here.
RECIPES = {
    'haq': {},
    'fast': {
        'searcher': 'bayes', 'rounding': 'compensated', 'finish': True,
        'train_episode': 30, 'finetune_flag': False,  # an episode is an evaluation
        'reward': 'kl', 'reward_on': 'augmented', 'val_size': 512,
        'sensitivity': 'hessian',
        'min_bit': 2, 'fill': True, 'channels_last': True,
        'warm_start': 'sensitivity', 'warmup': 9, 'init_delta': 0.2, 'delta_end': 0.12,  # of the agent
    },
}


def add_bit_options(group, range_words):
    """Add the options of bits by name, in place of a range."""
    group.add_argument('--candidates', action=CollectedOption, metavar='[NAME=]BITS', help='bits of a layer in place '
                       f'of the range {range_words}: 2,4,8 of all layers, "*.qkv=4,8" of those of a name or pattern, '
                       '4,8/8 of weights / of activations; several may be given (docs/searchers.md; default: the '
                       'range)')
    group.add_argument('--pin', action=CollectedOption, metavar='NAME=W[,A]', help='the bits of a layer, or of those '
                       'of a pattern, that are not searched: W of its weights and, unless the flow is K-means, A of '
                       'its activations (-1: left alone); several may be given; a pin of the first or the last layer '
                       'goes before [8, -1] or [8, 8] (default: none)')


def add_search_options(parser, *, finetune_flag, train_size, val_size):
    """Add the options about strategies and their evaluation; returns the group."""
    group = parser.add_argument_group('search')
    group.add_argument('--wall', choices=['rounds', 'greedy'], default='rounds', help='how a strategy above its budget '
                       "is lowered: a bit in every layer, round by round (HAQ's), or always where most is saved per "
                       'bit, which suits hardware whose layers gain very differently')
    group.add_argument('--min_bit', type=int, default=1, help='fewest bits of a layer')
    group.add_argument('--max_bit', type=int, default=8, help='most bits of a layer')
    add_bit_options(group, '--min_bit to --max_bit')
    group.add_argument('--train_size', type=at_least(1), default=train_size, help='images an episode trains on')
    group.add_argument('--val_size', type=at_least(1), default=val_size,
                       help='images an episode is judged on, held out of the training set')
    group.add_argument('--finetune_flag', action=Bool, default=finetune_flag, help='fine-tune in every episode')
    group.add_argument('--finetune_epoch', type=at_least(1), default=1, help='epochs of fine-tuning per episode')
    group.add_argument('--finetune_lr', type=positive, default=0.001, help='learning rate of that fine-tuning')
    group.add_argument('--finetune_gamma', type=positive, default=0.8, help='its factor after each epoch')
    add_distillation_options(group, 'fine-tuning in the episode: ')
    group.add_argument('--kmeans_iter', type=at_least(1), default=3, help='K-means: Lloyd iterations per clustering')
    group.add_argument('--use_top5', action=Bool, help='reward top-5 instead of top-1 accuracy')
    group.add_argument('--reward', choices=['accuracy', 'agreement', 'loss', 'kl'], default='accuracy', help='what a '
                       'strategy is rewarded for: accuracy; agreement with the most likely classes of the float '
                       'network, its cross entropy, or the KL divergence from the outputs of the float network '
                       '(docs/agent.md#the-reward)')
    group.add_argument('--reward_on', choices=['val', 'augmented', 'train'], default='val', help='images of the '
                       'reward: held-out ones; the first --val_size training images, augmented as in training and the '
                       'same in every episode; or the running training accuracy as the original linear flow had it')
    group.add_argument('--reward_cost', action=Bool, help='add 1 / ratio to the difference that is rewarded')
    group.add_argument('--screen', type=at_least(0), default=0, metavar='N', help='look at a strategy on N images '
                       'first, with BatchNorm statistics estimated anew, and fine-tune it only if it can still become '
                       'the best; 0: fine-tune all')
    group.add_argument('--sensitivity', choices=['loss', 'kl', 'hessian', 'fisher', 'none'], default='kl',
                       help='bayes: the sensitivities that it starts from; none: all layers are alike')
    group.add_argument('--sensitivity_images', type=at_least(1), default=512, help='greedy, ilp, hessian, fisher, kl, '
                       'bayes: images that sensitivities are measured on; fewer where the evaluations of the whole '
                       'search would take fewer')
    group.add_argument('--sensitivities', metavar='FILE', help='sensitivities of a network, its quantizers and these '
                       'images, for all searches, whatever their costs and budgets: what the file has is read, what it '
                       'has not is measured and added (default: in the folder of the run)')
    return group


def add_agent_options(parser):
    """Add the options of the DDPG agent."""
    group = parser.add_argument_group('agent')
    group.add_argument('--hidden1', type=at_least(1, maximum=MAX_UNITS), default=300,
                       help='units of the first hidden layer')
    group.add_argument('--hidden2', type=at_least(1, maximum=MAX_UNITS), default=300,
                       help='units of the second hidden layer')
    group.add_argument('--lr_c', type=positive, default=1e-3, help='learning rate of the critic')
    group.add_argument('--lr_a', type=positive, default=1e-4, help='learning rate of the actor')
    group.add_argument('--warmup', type=at_least(0), default=20, help='episodes 0 to this one act at random')
    group.add_argument('--discount', type=at_least(0, float, 1), default=1.0, help='discount of the critic target')
    group.add_argument('--bsize', type=at_least(1), default=64, help='transitions per update')
    group.add_argument('--rmsize', type=at_least(1, maximum=2**20), default=128,
                       help='replay capacity in transitions per layer')
    group.add_argument('--tau', type=fraction, default=0.01, help='rate of the soft target update')
    group.add_argument('--init_delta', type=at_least(0, float), default=0.5, help='exploration sigma when warm-up ends')
    group.add_argument('--delta_decay', type=positive, default=0.99, help='factor of sigma per episode')
    group.add_argument('--delta_end', type=positive, metavar='SIGMA', help='sigma of the last episode, in place of '
                       '--delta_decay: exploration shrinks with the episodes that are left (default: --delta_decay)')
    group.add_argument('--n_update', type=at_least(1), default=1, help='updates per stored transition')
    group.add_argument('--store_action', choices=['chosen', 'executed'], default='chosen', help='actions in the '
                       'replay: those the agent chose, or those of the strategy that the wall made of them')
    group.add_argument('--warm_start', choices=['none', 'sensitivity', 'kl', 'bayes'], default='none', help='who '
                       'proposes during the warm-up: chance; the least sensitivity under random perturbations, by the '
                       'Hessian (sensitivity) or by the KL divergence of single layers (kl); the searcher bayes')
    group.add_argument('--fill', action=Bool, help='fill up with bits what the wall leaves of the budgets: '
                       'greedily by the sensitivities of --warm_start, else by the rounds of the wall backwards; '
                       'random and evolution always fill, in random order')
    add_unused_options(group, 'window_length', 'max_episode_length', 'init_w', 'epsilon')


def check_exploration(end, start):
    """Raise ValueError where --delta_end, which may be None, is above --init_delta."""
    if end is not None and end > start:
        raise ValueError(f'--delta_end {end:g} is above --init_delta {start:g}: exploration shrinks, give at most that')


def policy(text):
    """Option type: NAME=LIST, whose file, if it names one, is found from any folder."""
    name, equals, strategy = text.partition('=')
    if not (equals and strategy and re.fullmatch(r'[A-Za-z0-9][\w.+-]*', name)):
        raise argparse.ArgumentTypeError(f'{text:.80}: expected NAME=LIST, a name of letters and digits and a strategy')
    if name in SEARCHERS:
        raise argparse.ArgumentTypeError(f'{name} is a searcher: give this strategy another name')
    return f'{name}={Path(strategy).absolute()}' if Path(strategy).is_file() else text


def find_policies(texts, layers, **about):
    """Return {NAME: checked strategy} of policies; `about` as `find_strategy` takes it.

    Raises:
        ValueError, FileNotFoundError: one cannot be read or does not fit the network, or a name is given twice.
    """
    found = {}
    for name, _, text in (each.partition('=') for each in texts):
        if name in found:
            raise ValueError(f'--policy {name} is given twice, with different strategies: give each its own name')
        try:
            found[name] = find_strategy(text, layers.names, ends=layers.inventory.ends, **about)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f'--policy {name}: {str(error).replace("--strategy ", "")}') from error
    return found


@dataclass(frozen=True)
class Flow:
    """The flow of a search and its images; every field but `linear` is the option of its name."""

    linear: bool
    train_size: int
    val_size: int
    is_pruned: bool = False
    fold_bn: bool = False
    sync_bn: bool = False
    bn_batches: int = 0
    calibrate: str = 'kl'
    activation_cap: float | None = None
    kmeans_iter: int = 3
    kmeans_weights: str = 'none'
    activation_grid: str | None = None
    weight_scales: str | None = None
    rounding: str = 'nearest'
    calibration_images: int = 512
    bias_correction: bool | None = None
    keep_bn: bool = False

    def __post_init__(self):
        for other in ('is_pruned',) if self.linear else ('fold_bn', 'activation_grid', 'weight_scales'):
            if getattr(self, other):
                theirs = 'K-means' if self.linear else 'linear'
                raise ValueError(f'--{other} belongs to the {theirs} flow: leave it out')
        if self.keep_bn and (self.rounding == 'nearest' or self.bn_batches):
            raise ValueError('--keep_bn belongs to --rounding compensated without --bn_batches: leave it out')
        if self.bias_correction and self.rounding == 'nearest':
            raise ValueError('--bias_correction in a search belongs to --rounding compensated: leave it out')
        check_kmeans_weights(self.kmeans_weights, self.linear, self.rounding, self.bias_correction)

    @property
    def grids(self):
        """What the options of the `Grids` say."""
        return {'activation_grid': self.activation_grid, 'weight_scales': self.weight_scales}

    def begin(self, network, data, start, device, **labels):
        """Return (the network with its weights, in the form of the flow; the loaders; the number of classes).

        `labels` goes to `loaders_of`; images without labels get the classes that the network finds.
        """
        from _networks import build_model  # torch: not before parsing
        from _setup import loaders_of  # torch, too
        from _weights import prepare, read_weights, say_own_weights  # torch, too

        from lib.training.float_labels import FloatLabels  # torch, too
        *loaders, classes = loaders_of(data, network, device, train_size=self.train_size, val_size=self.val_size,
                                       **labels)
        shape = loaders[0].input_shape
        model = build_model(network, classes, shape, device, loaders)
        checkpoint, source = read_weights(start, network)
        if checkpoint is None:
            say_own_weights(network)
        model = prepare(model, shape, start, checkpoint, source, linear=self.linear, fold_bn=self.fold_bn,
                        sync_bn=self.sync_bn, bn_batches=self.bn_batches, grids=self.grids)
        if not loaders[0].labelled:
            logger.warning('the images have no labels: what is called accuracy is agreement with the float network')
            judge = copy.deepcopy(model)
            loaders = [FloatLabels(loader, judge, device) for loader in loaders]
        return model, loaders, classes

    def environment(self, model, loaders, space, episodes, precision):
        """Return the environment of a network, (training loader, validation loader), and a space of strategies."""
        from lib.env.linear_quantize_env import LinearQuantizeEnv  # torch: not before the options are parsed
        from lib.env.quantize_env import QuantizeEnv  # torch, too
        from lib.training.compensation import Rounding  # torch, too
        common = {'precision': precision,
                  'rounding': Rounding(self.rounding, self.calibration_images, self.bias_correction,
                                       keep_bn=self.keep_bn)}
        try:
            if self.linear:
                return LinearQuantizeEnv(model, *loaders, space, episodes, calibrate_method=self.calibrate,
                                         activation_cap=self.activation_cap, **common)
            return QuantizeEnv(model, *loaders, space, episodes, is_pruned=self.is_pruned,
                               kmeans_iter=self.kmeans_iter, kmeans_weights=self.kmeans_weights, **common)
        except RuntimeError as error:
            if precision.channels_last and 'view' in str(error):
                raise ValueError('--channels_last: a view in the network takes images laid out as N, C, H, W alone; '
                                 'give --channels_last False') from error
            raise
