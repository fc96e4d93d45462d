"""Searches the bits of every layer under a hard budget, with a DDPG agent or another searcher.

K-means flow (default): weight bits under a budget of model size. Linear flow (--linear_quantization): weight and
activation bits under a budget of latency, read from a lookup table. Any other cost (--cost), and several budgets at
once (--constraint), work in both. The best strategy is printed and saved, ready for the STRATEGIES block of finetune.py
or its --strategy.
"""

import json
import math
from pathlib import Path

from _cli import folder_hint, logger, make_parser, naming, pick, run, run_of, settings_of
from _option_types import BooleanOption as Bool
from _option_types import CollectedOption, DefaultFloat, RepositoryPath, at_least, ratio
from _options import add_data_options, add_model_options, add_quantization_options, add_run_options
from _search import AGENT, RECIPES, Flow, add_agent_options, add_search_options, check_exploration

from lib.record.words import SEARCHERS

GROWING = ('train_episode',)  # what a resumed search may change


def constraint(text):
    """Option type: NAME=RATIO, whose file, if it names one, is found from any folder."""
    return str(Path(text).absolute()) if Path(text.rpartition('=')[0].partition(':')[0]).is_file() else text


def make_search_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='mobilenet_v2')
    add_data_options(parser, batch=256, workers=32, cache='auto')
    add_quantization_options(parser)
    group = add_search_options(parser, finetune_flag=True, train_size=20000, val_size=10000)
    group.add_argument('--recipe', choices=RECIPES, default='haq', help='defaults of the other options: haq, those of '
                       'the paper; fast, those of a search without training, which is done in minutes '
                       '(docs/agent.md#recipes); what is given goes before')
    group.add_argument('--preserve_ratio', type=ratio, default=DefaultFloat(0.1), metavar='RATIO|uniform:K',
                       help='budget: fraction of the float model size, of the latency at 8/8 bits, or of another '
                       '--cost, or what K bits in every layer cost; the default does not hold where --constraint '
                       'sets the budgets')
    group.add_argument('--constraint', action=CollectedOption, type=constraint, metavar='NAME=RATIO',
                       help='a hard budget; several may be given: size=0.3, file_size, bitops, memory, '
                       'proqha, latency, energy (of the hardware of '
                       '--cost), or any name that --cost takes (default: only --preserve_ratio)')
    group.add_argument('--pareto', type=at_least(2), metavar='N', help='in place of one budget N of them, from '
                       '--preserve_ratio, if it is given, or the least possible, to the most; for each the strategy '
                       'that --searcher (greedy, ilp, hessian, fisher, kl or bayes) finds, evaluated once: pareto.csv '
                       'and pareto.png (default: one budget)')
    group.add_argument('--accuracy_drop', type=at_least(0, float), metavar='POINTS', help='in place of a budget: the '
                       'least --cost at which the accuracy is within so many points of the float network, by bisection '
                       'over budgets; --searcher as for --pareto (default: a budget)')
    group.add_argument('--train_episode', type=at_least(1), default=600, help='episodes of the search')
    group.add_argument('--searcher', choices=SEARCHERS, default='ddpg', help='who proposes strategies: the agent; the '
                       'same bits everywhere; random strategies; by sensitivities of the layers (loss, Hessian or '
                       "Fisher trace, KL) greedily or by an integer linear program, one strategy; a Bayesian linear "
                       "model that begins with sensitivities and learns (bayes); evolution; ProQHA's "
                       'progressive lowering, one strategy (docs/searchers.md)')
    group.add_argument('--reuse', action=Bool, default=True, help='a strategy that comes again keeps its first result '
                       'instead of being evaluated again')
    add_agent_options(parser)
    group = parser.add_argument_group('output')
    group.add_argument('--finish', action=Bool, help='write a checkpoint of the network under the best strategy to '
                       '<folder>/quantized: rounded for good as --rounding says, not trained, ready for finetune.py, '
                       'export.py and predict.py')
    group.add_argument('--output', default=RepositoryPath('save'), help='folder that holds the folders of searches')
    group.add_argument('--suffix', help='appended to the name of the folder, <arch>_<dataset>[_<suffix>]')
    group.add_argument('--resume', metavar='RUN', help='folder of a search to continue, with its own settings')
    add_run_options(parser)
    return parser


