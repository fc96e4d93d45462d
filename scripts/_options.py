"""The options that several scripts share, in groups."""

import argparse

from _option_types import (
    MAX_CLASSES,
    MAX_SEED,
    MAX_SIDE,
    MAX_WIDTH,
    BooleanOption,
    RepositoryPath,
    at_least,
    fraction,
    input_shape,
    positive,
    share,
)

# Options of the originals that have no effect: accepted, with their defaults, and not in --help.
UNUSED = {'half_type': 'O1', 'window_length': 1, 'max_episode_length': 1e9, 'init_w': 0.003, 'epsilon': 50000}


def add_unused_options(group, *names):
    """Add options of `UNUSED`."""
    for name in names:
        group.add_argument(f'--{name}', type=type(UNUSED[name]), default=UNUSED[name], help=argparse.SUPPRESS)


def add_architecture_options(group, arch):
    """Adds the options that choose a network, without its weights, and what of it strategies reach."""
    group.add_argument('-a', '--arch', default=arch, help='name of the network: mobilenet, mobilenetv2, mobilenetv3, '
                       'resnet20/32/44/56, toynet, mobilenetv2_cifar, resnet20_projection, hybrid_cnn, any of '
                       'torchvision, or q + name for its linearly quantized twin')
    group.add_argument('--model_file', metavar='FILE.py:build', help='a network of your own instead: a function that '
                       'returns an nn.Module; it gets num_classes if it takes it; the code in the file is run '
                       '(docs/own_model.md)')
    group.add_argument('--width_mult', type=at_least(0.001, float, MAX_WIDTH), default=1.0,
                       help='width multiplier of the MobileNets')
    group.add_argument('--mode', choices=['small', 'large'], help='size of mobilenetv3 (default: small)')
    group.add_argument('--num_classes', type=at_least(1, maximum=MAX_CLASSES), help='outputs of the network '
                       '(default: from the data set; 1000 for imagenet, imagenet100 and imagenet10)')
    group.add_argument('--attention_products', action=BooleanOption, help='linear: strategies have entries of their '
                       'own for products of two activations, such as those of attention, [bits of the second operand, '
                       'of the first]')


def add_model_options(parser, arch):
    """Adds the options that choose the network and its float weights."""
    group = parser.add_argument_group('network')
    add_architecture_options(group, arch)
    group.add_argument('--weights', metavar='PATH', help='checkpoint with weights to start from: of this repository, '
                       'the originals, torchvision or DataParallel')
    group.add_argument('--ema', action=BooleanOption, help='of --weights take the running average (EMA, SWA) that lies '
                       'beside the raw weights')
    group.add_argument('--reset_classifier', action=BooleanOption, help='where --weights were made for another number '
                       'of classes, start the classifier from random weights')
    group.add_argument('--tensorflow', action=BooleanOption, help='the weights were trained in TensorFlow: SAME '
                       'padding, BatchNorm eps 1e-3, and images in [-1, 1]')
    return group


def add_data_options(parser, batch, workers=16, cache='off'):
    """Adds the options that choose and load the data; without a training `batch` those of the validation images."""
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', '--data_name', default='imagenet', help='digits, mnist, fashion_mnist, svhn, '
                       'cifar10, cifar100, tinyimagenet, imagenet, imagenet100, imagenet10, dtd, or folder')
    group.add_argument('-d', '--data', '--dataset_root', '--dataset_path', dest='dataset_root',
                       default=RepositoryPath('data/imagenet'), help='folder of the data set, data/<name> for another '
                       'one than imagenet; digits needs none')
    group.add_argument('-j', '--workers', '--n_worker', '--num_workers', dest='workers', type=at_least(0),
                       default=workers, help='loader processes, at most the number of CPU cores; data sets in memory '
                       'use none')
    if batch:
        group.add_argument('--train_batch', '--data_bsize', '--batch_size', '-b', dest='train_batch', type=at_least(1),
                           default=batch, help='training batch size, of all processes together')
    group.add_argument('--test_batch', type=at_least(1), default=512, help='batch size of evaluation, of all processes '
                       'together')
    group.add_argument('--image_size', type=at_least(1, maximum=MAX_SIDE),
                       help="side of the images (default: the data set's, 299 for the "
                       'inception family)')
    group.add_argument('--download', action=BooleanOption, help='let torchvision download the data set where it can')
    group.add_argument('--dataset_file', metavar='FILE.py:build', help="a data set of your own instead: build('train') "
                       "and build('val') return a Dataset of (image, label); the code in the file is run "
                       '(docs/own_model.md)')
    group.add_argument('--cache', choices=['off', 'ram', 'auto'], default=cache, help='image folders: decode the '
                       'images once into memory; auto does so where they take at most half of it')
    group.add_argument('--cache_size', type=at_least(1, maximum=MAX_SIDE), default=256,
                       help='longest short side of the images in memory')
    group.add_argument('--on_bad_image', choices=['refuse', 'skip'], default='refuse', help='image folders: a file '
                       'that cannot be decoded stops the run, or is left out and counted')
    return group


