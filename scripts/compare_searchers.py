"""Compares searchers: the same network, budgets, quantizers and images for all, then the same fine-tuning.

Every searcher gets the images of --evaluations evaluations for each budget; its best strategy is fine-tuned and tested.
Kill it at any time and go on with --resume; more budgets, searchers or seeds can be added then. Writes a table and a
figure of accuracy against cost.
"""

import argparse
from pathlib import Path

from _cli import logger, make_parser, pick, run, run_of
from _compare import read, run_finetuning, run_search
from _options import (
    MAX_SEED,
    RepositoryPath,
    add_data_options,
    add_model_options,
    add_quantization_options,
    add_run_options,
    at_least,
    positive,
    ratio,
)
from _search import SEARCHERS, STOCHASTIC, add_agent_options, add_search_options, begin, make_bench, make_env

ADDABLE = ('budgets', 'searchers', 'seeds')  # to a comparison that is resumed


def searcher_name(text):
    """Option type: a name of `SEARCHERS`."""
    if text not in SEARCHERS:
        raise argparse.ArgumentTypeError(f'{text} is no searcher: expected some of {", ".join(SEARCHERS)}')
    return text


def make_compare_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group('comparison')
    group.add_argument('--searchers', type=searcher_name, nargs='+', default=list(SEARCHERS), metavar='NAME',
                       help=f'some of {", ".join(SEARCHERS)} (docs/searchers.md)')
    group.add_argument('--budgets', type=ratio, nargs='+', default=['uniform:3', 'uniform:4'],
                       metavar='RATIO|uniform:K', help='budgets of --cost, each a fraction of its reference or what K '
                       'bits in every layer cost')
    group.add_argument('--seeds', type=at_least(0, maximum=MAX_SEED), nargs='+', default=[1, 2, 3],
                       help='seeds of searches and of fine-tuning; '
                       'a searcher without chance searches once')
    group.add_argument('--evaluations', type=at_least(1), default=60, help='strategies that a search may evaluate')
    group.add_argument('--final_epochs', type=at_least(0), default=1, help='epochs of the fine-tuning after the search')
    group.add_argument('--final_lr', type=positive, default=0.01, help='its learning rate, which falls to 0 as a '
                       'cosine')
    group.add_argument('--final_wd', type=at_least(0, float), default=1e-4, help='its weight decay')
    group.add_argument('--final_batch', type=at_least(1), default=128, help='its batch size')
    group.add_argument('--output', default=RepositoryPath('save/comparison'), help='folder of the comparison')
    group.add_argument('--resume', metavar='FOLDER', help='comparison to continue, with its own settings; budgets, '
                       'searchers and seeds that are given are added')
    add_model_options(parser, arch='resnet20')
    add_data_options(parser, batch=128, workers=4, cache='auto')
    add_quantization_options(parser)
    add_search_options(parser, finetune_flag=False, train_size=20000, val_size=1000)
    add_agent_options(parser)
    add_run_options(parser)
    return parser


def main(args):
    """Searches and fine-tunes whatever is not done yet; writes tables after every result, the figure after a budget."""
    from _networks import Network, published_file
    from _setup import start_device

    from lib.record.folder import check_folder
    from lib.simulator.inventory import PRICING

    folder, device = Path(args.resume or args.output), start_device(args.device)
    check_options(args)
    run = run_of(args, folder, growing=ADDABLE, added=ADDABLE)
    check_folder(folder, resume=bool(args.resume), overwrite=args.overwrite)
    if args.resume:
        check_resumed(run)
    pricing = pricing_of(folder) if args.resume else PRICING
    envs, bench = make_envs(args, device, folder, pricing)
    published = None if args.model_file else published_file(pick(Network, args))
    identity = begin(run, bench.env, published, ('train', 'val'))
    logger.info('%s on %s: %d layers, %d budgets, %d searchers, seeds %s; %d evaluations on %d images each', args.arch,
                device, bench.env.num_layers, len(envs), len(args.searchers), args.seeds, args.evaluations,
                bench.env.val_loader.num_images)
    mark = {'pricing': pricing} if pricing > 1 else {}  # by what rules costs are counted
    compare(args, envs, bench, folder, device, {**mark, 'run': identity} if identity else mark)


