"""Networks without numbers: for tests that look at names and shapes alone."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode


class NoInitialValues(TorchFunctionMode):
    """Leaves parameters as they are created: on the meta device torch works out values that are not there, slowly."""

    FILLERS = {getattr(torch.Tensor, f'{name}_') for name in ('normal', 'uniform', 'erfinv', 'clamp', 'fill', 'zero')}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in self.FILLERS and args[0].is_meta else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_meta():
    """Within this context tensors have shapes alone."""
    with torch.device('meta'), NoInitialValues():
        yield
