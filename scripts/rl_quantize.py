"""Searches the bits of every layer under a hard budget, with a DDPG agent or another searcher.

K-means flow (default): weight bits under a budget of model size. Linear flow (--linear_quantization): weight and
activation bits under a budget of latency, read from a lookup table. Any other cost (--cost), and several budgets at
once (--constraint), work in both. The best strategy is printed and saved, ready for the STRATEGIES block of finetune.py
or its --strategy.
"""

import argparse
import json
import math
import time
from pathlib import Path

from _cli import logger, make_parser, pick, run, run_of
from _options import BooleanOption as Bool
from _options import (
    DefaultFloat,
    RepositoryPath,
    add_data_options,
    add_model_options,
    add_quantization_options,
    add_run_options,
    at_least,
    ratio,
)
from _search import SEARCHERS, add_agent_options, add_search_options, begin, make_bench, make_env

GROWING = ('train_episode',)  # what a resumed search may change
CHECKPOINT = 'search.pth.tar'  # the agent, if any, with replay and random states, and the history of all episodes


class ConstraintOption(argparse._AppendAction):
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
    group = add_search_options(parser, finetune_flag=True, train_size=20000, val_size=10000)
    group.add_argument('--preserve_ratio', type=ratio, default=DefaultFloat(0.1), metavar='RATIO|uniform:K',
                       help='budget: fraction of the float model size, of the latency at 8/8 bits, or of another '
                       '--cost, or what K bits in every layer cost; the default does not hold where --constraint '
                       'sets the budgets')
    group.add_argument('--constraint', action=ConstraintOption, metavar='NAME=RATIO', help='a hard budget; several '
                       'may be given: size=0.3, file_size, bitops, memory, proqha, latency, energy (of the hardware of '
                       '--cost), or any name that --cost takes (default: only --preserve_ratio)')
    group.add_argument('--train_episode', type=at_least(1), default=600, help='episodes of the search')
    group.add_argument('--searcher', choices=SEARCHERS, default='ddpg', help='who proposes strategies: the agent; the '
                       'same bits everywhere; random strategies; by sensitivities of the layers (loss, Hessian or '
                       "Fisher trace) greedily or by an integer linear program, one strategy; evolution; ProQHA's "
                       'progressive lowering, one strategy (docs/searchers.md)')
    group.add_argument('--reuse', action=Bool, default=True, help='a strategy that comes again keeps its first result '
                       'instead of being evaluated again')
    add_agent_options(parser)
    group = parser.add_argument_group('output')
    group.add_argument('--output', default=RepositoryPath('save'), help='folder that holds the folders of searches')
    group.add_argument('--suffix', help='appended to the name of the folder, <arch>_<dataset>[_<suffix>]')
    group.add_argument('--resume', metavar='RUN', help='folder of a search to continue, with its own settings')
    add_run_options(parser)
    return parser


def main(args):
    """Runs the search."""
    from _networks import Network, published_file
    from _setup import start_device

    from lib.record.folder import check_folder
    from lib.runtime.distributed import on_main

    if args.constraint and isinstance(args.preserve_ratio, DefaultFloat):
        args.preserve_ratio = None
    run = run_of(args, run_path(args), growing=GROWING)
    folder, device = run.folder, start_device(args.device)
    check_processes(args)
    on_main(check_folder, folder, resume=bool(args.resume), overwrite=args.overwrite)
    saved = read_search(args, run)
    env, layers = make_env(args, device, before=saved is not None and 'pricing' not in saved)
    if saved and 'run' not in saved:
        check_history(env, saved, folder)
    network = pick(Network, args)
    published = None if args.model_file else published_file(network)
    identity = on_main(begin, run, env, published)
    logger.info('%s on %s: %d layers, float accuracy %.2f %%', args.arch, device, env.num_layers, env.float_accuracy)
    for budget in env.constraints:
        logger.info('budget: %s of at most %.6g %s = %.4f of %.6g', budget.cost.name, budget.limit, budget.cost.unit,
                    budget.ratio, budget.cost.reference)
    first, _ = args.changed.get('train_episode', (args.train_episode, None))  # a search that goes on measures as before
    bench = make_bench(args, env, folder, first)
    search(args, env, layers, bench.searcher(args.searcher, args.seed), bench.counter, folder, saved, identity)


