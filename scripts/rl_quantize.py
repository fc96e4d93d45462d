"""Searches the bits of every layer with a DDPG agent under a hard budget.

K-means flow (default): weight bits under a budget of model size. Linear flow (--linear_quantization): weight and
activation bits under a budget of latency, read from a lookup table. Any other cost (--cost), and several budgets at
once (--constraint), work in both. The best strategy is printed and saved, ready for the STRATEGIES block of finetune.py
or its --strategy.
"""

import argparse
import json
import time
from pathlib import Path

from _common import check_unchanged, logger, make_parser, run, settings
from _costs import find_constraints, find_layers, ratio
from _options import BooleanOption as Bool
from _options import (
    DefaultFloat,
    RepositoryPath,
    add_data_options,
    add_model_options,
    add_quantization_options,
    add_run_options,
    at_least,
    positive,
)
from _setup import build_model, is_linear, loaders_of, start_device
from _weights import prepare, read_weights

CHECKPOINT = 'search.pth.tar'  # agent with replay and random states, and the history of all episodes


class ConstraintOption(argparse.Action):
    """Collects each NAME=RATIO; those given replace those of a resumed run, and a file is found from any folder."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = getattr(namespace, self.dest)
        earlier = [] if given is None or given is parser.get_default(self.dest) else given
        if Path(values.rpartition('=')[0].partition(':')[0]).is_file():
            values = str(Path(values).absolute())
        setattr(namespace, self.dest, [*earlier, values])


def make_search_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='mobilenet_v2')
    add_data_options(parser, batch=256, workers=32, cache='auto')
    add_quantization_options(parser)
    group = parser.add_argument_group('search')
    group.add_argument('--preserve_ratio', type=ratio, default=DefaultFloat(0.1), metavar='RATIO|uniform:K',
                       help='budget: fraction of the float model size, of the latency at 8/8 bits, or of another '
                       '--cost, or what K bits in every layer cost; the default does not hold where --constraint '
                       'sets the budgets')
    group.add_argument('--constraint', action=ConstraintOption, metavar='NAME=RATIO', help='a hard budget; several '
                       'may be given: size=0.3, bitops, memory, proqha, latency, energy (of the hardware of --cost), '
                       'or any name that --cost takes (default: only --preserve_ratio)')
    group.add_argument('--wall', choices=['rounds', 'greedy'], default='rounds', help='how a strategy above its budget '
                       "is lowered: a bit in every layer, round by round (HAQ's), or always where most is saved per "
                       'bit, which suits hardware whose layers gain very differently')
    group.add_argument('--min_bit', type=int, default=1, help='fewest bits of a layer')
    group.add_argument('--max_bit', type=int, default=8, help='most bits of a layer')
    group.add_argument('--train_episode', type=at_least(1), default=600, help='episodes of the search')
    group.add_argument('--train_size', type=at_least(1), default=20000, help='images an episode trains on')
    group.add_argument('--val_size', type=at_least(1), default=10000,
                       help='images an episode is judged on, held out of the '
                       'training set')
    group.add_argument('--finetune_flag', action=Bool, default=True, help='fine-tune in every episode')
    group.add_argument('--finetune_epoch', type=at_least(1), default=1, help='epochs of fine-tuning per episode')
    group.add_argument('--finetune_lr', type=positive, default=0.001, help='learning rate of that fine-tuning')
    group.add_argument('--finetune_gamma', type=positive, default=0.8, help='its factor after each epoch')
    group.add_argument('--kmeans_iter', type=at_least(1), default=3, help='K-means: Lloyd iterations per clustering')
    group.add_argument('--use_top5', action=Bool, help='reward top-5 instead of top-1 accuracy')
    group.add_argument('--reward_on', choices=['val', 'train'], default='val', help='accuracy that is rewarded: on '
                       'held-out images, or the running training accuracy as the original linear flow had it')
    group.add_argument('--reward_cost', action=Bool, help='add 1 / ratio to the accuracy difference in the reward')
    add_agent_options(parser)
    group = parser.add_argument_group('output')
    group.add_argument('--output', default=RepositoryPath('save'), help='folder that holds the folders of searches')
    group.add_argument('--suffix', help='appended to the name of the folder, <arch>_<dataset>[_<suffix>]')
    group.add_argument('--resume', metavar='RUN', help='folder of a search to continue, with its own settings')
    add_run_options(parser)
    return parser


def add_agent_options(parser):
    """Adds the options of the DDPG agent."""
    group = parser.add_argument_group('agent')
    group.add_argument('--hidden1', type=at_least(1), default=300, help='units of the first hidden layer')
    group.add_argument('--hidden2', type=at_least(1), default=300, help='units of the second hidden layer')
    group.add_argument('--lr_c', type=positive, default=1e-3, help='learning rate of the critic')
    group.add_argument('--lr_a', type=positive, default=1e-4, help='learning rate of the actor')
    group.add_argument('--warmup', type=at_least(0), default=20, help='episodes 0 to this one act at random')
    group.add_argument('--discount', type=at_least(0, float), default=1.0, help='discount of the critic target')
    group.add_argument('--bsize', type=at_least(1), default=64, help='transitions per update')
    group.add_argument('--rmsize', type=at_least(1), default=128, help='replay capacity in transitions per layer')
    group.add_argument('--tau', type=positive, default=0.01, help='rate of the soft target update')
    group.add_argument('--init_delta', type=at_least(0, float), default=0.5, help='exploration sigma when warm-up ends')
    group.add_argument('--delta_decay', type=positive, default=0.99, help='factor of sigma per episode')
    group.add_argument('--n_update', type=at_least(1), default=1, help='updates per stored transition')
    group.add_argument('--store_action', choices=['chosen', 'executed'], default='chosen', help='actions in the '
                       'replay: those the agent chose, or those of the strategy that the wall made of them')
    for name, default in (('window_length', 1), ('max_episode_length', 1e9), ('init_w', 0.003), ('epsilon', 50000)):
        group.add_argument(f'--{name}', type=type(default), default=default, help='accepted for old command lines; has '
                           'no effect, as in the original')


def main(args):
    """Runs the search."""
    from lib.rl.ddpg import DDPG
    from lib.utils.distributed import on_main
    from lib.utils.run_folder import check_folder, open_run

    if args.constraint and isinstance(args.preserve_ratio, DefaultFloat):
        args.preserve_ratio = None
    folder, device = run_path(args), start_device(args)
    on_main(check_folder, folder, resume=bool(args.resume), overwrite=args.overwrite)
    saved = read_search(args, folder)
    env = make_env(args, device)
    agent = DDPG(num_states=env.num_states, hidden1=args.hidden1, hidden2=args.hidden2, lr_a=args.lr_a, lr_c=args.lr_c,
                 tau=args.tau, discount=args.discount, bsize=args.bsize, capacity=args.rmsize * env.num_layers,
                 init_delta=args.init_delta, delta_decay=args.delta_decay, warmup=args.warmup, n_update=args.n_update,
                 seed=args.seed)
    if saved:
        agent.load_state_dict(saved['agent'])
    on_main(open_run, folder, settings(args), resume=bool(args.resume))
    logger.info('%s on %s: %d layers, float accuracy %.2f %%', args.arch, device, env.num_layers, env.float_accuracy)
    for budget in env.constraints:
        logger.info('budget: %s of at most %.6g %s = %.4f of %.6g', budget.cost.name, budget.limit, budget.cost.unit,
                    budget.ratio, budget.cost.reference)
    search(args, env, agent, folder, saved['history'] if saved else [])


def run_path(args):
    """Returns the folder of the search."""
    name = f'{args.arch}_{args.dataset}' + (f'_{args.suffix}' if args.suffix else '')
    return Path(args.resume or Path(args.output) / name)


def read_search(args, folder):
    """Returns the saved state of the search to resume, or None."""
    from lib.utils.checkpoint import read_checkpoint
    if not args.resume:
        return None
    check_unchanged(args, allowed=('train_episode',))
    if not (folder / 'args.json').is_file():
        raise FileNotFoundError(f'--resume {folder}: no run is there (args.json is missing); give the folder of a '
                                'search, for example save/mobilenet_v2_imagenet')
    if (folder / 'checkpoint.pth.tar').exists():
        raise ValueError(f'--resume {folder}: this is the folder of a training, which pretrain.py or finetune.py '
                         'continues; give the folder of a search')
    if not (folder / CHECKPOINT).is_file():
        return None  # killed before the end of its first episode
    saved = read_checkpoint(folder / CHECKPOINT)
    if not {'agent', 'history'} <= saved.keys():
        raise ValueError(f'{folder / CHECKPOINT} is not the state of a search: it has no agent and no history')
    return saved


def make_env(args, device):
    """Returns the environment: data, network with float weights, cost and budget."""
    from lib.env.linear_quantize_env import LinearQuantizeEnv
    from lib.env.quantize_env import QuantizeEnv
    from lib.utils.train import Precision

    linear = is_linear(args)
    for option in ('is_pruned',) if linear else ('fold_bn',):
        if getattr(args, option):
            raise ValueError(f'--{option} belongs to the {"K-means" if linear else "linear"} flow: leave it out')
    train_loader, val_loader, classes = loaders_of(args, device, train_size=args.train_size, val_size=args.val_size)
    shape = train_loader.input_shape
    model = build_model(args, classes, shape, device)
    prepare(args, model, shape, *read_weights(args, pretrained=True), linear)
    layers = find_layers(args, model, shape, args.is_pruned)
    shared = {'records': layers.records, 'constraints': find_constraints(args, layers), 'min_bit': args.min_bit,
              'max_bit': args.max_bit, 'finetune_epoch': args.finetune_epoch, 'finetune_lr': args.finetune_lr,
              'finetune_gamma': args.finetune_gamma, 'finetune_flag': args.finetune_flag, 'use_top5': args.use_top5,
              'reward_on': args.reward_on, 'reward_cost': args.reward_cost, 'wall': args.wall, 'device': device,
              'precision': Precision(device, args.half, args.channels_last), 'seed': args.seed,
              'bn_batches': args.bn_batches}
    if not linear:
        return QuantizeEnv(model, train_loader, val_loader, is_pruned=args.is_pruned, kmeans_iter=args.kmeans_iter,
                           **shared)
    return LinearQuantizeEnv(model, train_loader, val_loader, calibrate_method=args.calibrate,
                             activation_cap=args.activation_cap, **shared)


def search(args, env, agent, folder, history):
    """Runs the episodes that are left, saving everything after each of them, in the main process."""
    from lib.simulator.counting import model_size
    from lib.utils.distributed import is_main

    log = make_log(args, env, folder, history) if is_main() else None
    sizes = model_size([r.num_weights for r in env.records])
    for episode in range(len(history), args.train_episode):
        start = time.time()
        outcome, transitions = run_episode(env, agent, episode, args.store_action)
        losses = learn(agent, transitions, outcome.reward, episode)
        if log:
            log.add({'episode': episode, **vars(outcome), **losses, 'delta': agent.delta(episode),
                     'w_ratio': sizes.ratio(outcome.strategy), 'seconds': time.time() - start})
            save_search(args, folder, agent, log)
    if log:
        finish(env, folder, agent, log)


def make_log(args, env, folder, history):
    """Returns the `SearchLog`, continued after `history`."""
    from lib.utils.search_log import SearchLog
    about = {'arch': args.arch, 'dataset': args.dataset, 'preserve_ratio': env.constraints[0].ratio,
             'budgets': {budget.cost.name: budget.ratio for budget in env.constraints},
             'quantization': 'linear' if is_linear(args) else 'kmeans', 'cost_name': env.cost.name,
             'cost_unit': env.cost.unit, 'min_bit': args.min_bit, 'max_bit': args.max_bit}
    return SearchLog(folder, layer_names=[r.name for r in env.records], kinds=[r.type for r in env.records],
                     float_accuracy=env.float_accuracy, warmup=args.warmup, about=about, history=history)


def save_search(args, folder, agent, log):
    """Saves what the search goes on from and, at every tenth of it, the agent's networks and the plots."""
    from lib.utils.checkpoint import save_checkpoint
    save_checkpoint(folder / CHECKPOINT, {'agent': agent.state_dict(), 'history': log.history})
    if len(log.history) % max(args.train_episode // 10, 1) == 0:
        agent.save_model(folder)
        log.plot()


def finish(env, folder, agent, log):
    """Writes the results of a finished search and says what to do with them."""
    from lib.utils.checkpoint import write_json
    agent.save_model(folder)
    log.plot()
    log.close()
    best = log.best
    write_json(folder / 'results.json', {**log.about, **best, 'float_accuracy': env.float_accuracy,
                                         'episodes': len(log.history)})
    logger.info('best: accuracy %.2f %% (float %.2f %%) at ratio %.4f, episode %d', best['accuracy'],
                env.float_accuracy, best['ratio'], best['episode'])
    logger.info('paste this into STRATEGIES of scripts/finetune.py, or give --strategy %s:\n%s',
                folder / 'strategy.json', json.dumps(best['strategy']))


def run_episode(env, agent, episode, store_action):
    """Chooses bits layer by layer; returns the outcome and the transitions [(state, action)] to learn from."""
    from lib.utils.distributed import broadcast
    acted, state, done = [], env.reset(), False
    while not done:
        action = broadcast(agent.act(state, episode))
        acted.append((state, action))
        state, _, done, outcome = env.step(action, episode)
    return outcome, env.trajectory(outcome.strategy) if store_action == 'executed' else acted


def learn(agent, transitions, reward, episode):
    """Stores the transitions with the episode's final reward; updates the agent after each once warm-up is over."""
    losses = []
    last = len(transitions) - 1
    for step, (state, action) in enumerate(transitions):
        next_state = transitions[min(step + 1, last)][0]
        agent.observe(state, action, reward, next_state, terminal=step == last)
        if agent.learning(episode):
            losses.append(agent.update_policy())
    if not losses:
        return {'value_loss': None, 'policy_loss': None}
    value, policy = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    return {'value_loss': value, 'policy_loss': policy}


def resume_hint(args):
    """Says how an interrupted search goes on."""
    folder = run_path(args)
    return f'continue with --resume {folder}' if (folder / 'args.json').is_file() else 'nothing was begun; start again'


if __name__ == '__main__':
    run(main, make_search_parser(), resume_hint)
