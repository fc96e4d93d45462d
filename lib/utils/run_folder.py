"""A run is a folder: its arguments, its log, its checkpoints, its plots; never mixed with another run's."""

from pathlib import Path

from lib.utils.checkpoint import write_json

OWN_FILES = ('args.json', 'log.txt', 'results.json', 'strategy.json', 'strategy.txt', 'search.pth.tar',
             'checkpoint.pth.tar', 'model_best.pth.tar', 'actor.pkl', 'critic.pkl', '*.png', 'events.out.tfevents.*',
             'logs/events.out.tfevents.*')


def open_run(folder, args, *, resume=False, overwrite=False):
    """Makes the folder of a run and writes `args.json`.

    Args:
        folder: path of the run.
        args: dict of the run's settings.
        resume: the run continues what is in the folder; `args.json` is kept.
        overwrite: files of an earlier run in the folder are removed, others are left alone.

    Returns:
        The folder as a `Path`.

    Raises:
        FileExistsError: the folder holds another run and neither `resume` nor `overwrite` is given.
    """
    folder = Path(folder)
    if resume:
        return folder
    held = [path for pattern in OWN_FILES for path in sorted(folder.glob(pattern))]
    if held and not overwrite:
        raise FileExistsError(f'{folder} already holds a run ({held[0].name} and {len(held) - 1} more files): give '
                              '--resume to continue it, --overwrite to replace it, or another folder')
    for path in held:
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'args.json', args)
    return folder