def add_run_options(parser, training=True):
    """Adds the options about device, precision, seed and logging; without `training` seed and logging alone."""
    group = parser.add_argument_group('run')
    group.add_argument('--seed', '--manualSeed', dest='seed', type=at_least(-MAX_SEED, maximum=MAX_SEED), default=234,
                       help='seed of everything random')
    group.add_argument('--overwrite', action=BooleanOption, help='replace what is in the output folder')
    group.add_argument('--debug', action=BooleanOption, help='log more, and show the traceback of an error')
    if not training:
        return group
    group.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N; auto takes CUDA where there is '
                       'one; torchrun gives each process a GPU of its own')
    group.add_argument('--gpu_id', help='value for CUDA_VISIBLE_DEVICES, which is left alone without this option')
    group.add_argument('--half', action=BooleanOption, help='mixed precision by torch.amp: float16 on CUDA, bfloat16 '
                       'on the CPU')
    group.add_argument('--channels_last', action=BooleanOption, help='lay images and activations out as N, H, W, C: on '
                       'the CPU 1.1 to 1.5 times faster for MobileNets and the CIFAR ResNets, slower for ResNet-18')
    group.add_argument('--sync_bn', action=BooleanOption, help='several processes (torchrun): BatchNorm over the whole '
                       'batch instead of the part of each process')
    add_unused_options(group, 'half_type')
    return group


def add_quantization_options(parser):
    """Adds the options about quantization that search and fine-tuning share."""
    group = parser.add_argument_group('quantization')
    group.add_argument('--linear_quantization', action=BooleanOption, help='quantize weights and activations linearly '
                       '(strategy of pairs, latency budget) instead of weights by K-means (model size)')
    group.add_argument('--is_pruned', action=BooleanOption, help='K-means: zero weights stay zero, cost nothing and '
                       'get no centroid')
    group.add_argument('--kmeans_weights', choices=['none', 'fisher'], default='none', help='K-means: what the squared '
                       'error of a weight counts: all the same, or by its mean squared gradient on '
                       '--calibration_images, which helps at 1 and 2 bits')
    group.add_argument('--float_bit', type=at_least(1),
                       help='bits that a ratio of 1 stands for (default: 32 in the K-means '
                       'flow, 8 in the linear flow)')
    group.add_argument('--cost', metavar='NAME|PATH.npy|FILE.yaml', help='what prices a strategy: model_size, '
                       'file_size, bitops, activation_memory, proqha_ratio, <hardware>_latency or <hardware>_energy '
                       '(cloud_latency, bitfusion_energy, ...: make_lookup_table.py --list_hardware; the table is made '
                       'when its file is missing), a .npy, or hardware described in a .yaml (default: model_size in '
                       'the K-means flow, cloud_latency in the linear flow)')
    group.add_argument('--cost_batch', type=at_least(1), help='batch size of a table that has to be made (default: '
                       "the hardware's, 16 on cloud, 1 on edge)")
    group.add_argument('--calibrate', choices=['kl', 'mse', 'max'], default='kl', help='linear: how clipping ranges '
                       'are chosen: KL threshold below 5 bits, least squared error, or the largest value')
    group.add_argument('--activation_cap', type=positive,
                       help="linear: upper limit of activation ranges (the original's "
                       'is 6; default: none)')
    add_grid_options(group, 'linear: ', (None, None))
    group.add_argument('--fold_bn', action=BooleanOption, help='linear: fold every BatchNorm that follows a layer into '
                       'its weights before they are quantized')
    group.add_argument('--bn_batches', type=at_least(0), default=0, metavar='N', help='estimate the BatchNorm '
                       'statistics of the quantized network anew, on N training batches, before it is evaluated')
    add_rounding_options(group)
    return group


