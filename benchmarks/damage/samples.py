"""A file of every kind: runs of all scripts, what a person writes, what is from others, what earlier versions wrote."""

import csv
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from benchmarks.damage import stages
from tests.scripts.conftest import SCRIPTS

CHIP = {'preset': 'edge', 'name': 'chip', 'port_bits': 128, 'clock_mhz': '0.3 GHz'}
SYNSETS = ('n01440764', 'n01443537')


def make_home(home: Path) -> None:
    """Make a file of every kind below `home`, by the scripts and by hand; half a minute on an idle core."""
    home.mkdir(parents=True, exist_ok=True)
    stages.prepare(home)
    for stage in (*stages.RUNS.values(), *stages.EXTRA):
        stages.run(stage, home)
    make_files(home)
    (home / 'complete').touch()


def make_files(home: Path) -> None:
    """Make the files that a person writes or gets from others, and those of an earlier version, from those of runs."""
    layers = [layer['name'] for layer in stages.plain(home / 'table.json')['layers']]
    (home / 'names.json').write_text(json.dumps(stages.plain(home / 'tuned_k/strategy.json')['layers']))
    with open(home / 'costs.csv', 'w', newline='') as file:
        rows = [[name, w, '*', w + 0.5] for name in layers[:1] for w in range(1, 9)]
        rows += [[name, '*', '*', 2] for name in layers[1:]]
        csv.writer(file).writerows([['layer', 'w_bit', 'a_bit', 'cost'], *rows])
    (home / 'chip.yaml').write_text(yaml.safe_dump(CHIP))
    shutil.copy(SCRIPTS.parent / 'run' / 'hybrid' / 'config.yaml', home / 'hybrid.yaml')
    (home / 'engine.yaml').write_text(yaml.safe_dump({'mvm': {'rows': 128, 'columns': 64, 'adc_bits': 8,
                                                              'gain_mismatch': 0.1}}))
    weights = torch.load(home / 'float/checkpoint.pth.tar', weights_only=True)['state_dict']
    save_file(dict(weights), home / 'weights.safetensors')
    torch.save({'state_dict': dict(weights)}, home / 'theirs.pth')
    torch.save(dict(weights), home / 'theirs_legacy.pth', _use_new_zipfile_serialization=False)
    (home / 'measured').mkdir()
    np.savez(home / 'measured' / 'layer.npz', measured=np.arange(60.0).reshape(20, 3))
    make_old(home)
    make_data(home)


def make_old(home: Path) -> None:
    """Make runs as versions without digests wrote them."""
    for name, stage in stages.RUNS.items():
        if (home / stage.folder).is_dir():
            shutil.copytree(home / stage.folder, home / 'old' / name)
    for path in (home / 'old').rglob('*.json'):
        path.write_text(json.dumps({key: value for key, value in stages.plain(path).items()
                                    if key not in ('digest', 'record')}))
    for path in (path for pattern in ('*.tar', '*.pt') for path in (home / 'old').rglob(pattern)):
        saved = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in saved.items() if key not in ('digest', 'run')}, path)


def make_data(home: Path) -> None:
    """Make tiny data sets in the trees of others."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)

    def image(path, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)

    for i, name in enumerate(SYNSETS):
        for suffix in ('png', 'jpeg', 'bmp', 'webp'):
            image(home / 'images' / 'train' / name / f'{i}.{suffix}')
        image(home / 'tiny' / 'train' / name / 'images' / f'{i}.JPEG')
        image(home / 'tiny' / 'val' / 'images' / f'val_{i}.JPEG')
        for j in range(3):
            image(home / 'dtd' / 'images' / name / f'{name}_{j}.jpg')
    lines = [f'val_{i}.JPEG\t{name}\t0\t0\t9\t9' for i, name in enumerate(SYNSETS)]
    (home / 'tiny/val/val_annotations.txt').write_text('\n'.join(lines) + '\n')
    (home / 'dtd/labels').mkdir()
    for part, j in (('train', 0), ('val', 1), ('test', 2)):
        (home / 'dtd/labels' / f'{part}1.txt').write_text(''.join(f'{n}/{n}_{j}.jpg\n' for n in SYNSETS))
    raw = home / 'mnist/MNIST/raw'
    raw.mkdir(parents=True)
    for part in ('train', 't10k'):
        (raw / f'{part}-images-idx3-ubyte').write_bytes(struct.pack('>4I', 2051, 4, 28, 28) + bytes(range(196)) * 16)
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(struct.pack('>2I', 2049, 4) + bytes((0, 1, 2, 3)))
    (home / 'labels').mkdir()
    (home / 'labels/list.txt').write_text('ILSVRC2012_val_00000001.JPEG n01751748\nILSVRC2012_val_00000002.JPEG '
                                          'n01440764\n')
    (home / 'labels/ILSVRC2012_validation_ground_truth.txt').write_text('2\n1\n')
    synsets = np.array([(1, SYNSETS[0]), (2, SYNSETS[1])], [('ILSVRC2012_ID', 'O'), ('WNID', 'O')])
    savemat(home / 'labels/meta.mat', {'synsets': synsets.reshape(-1, 1)})
