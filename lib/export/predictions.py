"""What a network says of image files: the most probable classes of each, in words and as a table."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from progress.bar import Bar
from torch import Tensor

from lib.record.files import csv_text, write_text

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """The most probable classes of an image, the first one first: their names, and probabilities in 0..1."""

    path: str
    names: list[str]
    probabilities: list[float]

    def line(self) -> str:
        """Return it in words."""
        return f'{self.path}: ' + ', '.join(
            f'{name} {100 * probability:.2f} %' for name, probability in
            zip(self.names, self.probabilities, strict=True))


def predict(run: Callable[[Tensor], Tensor], view: Callable[[str], Tensor], normalise: Callable[[Tensor], Tensor],
            names: Sequence[str], paths: Sequence[str], *, topk: int = 5, batch: int = 32, skip: bool = False
            ) -> Iterator[Prediction]:
    """Yield the `Prediction` of each file, in order, and show a bar on a terminal.

    Args:
        run: images float32 (N, C, H, W) -> logits (N, classes).
        view: path -> pixels uint8 (C, h, w); it raises a ValueError with the attribute `path` for a broken file.
        normalise: pixels (N, C, h, w) -> images.
        names: of the classes.
        topk: classes of each image.
        batch: images that are run together.
        skip: leave out broken files and name them at the end.

    Raises:
        ValueError: a file cannot be decoded; the logits are not finite or not as many as the names.
    """
    bar, bad = Bar('predict', max=len(paths), suffix='%(index)d/%(max)d  %(elapsed_td)s  left %(eta_td)s'), []
    for start in range(0, len(paths), batch):
        seen = []
        for path in paths[start:start + batch]:
            try:
                seen.append((path, view(path)))
            except ValueError as error:
                if not skip or getattr(error, 'path', None) is None:
                    raise
                bad.append(path)
        if seen:
            logits = run(normalise(torch.stack([pixels for _, pixels in seen]))).double()
            yield from _most_probable(logits, [path for path, _ in seen], names, topk)
        bar.next(min(batch, len(paths) - start))
    bar.finish()
    if bad:
        logger.warning('%d of %d images cannot be decoded and are left out: %s', len(bad), len(paths), ', '.join(bad))


def _most_probable(logits, paths, names, topk):
    if logits.shape != (len(paths), len(names)) or not bool(logits.isfinite().all()):
        raise ValueError(f'the network returns {tuple(logits.shape)} for {len(paths)} images, or numbers that are not '
                         f'finite; expected logits {(len(paths), len(names))}')
    found = logits.softmax(1).topk(min(topk, len(names)), dim=1)
    for path, values, labels in zip(paths, found.values.tolist(), found.indices.tolist(), strict=True):
        yield Prediction(path, [names[label] for label in labels], values)


def write_predictions(path: str | Path, predictions: Iterable[Prediction], topk: int) -> None:
    """Write a CSV table: the image, then name and probability of its classes."""
    columns = ['image', *(f'{word}{i}' for i in range(1, topk + 1) for word in ('class', 'probability'))]
    rows = []
    for found in predictions:
        pairs = zip(found.names, found.probabilities, strict=True)
        rows.append([found.path, *(cell for name, value in pairs for cell in (name, f'{value:.6f}'))])
    write_text(path, csv_text(columns, rows))


def share_right(predictions: Sequence[Prediction], names: Sequence[str]) -> tuple[float, int] | None:
    """Return (top-1 in percent, images) of the images whose folder has the name of a class; None: there are none."""
    told = [(found.names[0], folder) for found in predictions if (folder := Path(found.path).absolute().parent.name)
            in set(names)]
    return (100 * sum(first == folder for first, folder in told) / len(told), len(told)) if told else None
