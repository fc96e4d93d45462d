"""The log of a training as a table."""

from pathlib import Path

from lib.record.files import is_file, read_text, write_text


class TableLog:
    """The originals' `log.txt`: one tab-separated line an epoch under a line of column names."""

    def __init__(self, path, columns, keep_rows=0):
        """Starts the log, or continues it after its first `keep_rows` rows (later ones belong to a killed epoch).

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

    def append(self, values):
        """Adds a row of numbers and writes the file atomically."""
        self.rows.append([f'{value:.6f}' for value in values])
        write_text(self.path, ''.join('\t'.join(row) + '\n' for row in self.rows))

    def columns(self):
        """Returns the logged numbers as {column name: list of floats}."""
        names, *rows = self.rows
        return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}
