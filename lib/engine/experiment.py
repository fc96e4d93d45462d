"""A quantized network on an engine, beside what it predicts digitally: a measurement, or a sweep over a parameter."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lib.engine.array import ArrayConfig, ArrayDriver
from lib.engine.calibration import Calibration, calibrate_columns
from lib.engine.mvm_engine import make_engine
from lib.engine.network_run import LayerEngine, SumErrors, batches_of, on_engine, percent, predict, sample_codes
from lib.engine.operands import LayerOperands
from lib.engine.plots import plot_layers, plot_sweep
from lib.record.files import csv_text, is_file, read_json, write_json, write_text
from lib.record.values import PERCENT, check_values, optional, real

logger = logging.getLogger(__name__)

SWEEP_ROW = ('value', 'top1', 'agreement', 'relative_error', 'arrays', 'seconds', 'fingerprint')
LAYER_ROW = ('layer', 'w_bit', 'a_bit', 'terms', 'arrays', 'count', 'rmse', 'bias', 'relative_error', 'correlation',
             'effective_bits', 'lowest', 'highest')
POINT = {'top1': PERCENT, 'agreement': PERCENT, 'arrays': real(0), 'seconds': real(0),
         'relative_error': optional(real(0))}
PROGRESS = 10  # seconds between two lines


class Measurement(NamedTuple):
    """What an engine made of the images."""

    point: dict  # the whole network, in plain values
    layers: list[dict]  # rows of `LAYER_ROW`
    errors: dict[str, SumErrors]


@dataclass(frozen=True)
class Experiment:
    """A network, its layers on engines, and the images on which it is compared with what it predicts digitally.

    Attributes:
        model: quantized, in evaluation mode.
        operands: of its layers on engines, by name.
        loader: of (images, labels).
        labels, digital: the labels, and what the network predicts.
        training, range_images: loader of training images, and how many of them are taken, for converters whose ranges
            are calibrated.
        backend, driver: see `make_engine`.
        calibrate: arguments of `calibrate_columns`, for engines that are calibrated before they are used; else None.
        batch: images that go through the engine at once.
        error_images: on which the errors of every dot product are measured, the first ones.
        about: what else a measurement depends on, by name, as values of JSON.
    """

    model: nn.Module
    operands: Mapping[str, LayerOperands]
    loader: Iterable
    labels: Tensor
    digital: Tensor
    training: Any
    range_images: int = 16
    backend: str = 'simulated'
    driver: Callable[[], ArrayDriver] | None = None
    calibrate: Mapping[str, int] | None = None
    batch: int = 50
    error_images: int = 100
    about: Mapping = field(default_factory=dict)

    @property
    def top1_digital(self) -> float:
        """Accuracy of the network without an engine, in percent."""
        return percent(self.digital == self.labels)

    def fingerprint(self, config: ArrayConfig, calibration: Calibration | None = None) -> str:
        """Return what tells measurements apart: all that they depend on, in 16 hexadecimal digits."""
        about = {**self.about, 'layers': list(self.operands), 'engine': config.to_dict(), 'images': len(self.labels),
                 'batch': self.batch, 'error_images': self.error_images,
                 'range_images': self.range_images if config.adc_range == 'calibrated' else None,
                 'calibration': list(self.calibrate.values()) if self.calibrate else
                 calibration and calibration.to_dict()}
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def measure(self, config: ArrayConfig, calibration: Calibration | None = None) -> Measurement:
        """Run the images through the network with its layers on engines of this configuration."""
        start = time.perf_counter()
        if self.calibrate:
            calibration = calibrate_columns(config, self.driver, **self.calibrate)
        samples = None
        if config.adc_range == 'calibrated':
            images = self.training.first_batch()[:self.range_images].to(next(self.model.parameters()).device)
            samples = sample_codes(self.model, self.operands, images)
        errors = {name: SumErrors(name, self.error_images) for name in self.operands}
        factory = make_engine(config, self.backend, self.driver, calibration)
        with on_engine(self.model, self.operands, partial(LayerEngine, factory=factory, samples=samples),
                       lambda operand, codes, sums: errors[operand.name].add(operand, codes, sums)) as engines:
            _, classes = predict(self.model, batches_of(self.loader, self.batch), self._progress(start))
        rows = [{'layer': name, 'w_bit': operand.weight.bits, 'a_bit': operand.grid.bits, 'terms': operand.terms,
                 'arrays': engines[name].num_arrays, **errors[name].summary()}
                for name, operand in self.operands.items()]
        relative = [row['relative_error'] for row in rows if row.get('relative_error') is not None]
        return Measurement(
            {'top1': percent(classes == self.labels), 'agreement': percent(classes == self.digital),
             'relative_error': sum(relative) / len(relative) if relative else None,
             'arrays': sum(row['arrays'] for row in rows), 'seconds': round(time.perf_counter() - start, 2)},
            rows, errors)

    def _progress(self, start: float) -> Callable[[Tensor, Tensor], None]:
        last = start

        def say(labels, classes):
            nonlocal last
            now = time.perf_counter()
            if now - last > PROGRESS:
                last = now
                logger.info('  %d of %d images: engine %.2f %%, the same prediction for %.2f %%, %.0f s', len(labels),
                            len(self.labels), percent(classes == labels),
                            percent(classes == self.digital[:len(labels)]), now - start)
        return say

    def record(self, config: ArrayConfig, folder: Path, calibration: Calibration | None = None, *,
               overwrite: bool = False, about: Mapping | None = None) -> None:
        """Measure; write experiment.json, layers.csv, scatter.png and histogram.png, unless they are there already.

        Args:
            config: the engine.
            folder: where the files are.
            calibration: of its columns.
            overwrite: measure again what is known.
            about: what experiment.json says beside the measurement.
        """
        path, fingerprint = folder / 'experiment.json', self.fingerprint(config, calibration)
        if not overwrite and read_points(path).get('fingerprint') == fingerprint:
            logger.info('%s has the results of these settings already (--overwrite measures again)', path)
            return
        point, rows, errors = self.measure(config, calibration)
        report(point, rows)
        write_text(folder / 'layers.csv', csv_text(LAYER_ROW, rows))
        pairs = {name: found.pairs() for name, found in errors.items()}
        for kind in ('scatter', 'histogram'):
            plot_layers(pairs, kind, folder / f'{kind}.png')
        write_json(path, {
            **(about or {}), 'images': len(self.labels), 'error_images': self.error_images,
            'top1_engine': point['top1'], **{name: point[name] for name in point if name != 'top1'},
            'backend': self.backend, 'engine': config.to_dict(), 'calibrated': bool(calibration or self.calibrate),
            'layers': {row['layer']: row for row in rows}, 'fingerprint': fingerprint}, seal=True)
        logger.info('%s: experiment.json, layers.csv, scatter.png, histogram.png', folder)

    def sweep(self, name: str, configs: Mapping[object, ArrayConfig], folder: Path, *, overwrite: bool = False,
              top1_float: float | None = None) -> None:
        """Measure every value of a parameter that is not known yet; write sweep_<name>.json, .csv and .png.

        Args:
            name: of the parameter, a field of `ArrayConfig`.
            configs: the engine of each value.
            folder: where the files are.
            overwrite: measure again what is known.
            top1_float: of the figure, in percent; None: not known.
        """
        path, points = folder / f'sweep_{name}.json', []
        known = read_points(path)
        for value, config in configs.items():
            fingerprint = self.fingerprint(config)
            if not overwrite and known_point(known, fingerprint, path):
                logger.info('%s %s: known from %s', name, value, path.name)
            else:
                logger.info('%s %s:', name, value)
                known[fingerprint] = {'value': value, **self.measure(config).point, 'top1_digital': self.top1_digital,
                                      'images': len(self.labels), 'layers': list(self.operands),
                                      'engine': config.to_dict()}
                write_json(path, known, seal=True)
            points.append({**known[fingerprint], 'fingerprint': fingerprint})
            logger.info('%s %s: engine %.2f %%, the same prediction for %.2f %%, %d arrays, %.1f s', name, value,
                        *(points[-1][key] for key in ('top1', 'agreement', 'arrays', 'seconds')))
        write_text(path.with_suffix('.csv'), csv_text(SWEEP_ROW, points))
        plot_sweep(name, points, path.with_suffix('.png'), self.top1_digital, top1_float)
        logger.info('%s: %s.json, .csv, .png', path.parent, path.stem)


def check_arrays(operands: Mapping[str, LayerOperands], configs: Iterable[ArrayConfig]) -> None:
    """Raise ValueError where arrays are too small for a layer; quick."""
    for config in configs:
        for operand in operands.values():
            LayerEngine(operand, make_engine(config, 'ideal'))


def report(point: Mapping, rows: Iterable[Mapping]) -> None:
    """Say accuracies and errors."""
    logger.info('engine: top-1 %.2f %%, the same prediction as the digital network for %.2f %%; %d arrays, %.1f s',
                *(point[name] for name in ('top1', 'agreement', 'arrays', 'seconds')))
    logger.info('%-32s %4s %4s %7s %12s %10s %12s %10s', 'layer', 'w', 'a', 'arrays', 'RMSE', 'relative',
                'correlation', 'eff. bits')
    for row in rows:
        numbers = ('exact' if value is None else f'{value:.6g}' for value in
                   (row.get(name) for name in ('rmse', 'relative_error', 'correlation', 'effective_bits')))
        logger.info('%-32s %4d %4d %7d %12s %10s %12s %10s', row['layer'], row['w_bit'], row['a_bit'], row['arrays'],
                    *numbers)


def read_points(path: Path) -> dict:
    """Return the measurements in a file, {fingerprint: point}; none where there is no file."""
    return read_json(path, 'file of measurements') if is_file(path) else {}


def known_point(known: Mapping, fingerprint: str, path: Path) -> dict | None:
    """Return the point of a fingerprint, if there is one; ValueError where it lacks the numbers of a figure."""
    point = known.get(fingerprint)
    if point is not None:
        check_values(point if isinstance(point, dict) else {}, POINT, f'{path} (delete it): point {fingerprint}')
    return point
