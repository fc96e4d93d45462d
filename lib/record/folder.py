"""A run is a folder: its arguments, its log, its checkpoints, its plots; never mixed with another run's."""

from pathlib import Path

from lib.record.disk import check_writable
from lib.record.files import temporaries, write_json
from lib.record.lock import hold

OWN_FILES = ('args.json', 'log.txt', 'results.json', 'strategy.json', 'strategy.txt', 'search.pth.tar',
             'checkpoint.pth.tar', 'model_best.pth.tar', 'epoch_*.pth.tar', 'actor.pkl', 'critic.pkl', 'training.png',
             'strategy.png', 'search.png', 'budget.png', 'events.out.tfevents.*', 'logs/events.out.tfevents.*',
             'searches/*.json', 'finetuned/*.json', 'sensitivity_*.npz', 'sensitivity_*.png', 'comparison.csv',
             'comparison.json', 'comparison.md', 'pareto.csv', 'pareto.png', 'progress.png', 'search_log.csv',
             'steps.png', 'checkpoint/*.pt', 'quantized/checkpoint.pth.tar')
KEPT_FILES = ('experiment_data/q_model/*', 'experiment_data/results/*')  # written too, and not replaced unasked


def check_folder(folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that a run may be written to `folder`; called before anything slow begins.

    A folder that exists is locked until the end of the process.

    Args:
        resume: the run continues what is in the folder.
        overwrite: an earlier run in the folder is to be replaced.

    Raises:
        FileExistsError: the folder holds another run and neither `resume` nor `overwrite` is given, or another process
            writes to it.
        WriteError: no file can be made in it.
    """
    check_writable(folder)
    if Path(folder).is_dir():
        hold(folder)
    held = _own_files(folder)
    if held and not resume and not overwrite:
        raise FileExistsError(f'{folder} already holds a run ({held[0].name} and {len(held) - 1} more files): give '
                              '--resume to continue it, --overwrite to replace it, or another folder')


def open_run(folder: str | Path, args: dict, *, resume: bool = False) -> None:
    """Make the folder of a run that `check_folder` has passed, lock it and write `args.json`.

    Unless the run is resumed, the files of an earlier run are removed; other files in the folder are left alone.
    Temporary files of runs that were killed are removed in any case.

    Args:
        args: dict of the run's settings.
        resume: keep what is there, `args.json` too.

    Raises:
        FileExistsError: another process has made the folder since it was checked.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if hold(folder) and not resume:
        check_folder(folder)
    left = [path for pattern in (*OWN_FILES, *KEPT_FILES) for path in temporaries(folder / pattern)]
    for path in [*left, *([] if resume else _own_files(folder))]:
        path.unlink()
    if not resume:
        write_json(folder / 'args.json', args, seal=True)


def _own_files(folder):
    return [path for pattern in OWN_FILES for path in sorted(Path(folder).glob(pattern)) if path.name[0] != '.']
