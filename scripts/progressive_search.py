"""Searches mixed precision progressively (ProQHA): lowers bits step by step and fine-tunes after each choice.

In each step many random candidates lower a part of all quantizers, of weights and of activations; the one that disturbs
the network least is kept and trained. Every step leaves a checkpoint and a row of a table: pick the one with the cost
you want, or give the --cost at which to stop. Starts from a network that was trained at uniform bits (qat_train.py
--k_bits 8), or from float weights.
"""

import copy
import time
from pathlib import Path

from _cli import logger, make_parser, pick, run, run_of, settings_of
from _progressive import add_progressive_options, check_target, first_bits, progressive_settings
from _proqha import find_network

GROWING = ('step', 'cost')  # what a resumed search may change


def make_progressive_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_progressive_options(parser)
    return parser


def main(args):
    """Prepares the network and runs the search."""
    from _setup import start_device

    from lib.record.folder import check_folder
    from lib.runtime.distributed import is_main, on_main

    given = settings_of(args)
    args.arch = find_network(args)
    if args.arch != given['arch']:
        logger.info('%s: %s', given['arch'], args.arch)
    folder, device = run_path(args), start_device(args.device)
    run = run_of(args, folder, settings=given, growing=GROWING)
    if not args.test_only:
        on_main(check_folder, folder, resume=bool(args.resume), overwrite=args.overwrite)
    saved = read_search(args, run)
    search = Search(args, folder, device, saved)
    accuracy = search.accuracy(search.test_loader) if args.test_only or not saved else None
    if args.test_only:
        logger.info('%s on %s: top-1 %.2f %% at cost %.4f', args.arch, args.dataset, accuracy, search.cost)
        return
    check_target(args, search.parts, search.bits)
    search.identity = on_main(begin, search, run, saved)
    search.start = saved['start'] if saved else {'cost': search.cost, 'test_acc': accuracy}
    log = make_log(search, saved['history'] if saved else []) if is_main() else None
    run_steps(search, log, saved['step'] if saved else 0)
    if log:
        finish(search, log)


def begin(search, run, saved):
    """Opens the folder of the search; returns its identity."""
    from _resume import Beginning, begin_run, inputs_of
    loaders = [search.loader, search.test_loader, *([search.held_out] if search.held_out else [])]
    inputs = inputs_of(run, ('train', 'val'), counts=[loader.num_images for loader in loaders])
    return begin_run(run, Beginning(inputs, unread=('weights',) if saved else ()))


def run_path(args):
    """Returns the folder of the search."""
    name = f'{args.arch}_{args.dataset}_progressive' + (f'_{args.suffix}' if args.suffix else '')
    return Path(args.resume or Path(args.output) / name)


def step_path(folder, step):
    """Returns the path of the checkpoint of a step."""
    return Path(folder) / 'checkpoint' / f'{step}.pt'


def read_search(args, run):
    """Returns the checkpoint of the last step of the search to resume, or None."""
    from _resume import check_identity, check_unchanged

    from lib.record.checkpoint import read_checkpoint
    if not args.resume:
        return None
    check_unchanged(run)
    folder = run.folder
    if not (folder / 'args.json').is_file():
        raise FileNotFoundError(f'--resume {folder}: no run is there (args.json is missing); give the folder of a '
                                'progressive search, or a checkpoint to start from by --weights')
    steps = [int(path.stem) for path in (folder / 'checkpoint').glob('*.pt') if path.stem.isdecimal()]
    if not steps:
        return None  # killed before the end of its first step
    saved = read_checkpoint(step_path(folder, max(steps)))
    if not isinstance(saved, dict) or not {'kbits', 'history', 'step', 'qat'} <= saved.keys():
        raise ValueError(f'{step_path(folder, max(steps))} is no step of a progressive search: it has no bits')
    check_identity(run, saved, step_path(folder, max(steps)))
    if saved['step'] > args.step:
        raise ValueError(f'{folder} has {saved["step"]} steps already, --step {args.step} are fewer: give at least '
                         f'{saved["step"]}, or start another search')
    return saved


