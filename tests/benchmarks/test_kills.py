"""What benchmarks/kills.py compares: content without clocks, and no file more or less."""

import json

import numpy as np
import torch

from benchmarks.kills import differences


def write(folder, *, seconds=1.0, weight=1.0, text='#0: reward 1.0 2.5 s\n', extra=None):
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({'top1': 50.0, 'seconds': seconds}))
    (folder / 'log.txt').write_text(text)
    (folder / 'args.json').write_text(str(folder))
    torch.save({'state_dict': {'a': torch.tensor([weight])}, 'history': [{'seconds': seconds}]},
               folder / 'checkpoint.pth.tar')
    np.savez(folder / 'sensitivity.npz', table=np.array([np.nan, weight]), seconds=seconds)
    if extra:
        (folder / extra).touch()


def test_clocks_and_paths_do_not_count_and_all_else_does(tmp_path):
    write(tmp_path / 'whole')
    write(tmp_path / 'same', seconds=2.0, text='#0: reward 1.0 9.0 s\n')
    assert differences(tmp_path / 'same', tmp_path / 'whole') == []
    write(tmp_path / 'other', weight=np.nextafter(np.float32(1), np.float32(2)).item(), text='#0: reward 1.1 2.5 s\n',
          extra='.results.json.abc')
    assert differences(tmp_path / 'other', tmp_path / 'whole') == [
        '.results.json.abc is too much', 'checkpoint.pth.tar', 'log.txt', 'sensitivity.npz']
    (tmp_path / 'same' / 'results.json').unlink()
    assert differences(tmp_path / 'same', tmp_path / 'whole') == ['results.json is missing']
