"""What a file may hold beside tensors and plain values, so that it is read without running code from it.

`torch.load(weights_only=True)` refuses every class it does not know. Arrays and scalars of NumPy are read as they are.
Settings of other trainers are replaced while they are read: what is a dict there becomes an OrderedDict, what is
anything else an `Inert`. Nothing that the file names is imported or called.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np


class Inert:
    """Stands in the place of an object whose content nobody needs."""

    def __new__(cls, *_args, **_kwargs):
        return object.__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        """Forget what the object held."""

    def __repr__(self) -> str:
        return '(an object)'


class _Dict:
    """Makes an OrderedDict where the file has a dict of another class."""

    def __new__(cls, *_args, **_kwargs):
        return OrderedDict()


class _List:
    """Makes a list where the file has a list of another class, or a deque."""

    def __new__(cls, *_args, **_kwargs):
        return []


def _no_bytes() -> bytes:
    return b''


DICTS = (
    'collections.defaultdict', 'easydict.EasyDict', 'yacs.config.CfgNode', 'addict.addict.Dict', 'munch.Munch',
    'mmcv.utils.config.ConfigDict', 'mmengine.config.config.ConfigDict',
    'pytorch_lightning.utilities.parsing.AttributeDict', 'lightning.pytorch.utilities.parsing.AttributeDict',
    'lightning_fabric.utilities.data.AttributeDict', 'lightning.fabric.utilities.data.AttributeDict',
)
OBJECTS = (
    'argparse.Namespace', 'types.SimpleNamespace', 'pathlib.Path', 'pathlib.PosixPath', 'pathlib.WindowsPath',
    'pathlib.PurePath', 'pathlib.PurePosixPath', 'pathlib.PureWindowsPath', 'pathlib._local.Path',
    'pathlib._local.PosixPath', 'pathlib._local.WindowsPath', 'pathlib._local.PurePosixPath',
    'pathlib._local.PureWindowsPath', 'datetime.datetime', 'datetime.date', 'datetime.time', 'datetime.timedelta',
    'datetime.timezone', 'zoneinfo.ZoneInfo._unpickle', 'time.struct_time', 'decimal.Decimal', 'fractions.Fraction',
    'uuid.UUID', 'uuid.SafeUUID', 're._compile', 'builtins.range', 'builtins.slice', 'builtins.object',
    'builtins.list', 'builtins.dict', 'builtins.tuple', 'builtins.int', 'builtins.float', 'builtins.str',
    'builtins.bool', 'builtins.type', 'typing.Any', 'torch.torch_version.TorchVersion',
    'torchvision.transforms.functional.InterpolationMode', 'omegaconf.dictconfig.DictConfig',
    'omegaconf.listconfig.ListConfig', 'omegaconf.base.ContainerMetadata', 'omegaconf.base.Metadata',
    'omegaconf.nodes.AnyNode', 'omegaconf.nodes.IntegerNode', 'omegaconf.nodes.FloatNode',
    'omegaconf.nodes.StringNode', 'omegaconf.nodes.BooleanNode',
)


def safe_types() -> list[tuple[Callable, str]]:
    """Return (what is called instead, name in the file) of everything allowed beyond torch's own list."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    numpy = {np.ndarray: ['numpy.ndarray'], np.dtype: ['numpy.dtype'],
             scalar: ['numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar'],
             array: ['numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct']}
    kinds = '? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 S1 U1 M8 m8 O'
    numpy |= {type(np.dtype(kind)): [f'numpy.dtype[{kind}]'] for kind in kinds.split()}
    own = {_Dict: DICTS, Inert: OBJECTS, _List: ['collections.deque'], frozenset: ['builtins.frozenset'],
           _no_bytes: ['builtins.bytes']}
    return [(function, name) for function, names in {**numpy, **own}.items() for name in names]
