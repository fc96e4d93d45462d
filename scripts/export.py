"""Writes a quantized network as integers, runs it without a float number, and prices it on an array of multipliers.

The checkpoint is one of qat_train.py, or of finetune.py in its linear flow. The integer network is compared with the
fake-quantized one on the validation images, in its predictions and code by code. All of it runs on the CPU.
"""

from pathlib import Path

from _common import logger, make_parser, run
from _export import (
    add_export_options,
    compare,
    read_network,
    report_cycles,
    save,
    self_check,
    warn_of_disagreement,
)
from _options import add_architecture_options, add_data_options, add_run_options
from _setup import loaders_of
from _weights import checkpoint_settings


def make_export_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_export_options(parser)
    add_architecture_options(parser.add_argument_group('network (known from the checkpoint)'), arch='toynet')
    add_data_options(parser, batch=None, workers=4)
    add_run_options(parser, training=False)
    return parser


def main(args):
    """Lowers, compares, simulates and saves."""
    import torch

    from lib.integer.lowering import lower
    from lib.record.disk import check_writable

    if not args.integer:
        raise ValueError('say what to export: --integer writes weights and requantization constants as integers')
    model, shape, about = read_network(args)
    folder = Path(args.output or Path(args.resume).parent / 'integer')
    if (folder / 'integer.npz').exists() and not args.overwrite:
        raise ValueError(f'{folder} holds an integer network already: give --overwrite or another --output')
    check_writable(folder)
    network = lower(model, shape, block_format=args.format, end_format=args.end_format, rounding=args.rounding,
                    saturate=args.saturate, wide_word=args.wide_word)
    about.update(format=args.format, end_format=args.end_format, rounding=args.rounding)
    about.update(self_check(model, network))
    if args.images != 0:
        about['classes'] = args.num_classes = args.num_classes or about.get('classes')
        loader, _ = loaders_of(args, torch.device('cpu'), splits=('val',))
        about.update(compare(args, model, network, loader))
    about.update(report_cycles(args, model, network, shape))
    save(folder, network, about)
    logger.info('%s: integer.npz, integer.h, report.json', folder)
    warn_of_disagreement(about)


if __name__ == '__main__':
    run(main, make_export_parser(), configure=checkpoint_settings)