class Search:
    """The network with its quantizers, the data, and the bits of the last step."""

    def __init__(self, args, folder, device, saved):
        """Builds all; `saved` is the checkpoint of a step to go on from, or None."""
        from _networks import Network, Start, read_weights
        from _resume import in_file
        from _setup import Data, loaders_of
        self.network = pick(Network, args)
        self.beginning = pick(Start, args, pretrained=False)
        begun = (saved, step_path(folder, saved['step'])) if saved else None
        start, source = begun or read_weights(self.beginning, self.network)
        self.args, self.folder, self.device = args, folder, device
        self.settings = saved['qat'] if saved else progressive_settings(args, start)
        data = pick(Data, args, normalize=self.settings['normalize'])
        self.loader, self.test_loader, self.classes = loaders_of(data, self.network, device)
        self.held_out = None
        if args.info == 'acc':
            size = max(self.loader.num_images - args.val_size, 1)
            self.loader, self.held_out, _ = loaders_of(data, self.network, device, train_size=size,
                                                               val_size=args.val_size)
        with in_file(source if saved else None):
            self.build(saved, start, source)
        self.start = self.identity = None  # cost and accuracy before the first step; what run it is

    def build(self, saved, start, source):
        """Makes the network, puts its quantizers in and loads the weights."""
        from _costs import coverage_of
        from _networks import build_model, load_quantized, probe, say_own_weights

        from lib.network.conversion import convertible_layers
        from lib.network.records import profile_layers
        from lib.qat.parts import quantize_parts
        from lib.qat.placement import Quantizers
        args, shape = self.args, self.loader.input_shape
        loaders = (self.loader, self.held_out or self.test_loader)
        self.model = build_model(self.network, self.classes, shape, self.device, loaders)
        self.records, names = profile_layers(self.model, shape), set(self.model.state_dict())
        self.layer_names = list(convertible_layers(self.model, self.records))
        quantizers = Quantizers.from_dict(self.settings['quantizers'])
        self.parts = quantize_parts(self.model, 8, 8, quantizers, probe(self.model, shape), args.arch,
                                    in_order=self.settings.get('ends') == 'called')
        strategy = self.parts.lists(self.parts.bits)
        if saved:
            self.beginning.load(self.model, saved, source)
        elif start is not None:
            load_quantized(self.model, start, source, self.beginning, self.settings, strategy, names)
        else:
            say_own_weights(self.network, 'the network starts from random weights: give a trained one by --weights')
        self.bits = saved['kbits'] if saved else first_bits(args, self.parts, start)
        if len(self.bits) != len(self.parts):
            raise ValueError(f'kbits is for {len(self.bits)} quantizers, this network has {len(self.parts)}')
        self.parts.bits = self.bits
        self.covered = coverage_of(self.model, shape)

    @property
    def cost(self):
        """ProQHA's cost of the present bits."""
        return self.parts.cost(self.bits, odd_positions=self.args.odd_positions)

    def accuracy(self, loader):
        """Returns the top-1 accuracy of the network as it is, in percent."""
        from lib.training.loop import Precision, evaluate, loss_function
        precision = Precision(self.device, self.args.half, self.args.channels_last)
        return evaluate(self.model, loader, loss_function(), self.device, precision=precision).top1

    def choose(self, step):
        """Takes the bits of the best candidate of a step; returns its score, of --info."""
        import numpy as np

        from lib.runtime.seeds import derived_seed
        from lib.search.progressive import balanced_batch, best_candidate, gradient_score
        args = self.args
        if args.info == 'hession':
            batch = balanced_batch(self.loader, args.train_batch, derived_seed(args.seed, 'candidates', step))
            images, labels = (tensor.to(self.device) for tensor in batch)

        def judge(bits):
            self.parts.bits = bits
            if args.info == 'acc':
                try:
                    return -self.accuracy(self.held_out)
                except FloatingPointError:
                    return 0.0  # nothing is worse
            return gradient_score(self.model, images, labels, clip=args.grad_clip, lr=args.lr, beta2=args.beta2,
                                  eps=args.epsilon)

        rng = np.random.default_rng(derived_seed(args.seed, 'progressive', step))
        best = best_candidate(self.bits, judge, rng=rng, lam=args.lam, ratio=args.ratio, interval=args.interval)
        self.bits = self.parts.bits = best.bits
        return best.score if args.info == 'hession' else -best.score

    def fine_tune(self, step):
        """Trains the network at the present bits; returns (training accuracy of the last epoch, test accuracy)."""
        import torch

        from lib.qat.parts import ProgressiveTraining
        from lib.training.fit import train_epoch
        from lib.training.loop import Precision
        from lib.utils.utils import learning_rate
        args, epochs = self.args, self.args.search_epochs
        precision = Precision(self.device, args.half, args.channels_last)
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=args.lr,
                                     betas=(args.beta1, args.beta2), eps=args.epsilon)
        batches = epochs * len(self.loader)
        rates = (learning_rate(batch, lr=args.lr, epochs=batches) for batch in range(batches))
        quantization = ProgressiveTraining(self.model, self.parts.lists(self.bits), self.settings, optimizer=optimizer,
                                           rates=rates, clip=args.grad_clip,
                                           unscale=lambda: precision.scaler.unscale_(optimizer))
        for epoch in range(epochs):
            rate = learning_rate(epoch, lr=args.lr, epochs=epochs)
            train = train_epoch(self.model, self.loader, optimizer, (step - 1) * epochs + epoch, args.step * epochs,
                                rate=rate, device=self.device, precision=precision, seed=args.seed,
                                quantization=quantization)
            if (epoch + 1) % args.eval_freq == 0 or epoch + 1 == epochs:
                accuracy = self.accuracy(self.test_loader)
                logger.info('step %d epoch %d/%d: lr %.5f  train loss %.4f acc %.2f  test acc %.2f', step, epoch + 1,
                            epochs, rate, train.loss, train.top1, accuracy)
        return train.top1, accuracy

    def step(self, step):
        """Takes a step, its training included; returns what its row says of it.

        One that diverges leaves the network and its bits as they were.
        """
        from lib.record.finite import check_finite
        before, bits = copy.deepcopy(self.model.state_dict()), self.bits
        name = 'hession_info' if self.args.info == 'hession' else 'acc_info'
        row = {'hession_info': None, 'acc_info': None, name: self.choose(step), 'cost': self.cost, 'kbits': self.bits}
        try:
            train_accuracy, test_accuracy = self.fine_tune(step)
            check_finite(self.model.state_dict(), f'step {step}')
            return {**row, 'train_acc': train_accuracy, 'test_acc': test_accuracy}
        except FloatingPointError as error:
            self.bits = self.parts.bits = bits
            self.model.load_state_dict(before)
            return {**row, 'train_acc': 0.0, 'test_acc': 0.0, 'diverged': str(error)}

    def checkpoint(self, step, log):
        """Returns what the checkpoint of a step holds."""
        last = log.last or self.start
        accuracy = last['test_acc']
        return {'step': step, 'state_dict': self.model.state_dict(), 'kbits': self.bits, 'cost': last['cost'],
                'test_prec1': accuracy, 'acc': accuracy, 'history': log.history, 'start': self.start,
                'quantization': 'qat', 'strategy': self.parts.lists(self.bits), 'qat': self.settings,
                **({'run': self.identity} if self.identity else {}), **self.about()}

    def about(self):
        """Returns what all files say of the run."""
        return {'arch': self.args.arch, 'dataset': self.args.dataset, 'input': list(self.loader.input_shape),
                'classes': self.args.num_classes or self.classes, **self.covered}


