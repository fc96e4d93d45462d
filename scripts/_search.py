"""What the scripts that search share: options of search and agent, and the environment that they make."""

from _cli import pick
from _options import MAX_UNITS, at_least, positive
from _options import BooleanOption as Bool

# Those of lib/search/bench.py, which is not imported before the options are parsed.
SEARCHERS = ('uniform', 'random', 'greedy', 'ilp', 'hessian', 'fisher', 'evolution', 'progressive', 'ddpg')
STOCHASTIC = ('random', 'evolution', 'progressive', 'ddpg')  # the seed makes a difference


def add_search_options(parser, *, finetune_flag, train_size, val_size):
    """Adds the options about strategies and their evaluation; returns the group."""
    group = parser.add_argument_group('search')
    group.add_argument('--wall', choices=['rounds', 'greedy'], default='rounds', help='how a strategy above its budget '
                       "is lowered: a bit in every layer, round by round (HAQ's), or always where most is saved per "
                       'bit, which suits hardware whose layers gain very differently')
    group.add_argument('--min_bit', type=int, default=1, help='fewest bits of a layer')
    group.add_argument('--max_bit', type=int, default=8, help='most bits of a layer')
    group.add_argument('--train_size', type=at_least(1), default=train_size, help='images an episode trains on')
    group.add_argument('--val_size', type=at_least(1), default=val_size,
                       help='images an episode is judged on, held out of the training set')
    group.add_argument('--finetune_flag', action=Bool, default=finetune_flag, help='fine-tune in every episode')
    group.add_argument('--finetune_epoch', type=at_least(1), default=1, help='epochs of fine-tuning per episode')
    group.add_argument('--finetune_lr', type=positive, default=0.001, help='learning rate of that fine-tuning')
    group.add_argument('--finetune_gamma', type=positive, default=0.8, help='its factor after each epoch')
    group.add_argument('--kmeans_iter', type=at_least(1), default=3, help='K-means: Lloyd iterations per clustering')
    group.add_argument('--use_top5', action=Bool, help='reward top-5 instead of top-1 accuracy')
    group.add_argument('--reward_on', choices=['val', 'train'], default='val', help='accuracy that is rewarded: on '
                       'held-out images, or the running training accuracy as the original linear flow had it')
    group.add_argument('--reward_cost', action=Bool, help='add 1 / ratio to the accuracy difference in the reward')
    group.add_argument('--screen', type=at_least(0), default=0, metavar='N', help='look at a strategy on N images '
                       'first, with BatchNorm statistics estimated anew, and fine-tune it only if it can still become '
                       'the best; 0: fine-tune all')
    group.add_argument('--sensitivity_images', type=at_least(1), default=512, help='greedy, ilp, hessian, fisher: '
                       'images that sensitivities are measured on; fewer where the evaluations of the whole search '
                       'would take fewer')
    return group


def add_agent_options(parser):
    """Adds the options of the DDPG agent."""
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
    group.add_argument('--tau', type=at_least(0, float, 1), default=0.01, help='rate of the soft target update')
    group.add_argument('--init_delta', type=at_least(0, float), default=0.5, help='exploration sigma when warm-up ends')
    group.add_argument('--delta_decay', type=positive, default=0.99, help='factor of sigma per episode')
    group.add_argument('--n_update', type=at_least(1), default=1, help='updates per stored transition')
    group.add_argument('--store_action', choices=['chosen', 'executed'], default='chosen', help='actions in the '
                       'replay: those the agent chose, or those of the strategy that the wall made of them')
    group.add_argument('--warm_start', choices=['none', 'sensitivity'], default='none', help='strategies of the '
                       'warm-up: random ones, or those of least sensitivity under random perturbations')
    for name, default in (('window_length', 1), ('max_episode_length', 1e9), ('init_w', 0.003), ('epsilon', 50000)):
        group.add_argument(f'--{name}', type=type(default), default=default, help='accepted for old command lines; has '
                           'no effect, as in the original')


