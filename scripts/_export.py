"""Export: its options, the network of a checkpoint, the comparison with the fake-quantized network, the reports."""

from pathlib import Path

from _common import logger
from _options import BooleanOption as Bool
from _options import at_least
from _qat import quantize
from _resume import in_file
from _setup import build_model
from _weights import load, prepare

LEAST_AGREEMENT = 99.0  # percent of equal predictions
LARGEST_DIFFERENCE = 0.25  # of logits on noise; an operation that is lowered wrongly makes them differ by more


def add_export_options(parser):
    """Adds the options that only export has."""
    group = parser.add_argument_group('export')
    group.add_argument('--integer', action=Bool, help='write integer weights and requantization constants')
    group.add_argument('--resume', metavar='CHECKPOINT', help='checkpoint of qat_train.py, or of finetune.py '
                       '--linear_quantization; network and data are those of its run')
    group.add_argument('--format', default='mantissa:24', metavar='FORMAT', help='of multipliers and offsets: '
                       'mantissa:BITS with a shift per layer; T,I, fixed point of T bits with I before the point '
                       '("16,8"); or original: 32,10 in the blocks and 32,16 in stem, header and classifier')
    group.add_argument('--end_format', metavar='FORMAT', help='of stem, header and classifier (default: as --format '
                       'for a mantissa, else 32,16)')
    group.add_argument('--rounding', choices=['round', 'floor', 'trunc'], default='round', help='of the shift: to the '
                       'nearest, down, or towards 0')
    group.add_argument('--saturate', action=Bool, help='clip constants that do not fit their format, and say so, '
                       'instead of refusing them')
    group.add_argument('--wide_word', type=at_least(12), help='bits of tensors that no quantizer made (default: 32 '
                       'with a mantissa, else 24)')
    group.add_argument('--images', type=at_least(-1), default=-1, help='validation images on which both networks are '
                       'compared; -1: all, 0: none. On noise they always are')
    group.add_argument('--code_images', type=at_least(1), default=64, help='of these, on which every code is compared')
    group.add_argument('--arithmetic', choices=['int64', 'float64'], default='int64', help='float64 holds the same '
                       'integers in double precision: the same logits, faster')
    group.add_argument('--hardware', metavar='PRESET|FILE.yaml', action='append', help='machine whose cycles are '
                       'simulated, may be given several times (default: edge)')
    group.add_argument('--output', metavar='FOLDER', help='default: integer/ beside the checkpoint')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='of the images (default: as in training)')
    group.add_argument('--tensorflow', action=Bool, help='the network was trained in TensorFlow (known from the run)')


def read_network(args):
    """Returns (quantized network on the CPU, image shape, what the checkpoint says of it).

    Raises:
        ValueError: the checkpoint is of no quantized network that has an integer form.
    """
    from lib.record.checkpoint import read_checkpoint
    from lib.utils.quantize_utils import LinearQuantization
    saved = read_checkpoint(args.resume)
    kind = saved.get('quantization') if isinstance(saved, dict) else None
    if kind not in ('qat', 'linear') or 'input' not in saved:
        raise ValueError(f'{args.resume} is a checkpoint of {kind or "unknown"} weights: integers come from '
                         'qat_train.py, or from finetune.py --linear_quantization')
    shape, strategy = tuple(saved['input']), saved['strategy']
    args.network_options = saved['qat']['network'] if kind == 'qat' else None
    args.sync_bn, args.reset_classifier = False, False
    with in_file(args.resume):
        model = build_model(args, saved['classes'], shape, 'cpu')
        if kind == 'qat':
            quantize(model, saved['qat'], strategy, shape, args.arch)
    if kind == 'qat':
        load(args, model, saved, args.resume)
    else:
        args.fold_bn = False  # a folded checkpoint says so itself
        prepare(args, model, shape, saved, args.resume, linear=True)
        LinearQuantization(model, strategy)
    about = {name: saved[name] for name in ('arch', 'dataset', 'classes', 'quantization', 'strategy')}
    return model.eval(), shape, about


