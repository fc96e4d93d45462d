"""Print runs side by side and plot accuracy against budget: float, uniform bits, searched bits.

Reads the results.json that pretrain.py, finetune.py and qat_train.py leave in their folders when they finish. Runs of
the same label, such as several seeds of one command, become one row: their mean and its standard error.
"""

import statistics
from pathlib import Path

from _cli import make_parser, run

from lib.record.files import file_stem, is_file, read_json, write_text
from lib.record.values import PERCENT, STRATEGY, TEXT, Rule, check_values, list_of, one_of, optional, real
from lib.record.words import cost_words


def make_summary_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='LABEL=FOLDER', help='finished runs, each with the name it gets in '
                        'the table; runs of one label share a row')
    parser.add_argument('--output', metavar='FOLDER', help='folder for summary.md and one plot per kind of cost '
                        '(default: only print)')
    parser.add_argument('--curve', action='append', default=[], metavar='FOLDER', help='a finished comparison of '
                        'compare_searchers.py: its uniform bits are drawn as a curve in the plot of the same cost; may '
                        'be given several times')
    return parser


def read_run(text):
    """Return the results of one run with its label."""
    label, _, folder = text.partition('=')
    path = Path(folder or label) / 'results.json'
    if not is_file(path):
        raise FileNotFoundError(f'{path} does not exist: is the run finished? expected LABEL=FOLDER of a run of '
                                'pretrain.py or finetune.py')
    results = read_json(path, 'results of a run')
    if not {'top1', 'ratio', 'quantization'} <= results.keys():
        raise ValueError(f'{path} is no result of pretrain.py or finetune.py; a search is compared after fine-tuning')
    strategy = Rule(lambda value: STRATEGY.accepts(value) or isinstance(value, dict), 'a list of bits, or bit lists')
    check_values(results, {'top1': PERCENT, 'ratio': real(0), 'quantization': TEXT, 'cost_name': optional(TEXT),
                           'strategy': optional(strategy)}, f'{path} (run the training again)')
    return {'label': label, 'cost_name': 'float', **results}


def mean_runs(runs):
    """Return one row for each label, the mean of its runs, with the standard error of top-1 (None: of a single run)."""
    groups = {}
    for row in runs:
        groups.setdefault(row['label'], []).append(row)
    return [mean_run(group) for group in groups.values()]


def mean_run(runs):
    """Return the mean of runs of one label; what is no number is that of the first."""
    for key in ('cost_name', 'quantization'):
        if len(found := {row[key] for row in runs}) > 1:
            raise ValueError(f"{runs[0]['label']}: its {len(runs)} runs have several {key}s "
                             f"({', '.join(sorted(map(str, found)))}): give runs of different kinds different labels")
    top1s = [row['top1'] for row in runs]
    error = statistics.stdev(top1s) / len(runs)**0.5 if len(runs) > 1 else None
    return {**runs[0], 'top1': statistics.mean(top1s), 'ratio': statistics.mean(row['ratio'] for row in runs),
            'error': error, 'count': len(runs)}


def table(runs):
    """Return the lines of a Markdown table."""
    lines = ['| network | cost | ratio | top-1 (%) | against float |', '|---|---|---|---|---|']
    reference = next((row['top1'] for row in runs if row['quantization'] == 'float'), None)
    for row in runs:
        gap = '' if reference is None or row['quantization'] == 'float' else f"{row['top1'] - reference:+.2f}"
        error = '' if row['error'] is None else f" ± {row['error']:.2f} ({row['count']})"
        lines.append(f"| {row['label']} | {row['cost_name']} | {row['ratio']:.4f} | {row['top1']:.2f}{error} | {gap} |")
    shares = [f"{row['label']}: its strategy covers {row['coverage']['weights']:.1%} of the weights and "
              f"{row['coverage']['macs']:.1%} of the multiply-accumulates" for row in runs
              if min(row.get('coverage', {'all': 1}).values()) < 1]
    shares += [f"{row['label']}: top-1 is agreement with the {row['labels']}, for its images have no labels"
               for row in runs if 'labels' in row]
    return lines + [''] * bool(shares) + shares


def read_curve(folder):
    """Return (name of the cost, points of `plot_budget`) of the uniform bits in a comparison."""
    path = Path(folder) / 'comparison.json'
    try:
        found = read_json(path, 'comparison')
        check_values(found, {'cost': TEXT, 'rows': list_of(one_of(dict))}, str(path))
        rows = [row for row in found['rows'] if row.get('searcher') == 'uniform']
        for row in rows:
            check_values(row, {'budget': TEXT, 'ratio': real(0), 'top1': PERCENT}, f'{path}: a row of uniform bits')
    except (OSError, ValueError) as error:
        raise ValueError(f'--curve {folder}: no comparison of compare_searchers.py is there ({error})') from error
    tuned = 'fine-tuned as well' if found.get('finetuned', True) else 'not fine-tuned'
    return found['cost'], [{'label': row['budget'].removeprefix('uniform:'), 'ratio': row['ratio'],
                            'accuracy': row['top1'], 'group': f'uniform bits, {tuned}'} for row in rows]


def points_of(rows, beside_curve):
    """Return the points of `plot_budget`: of two groups, or beside a curve each named by the legend."""
    points = [{'label': row['label'], 'ratio': row['ratio'], 'accuracy': row['top1'],
               'group': 'uniform' if 'uniform' in row['label'] else 'searched'} for row in rows]
    if beside_curve:
        return [{**point, 'label': '', 'group': f'{point["label"]}, fine-tuned'} for point in points]
    return points


def main(args):
    """Print the table; with --output also writes it and the plots."""
    runs, curves = mean_runs([read_run(text) for text in args.runs]), dict(map(read_curve, args.curve))
    lines = table(runs)
    print('\n'.join(lines))
    if not args.output:
        return
    from lib.record.plots import plot_budget  # Matplotlib takes a second
    reference = next((row['top1'] for row in runs if row['quantization'] == 'float'), None)
    write_text(Path(args.output) / 'summary.md', '\n'.join(lines) + '\n')
    for name in sorted({row['cost_name'] for row in runs} - {'float'}):
        points = points_of([row for row in runs if row['cost_name'] == name], name in curves)
        path = Path(args.output) / f'{file_stem(name)}.png'
        plot_budget(points, path, float_accuracy=reference, xlabel=cost_words(name), curve=curves.get(name, ()))
        print(f'plot: {path}')


if __name__ == '__main__':
    run(main, make_summary_parser())