def main(args):
    """Search the bits of every layer; record every episode."""
    from _costs import Pricing, find_constraints, find_layers
    from _networks import Network
    from _resume import Beginning, begin_run, check_done, in_file, inputs_of, read_state
    from _setup import Data, start_device
    from _training import about_labels, about_run
    from _weights import Start, published_file

    from lib.env.episode import EpisodeSettings
    from lib.env.space import Space
    from lib.record.checkpoint import save_checkpoint
    from lib.record.folder import check_folder
    from lib.runtime.distributed import is_main, on_main, world_size
    from lib.search.bench import Bench, SearcherSettings
    from lib.search.frontier import Goal, widened, write_front
    from lib.search.log import CHECKPOINT, EpisodeLog
    from lib.search.loop import check_history, go_on, run_search
    from lib.simulator.counting import model_size
    from lib.simulator.inventory import PRICING
    from lib.training.loop import Precision

    with naming('pareto', 'accuracy_drop', 'searcher', 'screen', 'train_episode'):
        goal = pick(Goal, args)
    given = args.preserve_ratio is not None and not isinstance(args.preserve_ratio, DefaultFloat)
    ratio = args.preserve_ratio if given or not (args.constraint or goal) else None
    run = run_of(args, run_path(args), growing=GROWING, settings={**settings_of(args), 'preserve_ratio': ratio})
    network, data, start = pick(Network, args), pick(Data, args), pick(Start, args, pretrained=not args.model_file)
    linear, device = args.linear_quantization or network.is_twin, start_device(args.device)
    flow = pick(Flow, args, linear=linear)
    if given and args.accuracy_drop is not None:
        raise ValueError(f'--accuracy_drop {args.accuracy_drop:g} looks for the budget that --preserve_ratio '
                         f'{args.preserve_ratio} gives: leave one of them out')
    check_processes(args.searcher, args.warm_start, world_size())
    check_exploration(args.delta_end, args.init_delta)
    on_main(check_folder, run.folder, resume=bool(args.resume), overwrite=args.overwrite)
    if args.resume and (run.folder / 'checkpoint.pth.tar').exists():
        raise ValueError(f'--resume {run.folder}: this is the folder of a training, which pretrain.py or finetune.py '
                         'continues; give the folder of a search')
    saved = read_state(run, run.folder / CHECKPOINT, ['history', *(['agent'] if args.searcher == 'ddpg' else [])],
                       'not the state of a search: it has no agent and no history',
                       'search, for example save/mobilenet_v2_imagenet')
    check_done(run, len(saved['history']) if saved else 0, args.train_episode, 'episodes', 'train_episode')

    # data and network
    model, loaders, classes = flow.begin(network, data, start, device, needs_labels=reader_of_labels(args))

    # strategies, and what becomes of them
    pricing = pick(Pricing, args, network=network, linear=linear, folder=args.output)
    rules = saved.get('pricing', 1) if saved else PRICING  # a search that was begun before goes on as it was
    layers = find_layers(pricing, model, loaders[0].input_shape, is_pruned=args.is_pruned, rules=rules)
    constraints = find_constraints(pricing, layers, math.inf if goal and not given else ratio, args.constraint)
    with naming('min_bit', 'max_bit', 'candidates', 'pin', 'reward', 'reward_on', 'reward_cost', 'use_top5', 'screen',
                'finetune_flag', 'finetune_epoch', 'distill'):
        space = Space.of(layers.inventory, constraints, min_bit=args.min_bit, max_bit=args.max_bit,
                         candidates=args.candidates or (), pins=args.pin or (), wall=args.wall)
        episodes = pick(EpisodeSettings, args)
    space, lowest = widened(space) if goal else (space, None)
    env = flow.environment(model, loaders, space, episodes, Precision(device, args.half, args.channels_last))
    if saved and 'run' not in saved:
        with in_file(run.folder / CHECKPOINT):
            check_history(space, saved['history'])
    first, _ = args.changed.get('train_episode', (args.train_episode, None))  # a search that goes on measures as before
    agent = {**{name: getattr(args, name) for name in AGENT}, 'capacity': args.rmsize * space.num_layers}
    bench = Bench(env, first, pick(SearcherSettings, args, agent=agent), run.folder)
    with naming('sensitivities'):
        bench.check(args.searcher, space)
    identity = on_main(lambda: begin_run(run, Beginning(inputs_of(
        run, ('train',), counts=[loader.num_images for loader in loaders],
        costs=[constraint.cost for constraint in constraints], published=published_file(network)))))
    logger.info('%s on %s: %d layers, float accuracy %.2f %%', args.arch, device, space.num_layers, env.float_accuracy)
    for budget in space.constraints:
        logger.info('budget: %s of at most %.6g %s = %.4f of %.6g', budget.cost.name, budget.limit, budget.cost.unit,
                    budget.ratio, budget.cost.reference)

    # search
    searcher, history = goal.searcher_of(bench.searcher(args.searcher, args.seed), lowest, env.float_accuracy), ()
    if saved:
        history = saved['history']
        with in_file(run.folder / CHECKPOINT):
            go_on(env, searcher, bench.counter, saved, reuse=args.reuse)
    mark = {**({'run': identity} if identity else {}), **({'pricing': rules} if rules > 1 else {})}
    about = {'arch': args.arch, 'dataset': args.dataset, 'searcher': args.searcher, 'coverage': layers.coverage,
             'pricing': rules, **about_labels(loaders[1])}
    sizes = model_size(layers.inventory.weights, float_weights=layers.inventory.float_weights)
    log = EpisodeLog(run.folder, env, searcher, about=about, history=history, mark=mark, sizes=sizes) \
        if is_main() else None
    try:
        best = run_search(env, searcher, bench.counter, args.train_episode, log, history, reuse=args.reuse)
    except FloatingPointError as error:
        raise FloatingPointError(f'{error}; start another search with a --finetune_lr below {args.finetune_lr:g}, or a '
                                 'higher --min_bit') from error

    # result
    if log and goal.pareto:
        logger.info('%s', write_front(run.folder, [limit / space.cost.reference for limit in searcher.budgets],
                                      log.history, space.cost.name, env.float_accuracy))
    if goal.accuracy_drop is not None and best.accuracy < searcher.enough:
        logger.warning('no strategy is within %g points of the float accuracy: the nearest is %.2f points below it',
                       args.accuracy_drop, env.float_accuracy - best.accuracy)
    if log:
        logger.info('best: accuracy %.2f %% (float %.2f %%) at ratio %.4f, episode %d', best.accuracy,
                    env.float_accuracy, best.ratio, log.best['episode'])
        logger.info('paste this into STRATEGIES of scripts/finetune.py, or give --strategy %s:\n%s',
                    run.folder / 'strategy.json', json.dumps(best.strategy))
    if args.finish:
        quantization, metrics = env.finish(best.strategy)
        cost = constraints[0].cost
        details = about_run(network, data, loaders[0].input_shape, classes, ratio=cost.ratio(best.strategy),
                            cost=cost.cost(best.strategy), cost_name=cost.name, cost_unit=cost.unit,
                            layers=layers.names, coverage=layers.coverage, folded=args.fold_bn,
                            **about_labels(loaders[1]))
        if log:
            target = run.folder / 'quantized' / 'checkpoint.pth.tar'
            save_checkpoint(target, {'epoch': 0, 'acc': metrics.top1, 'best_acc': metrics.top1, 'top5': metrics.top5,
                                     'state_dict': model.state_dict(), **quantization.state(), **details})
            logger.info('%s: the network under this strategy, not trained; top-1 %.2f %% on the %d held-out images',
                        target, metrics.top1, loaders[1].num_images)


