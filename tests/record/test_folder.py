"""A run folder never loses another run."""

import pytest

from lib.record.folder import check_folder, open_run
from lib.record.lock import release


@pytest.fixture(autouse=True)
def released():
    """Gives the locks of the folders back."""
    yield
    release()


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


@pytest.mark.parametrize('resume', [False, True])
def test_temporary_files_of_a_killed_run_are_cleared(tmp_path, resume):
    folder = tmp_path / 'run'
    open_run(folder, {'seed': 1})
    (folder / 'searches').mkdir()
    left = [folder / '.checkpoint.pth.tar.0a1b2c3d.tar', folder / 'searches' / '.uniform3_ddpg.json.k3_x9abc.json']
    others = [folder / '.checkpoint.pth.tar.mine', folder / '.notes.md.0a1b2c3d.md']
    for path in (*left, *others):
        path.write_text('half')
    check_folder(folder, resume=resume, overwrite=not resume)
    open_run(folder, {'seed': 1}, resume=resume)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_folder_that_another_process_has_made_meanwhile(tmp_path):
    folder = tmp_path / 'run'
    check_folder(folder)
    folder.mkdir()
    (folder / 'args.json').write_text('{"seed": 2}')
    with pytest.raises(FileExistsError, match='already holds a run'):
        open_run(folder, {'seed': 1})
    assert (folder / 'args.json').read_text() == '{"seed": 2}'