def run_steps(search, log, done):
    """Runs the steps that are left, saving everything after each of them, in the main process."""
    from lib.record.checkpoint import save_checkpoint
    from lib.search.progressive import FLOOR
    args = search.args
    for step in range(done + 1, args.step + 1):
        if args.cost and search.cost <= args.cost:
            logger.info('the cost is %.4f, --cost is %g: done', search.cost, args.cost)
            return
        if max(search.bits) <= FLOOR:
            logger.info('all quantizers are at %d bits: nothing is left to lower', FLOOR)
            return
        begin = time.time()
        row = search.step(step)
        if log:
            log.add({'step': step, 'step_time': time.time() - begin, 'model_size': 32 * sum(search.parts.num_weights),
                     'lr': args.lr, **row})
            save_checkpoint(step_path(search.folder, step), search.checkpoint(step, log))


def make_log(search, history):
    """Returns the `ProgressiveLog`, continued after `history`."""
    from lib.qat.placement import weight_bits
    from lib.search.progressive_log import ProgressiveLog
    bits, full = weight_bits(search.model)
    logger.info('%s on %s: %d quantizers in %d layers with %d weights, cost %.4f, with float layers %.4f of the float '
                'size; top-1 %.2f %%', search.args.arch, search.device, len(search.parts), len(search.parts.parts),
                sum(search.parts.num_weights), search.cost, bits / full, search.start['test_acc'])
    kinds = {record.name: record.type for record in search.records}
    return ProgressiveLog(search.folder, parts=search.parts, kinds=[kinds[part.layer] for part in search.parts.parts],
                          layer_names=search.layer_names, about=search.about(), start=search.start, history=history)


def finish(search, log):
    """Draws the plots and writes the results of a finished search."""
    from lib.qat.placement import weight_bits
    from lib.record.files import write_json
    log.plot()
    bits, full = weight_bits(search.model)
    if log.history and not log.last:
        raise FloatingPointError(f'all {len(log.history)} steps diverged, the last one: {log.history[-1]["diverged"]}; '
                                 f'start another search with an --lr below {search.args.lr:g}')
    last = log.last or {'step': 0, 'kbits': search.bits, **search.start}
    write_json(search.folder / 'results.json', {
        **log.about, 'quantization': 'qat', 'strategy': search.parts.lists(last['kbits']), 'kbits': last['kbits'],
        'steps': last['step'], 'top1': last['test_acc'], 'start_top1': search.start['test_acc'],
        'cost_name': 'proqha_ratio', 'cost': last['cost'], 'ratio': last['cost'], 'size_ratio': bits / full},
        seal=True)
    advice = f'; evaluate any step by qat_train.py --arch {search.args.arch} --eval --resume ' \
             f'{step_path(search.folder, last["step"])}' if log.history else ''
    logger.info('%d steps: top-1 %.2f %% at cost %.4f, with float layers %.4f of the float size%s', last['step'],
                last['test_acc'], last['cost'], bits / full, advice)


def resume_hint(args):
    """Says how an interrupted search goes on."""
    folder = run_path(args)
    if (folder / 'args.json').is_file():
        return f'continue with --resume {folder}'
    return 'no step was begun; start again'


if __name__ == '__main__':
    run(main, make_progressive_parser(), resume_hint)