def add_rounding_options(group):
    """Adds the options of `Rounding`."""
    group.add_argument('--rounding', choices=['nearest', 'compensated'], default='nearest', help='how weights become '
                       'codes: each the nearest one, or chosen so that the codes after it make good its error in the '
                       "layer's outputs, on calibration images and without training (docs/rounding.md)")
    group.add_argument('--calibration_images', type=at_least(2), default=512, metavar='N', help='training images for '
                       'rounding and bias correction, which use no labels, and for --kmeans_weights')
    group.add_argument('--bias_correction', action=BooleanOption, default=None, help='let biases take over the mean '
                       'error that rounding makes in outputs (default: with --rounding compensated True, else False)')
    group.add_argument('--keep_bn', action=BooleanOption, help='with --rounding compensated: keep the BatchNorm '
                       'statistics of the float network; for images that are unlike those it was trained on')


def check_kmeans_weights(kmeans_weights, linear, rounding, bias_correction):
    """Raise ValueError where --kmeans_weights does not apply."""
    if kmeans_weights != 'none' and linear:
        raise ValueError(f'--kmeans_weights {kmeans_weights} belongs to the K-means flow: leave it out')
    if kmeans_weights != 'none' and (rounding != 'nearest' or bias_correction):
        raise ValueError(f'--kmeans_weights {kmeans_weights} belongs to --rounding nearest without --bias_correction '
                         '(compensated rounding weighs by the inputs of the layers): leave one of them out')


def add_grid_options(group, flow='', defaults=('symmetric', 'tensor')):
    """Adds the options of `Grids`; `defaults` of None are those of the checkpoint to start from."""
    words = (f' (default: {usual}, or that of the checkpoint to start from)' if default is None else ''
             for default, usual in zip(defaults, ('symmetric', 'tensor'), strict=True))
    group.add_argument('--activation_grid', choices=['symmetric', 'affine'], default=defaults[0], help=flow + 'levels '
                       'of activations that can be negative: around 0, or with a zero point, which leaves none unused '
                       'behind GELU, SiLU or h-swish' + next(words))
    group.add_argument('--weight_scales', choices=['tensor', 'channel'], default=defaults[1], help=flow + 'one scale '
                       'for each weight, or one for each of its output channels' + next(words))


def add_training_options(parser, *, lr, weight_decay, least=0):
    """Adds the options of the scripts that train; `least` are the fewest epochs."""
    group = parser.add_argument_group('training')
    group.add_argument('--epochs', '--nepochs', dest='epochs', type=at_least(least), default=100,
                       help='epochs in all' + ('' if least else '; 0: what training would begin with is evaluated and '
                                               'saved'))
    group.add_argument('--start_epoch', type=at_least(0), default=0, help='epoch to start with; --resume sets it')
    group.add_argument('--lr', '--learning-rate', '--learning_rate', dest='lr', type=positive, default=lr,
                       help='learning rate')
    group.add_argument('--lr_type', choices=['cos', 'exp', 'step3', 'fixed'], default='cos',
                       help='schedule of the learning rate')
    group.add_argument('--lr_min', '--learning_rate_min', dest='lr_min', type=at_least(0, float), default=0.0,
                       help='cos: learning rate that the schedule ends at')
    group.add_argument('--warmup_epoch', type=at_least(0), default=0,
                       help='first epochs at the constant rate lr * gamma')
    group.add_argument('--warmup_type', choices=['constant', 'linear'], default='constant', help='linear: the warm-up '
                       'rises from lr * gamma to lr, and cos and exp begin after it')
    group.add_argument('--schedule', type=int, nargs='+', default=[31, 61, 91], help='step3: epochs at which the rate '
                       'is multiplied by gamma')
    group.add_argument('--gamma', type=positive, default=0.1, help='factor of step3, exp and the warm-up')
    add_course_options(group, weight_decay, RepositoryPath('checkpoint'))
    group.add_argument('--clip_norm', type=positive, metavar='NORM', help='clip the norm of the gradient of all that '
                       'is trained (default: it is not clipped)')
    add_recipe_options(parser)
    return group