def check_processes(args):
    """Raises ValueError for a searcher that measures on the images of one process, where there are several."""
    from lib.runtime.distributed import world_size
    measures = args.searcher not in ('ddpg', 'uniform', 'random', 'evolution') or args.warm_start != 'none'
    if world_size() > 1 and measures:
        raise ValueError(f'--searcher {args.searcher} --warm_start {args.warm_start} works in one process, these '
                         f'are {world_size()}: start it without torchrun')


def run_path(args):
    """Returns the folder of the search."""
    name = f'{args.arch}_{args.dataset}' + (f'_{args.suffix}' if args.suffix else '')
    return Path(args.resume or Path(args.output) / name)


def read_search(args, run):
    """Returns the saved state of the search to resume, or None."""
    from _resume import check_identity, check_unchanged

    from lib.record.checkpoint import read_checkpoint
    folder = run.folder
    if not args.resume:
        return None
    check_unchanged(run)
    if not (folder / 'args.json').is_file():
        raise FileNotFoundError(f'--resume {folder}: no run is there (args.json is missing); give the folder of a '
                                'search, for example save/mobilenet_v2_imagenet')
    if (folder / 'checkpoint.pth.tar').exists():
        raise ValueError(f'--resume {folder}: this is the folder of a training, which pretrain.py or finetune.py '
                         'continues; give the folder of a search')
    if not (folder / CHECKPOINT).is_file():
        return None  # killed before the end of its first episode
    saved = read_checkpoint(folder / CHECKPOINT)
    needed = {'history', *(['agent'] if args.searcher == 'ddpg' else [])}
    if not isinstance(saved, dict) or not needed <= saved.keys():
        raise ValueError(f'{folder / CHECKPOINT} is not the state of a search: it has no agent and no history')
    check_identity(run, saved, folder / CHECKPOINT)
    if len(saved['history']) > args.train_episode:
        raise ValueError(f'{folder} has {len(saved["history"])} episodes already, --train_episode {args.train_episode} '
                         f'are fewer: give at least {len(saved["history"])}, or start another search')
    return saved


def check_history(env, saved, folder):
    """Raises ValueError if an episode of a search before records does not have its cost here, or is above a budget."""
    for number, record in enumerate(saved['history']):
        try:
            strategy, ratio = record['strategy'], float(record['ratio'])
            here = env.cost.ratio(strategy)
            above = [budget.cost.name for budget in env.constraints if budget.cost.cost(strategy) > budget.limit]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{folder / CHECKPOINT}: episode {number} has no strategy and ratio ({error})') from error
        if above or not math.isclose(ratio, here):
            raise ValueError(f'{folder / CHECKPOINT} is of a search under other budgets: the ratio of episode {number} '
                             f'was {ratio:.6g} and is {here:.6g} here'
                             + (f', above the budget of {", ".join(above)}' if above else ''))


def search(args, env, layers, searcher, counter, folder, saved, identity):
    """Runs the episodes that are left, saving everything after each of them, in the main process.

    One that diverges counts as the worst, and the search goes on.
    """
    from lib.record.checkpoint import tensor_bytes
    from lib.record.disk import check_space
    from lib.runtime.distributed import is_main
    from lib.simulator.counting import model_size

    history = saved['history'] if saved else []
    resume(searcher, history, saved, folder / CHECKPOINT)
    if history:
        counter.counts = history[-1]['images']
    known = {str(record['strategy']): record for record in reversed(history)}
    env.screen.pairs = [(record['screened'], record['accuracy']) for record in history if record.get('finetuned')
                        and record['screened'] is not None and (record is known[str(record['strategy'])]
                                                                or not args.reuse)]
    log = make_log(args, env, layers, folder, history) if is_main() else None
    if log and agent_of(searcher):
        check_space(folder, tensor_bytes(agent_of(searcher).state_dict()), 'what an episode saves')
    sizes = model_size(layers.inventory.weights, float_weights=layers.inventory.float_weights)
    for episode in range(len(history), args.train_episode):
        start = time.time()
        strategy = searcher.propose()
        if strategy is None:
            break
        seen = known.get(str(strategy)) if args.reuse else None
        outcome = outcome_of(seen) if seen else env.evaluate_strategy(strategy, episode)
        known.setdefault(str(strategy), vars(outcome))
        delta = agent_of(searcher).delta(episode) if agent_of(searcher) else None
        searcher.observe(strategy, outcome.reward)
        if log:
            losses = getattr(searcher, 'losses', {'value_loss': None, 'policy_loss': None})
            about = {name: value for name, value in vars(outcome).items() if name != 'diverged' or value}
            log.add({'episode': episode, **about, **losses, 'delta': delta,
                     'w_ratio': sizes.ratio(outcome.strategy), 'images': counter.counts,
                     'seconds': time.time() - start})
            save_search(args, folder, agent_of(searcher), log, identity)
    if log:
        finish(args, env, folder, agent_of(searcher), log)


