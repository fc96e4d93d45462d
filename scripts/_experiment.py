"""Measurements of a network on an engine, and sweeps over the engine's parameters whose points are kept."""

import csv
import hashlib
import io
import json
import time
from dataclasses import dataclass
from typing import Any

from _common import logger
from _engine import FIELDS, engine_factory, results_folder

ROW = ('value', 'top1', 'agreement', 'relative_error', 'arrays', 'seconds', 'fingerprint')
PROGRESS = 10  # seconds between two lines


@dataclass
class Setup:
    """What all measurements of a run share: the network, its layers on engines, the images, the digital predictions."""

    args: Any
    model: Any
    operands: dict
    loaders: tuple
    labels: Any
    digital: Any
    checkpoint: str  # hash of the file

    def fingerprint(self, config, calibration):
        """Returns what tells measurements apart: all that they depend on, in 16 hexadecimal digits."""
        args = self.args
        about = {'checkpoint': self.checkpoint, 'layers': list(self.operands), 'engine': config.to_dict(),
                 'data': [args.dataset, args.image_size, args.seed if args.dataset_file else None],
                 'images': len(self.labels), 'batch': args.engine_batch, 'error_images': args.error_images,
                 'backend': [args.backend, args.driver],
                 'range_images': args.range_images if config.adc_range == 'calibrated' else None,
                 'calibration': [args.patterns, args.vectors, args.seed] if args.calibrate else
                 calibration and calibration.to_dict()}
        return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def percent(hits):
    """Returns the share of True in percent."""
    return 100 * hits.double().mean().item()


def measure(setup, config, calibration=None):
    """Runs the images through the network with its layers on engines.

    Returns:
        (what is known of the point as plain values, {layer name: its engine}, `NetworkErrors`).
    """
    from lib.engine.network_run import NetworkErrors, batches_of, engine_maker, on_engine, predict, sample_codes
    args, model, operands = setup.args, setup.model, setup.operands
    start = time.perf_counter()
    calibration = calibrated(args, config) if args.calibrate else calibration
    samples = None
    if config.adc_range == 'calibrated':
        images = setup.loaders[0].first_batch()[:args.range_images].to(next(model.parameters()).device)
        samples = sample_codes(model, operands, images)
    errors, last = NetworkErrors(operands, args.error_images), [start]

    def progress(labels, classes):
        now = time.perf_counter()
        if now - last[0] > PROGRESS:
            last[0] = now
            logger.info('  %d of %d images: engine %.2f %%, the same prediction for %.2f %%, %.0f s', len(labels),
                        len(setup.labels), percent(classes == labels), percent(classes == setup.digital[:len(labels)]),
                        now - start)

    make = engine_maker(engine_factory(args, config, calibration), samples)
    with on_engine(model, operands, make, watch=errors.watch) as engines:
        labels, classes = predict(model, batches_of(setup.loaders[1], args.engine_batch), progress)
    relative = [summary['relative_error'] for summary in map(_summary, errors.layers.values())
                if summary.get('relative_error') is not None]
    point = {'top1': percent(classes == labels), 'agreement': percent(classes == setup.digital),
             'relative_error': sum(relative) / len(relative) if relative else None,
             'arrays': sum(engine.num_arrays for engine in engines.values()),
             'seconds': round(time.perf_counter() - start, 2)}
    return point, engines, errors


def _summary(errors):
    return errors.summary()


def calibrated(args, config):
    """Returns the `Calibration` of an engine, made now."""
    from _engine import driver_of

    from lib.engine.calibration import calibrate_columns
    return calibrate_columns(config, driver_of(args), patterns=args.patterns, vectors=args.vectors, seed=args.seed)


# ---- sweeps

def parse_sweep(text):
    """Option type: FIELD=VALUE,VALUE,... as (field, list of values)."""
    from argparse import ArgumentTypeError
    field, equals, values = text.partition('=')
    field = field.strip()
    if field not in FIELDS:
        raise ArgumentTypeError(f'{text}: the engine has no {field!r}, it has {", ".join(FIELDS)}')
    kind, words = FIELDS[field][0], [word.strip() for word in values.split(',')]
    if not equals or not all(words):
        raise ArgumentTypeError(f'{text}: expected {field}=VALUE,VALUE,...')
    try:
        found = [kind(word) for word in words]
    except ValueError:
        wrong = next(word for word in words if not _is_a(kind, word))
        raise ArgumentTypeError(f'{text}: {wrong!r} is no {"whole " * (kind is int)}number') from None
    return field, list(dict.fromkeys(found))


def _is_a(kind, word):
    try:
        kind(word)
    except ValueError:
        return False
    return True


def run_sweep(setup, field, configs, top1_digital, top1_float):
    """Measures every value of a field that is not known yet; writes sweep_<field>.json, .csv and .png.

    Args:
        setup: a `Setup`.
        field: of `ArrayConfig`.
        configs: {value: `ArrayConfig`}.
        top1_digital, top1_float: of the figure; None: not known.
    """
    from lib.engine.plots import plot_sweep
    from lib.record.files import write_json
    path = results_folder(setup.args) / f'sweep_{field}.json'
    known, points = read_points(path), []
    for value, config in configs.items():
        fingerprint = setup.fingerprint(config, None)
        if not setup.args.overwrite and known_point(known, fingerprint, path):
            logger.info('%s %s: known from %s', field, value, path.name)
        else:
            logger.info('%s %s:', field, value)
            point, _, _ = measure(setup, config)
            known[fingerprint] = {'value': value, **point, 'top1_digital': top1_digital, 'images': len(setup.labels),
                                  'layers': list(setup.operands), 'engine': config.to_dict()}
            write_json(path, known, seal=True)
        points.append({**known[fingerprint], 'fingerprint': fingerprint})
        logger.info('%s %s: engine %.2f %%, the same prediction for %.2f %%, %d arrays, %.1f s', field, value,
                    *(points[-1][name] for name in ('top1', 'agreement', 'arrays', 'seconds')))
    write_csv(path.with_suffix('.csv'), ROW, points)
    plot_sweep(field, points, path.with_suffix('.png'), top1_digital, top1_float)
    logger.info('%s: %s.json, .csv, .png', path.parent, path.stem)


def read_points(path):
    """Returns {fingerprint: point} of a file, {} where there is none.

    Raises:
        ValueError: the file is no such file.
    """
    from lib.record.files import is_file, read_json
    return read_json(path, 'file of measurements') if is_file(path) else {}


def known_point(known, fingerprint, path):
    """Returns the point of a fingerprint, None where there is none.

    Raises:
        ValueError: it has not the numbers that are drawn.
    """
    from lib.record.values import PERCENT, check_values, optional, real
    point = known.get(fingerprint)
    if point is not None:
        rules = {'top1': PERCENT, 'agreement': PERCENT, 'arrays': real(0), 'seconds': real(0),
                 'relative_error': optional(real(0))}
        check_values(point if isinstance(point, dict) else {}, rules, f'{path} (delete it): point {fingerprint}')
    return point


def write_csv(path, names, rows):
    """Writes rows, dicts, as CSV atomically; what a row lacks stays empty."""
    from lib.record.files import write_text
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
