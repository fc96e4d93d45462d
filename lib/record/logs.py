"""The logs of a run: a table of its epochs, and scalars for TensorBoard."""

import logging
import platform
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar, text

from lib.record.files import is_file, read_text, write_text

logger = logging.getLogger(__name__)


class ScalarLog:
    """Write a TensorBoard event file.

    tensorboardX's own writer leaves that to a second thread and to the end of the interpreter, both of which print
    tracebacks where the disk is full. Here an event file that cannot be written costs one warning and nothing else.
    """

    def __init__(self, folder: str | Path, purge_step: int = 0):
        """Begin a file in `folder`; TensorBoard forgets what earlier files there hold from `purge_step` on."""
        self._path = Path(folder) / f'events.out.tfevents.{int(time.time())}.{platform.node()}'
        self._waiting, self._failed = bytearray(), False
        self._add(Event(file_version='brain.Event:2'))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(step=purge_step, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a number at a step."""
        self._add(Event(step=step, summary=scalar(name, value)))

    def add_text(self, name: str, value: str, step: int) -> None:
        """Add a text at a step."""
        self._add(Event(step=step, summary=text(name, value)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        for part in (struct.pack('<Q', len(data)), data):  # a record: its length and its content, each with a checksum
            self._waiting += part + struct.pack('<I', masked_crc32c(part))

    def flush(self) -> None:
        """Write to the file what has been added since the last time."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, 'ab') as file:
                file.write(self._waiting)
        except OSError as error:
            if not self._failed:
                logger.warning('%s cannot be written and may lack events: %s', self._path, error.strerror)
            self._failed = True
        self._waiting.clear()


class TableLog:
    """The originals' `log.txt`: one tab-separated line an epoch under a line of column names."""

    def __init__(self, path: str | Path, columns: Sequence[str], keep_rows: int = 0):
        """Start the log, or continue it after its first `keep_rows` rows (later ones belong to a killed epoch).

        Raises:
            ValueError: the file is no such log.
        """
        self.path, self.rows = Path(path), [list(columns)]
        if keep_rows and is_file(self.path):
            lines = read_text(self.path, 'log of a training').split('\n')[1:1 + keep_rows]
            self.rows += [line.split('\t') for line in lines if line]
            try:
                self.columns()
            except (ValueError, IndexError) as error:
                raise ValueError(f'{self.path} cannot be continued as the log of a training: expected {len(columns)} '
                                 'numbers a line; move it away, and another is begun') from error

    def append(self, values: Iterable[float]) -> None:
        """Add a row of numbers and write the file atomically."""
        self.rows.append([f'{value:.6f}' for value in values])
        write_text(self.path, ''.join('\t'.join(row) + '\n' for row in self.rows))

    def columns(self) -> dict[str, list[float]]:
        """Return the logged numbers as {column name: list of floats}."""
        names, *rows = self.rows
        return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}