def outcome_of(record):
    """Returns the `Outcome` in the record of an episode."""
    from dataclasses import fields

    from lib.env.search_env import Outcome
    return Outcome(**{field.name: record[field.name] for field in fields(Outcome) if field.name in record})


def agent_of(searcher):
    """Returns the `DDPG` of a searcher, or None."""
    return getattr(searcher, 'agent', None)


def resume(searcher, history, saved, path):
    """Brings a new searcher to where the search was that is saved in the file `path`."""
    from _resume import in_file

    from lib.search.bench import replay
    known = [(record['strategy'], record['reward']) for record in history]
    with in_file(path):
        if agent_of(searcher) and saved:
            searcher.resume(known, saved['agent'])
        else:
            replay(searcher, known)


def make_log(args, env, layers, folder, history):
    """Returns the `SearchLog`, continued after `history`."""
    from lib.search.log import SearchLog
    about = {'arch': args.arch, 'dataset': args.dataset, 'preserve_ratio': env.constraints[0].ratio,
             'budgets': {budget.cost.name: budget.ratio for budget in env.constraints},
             'quantization': 'linear' if env.pairs else 'kmeans', 'cost_name': env.cost.name,
             'cost_unit': env.cost.unit, 'searcher': args.searcher, 'min_bit': args.min_bit, 'max_bit': args.max_bit,
             'coverage': layers.coverage, 'pricing': layers.inventory.pricing}
    warmup = args.warmup if args.searcher == 'ddpg' else None
    return SearchLog(folder, layer_names=[r.name for r in env.records], kinds=[r.type for r in env.records],
                     float_accuracy=env.float_accuracy, warmup=warmup, about=about, history=history)


def save_search(args, folder, agent, log, identity):
    """Saves what the search goes on from and, at every tenth of it, the agent's networks and the plots."""
    from lib.record.checkpoint import save_checkpoint
    state = {'agent': agent.state_dict()} if agent else {}
    state |= {'run': identity} if identity else {}
    if log.about['pricing'] > 1:  # a search that was begun before goes on as it was
        state['pricing'] = log.about['pricing']
    save_checkpoint(folder / CHECKPOINT, {**state, 'history': log.history})
    if len(log.history) % max(args.train_episode // 10, 1) == 0:
        if agent:
            agent.save_model(folder)
        log.plot()


def finish(args, env, folder, agent, log):
    """Writes the results of a finished search and says what to do with them."""
    from lib.record.files import write_json
    if agent:
        agent.save_model(folder)
    log.plot()
    best = log.best
    if best.get('diverged'):
        raise FloatingPointError(f'all {len(log.history)} episodes diverged, the last one: '
                                 f'{log.history[-1]["diverged"]}; start another search with a --finetune_lr below '
                                 f'{args.finetune_lr:g}, or a higher --min_bit')
    write_json(folder / 'results.json', {**log.about, **best, 'float_accuracy': env.float_accuracy,
                                         'episodes': len(log.history)}, seal=True)
    logger.info('best: accuracy %.2f %% (float %.2f %%) at ratio %.4f, episode %d', best['accuracy'],
                env.float_accuracy, best['ratio'], best['episode'])
    logger.info('paste this into STRATEGIES of scripts/finetune.py, or give --strategy %s:\n%s',
                folder / 'strategy.json', json.dumps(best['strategy']))


def resume_hint(args):
    """Says how an interrupted search goes on."""
    folder = run_path(args)
    return f'continue with --resume {folder}' if (folder / 'args.json').is_file() else 'nothing was begun; start again'


if __name__ == '__main__':
    run(main, make_search_parser(), resume_hint)
