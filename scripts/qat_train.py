"""Trains with DoReFa, PACT or LSQ quantizers in place: float, quantized from scratch, or from a float checkpoint."""

from _common import logger, make_parser, run
from _costs import coverage_of
from _options import add_data_options, add_model_options, add_run_options, add_training_options
from _proqha import add_baseline_options
from _qat import add_qat_options, choose_bits, configure, load_start, quantize, settings_of
from _resume import in_file
from _setup import build_model, start_device
from _training import about_run, calibration_images, read_images, read_resumed, resume_hint, train


def make_qat_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_qat_options(parser)
    add_model_options(parser, arch='toynet')
    add_data_options(parser, batch=128, workers=4)
    add_training_options(parser, lr=0.01, weight_decay=5e-4)
    add_run_options(parser)
    add_baseline_options(parser, 'quant')
    return parser


def main(args):
    """Builds the network, puts the quantizers into it and trains; only evaluates with --evaluate."""
    from lib.network.conversion import quantized_layers
    from lib.network.sync_batch_norm import synchronise_batch_norm
    from lib.qat.placement import QATQuantization, find_steps, weight_bits
    from lib.runtime.distributed import world_size

    device, saved = start_device(args), read_resumed(args)
    settings = settings_of(args, saved)
    args.network_options, args.normalize = settings['network'], settings['normalize']
    *loaders, classes = read_images(args, device)
    shape = loaders[0].input_shape
    with in_file(args.resume):
        model = build_model(args, classes, shape, device, loaders)
        bits, float_names = choose_bits(args, model, saved, shape), set(model.state_dict())
        strategy = quantize(model, settings, bits, shape, args.arch)
    load_start(args, model, saved, settings, strategy, float_names)
    if args.sync_bn and world_size() > 1:
        synchronise_batch_norm(model)
    if not saved and settings['quantizers']['activations'] in ('lsq', 'linear'):
        find_steps(model, calibration_images(args, loaders, device))
    quantization = QATQuantization(model, strategy, settings, clip_decay=args.clip_decay)
    bits, full = weight_bits(model)
    logger.info('%s, %s weights, %s activations: weights take %.1f kB, %.4f of float', args.arch,
                settings['quantizers']['weights'], settings['quantizers']['activations'], bits / 8000, bits / full)
    covered = coverage_of(model, shape, quantization.kind)
    cost = {'cost': bits / 8, 'cost_name': 'model_size', 'cost_unit': 'bytes'} if quantization.kind == 'qat' else {}
    about = about_run(args, loaders, classes, ratio=bits / full, **cost, **covered)
    if isinstance(strategy, list):
        about['layers'] = list(quantized_layers(model))
    train(args, model, loaders, saved, device, quantization=quantization, about=about)


if __name__ == '__main__':
    run(main, make_qat_parser(), resume_hint, configure=configure)
