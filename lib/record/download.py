"""Checkpoints from the network, through the cache of torch.hub."""

import re
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from lib.record.checkpoint import read_checkpoint
from lib.record.digest import digest_of_file


def read_download(url: str, what: str, remedy: str) -> Any:
    """Return what the file of an address holds, downloaded first where the cache of torch.hub does not have it.

    torchvision would unpickle a file of its cache as it is, code and all; here the checksum in its name is verified
    each time, and it is read as every other checkpoint.

    Args:
        url: its address.
        what: it holds, for messages.
        remedy: what else helps.

    Raises:
        FileNotFoundError: it cannot be downloaded.
        ValueError: it does not have the checksum in its name, or cannot be read.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / url.rpartition('/')[2]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise FileNotFoundError(f'{what} could not be downloaded ({error}): fetch {url} and {remedy}') from error
    known = re.search(r'-([0-9a-f]{8,})\.', path.name)
    if known and not digest_of_file(path).startswith(known[1]):
        raise ValueError(f'{path} does not have the SHA-256 that its name begins, {known[1]}: delete it, it is '
                         f'downloaded again, or fetch {url} and {remedy}')
    return read_checkpoint(path)