def reader_of_labels(args):
    """Return what in this search reads the labels of images, or None."""
    if args.finetune_flag and not (args.distill == 'float' and args.distill_weight == 1):
        return 'fine-tuning in the episode (--finetune_flag False, and --distill float, do without)'
    if args.reward in ('accuracy', 'loss'):
        return f'--reward {args.reward} (agreement and kl do without)'
    return None


def check_processes(searcher, warm_start, processes):
    """Raise ValueError for a searcher that measures on the images of one process, where there are several."""
    measures = searcher not in ('ddpg', 'uniform', 'random', 'evolution') or warm_start != 'none'
    if processes > 1 and measures:
        raise ValueError(f'--searcher {searcher} --warm_start {warm_start} works in one process, these are '
                         f'{processes}: start it without torchrun')


def recipe_defaults(args, parser):
    """Return the defaults of the recipe that was chosen; its range of bits gives way to --candidates."""
    return {name: value for name, value in RECIPES[args.recipe].items() if name != 'min_bit' or not args.candidates}


def run_path(args):
    """Return the folder of the search."""
    name = f'{args.arch}_{args.dataset}' + (f'_{args.suffix}' if args.suffix else '')
    return Path(args.resume or Path(args.output) / name)


if __name__ == '__main__':
    run(main, make_search_parser(), lambda args: folder_hint(run_path(args)), configure=recipe_defaults)
