"""A run is a folder: its arguments, its log, its checkpoints, its plots; never mixed with another run's."""

from pathlib import Path

from lib.record.disk import check_writable
from lib.record.files import write_json

OWN_FILES = ('args.json', 'log.txt', 'results.json', 'strategy.json', 'strategy.txt', 'search.pth.tar',
             'checkpoint.pth.tar', 'model_best.pth.tar', 'epoch_*.pth.tar', 'actor.pkl', 'critic.pkl',
             'training.png', 'strategy.png', 'search.png', 'budget.png', 'events.out.tfevents.*',
             'logs/events.out.tfevents.*', 'searches/*.json', 'finetuned/*.json', 'sensitivity_*.npz',
             'comparison.csv', 'comparison.json', 'comparison.md', 'pareto.png', 'search_log.csv', 'steps.png',
             'checkpoint/*.pt')


def check_folder(folder, *, resume=False, overwrite=False):
    """Checks that a run may be written to `folder`; called before anything slow begins.

    Args:
        folder: path of the run.
        resume: the run continues what is in the folder.
        overwrite: an earlier run in the folder is to be replaced.

    Raises:
        FileExistsError: the folder holds another run and neither `resume` nor `overwrite` is given.
        WriteError: no file can be made in it.
    """
    check_writable(folder)
    held = _own_files(folder)
    if held and not resume and not overwrite:
        raise FileExistsError(f'{folder} already holds a run ({held[0].name} and {len(held) - 1} more files): give '
                              '--resume to continue it, --overwrite to replace it, or another folder')


def open_run(folder, args, *, resume=False):
    """Makes the folder of a run that `check_folder` has passed and writes `args.json`.

    Unless the run is resumed, the files of an earlier run are removed; files of others in the folder are left alone.

    Args:
        folder: path of the run.
        args: dict of the run's settings.
        resume: keep what is there.
    """
    if resume:
        return
    for path in _own_files(folder):
        path.unlink()
    write_json(Path(folder) / 'args.json', args)


def _own_files(folder):
    return [path for pattern in OWN_FILES for path in sorted(Path(folder).glob(pattern))]
