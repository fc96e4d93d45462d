"""Several processes started by torchrun: ranks, what they exchange, and the gradient of all of them.

Every function here does the obvious thing where there is one process, so the code that calls them has no second path.
Those that several processes answer together must be called by all of them, in the same order.
"""

import contextlib
import datetime
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = datetime.timedelta(hours=1)  # of one answer; the main process may be making a lookup table meanwhile
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
# What an error becomes in the other processes: the first of these kinds that it belongs to.
ERROR_KINDS = (FileNotFoundError, FileExistsError, OSError, FloatingPointError, ValueError, RuntimeError)
# BatchNorm statistics are averaged once an epoch, not sent with every step; the option has two names.
SYNC_BUFFERS = next(name for name in ('forward_sync_buffers', 'broadcast_buffers')
                    if name in inspect.signature(DistributedDataParallel).parameters)

_wrappers = {}  # the one wrapper alive, {(network, *ids of what is trained): DistributedDataParallel}


class LostPeer(ConnectionError):
    """Another process of this run has ended, so this one cannot go on either."""


def start(device: torch.device | str) -> torch.device:
    """Join the processes that torchrun started; do nothing where it started none, or only one.

    Tensors on GPUs travel by NCCL and all others by gloo.

    Args:
        device: 'cpu' or 'cuda' or a torch device without a number, for every process takes the GPU of its own number.

    Returns:
        The torch device of this process.

    Raises:
        ValueError: a GPU is named, or there are fewer GPUs than processes on this machine.
        LostPeer: the processes did not find each other.
    """
    device = torch.device(device)
    if not all(name in os.environ for name in TORCHRUN) or dist.is_initialized():
        return device
    processes, number = int(os.environ['WORLD_SIZE']), int(os.environ['LOCAL_RANK'])
    if processes == 1:
        return device
    if device.type == 'cuda':
        device = _own_gpu(device, number)
    with watching():
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', timeout=TIMEOUT)
    return device


def _own_gpu(device, number):
    if device.index is not None:
        raise ValueError(f'--device {device} with several processes: each takes the GPU of its own number, '
                         'give --device cuda')
    if number >= torch.cuda.device_count():
        raise ValueError(f'process {number} of this machine has no GPU of its own, {torch.cuda.device_count()} are '
                         'visible: start as many processes with torchrun --nproc_per_node')
    torch.cuda.set_device(number)
    return torch.device('cuda', number)


def finish() -> None:
    """Leave the other processes. For the end of a run that succeeded: after an error, ending is enough."""
    _wrappers.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is process 0, which alone writes files."""
    return rank() == 0


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Turn torch's error about a process that is gone into a `LostPeer`."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and 'gloo' not in str(error) and 'NCCL' not in str(error):
            raise
        raise LostPeer('another process of this run has ended or does not answer, so this one ends too; what that '
                       'process said last tells the reason') from error


def total(*numbers) -> list:
    """Return the sums of `numbers` over the processes, in float64: exact for integers up to 2^53."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    with watching():
        dist.all_reduce(sums)
    return sums.tolist()


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all processes, which have one shape, as (processes, *shape)."""
    if world_size() == 1:
        return tensor[None]
    table = [torch.empty_like(tensor) for _ in range(world_size())]
    with watching():
        dist.all_gather(table, tensor.contiguous())
    return torch.stack(table)


def join(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensors (n, ...) of all processes in one, in their order; n may differ."""
    if world_size() == 1:
        return tensor
    counts = gather(torch.tensor(len(tensor))).tolist()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[:len(tensor)] = tensor
    return torch.cat([part[:count] for part, count in zip(gather(padded), counts, strict=True)])


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Add the tensors of all processes into `tensor`, with the same bits in all of them; returns it."""
    if world_size() > 1:
        with watching():
            dist.all_reduce(tensor)
    return tensor


def broadcast(value: Any) -> Any:
    """Return the `value` of the main process: numbers, text, lists, tensors on the CPU."""
    if world_size() == 1:
        return value
    box = [value]
    with watching():
        dist.broadcast_object_list(box, src=0, device=torch.device('cpu'))
    return box[0]


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give `tensors` the values of the main process, in place; shapes and types are the same in all processes."""
    if world_size() > 1:
        for flat in _joined(tensors):
            with watching():
                dist.broadcast(flat, src=0)


