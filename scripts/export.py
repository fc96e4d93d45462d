"""Writes a quantized network as a small file (--packed), or one that runs elsewhere: an ONNX graph, or integers.

--packed takes a checkpoint of any script that quantizes; predict.py runs the file, and ONNX files, too.

--onnx takes a checkpoint of finetune.py, qat_train.py or hybrid_train.py. The graph is compared with the network, code
by code and as onnxruntime and OpenVINO run it.

--integer takes one of qat_train.py, or of finetune.py in its linear flow, and runs it without a float number, prices it
on an array of multipliers, and compares it with the fake-quantized one on the validation images, in its predictions and
code by code; with --onnx it is written as a graph of integers, too. All of it runs on the CPU.
"""

from pathlib import Path

from _cli import logger, make_parser, pick, run
from _option_types import BooleanOption as Bool
from _option_types import at_least
from _options import add_architecture_options, add_data_options, add_run_options

STORAGE = ('int8', 'int4', 'packed')  # of weights in an ONNX graph
LEAST_AGREEMENT = 99.0  # percent of equal predictions
LARGEST_DIFFERENCE = 0.25  # of logits on noise; an operation that is lowered wrongly makes them differ by more


def add_export_options(parser):
    """Add the options that only export has."""
    group = parser.add_argument_group('export')
    group.add_argument('--packed', metavar='OUT.safetensors', help='write codes bit after bit, scales or codebooks, '
                       'and all that rebuilds the network, to one file (default: none is written)')
    group.add_argument('--entropy', action=Bool, help='packed: Huffman codes in place of codes of equal length, in the '
                       'layers where that is shorter')
    group.add_argument('--float16', action=Bool, help='packed: biases, normalization and float layers in two bytes a '
                       'number')
    group.add_argument('--class_names', metavar='FILE', help='packed, ONNX: text file with the name of a class a line '
                       '(default: those of the data set)')
    group.add_argument('--integer', action=Bool, help='write integer weights and requantization constants')
    group.add_argument('--onnx', metavar='OUT.onnx', help='write the network as an ONNX graph, verified in the '
                       'runtimes of requirements-export.txt')
    group.add_argument('--onnx_weights', choices=STORAGE, default='int8', help='linear codes as INT8, as INT4 '
                       'where they fit, or packed to their bits; K-means weights are always packed')
    group.add_argument('--int8_sums', action=Bool, help='round residual sums to 8 bits, with ranges of training '
                       'images: runtimes fuse more and are faster, the network is another one')
    group.add_argument('--resume', metavar='CHECKPOINT', help='checkpoint of the trained network; network and data are '
                       'those of its run')
    group.add_argument('--format', default='mantissa:24', metavar='FORMAT', help='of multipliers and offsets: '
                       'mantissa:BITS with a shift per layer; T,I, fixed point of T bits with I before the point '
                       '("16,8"); or original: 32,10 in the blocks and 32,16 in stem, header and classifier')
    group.add_argument('--end_format', metavar='FORMAT', help='of stem, header and classifier (default: as --format '
                       'for a mantissa, else 32,16)')
    group.add_argument('--rounding', dest='shift_rounding', choices=['round', 'floor', 'trunc'], default='round',
                       help='of the shift: to the nearest, down, or towards 0')
    group.add_argument('--saturate', action=Bool, help='clip constants that do not fit their format, and say so, '
                       'instead of refusing them')
    group.add_argument('--wide_word', type=at_least(12), help='bits of tensors that no quantizer made (default: 32 '
                       'with a mantissa, else 24)')
    group.add_argument('--images', type=at_least(-1), help='validation images on which both networks are compared; '
                       '-1: all, 0: none (default: 1000 with --onnx, else all). On noise they always are')
    group.add_argument('--code_images', type=at_least(1), default=64, help='of these, on which every code is compared')
    group.add_argument('--arithmetic', choices=['int64', 'float64'], default='int64', help='float64 holds the same '
                       'integers in double precision: the same logits, faster')
    group.add_argument('--hardware', metavar='PRESET|FILE.yaml', action='append', help='machine whose cycles are '
                       'simulated, may be given several times (default: edge)')
    group.add_argument('--output', metavar='FOLDER', help='default: integer/ beside the checkpoint')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='of the images (default: as in training)')
    group.add_argument('--tensorflow', action=Bool, help='the network was trained in TensorFlow (known from the run)')


def make_export_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_export_options(parser)
    add_architecture_options(parser.add_argument_group('network (known from the checkpoint)'), arch='toynet')
    add_data_options(parser, batch=None, workers=4)
    add_run_options(parser, training=False)
    return parser


def configure(args, _parser):
    """Return the defaults that a checkpoint without the args.json of its run gives."""
    from _checkpoints import checkpoint_settings  # it imports torch

    if not args.resume:
        raise ValueError('give the checkpoint by --resume')
    return checkpoint_settings(args.resume)