def add_course_options(group, weight_decay, folder, holds=''):
    """Adds what every training has that begins with weights and can be resumed; `folder` is that of the run."""
    group.add_argument('--momentum', type=at_least(0, float), default=0.9, help='momentum of SGD')
    group.add_argument('--weight-decay', '--weight_decay', '--wd', dest='weight_decay', type=at_least(0, float),
                       default=weight_decay, help='weight decay of the optimizer')
    group.add_argument('--pretrained', action=BooleanOption, help='start from published float weights: the file in '
                       "pretrained/imagenet, else torchvision's download")
    group.add_argument('-c', '--checkpoint', default=folder, help=f'folder of the run{holds}')
    group.add_argument('--resume', metavar='CHECKPOINT', help='checkpoint.pth.tar of a run to continue in its folder, '
                       'with its own settings, or a checkpoint to evaluate')
    group.add_argument('-e', '--evaluate', '--eval', dest='evaluate', action=BooleanOption, help='only evaluate')


def add_recipe_options(parser):
    """Adds the options of every script that trains; the defaults are HAQ's recipe."""
    group = parser.add_argument_group('recipe (docs/training.md)')
    group.add_argument('--opt', type=str.lower, choices=['sgd', 'adam', 'adamw'], default='sgd', help='optimizer; adam '
                       'has the betas 0.5 and 0.999, adamw 0.9 and 0.999 and a decoupled weight decay (and needs a '
                       'smaller --lr than sgd, such as 0.001)')
    group.add_argument('--decay_norms', action=BooleanOption, default=None, help='weight decay also of norms, biases '
                       'and what quantizers learn (default: True, with adamw False)')
    group.add_argument('--decay_steps', action=BooleanOption, default=None, help='weight decay also of steps, ranges '
                       'and clips that quantizers learn (default: as --decay_norms)')
    group.add_argument('--label_smoothing', type=share, default=0.0, metavar='E', help='share of every label that is '
                       'spread over all classes')
    group.add_argument('--mixup', type=at_least(0, float), default=0.0, metavar='ALPHA', help='mix the images of a '
                       'batch in pairs, by a share from Beta(ALPHA, ALPHA); 0: not')
    group.add_argument('--cutmix', type=at_least(0, float), default=0.0, metavar='ALPHA', help='paste a rectangle of '
                       'one image into another, likewise; with --mixup, each batch gets one of the two')
    group.add_argument('--randaugment', type=at_least(0, maximum=30), metavar='MAGNITUDE', help='apply random '
                       'operations of this magnitude, 0 to 30, to every training image, after crop and mirroring '
                       '(default: none)')
    group.add_argument('--randaugment_ops', type=at_least(1), default=2, help='--randaugment: operations per image')
    group.add_argument('--ema_decay', type=share, default=0.0, metavar='D', help='validate and save a running average '
                       'of the weights, d = min(D, (1 + steps) / (10 + steps)); 0: the weights themselves')
    return group


def add_teacher_options(group):
    """Adds the options of distillation, whose teacher may be another network."""
    add_distillation_options(group)
    group.add_argument('--teacher', metavar='ARCH', help='of --distill: learn from another float network, such as a '
                       'deeper one (default: the network itself)')
    group.add_argument('--teacher_weights', metavar='PATH', help='of --distill: float weights of the teacher (default: '
                       'those that the run begins from)')


def add_distillation_options(group, where=''):
    """Adds the options of what learns from the float network; `where` begins their help."""
    group.add_argument('--distill', choices=['none', 'float'], default='none', help=where + 'learn from the outputs of '
                       'the float network with the weights that the run begins from (docs/training.md)')
    group.add_argument('--distill_temperature', type=positive, default=4.0, metavar='T', help='of --distill: softens '
                       'the outputs of both networks')
    group.add_argument('--distill_weight', type=fraction, default=1.0, metavar='A', help='of --distill: its share '
                       'of the loss; the rest is the cross entropy with the labels')


def add_input_options(parser, dataset):
    """Adds the options that choose a network and its input, without weights or data."""
    group = parser.add_argument_group('network')
    add_architecture_options(group, 'qmobilenetv2')
    group.add_argument('--dataset', '--data_name', default=dataset, help='data set that gives image size and number '
                       'of classes' + ('' if dataset else " (default: none; ImageNet's, but not its name)"))
    group.add_argument('--input_size', '--image_size', dest='input_size', type=input_shape, metavar='N|CxHxW',
                       help="side of the images, or channels x height x width (default: the data set's, 299 for the "
                       'inception family)')
    return group