def average_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give floating-point `tensors` their mean over the processes, in place."""
    if world_size() > 1:
        for flat in _joined(tensors):
            add_up(flat).div_(world_size())


@torch.no_grad()
def _joined(tensors):
    """Yield, for each type and device, all tensors in one vector; what the caller makes of it is written back."""
    groups = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        yield flat
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def agree(error: Exception | None = None) -> None:
    """Go on if no process has an error; else raise in every process: its own, or that of the lowest number.

    What is raised for another process has the attribute `repeated`: that process reports it.

    Args:
        error: the exception that this process has caught, or None.
    """
    if world_size() > 1:
        told, own = [None] * world_size(), error and _portable(error)
        with watching():
            dist.all_gather_object(told, own)
        first = next(filter(None, told), None)
        if first and (error is None or (own == first and told.index(first) < rank())):
            kind, message = first
            repeated = ERROR_KINDS[kind](message)
            repeated.repeated = True
            raise repeated from error
    if error is not None:
        raise error


def _portable(error):
    kind = next((i for i, kind in enumerate(ERROR_KINDS) if isinstance(error, kind)), len(ERROR_KINDS) - 1)
    return kind, str(error) if isinstance(error, ERROR_KINDS) else f'{type(error).__name__}: {error}'


def on_main(function: Callable, *args, **options) -> Any:
    """Call `function` in the main process; all get its result, which must be fit for `broadcast`, or its error."""
    result, error = _attempt(function, *args, **options) if is_main() else (None, None)
    agree(error)
    return broadcast(result)


def on_all(function: Callable, *args, **options) -> Any:
    """Call `function` in all processes at once; returns what it returned here, or all raise the first error."""
    result, error = _attempt(function, *args, **options)
    agree(error)
    return result


def main_first(function: Callable, *args, **options) -> Any:
    """Call `function` in the main process, then in the first one of every other machine, then in the rest.

    For what leaves a file behind (a download, a lookup table): the later ones find it. An error in one turn is raised
    in all processes, and the turns after it do not come.

    Returns:
        What the function returned here.
    """
    own_turn = 0 if is_main() else 1 if os.environ.get('LOCAL_RANK') == '0' else 2
    result = None
    for turn in range(3 if world_size() > 1 else 1):
        error = None
        if turn == own_turn:
            result, error = _attempt(function, *args, **options)
        agree(error)
    return result


def _attempt(function, *args, **options):
    """Return (result, None) or (None, exception)."""
    try:
        return function(*args, **options), None
    except Exception as error:
        return None, error


def data_parallel(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Return what a training step calls in place of `model`, so that gradients are averaged over the processes.

    That is the model itself or, with several processes, its `DistributedDataParallel`, which is made once and again
    only where other parameters are trained. Weights and buffers of the main process are taken over when it is made.

    Args:
        model: the network in training mode.
        images: a batch, to find out whether all parameters take part in the forward.
    """
    if world_size() == 1:
        return model
    key = (model, *(id(parameter) for parameter in model.parameters() if parameter.requires_grad))
    if key not in _wrappers:
        _wrappers.clear()  # before another wrapper hangs its hooks on the same parameters
        with watching():
            unused = bool(total(_some_unused(model, images))[0])
            broadcast_tensors(model.buffers())  # not every version of torch does it
            _wrappers[key] = DistributedDataParallel(model, find_unused_parameters=unused, **{SYNC_BUFFERS: False})
    return _wrappers[key]


def _some_unused(model, images):
    """Return whether a trained parameter gets no gradient; BatchNorm and the random numbers stay as they are."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    statistics = running_statistics(model)
    before = [tensor.clone() for tensor in statistics]
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        logits = model.forward(images)  # not model(images): hooks that count training passes must not see it
        gradients = torch.autograd.grad(logits.sum(), trained, allow_unused=True)
    for tensor, value in zip(statistics, before, strict=True):
        tensor.copy_(value)
    return any(gradient is None for gradient in gradients)


def running_statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the tensors in which normalisation layers gather statistics: means, variances, counts."""
    found = [getattr(module, name, None) for module in model.modules()
             for name in ('running_mean', 'running_var', 'num_batches_tracked')]
    return [tensor for tensor in found if tensor is not None]


def average_running_statistics(model: torch.nn.Module) -> None:
    """Give every BatchNorm the mean over the processes of its running mean and variance."""
    average_tensors([tensor for tensor in running_statistics(model) if tensor.is_floating_point()])