def compare(args, model, network, loader):
    """Evaluates both networks on validation images; returns what report.json says of it."""
    import torch

    from lib.integer.compare import compare_codes
    hits = agreed = images = fake_hits = 0
    codes = None
    loader.sample(args.images)
    with torch.no_grad():
        for batch, labels in loader:
            if codes is None:
                codes = compare_codes(model, network, batch[:args.code_images])
            expected, found = model(batch.clone()).argmax(1), network(batch, arithmetic=args.arithmetic).argmax(1)
            images += len(batch)
            fake_hits += int((expected == labels).sum())
            hits += int((found == labels).sum())
            agreed += int((found == expected).sum())
    report_codes(codes)
    result = {'images': images, 'top1_fake_quantized': 100 * fake_hits / images, 'top1_integer': 100 * hits / images,
              'agreement': 100 * agreed / images, 'codes': {name: row._asdict() for name, row in codes.items()}}
    logger.info('%d images: fake-quantized %.2f %%, integer %.2f %%; the same prediction for %.2f %%', images,
                result['top1_fake_quantized'], result['top1_integer'], result['agreement'])
    return result


def self_check(model, network):
    """Compares both networks on noise; returns what report.json says of it."""
    from lib.integer.compare import check_on_noise
    found = check_on_noise(model, network)
    logger.info('%d images of noise: the same prediction for %.2f %%; the logits differ by %.2g %% of how they vary',
                found.images, found.agreement, 100 * found.difference)
    return {'noise': found._asdict()}


def warn_of_disagreement(about):
    """Warns, as the last line of the export, where the two networks do not do the same, by what report.json says.

    Where at least as many validation images were compared as images of noise, they alone decide.
    """
    noise, images, found = about['noise'], about.get('images', 0), []
    shares = [(images, 'validation images', about['agreement'])] if images else []
    if images < noise['images']:
        shares.append((noise['images'], 'images of noise', noise['agreement']))
        if noise['difference'] > LARGEST_DIFFERENCE:
            found.append(f'logits on noise differ by {100 * noise["difference"]:.2g} % of how they vary')
    found += [f'the same prediction for only {share:.2f} % of {count} {kind}' for count, kind, share in shares
              if share < LEAST_AGREEMENT]
    if found:
        logger.warning('warning: the integer network is not the trained one: %s. Take --format mantissa:24 and '
                       '--rounding round; if they are taken already, "codes" in report.json (with --images above 0) '
                       'shows which quantizer differs first', '; '.join(found))


def report_codes(codes):
    """Prints how the codes of the two networks differ."""
    logger.info('codes of the integer network against the fake-quantized one:')
    logger.info('%-40s %22s %22s', 'quantizer', 'alone: equal, largest', 'end to end')
    for name, row in codes.items():
        logger.info('%-40s %14.4f %% %5d %14.4f %% %5d', name, 100 * row.equal, row.largest,
                    100 * row.equal_end_to_end, row.largest_end_to_end)


def report_cycles(args, model, network, shape):
    """Simulates the machines of --hardware and prints their cycles; returns what report.json says of it."""
    from lib.integer.cost import simulate
    from lib.network.records import profile_layers
    from lib.simulator.backends import find_hardware
    records, result = profile_layers(model, shape), {}
    for name in args.hardware or ['edge']:
        hardware = find_hardware(name)
        layers = simulate(network, records, hardware)
        total = sum(layer.latency for layer in layers)
        logger.info('%s, batch %d: %.6g %s, %.4g ms', hardware.name, hardware.batch, total, hardware.latency_unit,
                    hardware.milliseconds(total))
        logger.info('%-40s %12s %5s %5s %14s %7s  %s', 'layer', 'MACs', 'w', 'a', hardware.latency_unit, 'share',
                    'waits for')
        for layer in layers:
            logger.info('%-40s %12d %5d %5d %14.6g %6.1f%%  %s', layer.name, layer.macs, layer.w_bit, layer.a_bit,
                        layer.latency, 100 * layer.latency / total, layer.bound)
        result[hardware.name] = {'unit': hardware.latency_unit, 'batch': hardware.batch, 'latency': total,
                                 'milliseconds': float(hardware.milliseconds(total)),
                                 'layers': [layer._asdict() for layer in layers]}
    return {'hardware': result}


def save(folder, network, about):
    """Writes integer.npz, integer.h and report.json."""
    from lib.record.files import write_json
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder / 'integer.npz')
    network.write_header(folder / 'integer.h')
    write_json(folder / 'report.json', about)
