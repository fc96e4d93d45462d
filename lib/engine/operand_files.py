"""Operands of dot products on disk, for arrays in a laboratory, and what was measured put back into the network."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.engine.network_run import on_engine, percent, predict, sample_codes
from lib.engine.operands import LayerOperands
from lib.record.arrays import read_npz, write_npz
from lib.record.files import is_file
from lib.runtime.seeds import derived_seed

logger = logging.getLogger(__name__)


@torch.no_grad()
def collect_operands(model: nn.Module, operands: Mapping[str, LayerOperands], images: Tensor, folder: str | Path, *,
                     patches: int | None = None, seed: int = 0) -> list[Path]:
    """Write the operands of layers in an ordinary forward pass to `folder/<layer>.npz`.

    Args:
        model: the quantized network, in evaluation mode.
        operands: of its layers by name.
        images: (N, C, H, W) on the network's device.
        folder: where the files go.
        patches: how many input columns of a layer, drawn at random; None: all of the images, as `replay` needs them.
        seed: of the draw.

    Returns:
        The paths of the files, which hold what `operand_arrays` returns.
    """
    found = sample_codes(model, operands, images)
    for name, codes in found.items():
        arrays = operand_arrays(operands[name], codes, patches=patches, seed=seed)
        write_npz(operand_path(folder, name), arrays, compress=True)
    logger.info('%s: operands of %d layers on %d images (%s, ...)', folder, len(found), len(images),
                operand_path(folder, next(iter(found))).name)
    return [operand_path(folder, name) for name in found]


def operand_path(folder: str | Path, name: str) -> Path:
    """Return the file of a layer; a name of the user's own may hold slashes, and stays in the folder."""
    return Path(folder) / f"{name.replace('%', '%25').replace('/', '%2F')}.npz"


