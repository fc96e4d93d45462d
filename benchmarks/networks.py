"""Puts networks of torchvision and timm through the repository; makes the table of docs/networks.md.

Each has random weights and small images, or those that it is made for. It is profiled, reached, folded, quantized by
both flows, trained for a step and reloaded. Finished networks are kept, and a run that was stopped goes on; on one
core, beside other programs, all of them take about an hour:

    python benchmarks/networks.py
    python benchmarks/networks.py --only swin_t vit_tiny_patch16_224    # these alone, with tracebacks
    python benchmarks/networks.py --overhead    # what conversion costs while no bits are set
"""

import argparse
import copy
import json
import logging
import math
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lib.network.batch_norm_folding import fold_batch_norms  # noqa: E402
from lib.network.conversion import convert_to_quantized, quantizable_layers, quantized_layers  # noqa: E402
from lib.network.coverage import inventory_of  # noqa: E402
from lib.network.hooks import batch_norms  # noqa: E402
from lib.network.reach import reach_weights, slow_attention  # noqa: E402
from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FINISHED, PAGE = ROOT / 'save' / 'networks.jsonl', ROOT / 'docs' / 'networks.md'
START, END = '<!-- networks -->', '<!-- end of networks -->'
CLASSES = 10
# Names, and the side of the images where a network does not take the usual one.
TORCHVISION = """
alexnet:224 convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3:96 maxvit_t:224
mnasnet0_5 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50
resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32:224 wide_resnet50_2
"""
TIMM = """
bat_resnext26ts:256 beit_base_patch16_224:224 botnet26t_256:256 caformer_s18 cait_xxs24_224:224 coat_lite_tiny:224
coatnet_nano_rw_224:224 convformer_s18 convit_tiny:224 convmixer_768_32 convnext_atto convnextv2_atto
crossvit_tiny_240:240 cs3darknet_focus_s cspresnet50 darknet17 davit_tiny deit3_small_patch16_224:224
deit_tiny_distilled_patch16_224:224 deit_tiny_patch16_224:224 densenet121 dla34 dla46_c dm_nfnet_f0 dpn48b
eca_nfnet_l0 edgenext_xx_small efficientformer_l1:224 efficientformerv2_s0:224 efficientnet_b0 efficientnet_lite0
efficientvit_b0 efficientvit_m0:224 efficientvit_m1:224 ese_vovnet19b_dw eva02_tiny_patch14_224:224 fastvit_t8
fbnetc_100 flexivit_small:240 focalnet_tiny_srf:224 gcresnext26ts gcvit_xxtiny:224 gernet_s ghostnet_100
ghostnetv2_100 gmixer_24_224:224 gmlp_ti16_224:224 halonet26t:256 hardcorenas_a hgnet_tiny hgnetv2_b0
hiera_tiny_224:224 hrnet_w18_small inception_next_atto inception_v4:128 lambda_resnet26t:256 lcnet_050
legacy_seresnet18 levit_128s:224 mambaout_femto maxvit_rmlp_pico_rw_256:256 maxxvit_rmlp_nano_rw_256:256
mixer_s32_224:224 mixnet_s mnasnet_small mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny:224 nest_tiny:224 nf_regnet_b0
nf_resnet26 nfnet_l0 pit_ti_224:224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 regnetx_002 regnety_002 regnetz_b16
repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224:224 resnest14d resnet10t resnet26d resnetaa50
resnetblur18 resnetv2_18 resnetv2_50x1_bit rexnet_100 samvit_base_patch16:256 sebotnet33ts_256:256 selecsls42
semnasnet_075 seresnext26d_32x4d sequencer2d_s:224 shvit_s1:224 skresnet18 spnasnet_100 starnet_s1 swiftformer_xs:224
swin_tiny_patch4_window7_224:224 swinv2_cr_tiny_ns_224:224 swinv2_tiny_window8_256:256 tf_efficientnet_lite0
tf_efficientnetv2_b0 tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224:224 tinynet_e tnt_s_legacy_patch16_224:224
tresnet_m twins_svt_small:224 vgg11_bn visformer_tiny:224 vit_base_patch32_clip_224:224
vit_relpos_small_patch16_224:224 vit_tiny_patch16_224:224 vitamin_small_224:224 volo_d1_224:224 vovnet39a xception41
xcit_nano_12_p16_224:224
"""
USUAL = 64  # side of the images of convolutional networks
SMALL = 128  # of those of timm's other ones that can be built for it


