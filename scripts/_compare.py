"""One search and one fine-tuning of compare_searchers.py, each with a file of its own."""

import hashlib
import json
import math
import time

from _cli import logger


def run_search(bench, env, folder, name, budget, seed, mark):
    """Returns the record of a search, which goes on where its file ends; `seed` is None for one without chance.

    An evaluation that diverges counts as the worst.

    The record has `strategy`, `accuracy`, `ratio`, `evaluations`, `forwards`, `backwards` (images), `seconds` and
    `history`, [{'strategy', 'accuracy', 'reward', 'ratio'}], with `diverged` where one did; and `mark`, what tells
    the comparison from others.
    """
    from lib.record.files import write_json
    from lib.search.bench import replay
    path = folder / 'searches' / f'{str(budget).replace(":", "")}_{name}{"" if seed is None else f"_seed{seed}"}.json'
    about = {'searcher': name, 'budget': budget, 'seed': seed, **mark}
    record = read(path, about) or {'history': [], 'forwards': 0, 'backwards': 0, 'seconds': 0.0}
    if 'strategy' in record:
        return record
    before, start = bench.counter.counts, time.time()
    bench.saved_seconds = 0.0
    searcher = bench.searcher(name, seed or 0, env)
    replay(searcher, [(entry['strategy'], entry['reward']) for entry in record['history']])
    if record['history']:  # which counts what led there
        before, start, bench.saved_seconds = bench.counter.counts, time.time(), 0.0
    now, history, known = record, record['history'], {str(entry['strategy']): entry for entry in record['history']}
    while len(history) < bench.evaluations and (strategy := searcher.propose()) is not None:
        entry = known.get(str(strategy)) or evaluate(env, strategy)  # the same strategy is evaluated once
        known[str(strategy)] = entry
        searcher.observe(strategy, entry['reward'])
        history.append(entry)
        forwards, backwards = (now - then for now, then in zip(bench.counter.counts, before, strict=True))
        seconds = time.time() - start + bench.saved_seconds
        now = {**about, 'history': history, 'forwards': record['forwards'] + forwards,
               'backwards': record['backwards'] + backwards, 'seconds': record['seconds'] + seconds}
        write_json(path, now, seal=True)
    best = known[str(searcher.best())]
    found = {**about, **{key: best[key] for key in best if key != 'reward'},
             'evaluations': len(history), **now}
    write_json(path, found, seal=True)
    logger.info('%s by %s%s: accuracy %.2f %% in the search, ratio %.4f; %d evaluations, %d images forward, %d '
                'backward, %.0f s', budget, name, '' if seed is None else f', seed {seed}', found['accuracy'],
                found['ratio'], len(history), found['forwards'], found['backwards'], found['seconds'])
    return found


def evaluate(env, strategy):
    """Returns the entry of a strategy in the history of a search."""
    outcome = env.evaluate_strategy(strategy)
    entry = {'strategy': strategy, 'accuracy': outcome.accuracy, 'reward': outcome.reward, 'ratio': outcome.ratio}
    if not outcome.diverged:
        return entry
    logger.warning('%s diverged: %s', strategy, outcome.diverged)
    return {**entry, 'diverged': outcome.diverged}


def run_finetuning(args, env, loaders, folder, strategy, seed, mark):
    """Returns the top-1 accuracy of a strategy on the test images after fine-tuning; of the float network for None.

    A fine-tuning is done once for each strategy and seed, whoever found it. One that diverges has an accuracy of 0.
    """
    from lib.record.files import write_json
    from lib.utils.utils import Metrics
    name = 'float' if strategy is None else hashlib.sha1(json.dumps(strategy).encode()).hexdigest()[:12]
    path = folder / 'finetuned' / (name + ('' if strategy is None else f'_seed{seed}') + '.json')
    about = {'strategy': strategy, 'seed': seed, **mark}
    if found := read(path, about if strategy else mark):
        return found['top1']
    start = time.time()
    try:
        metrics = finetune(args, env, loaders, strategy, seed)
    except FloatingPointError as error:
        if strategy is None:
            raise
        logger.warning('the fine-tuning of %s, seed %d, diverged: %s; a lower --final_lr may help', strategy, seed,
                       error)
        metrics, about = Metrics(None, 0.0, 0.0), {**about, 'diverged': str(error)}
    write_json(path, {**about, 'top1': metrics.top1, 'top5': metrics.top5, 'loss': metrics.loss,
                      'seconds': time.time() - start}, seal=True)
    what = 'float network' if strategy is None else f'{name}, seed {seed}, fine-tuned'
    logger.info('%s: top-1 %.2f %% on the test images, %.0f s', what, metrics.top1, time.time() - start)
    return metrics.top1


def finetune(args, env, loaders, strategy, seed):
    """Returns the `Metrics` on the test images after --final_epochs from the float weights; of these for None."""
    import torch

    from lib.runtime.seeds import seed_everything
    from lib.training.batch_norm import reestimate_batch_norm
    from lib.training.loop import evaluate, train_one_epoch
    from lib.utils.utils import set_learning_rate
    shared = {'precision': env.precision}
    if strategy is None:
        with env.float_network() as model:
            return evaluate(model, loaders[1], env.criterion, env.device, **shared)
    quantization = env.quantize(strategy)
    if args.final_epochs:
        optimizer = torch.optim.SGD(quantization.parameters(), lr=args.final_lr, momentum=0.9,
                                    weight_decay=args.final_wd)
        steps = iter(range(args.final_epochs * len(loaders[0])))

        def before_step():
            done = next(steps) / (args.final_epochs * len(loaders[0]))
            set_learning_rate(optimizer, args.final_lr * 0.5 * (1 + math.cos(math.pi * done)))
            quantization.before_step()

        for epoch in range(args.final_epochs):
            seed_everything(seed, 'finetune', epoch)
            loaders[0].set_epoch(seed * args.final_epochs + epoch)  # another order and other crops for each seed
            train_one_epoch(env.model, loaders[0], quantization.loss, optimizer, env.device, quantization.after_step,
                            before_step=before_step, title=f'epoch {epoch}', **shared)
            quantization.after_epoch(optimizer)
    if args.bn_batches:
        reestimate_batch_norm(env.model, loaders[0], args.bn_batches, env.device, env.precision)
    return evaluate(env.model, loaders[1], env.criterion, env.device, **shared)


def read(path, about):
    """Returns the dict of a JSON file, or None where there is no such file.

    Raises:
        ValueError: the file cannot be read, or is of something else than what it says in `about`.
    """
    from lib.record.files import read_json
    if not path.is_file():
        return None
    try:
        found = read_json(path, 'part of a comparison')
    except ValueError as error:
        raise ValueError(f'{error}: delete it, and this part is done again') from error
    if any(found.get(name) != value for name, value in about.items() if name in found or name == 'run'):
        raise ValueError(f'{path} is of another search or comparison: delete it, and this part is done again')
    return found