def agent_options(args):
    """Returns the options of the agent, but for its seed and its capacity."""
    names = ('hidden1', 'hidden2', 'lr_a', 'lr_c', 'tau', 'discount', 'bsize', 'init_delta', 'delta_decay', 'warmup',
             'n_update')
    return {name: getattr(args, name) for name in names}


def begin(run, env, published=None, splits=('train',)):
    """Open the folder of a search in an environment, by `begin_run`; return its identity."""
    from _resume import Beginning, begin_run, inputs_of
    inputs = inputs_of(run, splits, counts=[env.train_loader.num_images, env.val_loader.num_images],
                       costs=[constraint.cost for constraint in env.constraints], published=published)
    return begin_run(run, Beginning(inputs))


def make_bench(args, env, folder, evaluations):
    """Returns the `Bench` of a search of at most so many evaluations; sensitivities are kept in `folder`."""
    from lib.search.bench import Bench, ImageCounter
    agent = {**agent_options(args), 'capacity': args.rmsize * env.num_layers}
    return Bench(env, ImageCounter(env.model), evaluations=evaluations, folder=folder, agent=agent,
                 store_action=args.store_action, warm_start=args.warm_start, images=args.sensitivity_images)


def make_env(args, device, option='--preserve_ratio', before=False):
    """Returns the environment: data, network with float weights, cost and budget; and the `Layers` of a strategy.

    `option` is what --preserve_ratio is called on the command line; `before`: see `find_layers`.
    """
    from _costs import Pricing, find_constraints, find_layers
    from _networks import Network, Start, build_model, prepare, read_weights, say_own_weights
    from _setup import Data, loaders_of

    from lib.env.linear_quantize_env import LinearQuantizeEnv
    from lib.env.quantize_env import QuantizeEnv
    from lib.training.loop import Precision

    network, data = pick(Network, args), pick(Data, args)
    start = pick(Start, args, pretrained=not args.model_file)
    linear = args.linear_quantization or network.is_twin
    for other in ('is_pruned',) if linear else ('fold_bn',):
        if getattr(args, other):
            raise ValueError(f'--{other} belongs to the {"K-means" if linear else "linear"} flow: leave it out')
    train_loader, val_loader, classes = loaders_of(data, network, device, train_size=args.train_size,
                                                   val_size=args.val_size)
    shape = train_loader.input_shape
    model = build_model(network, classes, shape, device, (train_loader, val_loader),
                        '--final_batch' if hasattr(args, 'final_batch') else '--train_batch')
    checkpoint, source = read_weights(start, network)
    if checkpoint is None:
        say_own_weights(network)
    prepare(model, shape, start, checkpoint, source, linear=linear, fold_bn=args.fold_bn, sync_bn=args.sync_bn,
            bn_batches=args.bn_batches)
    pricing = pick(Pricing, args, network=network, linear=linear, folder=args.output)
    layers = find_layers(pricing, model, shape, is_pruned=args.is_pruned, before=before)
    constraints = find_constraints(pricing, layers, args.preserve_ratio, args.constraint, option)
    shared = {'records': layers.records, 'constraints': constraints,
              'min_bit': args.min_bit, 'max_bit': args.max_bit, 'finetune_epoch': args.finetune_epoch,
              'finetune_lr': args.finetune_lr, 'finetune_gamma': args.finetune_gamma,
              'finetune_flag': args.finetune_flag, 'use_top5': args.use_top5, 'reward_on': args.reward_on,
              'reward_cost': args.reward_cost, 'wall': args.wall, 'device': device,
              'precision': Precision(device, args.half, args.channels_last), 'seed': args.seed,
              'bn_batches': args.bn_batches, 'screen': args.screen}
    if not linear:
        return QuantizeEnv(model, train_loader, val_loader, is_pruned=args.is_pruned, kmeans_iter=args.kmeans_iter,
                           **shared), layers
    return LinearQuantizeEnv(model, train_loader, val_loader, calibrate_method=args.calibrate,
                             activation_cap=args.activation_cap, ends=layers.inventory.ends, **shared), layers
