"""What a measured time depends on besides the kernel: processor, libraries, settings."""

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

# Those that decide which int8 and bf16 kernels a library takes; the Arm names come last.
FLAGS = ('avx2', 'avx512f', 'avx512_vnni', 'avx_vnni', 'avx512_bf16', 'avx512_vpopcntdq', 'amx_int8', 'amx_bf16',
         'asimddp', 'i8mm', 'bf16', 'sve')  # fmt: skip
SETTINGS = ('OMP_', 'GOMP_', 'KMP_', 'MKL_', 'ONEDNN_', 'DNNL_', 'MALLOC_')  # beginnings of environment variables


def machine_facts(device: str, cpuinfo: Path = Path('/proc/cpuinfo')) -> dict:
    """Return processor, flags, cores, load, versions, settings and date, as plain values for JSON."""
    model, flags = read_cpuinfo(cpuinfo)
    facts = {
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'cpu': model or platform.processor() or platform.machine(),
        'flags': flags,
        'cores': os.cpu_count(),
        'load_average': [round(load, 2) for load in os.getloadavg()] if hasattr(os, 'getloadavg') else None,
        'system': f'{platform.system()} {platform.release()} {platform.machine()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'torch_cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'environment': {key: os.environ[key] for key in sorted(os.environ) if key.startswith(SETTINGS)},
    }
    return {**facts, **(_cuda_facts() if device == 'cuda' else {})}


def read_cpuinfo(path: Path) -> tuple[str, list[str]]:
    """Return the processor's name and those of its flags that are in FLAGS; nothing where the file is missing."""
    if not path.is_file():
        return '', []
    entries = {}
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        key, _, value = line.partition(':')
        entries.setdefault(key.strip().lower(), value.strip())  # those of the first core
    flags = entries.get('flags', entries.get('features', '')).split()
    return entries.get('model name', ''), [flag for flag in FLAGS if flag in flags]


def _cuda_facts() -> dict:
    return {
        'gpu': torch.cuda.get_device_name(),
        'compute_capability': '.'.join(map(str, torch.cuda.get_device_capability())),
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
        'cudnn_benchmark': torch.backends.cudnn.benchmark,
        'tf32_convolutions': torch.backends.cudnn.allow_tf32,
        'tf32_matmul': torch.backends.cuda.matmul.allow_tf32,
    }
