"""BatchNorm over the batch of all processes, on any device (torch's `SyncBatchNorm` is for GPUs only)."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lib.runtime import distributed


class _Synchronised:
    """Mixin: in training mode the statistics are those of all processes' images together; else an ordinary BatchNorm.

    All processes call it together. Running statistics become what one process would have gathered on the whole batch,
    the variance unbiased by the number of values in all processes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, var * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _follow(self, mean, var):
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        self.running_var.lerp_(var.to(self.running_var), rate)


class SyncBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all processes."""


class SyncBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes."""


TWINS = {nn.BatchNorm1d: SyncBatchNorm1d, nn.BatchNorm2d: SyncBatchNorm2d}


def synchronise_batch_norm(model: nn.Module) -> int:
    """Turn every `nn.BatchNorm1d` and `nn.BatchNorm2d` of `model` into its synchronised twin, in place.

    The modules remain the same objects, with their parameters, hooks and parents. Subclasses with a forward of their
    own are left as they are.

    Returns:
        The number of modules that were turned.
    """
    found = [module for module in model.modules() if type(module) in TWINS]
    for module in found:
        module.__class__ = TWINS[type(module)]
    return len(found)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and (biased) variance over all processes.

    With n values a channel, z = (x - mean) / sqrt(var + eps), and sums over all processes,

        dx = weight / sqrt(var + eps) * (dy - sum(dy) / n - z sum(dy z) / n)

    (Ioffe and Szegedy 2015, section 3). Gradients of weight and bias are this process's share.
    """

    @staticmethod
    def forward(ctx, x, weight: Tensor, bias, eps):
        mean, var, count = global_moments(x.float())
        y = F.batch_norm(x, mean.float(), var.float(), weight, bias, False, 0.0, eps)
        scale = (var + eps).rsqrt().float()
        ctx.save_for_backward(x, weight, mean.float(), scale, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _dims_and_shape(x)
        z = (x - mean.view(shape)) * scale.view(shape)  # (N, C, ...), float32
        own = torch.stack([dy.sum(dims, dtype=torch.float32), (dy * z).sum(dims, dtype=torch.float32)])  # (2, C)
        sums = distributed.add_up(own.double())
        shift, tilt = (sums / count).float()
        dx = dy - shift.view(shape) - z * tilt.view(shape)
        dx = dx * (scale if weight is None else scale * weight).view(shape)
        dw, db = (None, None) if weight is None else (own[1].to(weight), own[0].to(weight))
        return dx.to(x.dtype), dw, db, None


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance of each channel over all processes, (C,), and the values per channel, float64.

    Each process finds those of its own images about its own mean; they are merged by Chan, Golub and LeVeque (1979):
    M2 = sum over processes of M2_r + n_r (mean_r - mean)^2. Nothing is lost where the mean is large.

    Args:
        x: float (N, C, ...), N at least 1 in every process.
    """
    dims, _ = _dims_and_shape(x)
    var, mean = torch.var_mean(x, dims, unbiased=False)
    own = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
    table = distributed.gather(torch.cat([own, mean.double(), var.double()]))  # (processes, 1 + 2 C)
    counts, means, variances = table[:, :1], *table[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
    return mean, var, count


def _dims_and_shape(x):
    return [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
