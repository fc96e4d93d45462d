"""Row 7: images from the second episode on."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import straightforward
from benchmarks.rows.measure import Row, alternate, seconds
from benchmarks.rows.networks import network, trainer
from lib.utils.data_utils import create_search_loaders, search_split

SIZE, CLASSES = (500, 375), 4  # pixels of ImageNet's photographs, on average
TRAIN, VAL, BATCH = 32, 32, 32


@contextlib.contextmanager
def photographs(count):
    """Yields a temporary folder with train/<class>/*.jpg of smooth noise; its files are of the size of ImageNet's."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for index in range(count):
            folder = Path(root, 'train', f'class{index % CLASSES}')
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)).resize(SIZE, Image.BICUBIC)
            fine = rng.integers(-16, 17, (*SIZE[::-1], 3))
            pixels = np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f'{index:05}.jpg', quality=90)
        yield root


def workers():
    """Returns as many workers as a search takes here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def search_loaders(root, device, train=TRAIN, val=VAL):
    """Returns the product's two loaders of a search, images in memory."""
    *loaders, _ = create_search_loaders('folder', root, train_size=train, val_size=val, batch_size=BATCH,
                                        workers=workers(), cache='ram', device=device, seed=0)
    return loaders


def plain_loaders(root, train=TRAIN, val=VAL):
    """Returns the straightforward loaders of the same images."""
    picked, held = search_split(train + val, train, val)
    return straightforward.photograph_loaders(root, picked.tolist(), held.tolist(), batch=BATCH, workers=workers())


class OpenedFiles:
    """Counts the files under a folder that this process opens; an audit hook stays for good, so one counts for all."""

    def __init__(self):
        self.root, self.count = None, 0
        sys.addaudithook(self._note)

    def _note(self, event, arguments):
        if event == 'open' and self.root and str(arguments[0]).startswith(self.root):
            self.count += 1

    def during(self, root, function):
        """Returns how many files under `root` a call opens."""
        self.root, self.count = str(root), 0
        function()
        self.root = None
        return self.count


def rows(settings):
    """Returns row 7: the images of an episode of MobileNetV2 at 224, against decoding and against the network."""
    device, opened = settings.device, OpenedFiles()
    with photographs(TRAIN + VAL) as root:
        loaders, plain = search_loaders(root, device), plain_loaders(root)
        epoch = iter(range(1, 1000))

        def ours():
            loaders[0].set_epoch(next(epoch))
            _drain(loaders)
        first = opened.during(root, lambda: search_loaders(root, device))
        later = opened.during(root, ours)
        same = _same_validation(loaders[1], plain[1])
        batches = list(loaders[0])
        step = trainer(network('mobilenetv2', device, settings.weights_of('mobilenetv2')), batches, device)
        times = alternate({'ours': ours, 'straightforward': lambda: _drain(plain), 'network': step}, device)
    per_image = {'ours': times['ours'] / (TRAIN + VAL), 'straightforward': times['straightforward'] / (TRAIN + VAL),
                 'network': times['network'] / TRAIN}
    met = later == 0 and per_image['ours'] <= per_image['network']
    return [Row(7, 'an image of an episode, 224 x 224, from episode 2 on', seconds(per_image['ours']),
                f'{seconds(per_image["network"])} (MobileNetV2 trains on one)',
                f'{per_image["ours"] / per_image["network"]:.3f}x', 'at most 1.00x, no file is opened', met,
                f'{later} files opened ({first} at the start); the validation images differ from those of a DataLoader '
                f'by {same:.1e} at most; decoding them anew takes {seconds(per_image["straightforward"])} with '
                f'{workers()} workers')]


def _drain(loaders):
    for loader in loaders:
        for _ in loader:
            pass


def _same_validation(ours, plain):
    pairs = zip(ours, plain, strict=True)
    return max(float((images.cpu() - other).abs().max()) for (images, _), (other, _) in pairs)