def build(name: str, library: str, side: int = 0) -> nn.Module:
    """Return a network with random weights; of timm for images of this side, where that is an option."""
    torch.manual_seed(0)
    if library == 'timm':
        import timm
        return timm.create_model(name, num_classes=CLASSES, **({'img_size': side} if side else {}))
    import torchvision
    options = {'aux_logits': False, 'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
    return torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Give heads that begin with zeros, and statistics of BatchNorms, values that show what is done to them."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.normal_(0, 0.02, generator=generator)
    for norm in batch_norms(model).values():
        norm.running_mean.normal_(0, 0.1, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits in evaluation mode."""
    return model.eval()(images)


def counted(model: nn.Module, image: torch.Tensor) -> int:
    """Return the multiply-accumulates of an image as torch counts them."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # which the counter follows in vain while no gradients are kept
        parameter.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), slow_attention():
        logits(model, image)
    for parameter in trained:
        parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def folded(model: nn.Module, images: torch.Tensor) -> dict:
    """Fold a copy; return how many of its BatchNorms are, and how far the logits move, relative to their size."""
    before, twin = batch_norms(model), copy.deepcopy(model)
    pairs = fold_batch_norms(twin.eval(), images)
    expected = logits(model, images)
    return {'norms': len(before), 'folded': len(pairs), 'moved': distance(logits(twin, images), expected)}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far logits are apart, relative to the size of the other."""
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


def step(model: nn.Module, quantization, images: torch.Tensor) -> float:
    """Train for a step; return the share of the trained tensors that it changes."""
    parameters = quantization.parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    quantization.loss(model.train()(images), torch.arange(len(images)) % CLASSES).backward()
    quantization.before_step()
    optimizer.step()
    quantization.after_step()
    return sum(not torch.equal(*pair) for pair in zip(before, parameters, strict=True)) / len(parameters)


def smaller(name: str, library: str, side: int) -> int:
    """Return `SMALL` where a network can be built for it and takes such images, else 0."""
    if library != 'timm' or side == USUAL:
        return 0
    try:
        logits(build(name, library, SMALL), torch.zeros(1, 3, SMALL, SMALL))
    except Exception:  # whatever a network says to an option or a size that is not for it
        return 0
    return SMALL


def examine(name: str, library: str, side: int) -> dict:
    """Return what becomes of a network."""
    option = smaller(name, library, side)
    side = option or side
    model, images = build(name, library, option), torch.randn(2, 3, side, side,
                                                              generator=torch.Generator().manual_seed(2))
    shake(model)
    shape, float_logits = tuple(images.shape[1:]), logits(model, images)
    products = reach_weights(copy.deepcopy(model), images[:2], 'products')
    reach_weights(model, images[:2])
    found = {'side': side, 'weights': sum(parameter.numel() for parameter in model.parameters())}
    linear, kmeans = inventory_of(model, shape, True), inventory_of(model, shape, False)
    found |= {'macs': linear.macs, 'counted': counted(model, images[:1]), 'linear': list(linear.coverage),
              'products': list(inventory_of(products, shape, True).coverage), 'kmeans': list(kmeans.coverage),
              'left': list(linear.float_names[:3]) if min(linear.coverage) < 0.99 else [], **folded(model, images[:2])}
    del products
    clustered = copy.deepcopy(model)
    quantization = KMeansQuantization(clustered, [4] * len(quantizable_layers(clustered)), max_iter=5)
    found |= {'kmeans_moved': distance(logits(clustered, images), float_logits),
              'kmeans_step': step(clustered, quantization, images)}
    del clustered, quantization
    convert_to_quantized(model, images[:2], quiet=True)
    found['same'] = bool(torch.equal(logits(model, images), float_logits))
    bits = [[8, 8]] * len(quantized_layers(model))
    quantization = LinearQuantization(model.eval(), bits, images, method='max')
    found |= {'linear_moved': distance(logits(model, images), float_logits), 'step': step(model, quantization, images)}
    again = convert_to_quantized(reach_weights(build(name, library, option), images[:2]), images[:2], quiet=True)
    LinearQuantization(again, bits)
    again.load_state_dict(model.state_dict())
    found['reload'] = bool(torch.equal(logits(again, images), logits(model, images)))
    return found


@torch.no_grad()
def overhead(name: str, library: str, repeats: int = 15) -> tuple[float, float]:
    """Return the median seconds of an evaluation at 224, of a float network and of its converted twin without bits."""
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    plain = build(name, library).eval()
    twin = convert_to_quantized(copy.deepcopy(plain), images[:1], quiet=True)
    for key, module in plain.named_modules():  # a mere copy elsewhere in memory takes up to 10 % more or less
        twin.get_submodule(key)._parameters = module._parameters
        twin.get_submodule(key)._buffers = module._buffers
    seconds = {plain: [], twin: []}
    for turn in range(repeats + 1):
        for net in (plain, twin) if turn % 2 else (twin, plain):
            start = time.process_time()
            net(images)
            seconds[net].append(time.process_time() - start)
    return tuple(statistics.median(times[1:]) for times in seconds.values())


def line(row: dict) -> str:
    """Return the line of a network in the table."""
    head = f'| {row["name"]} | {row["library"]} | {row["side"]} |'
    if 'error' in row:
        return f'{head} {row["error"]} |' + ' |' * 10
    percent = [f'{100 * share:.1f}' for share in (*row['linear'], row['products'][1], row['kmeans'][0])]
    norms = f'{row["folded"]} of {row["norms"]}' if row['norms'] else ''
    marks = [('yes' if row[key] else '**no**') for key in ('same', 'reload')]
    equal = 'yes' if row['macs'] == row['counted'] else f'{row["macs"] / row["counted"]:.4f}'
    return (f'{head} {row["weights"] / 1e6:.2f} | {row["macs"] / 1e6:.0f} | {equal} | {" | ".join(percent)} | {norms} '
            f'| {" | ".join(marks)} | {row["linear_moved"]:.3f} | {", ".join(row["left"])} |')


def page(rows: list[dict]) -> str:
    """Return the table, and the counts that its rows show."""
    rows = sorted(rows, key=lambda row: (row['library'], row['name']))
    done = [row for row in rows if 'error' not in row]
    counts = {
        'networks': len(rows), 'not run to the end': len(rows) - len(done),
        'at least 99 % of the weights in the linear flow': sum(row['linear'][0] >= 0.99 for row in done),
        'and in the K-means flow': sum(row['kmeans'][0] >= 0.99 for row in done),
        'at least 95 % of the multiply-accumulates': sum(row['linear'][1] >= 0.95 for row in done),
        'at least 99 % with products': sum(row['products'][1] >= 0.99 for row in done),
        'as many multiply-accumulates as torch counts': sum(row['macs'] == row['counted'] for row in done),
        'converted = float to the bit': sum(row['same'] for row in done),
        'reloaded = saved to the bit': sum(row['reload'] for row in done),
        'with BatchNorms': sum(row['norms'] > 0 for row in done),
        'of these wholly folded': sum(row['norms'] == row['folded'] > 0 for row in done),
        'all logits finite, and a step that trains': sum(
            math.isfinite(row['linear_moved'] + row['kmeans_moved']) and min(row['step'], row['kmeans_step']) > 0
            for row in done),
    }
    head = ("| network | of | side | weights, M | MACs, M | MACs = torch's | weights % | MACs % | MACs % with products "
            '| K-means weights % | BatchNorms folded | converted = float | reload = saved | 8/8 bits: logits move by '
            '| stays float |')
    summary = [f'* {what}: {count}' for what, count in counts.items()]
    return '\n'.join([*summary, '', head, '|' + '---|' * 15, *map(line, rows)])


def main() -> None:
    """Examine the networks that are not finished, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these; the page is left alone')
    parser.add_argument('--overhead', action='store_true', help='only measure converted networks without bits')
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.overhead:
        for name, library in (('resnet50', 'torchvision'), ('nfnet_l0', 'timm'), ('vit_b_32', 'torchvision')):
            plain, twin = overhead(name, library)
            print(f'{name}: {plain:.3f} s plain, {twin:.3f} s converted without bits, {twin / plain:.3f}x')
        return
    entries = [(entry.partition(':')[0], library, int(entry.partition(':')[2] or USUAL))
               for library, names in (('torchvision', TORCHVISION), ('timm', TIMM)) for entry in names.split()]
    rows = [json.loads(text) for text in FINISHED.read_text().splitlines()] if FINISHED.exists() else []
    known = {(row['name'], row['library']) for row in rows}
    for name, library, side in entries:
        if options.only and name not in options.only or not options.only and (name, library) in known:
            continue
        row, start = {'name': name, 'library': library, 'side': side}, time.time()
        try:
            row |= examine(name, library, side)
        except Exception as error:  # a network that fails is a line of the table
            if options.only:
                raise
            row['error'] = f'{type(error).__name__}: {error}'[:200].replace('\n', ' ')
        print(f'{time.time() - start:5.1f} s', line(row), flush=True)
        if not options.only:
            rows.append(row)
            FINISHED.parent.mkdir(exist_ok=True)
            with FINISHED.open('a') as file:
                file.write(json.dumps(row) + '\n')
    if not options.only:
        text = PAGE.read_text()
        PAGE.write_text(text[:text.index(START) + len(START)] + '\n' + page(rows) + '\n' + text[text.index(END):])


if __name__ == '__main__':
    main()
