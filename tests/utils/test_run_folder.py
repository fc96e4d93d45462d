"""A run folder never loses another run."""

import pytest

from lib.utils.run_folder import check_folder, open_run


def test_another_run_is_refused_and_untouched(tmp_path):
    run = tmp_path / 'run'
    check_folder(run)
    open_run(run, {'seed': 1})
    (run / 'checkpoint.pth.tar').write_text('precious')
    (run / 'notes.md').write_text('mine')
    with pytest.raises(FileExistsError, match='--resume.*--overwrite'):
        check_folder(run)
    assert (run / 'checkpoint.pth.tar').read_text() == 'precious'
    check_folder(run, resume=True)
    open_run(run, {'seed': 2}, resume=True)
    assert '"seed": 1' in (run / 'args.json').read_text()
    check_folder(run, overwrite=True)
    open_run(run, {'seed': 2})
    assert not (run / 'checkpoint.pth.tar').exists()
    assert (run / 'notes.md').read_text() == 'mine'  # not a file of ours
    assert '"seed": 2' in (run / 'args.json').read_text()