def pricing_of(folder):
    """Returns by which rules the costs of a comparison were counted when its first search was written."""
    from lib.simulator.inventory import PRICING
    return min((read(path, {}).get('pricing', 1) for path in (folder / 'searches').glob('*.json')), default=PRICING)


def check_options(args):
    """Drops what is given twice; raises ValueError for what a comparison cannot do."""
    from lib.runtime.distributed import world_size
    if world_size() > 1:
        raise ValueError(f'a comparison works in one process, these are {world_size()}: start it without torchrun')
    if args.screen:
        raise ValueError('--screen judges a strategy by those before it: leave it out, here every search is judged '
                         'alike')
    for name in ADDABLE:
        setattr(args, name, list(dict.fromkeys([*args.changed.get(name, ([],))[0], *getattr(args, name)])))
    if not args.finetune_flag and not args.bn_batches:
        logger.warning('strategies are judged with the BatchNorm statistics of the float network, which ranks them '
                       'wrongly (docs/results.md): --bn_batches 4 estimates them anew')


def check_resumed(run):
    """Raises an error where --resume names no comparison, or other settings than its own are given."""
    from _resume import check_unchanged
    folder = run.folder
    if not (folder / 'args.json').is_file():
        raise FileNotFoundError(f'--resume {folder}: no comparison is there (args.json is missing)')
    if not (folder / 'searches').is_dir() and any(folder.glob('*.pth.tar')):
        raise ValueError(f'--resume {folder}: this is the folder of another kind of run')
    check_unchanged(run)


def make_envs(args, device, folder, pricing):
    """Returns ({budget: environment}, `Bench`); all budgets are checked before anything slow begins."""
    from _costs import Pricing, find_constraints
    from _networks import Network
    args.constraint, args.preserve_ratio = None, args.budgets[0]
    network = pick(Network, args)
    pricing = pick(Pricing, args, network=network, linear=args.linear_quantization or network.is_twin, folder=folder)
    env, layers = make_env(args, device, '--budgets', before=pricing == 1)
    envs = {}
    for budget in args.budgets:
        (constraint,) = find_constraints(pricing, layers, budget, option='--budgets')
        envs[budget] = env.with_constraints([constraint])
    bench = make_bench(args, env, folder, args.evaluations)
    for name in args.searchers:
        for each in envs.values():
            bench.check(name, each)
    return envs, bench


def compare(args, envs, bench, folder, device, mark):
    """Runs every search and every fine-tuning that has no file in the folder yet."""
    from _networks import Network, check_model
    from _setup import Data, loaders_of

    from lib.search.comparison import Comparison

    network, data = pick(Network, args), pick(Data, args, train_batch=args.final_batch)
    *loaders, classes = loaders_of(data, network, device)
    check_model(network, bench.env.model, loaders[0].input_shape, args.num_classes or classes, loaders, '--final_batch')
    comparison = Comparison(folder, arch=args.arch, dataset=args.dataset, cost=bench.env.cost,
                            finetuned=args.final_epochs > 0)
    comparison.add_float(run_finetuning(args, bench.env, loaders, folder, None, args.seeds[0], mark))
    for budget, env in envs.items():
        for name in args.searchers:
            for seed in args.seeds:
                found = run_search(bench, env, folder, name, budget, seed if name in STOCHASTIC else None, mark)
                top1 = run_finetuning(args, env, loaders, folder, found['strategy'], seed, mark)
                comparison.add(budget, name, seed, found, top1)
                comparison.write()
        comparison.plot()
    logger.info('%s\n%s: comparison.md, comparison.csv, pareto.png', comparison.text(), folder)


def resume_hint(args):
    """Says how an interrupted comparison goes on."""
    folder = Path(args.resume or args.output)
    return f'continue with --resume {folder}' if (folder / 'args.json').is_file() else 'nothing was begun; start again'


if __name__ == '__main__':
    run(main, make_compare_parser(), resume_hint)