def main(args):
    """Lower, compare, simulate and save."""
    from dataclasses import replace

    import torch
    from _checkpoints import read_quantized
    from _costs import coverage_of
    from _exported import PackedExport, about_of, export_packed
    from _networks import Network
    from _onnx import OnnxExport, export_integers, export_onnx
    from _setup import Data, loaders_of

    from lib.integer.compare import check_on_noise, compare_predictions
    from lib.integer.cost import simulate
    from lib.integer.lowering import lower_network
    from lib.network.records import profile_layers
    from lib.record.disk import check_writable
    from lib.record.files import write_json
    from lib.simulator.backends import find_hardware

    if not (args.packed or args.onnx or args.integer):
        raise ValueError('say what to export: --packed OUT.safetensors writes a small file, --onnx OUT.onnx an ONNX '
                         'graph, --integer weights and requantization constants as integers')
    if (args.entropy or args.float16) and not args.packed:
        raise ValueError('--entropy and --float16 belong to --packed')
    if args.class_names and not (args.packed or args.onnx):
        raise ValueError('--class_names belongs to --packed and --onnx')
    if args.int8_sums and (args.integer or not args.onnx):
        raise ValueError('--int8_sums belongs to --onnx without --integer: leave it out')
    network, data, graph = pick(Network, args), pick(Data, args), pick(OnnxExport, args) if args.onnx else None
    if graph:
        graph.target()
    if args.packed:
        export_packed(pick(PackedExport, args), network, data)
    if graph and not args.integer:
        export_onnx(graph, network, data)
    if not args.integer:
        return

    # the quantized network
    model, shape, saved = read_quantized(args.resume, network, kinds=('qat', 'linear'))
    folder = Path(args.output or Path(args.resume).parent / 'integer')
    if (folder / 'integer.npz').exists() and not args.overwrite:
        raise ValueError(f'{folder} holds an integer network already: give --overwrite or another --output')
    check_writable(folder)

    # the integer network, beside it on noise and on images
    integers = lower_network(model, shape, block_format=args.format, end_format=args.end_format,
                             rounding=args.shift_rounding, saturate=args.saturate, wide_word=args.wide_word)
    noise = check_on_noise(model, integers)
    logger.info('%d images of noise: the same prediction for %.2f %%; the logits differ by %.2g %% of how they vary',
                noise.images, noise.agreement, 100 * noise.difference)
    about = {**{name: saved[name] for name in ('arch', 'dataset', 'classes', 'quantization', 'strategy')},
             'format': args.format, 'end_format': args.end_format, 'rounding': args.shift_rounding,
             'noise': noise._asdict(),
             **coverage_of(model, shape)}
    if args.images != 0:
        about['classes'] = args.num_classes or saved['classes']
        data = replace(data, num_classes=about['classes'])
        loader, _ = loaders_of(data, network, torch.device('cpu'), splits=('val',))
        loader.sample(-1 if args.images is None else args.images)
        found = compare_predictions(model, integers, loader, code_images=args.code_images, arithmetic=args.arithmetic)
        report_codes(found.codes)
        logger.info('%d images: fake-quantized %.2f %%, integer %.2f %%; the same prediction for %.2f %%',
                    found.images, found.top1_fake_quantized, found.top1_integer, found.agreement)
        about |= {**found._asdict(), 'codes': {name: row._asdict() for name, row in found.codes.items()}}

    # its cycles
    records, about['hardware'] = profile_layers(model, shape), {}
    for machine in map(find_hardware, args.hardware or ['edge']):
        layers = simulate(integers, records, machine)
        total = sum(layer.latency for layer in layers)
        report_cycles(machine, layers, total)
        about['hardware'][machine.name] = {
            'unit': machine.latency_unit, 'batch': machine.batch, 'latency': total,
            'milliseconds': float(machine.milliseconds(total)), 'layers': [layer._asdict() for layer in layers]}

    # the files
    integers.save(folder / 'integer.npz')
    integers.write_header(folder / 'integer.h')
    write_json(folder / 'report.json', about)
    logger.info('%s: integer.npz, integer.h, report.json', folder)
    if graph:
        export_integers(graph, integers, {**about_of(saved, network, data, args.class_names),
                                          **{name: about[name] for name in ('arch', 'dataset')}})
    warn_of_disagreement(about)


def warn_of_disagreement(about):
    """Warn, as the last line of the export, where the two networks do not do the same, by what report.json says.

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
    """Print how the codes of the two networks differ."""
    logger.info('codes of the integer network against the fake-quantized one:')
    logger.info('%-40s %22s %22s', 'quantizer', 'alone: equal, largest', 'end to end')
    for name, row in codes.items():
        logger.info('%-40s %14.4f %% %5d %14.4f %% %5d', name, 100 * row.equal, row.largest,
                    100 * row.equal_end_to_end, row.largest_end_to_end)


def report_cycles(hardware, layers, total):
    """Print the cycles of a machine."""
    logger.info('%s, batch %d: %.6g %s, %.4g ms', hardware.name, hardware.batch, total, hardware.latency_unit,
                hardware.milliseconds(total))
    logger.info('%-40s %12s %5s %5s %14s %7s  %s', 'layer', 'MACs', 'w', 'a', hardware.latency_unit, 'share',
                'waits for')
    for layer in layers:
        logger.info('%-40s %12d %5d %5d %14.6g %6.1f%%  %s', layer.name, layer.macs, layer.w_bit, layer.a_bit,
                    layer.latency, 100 * layer.latency / total, layer.bound)


if __name__ == '__main__':
    run(main, make_export_parser(), configure=configure)