def operand_arrays(operand: LayerOperands, codes: Tensor, *, patches: int | None = None, seed: int = 0) -> dict:
    """Return the operands of a layer as arrays, sums[i, g N / G + n] = inputs[i, g] @ weights[g, :, n].

    Args:
        operand: the layer.
        codes: input codes of the layer, (N, C, H, W) or (..., C).
        patches, seed: see `collect_operands`.

    Returns:
        `inputs` (n, G, K) and `weights` (G, K, N / G), uint8 codes in G groups; `sums` (n, N) int64, exact; `rows`
        (n,), where the columns were: (image * height + y) * width + x of the output; `output_shape`; `x_scale`,
        `x_zero_point`, `x_bits`, `w_scale`, `w_zero_point`, `w_bits`, `bias`: see `lib/engine/operands.py`; `groups`
        and, of a convolution, `kernel_size`, `stride`, `dilation`, `pads` (left, right, top, bottom), `pad_code`.
    """
    shape = operand.output_shape(codes)
    images = codes if operand.is_conv else codes.reshape(-1, 1, codes.shape[-1])
    positions = shape[-2] * shape[-1] if operand.is_conv else 1
    rows = torch.arange(len(images) * positions)
    if patches is not None and patches < len(rows):
        generator = torch.Generator().manual_seed(derived_seed('operands', operand.name, seed))
        rows = torch.randperm(len(rows), generator=generator)[:patches].sort().values
    inputs, sums = [], []
    for i in (rows // positions).unique().tolist():  # one image at a time: all columns of a batch would fill the memory
        picked = (rows[rows // positions == i] % positions).to(images.device)
        inputs.append(_columns(operand, images[i:i + 1])[picked].to('cpu', torch.uint8))
        exact = operand.dot_products(images[i:i + 1])
        exact = exact[0].flatten(1).T if operand.is_conv else exact[0]
        sums.append(exact[picked].round().long().cpu())
    groups, weight, grid = operand.groups, operand.weight, operand.grid
    arrays = {'inputs': torch.cat(inputs), 'sums': torch.cat(sums), 'rows': rows,
              'weights': weight.codes.reshape(groups, -1, operand.terms).transpose(1, 2).to(torch.uint8),
              'w_scale': weight.scale.flatten(), 'w_zero_point': weight.zero_point.flatten()}
    if operand.layer.bias is not None:
        arrays['bias'] = operand.layer.bias.detach().double()
    plain = {'output_shape': shape, 'x_scale': grid.scale, 'x_zero_point': grid.zero_point, 'x_bits': grid.bits,
             'w_bits': weight.bits, 'groups': groups}
    if operand.is_conv:
        layer = operand.layer
        plain.update(kernel_size=layer.kernel_size, stride=layer.stride, dilation=layer.dilation, pads=operand.pads,
                     pad_code=operand.pad_code)
    return {**{name: tensor.cpu().numpy() for name, tensor in arrays.items()}, **plain}


def _columns(operand, codes):
    """Return the input columns (positions, G, K) of one image's codes, or of one row of a linear layer's."""
    if not operand.is_conv:
        return codes.reshape(1, 1, -1)
    layer = operand.layer
    columns = F.unfold(operand.padded(codes).double(), layer.kernel_size, layer.dilation, 0, layer.stride)[0]
    return columns.T.reshape(-1, operand.groups, operand.terms)


@torch.no_grad()
def replay(model: nn.Module, operands: Mapping[str, LayerOperands], images: Tensor,
           measured: Mapping[str, np.ndarray]) -> Tensor:
    """Return the logits of a network whose layers give measured dot products in place of their own.

    Behind a layer that was measured the inputs change: operands of further layers are to be collected with its
    measurement in place (`on_engine` with `engine_of_sums`).

    Args:
        model: the quantized network, in evaluation mode.
        operands: of its layers by name.
        images: those that the operands were collected on.
        measured: {layer name: (n, N) array of all columns, in the order in which they were collected}.

    Raises:
        ValueError: a layer is unknown, or has another number of measurements than dot products.
    """
    if unknown := sorted(set(measured) - set(operands)):
        raise ValueError(f'measurements of {", ".join(unknown)}: no such layer is chosen')
    chosen = {name: operand for name, operand in operands.items() if name in measured}
    with on_engine(model, chosen, engine_of_sums(measured)) as engines:
        logits = model(images)
    for name, engine in engines.items():
        engine.check_used_up(name)
    return logits


def compare_replayed(model: nn.Module, operands: Mapping[str, LayerOperands], images: Tensor, labels: Tensor,
                     measured: Mapping[str, np.ndarray]) -> None:
    """Say what the network predicts with measured dot products (`replay`), beside what it predicts digitally."""
    classes = replay(model, operands, images, measured).argmax(1).cpu()
    labels, digital = predict(model, [(images, labels)])
    logger.info('%d images, dot products of %s as measured: top-1 %.2f %%, digital %.2f %%; the same prediction for '
                '%.2f %%', len(labels), ', '.join(measured), percent(classes == labels), percent(digital == labels),
                percent(classes == digital))


def engine_of_sums(measured: Mapping[str, np.ndarray]) -> Callable[[LayerOperands], Callable]:
    """Return a function for `on_engine` whose engines give the (n, N) arrays of their layers back, row by row."""
    return lambda operand: _Recorded(operand, measured[operand.name])


class _Recorded:
    """An engine whose results were measured before."""

    def __init__(self, operand, sums):
        sums = torch.as_tensor(np.asarray(sums), dtype=torch.float64)
        outputs = len(operand.layer.weight)
        if sums.dim() != 2 or sums.shape[1] != outputs:
            raise ValueError(f'measurements of {operand.name} have the shape {tuple(sums.shape)}, expected one row a '
                             f'column of inputs and {outputs} values in it')
        self.operand, self.sums, self.used = operand, sums, 0

    def __call__(self, codes):
        shape = self.operand.output_shape(codes)
        count = shape[0] * shape[2] * shape[3] if self.operand.is_conv else codes[..., 0].numel()
        rows = self.sums[self.used:self.used + count].to(codes.device)
        if len(rows) < count:
            raise ValueError(f'{len(self.sums)} measurements of {self.operand.name} are too few: the images have more '
                             'dot products; collect all patches of the same images')
        self.used += count
        if not self.operand.is_conv:
            return rows.reshape(shape)
        return rows.reshape(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2).contiguous()

    def check_used_up(self, name: str) -> None:
        """Raise ValueError for measurements that were left over."""
        if self.used != len(self.sums):
            raise ValueError(f'{len(self.sums)} measurements of {name}, but the images have {self.used} dot products: '
                             'replay the images that they were collected on')


def read_measured(folder: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the arrays `measured` in `folder/<layer>.npz` by layer, for those of `names` that have one.

    Raises:
        ValueError: no file has measurements, or one cannot be read or holds something else than numbers.
    """
    found = {}
    for name in names:
        path = operand_path(folder, name)
        arrays = read_npz(path, 'file of operands', added=('measured',)) if is_file(path) else {}
        if 'measured' in arrays:
            found[name] = array = arrays['measured']
            if array.dtype.kind not in 'iuf' or not np.isfinite(array).all():
                raise ValueError(f'{path}: "measured" holds {array.dtype} {array.shape}, expected finite numbers, one '
                                 'row a column of inputs')
    if not found:
        raise ValueError(f'{folder} has no file <layer>.npz with an array "measured", for example '
                         f'{next(iter(names))}.npz; --collect -1 writes the operands to be measured')
    return found
