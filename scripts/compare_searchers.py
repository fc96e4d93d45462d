"""Compares searchers: the same network, budgets, quantizers and images for all, then the same fine-tuning.

Every searcher gets the images of --evaluations evaluations for each budget; its best strategy is fine-tuned and tested.
Kill it at any time and go on with --resume; more budgets, searchers, policies or seeds can be added then. Writes a
table, and figures of accuracy against cost and of reward against evaluations.
"""

import argparse
from dataclasses import replace
from itertools import product

from _cli import folder_hint, logger, make_parser, naming, pick, run, run_of, settings_of
from _option_types import MAX_SEED, CollectedOption, RepositoryPath, at_least, positive, ratio
from _options import add_data_options, add_model_options, add_quantization_options, add_run_options
from _search import AGENT, Flow, add_agent_options, add_search_options, check_exploration, find_policies, policy
from finetune import STRATEGIES

from lib.record.words import SEARCHERS

ADDABLE = ('budgets', 'searchers', 'seeds', 'policy')  # to a comparison that is resumed


def searcher_name(text):
    """Option type: a name of `SEARCHERS`."""
    if text not in SEARCHERS:
        raise argparse.ArgumentTypeError(f'{text} is no searcher: expected some of {", ".join(SEARCHERS)}')
    return text


def make_compare_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group('comparison')
    group.add_argument('--searchers', type=searcher_name, nargs='+', default=list(SEARCHERS), metavar='NAME',
                       help=f'some of {", ".join(SEARCHERS)} (docs/searchers.md)')
    group.add_argument('--policy', action=CollectedOption, type=policy, metavar='NAME=LIST', help='a strategy from '
                       'elsewhere, judged and fine-tuned like the results of the searchers: a list, uniform:K, or the '
                       'path of a strategy file; several may be given (default: none)')
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
                       'searchers, policies and seeds that are given are added')
    add_model_options(parser, arch='resnet20')
    add_data_options(parser, batch=128, workers=4, cache='auto')
    add_quantization_options(parser)
    add_search_options(parser, finetune_flag=False, train_size=20000, val_size=1000)
    add_agent_options(parser)
    add_run_options(parser)
    return parser


def main(args):
    """Search and fine-tune whatever is not done yet; write tables after every result, the figure after a budget."""
    from _costs import Pricing, find_constraints, find_layers
    from _networks import Network, check_model
    from _resume import Beginning, begin_run, check_unchanged, inputs_of
    from _setup import Data, loaders_of, start_device
    from _weights import Start, published_file

    from lib.env.episode import EpisodeSettings
    from lib.env.space import Space
    from lib.record.folder import check_folder
    from lib.runtime.distributed import world_size
    from lib.search.bench import Bench, SearcherSettings
    from lib.search.comparison import Comparison, FinalTraining, pricing_of
    from lib.simulator.inventory import PRICING
    from lib.training.loop import Precision

    budgets, searchers, seeds, policies = (
        list(dict.fromkeys([*(args.changed.get(name, ([],))[0] or []), *(getattr(args, name) or [])]))
        for name in ADDABLE)
    run = run_of(args, args.resume or args.output, growing=ADDABLE, added=ADDABLE, settings={
        **settings_of(args), 'budgets': budgets, 'searchers': searchers, 'seeds': seeds, 'policy': policies or None})
    network, data, start = pick(Network, args), pick(Data, args), pick(Start, args, pretrained=not args.model_file)
    linear, device = args.linear_quantization or network.is_twin, start_device(args.device)
    flow = pick(Flow, args, linear=linear)
    check_options(args, world_size())
    check_exploration(args.delta_end, args.init_delta)
    check_folder(run.folder, resume=bool(args.resume), overwrite=args.overwrite)
    if args.resume:
        check_place(run.folder)
        check_unchanged(run)
    pricing_rules = pricing_of(run.folder) if args.resume else PRICING

    # data and network
    model, loaders, _ = flow.begin(network, data, start, device)
    shape = loaders[0].input_shape

    # strategies, and what becomes of them; all budgets are checked before anything slow begins
    pricing = pick(Pricing, args, network=network, linear=linear, folder=args.output)
    layers = find_layers(pricing, model, shape, is_pruned=args.is_pruned, rules=pricing_rules)
    policies = find_policies(policies, layers, linear=linear, network=args.arch, published=STRATEGIES)
    constraints = {budget: find_constraints(pricing, layers, budget, option='--budgets') for budget in budgets}
    with naming('min_bit', 'max_bit', 'candidates', 'pin', 'reward', 'reward_on', 'reward_cost', 'use_top5',
                'finetune_flag', 'finetune_epoch', 'distill'):
        space = Space.of(layers.inventory, constraints[budgets[0]], min_bit=args.min_bit, max_bit=args.max_bit,
                         candidates=args.candidates or (), pins=args.pin or (), wall=args.wall)
        spaces = {budget: space.with_constraints(found) for budget, found in constraints.items()}
        episodes = pick(EpisodeSettings, args)
    env = flow.environment(model, loaders, space, episodes, Precision(device, args.half, args.channels_last))
    agent = {**{name: getattr(args, name) for name in AGENT}, 'capacity': args.rmsize * space.num_layers}
    bench = Bench(env, args.evaluations, pick(SearcherSettings, args, agent=agent, policies=policies),
                  run.folder)
    with naming('sensitivities'):
        for name, each in product(searchers, spaces.values()):
            bench.check(name, each)
    identity = begin_run(run, Beginning(inputs_of(
        run, ('train', 'val'), counts=[loader.num_images for loader in loaders],
        costs=[constraint.cost for constraint in space.constraints], published=published_file(network))))
    logger.info('%s on %s: %d layers, %d budgets, %d searchers, %d policies, seeds %s; %d evaluations on %d images '
                'each', args.arch, device, space.num_layers, len(budgets), len(searchers), len(policies), seeds,
                args.evaluations, env.judged.num_images)

    # searches and fine-tuning
    *loaders, classes = loaders_of(replace(data, train_batch=args.final_batch), network, device)
    check_model(network, model, shape, network.num_classes or classes, loaders, '--final_batch')
    mark = {**({'pricing': pricing_rules} if pricing_rules > 1 else {}), **({'run': identity} if identity else {})}
    training = FinalTraining(args.final_epochs, args.final_lr, args.final_wd)
    report = Comparison(run.folder, bench, loaders, training, mark).run(
        spaces, [*searchers, *policies], seeds, arch=args.arch, dataset=args.dataset)
    logger.info('%s\n%s: comparison.md, comparison.csv and figures', report.text(), run.folder)


def check_options(args, processes):
    """Raise ValueError for what a comparison cannot do."""
    if processes > 1:
        raise ValueError(f'a comparison works in one process, these are {processes}: start it without torchrun')
    if args.screen:
        raise ValueError('--screen judges a strategy by those before it: leave it out, here every search is judged '
                         'alike')
    if not args.finetune_flag and not args.bn_batches:
        logger.warning('strategies are judged with the BatchNorm statistics of the float network, which ranks them '
                       'wrongly (docs/results.md): --bn_batches 4 estimates them anew')


def check_place(folder):
    """Raise an error where the folder to resume is that of no comparison."""
    if not (folder / 'args.json').is_file():
        raise FileNotFoundError(f'--resume {folder}: no comparison is there (args.json is missing)')
    if not (folder / 'searches').is_dir() and any(folder.glob('*.pth.tar')):
        raise ValueError(f'--resume {folder}: this is the folder of another kind of run')


if __name__ == '__main__':
    run(main, make_compare_parser(), lambda args: folder_hint(args.resume or args.output))
