"""The loop of a search: a searcher proposes, the environment evaluates, and the searcher is told."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import isclose
from pathlib import Path

from lib.env.episode import EpisodeSettings, Outcome
from lib.env.search_env import SearchEnv
from lib.env.space import Space
from lib.record.checkpoint import read_checkpoint
from lib.record.digest import digest_of_value
from lib.search.bench import Bench, ImageCounter
from lib.search.log import CHECKPOINT, EpisodeLog
from lib.search.searcher import Searcher, replay

SPARSE = ('diverged', 'score')  # of an `Outcome`, which a record has only where they say something
FIRST_SETTINGS = ('finetune_flag', 'finetune_epoch', 'finetune_lr', 'finetune_gamma', 'use_top5', 'reward_on',
                  'reward_cost', 'bn_batches', 'screen', 'seed')  # those that searches had when identities began


def search(env: SearchEnv, searcher: str | Searcher = 'ddpg', episodes: int = 60, *,
           folder: str | Path | None = None) -> Outcome:
    """Search the bits of every layer; return the best episode.

    Args:
        env: network, images, and the space of strategies.
        searcher: one of `words.SEARCHERS`, or one of your own.
        episodes: strategies to evaluate, at most.
        folder: where the search is recorded; one that is there already goes on. None: nowhere.

    Raises:
        ValueError: another search is recorded there.
        FloatingPointError: all episodes diverged.
    """
    bench = Bench(env, episodes, folder=folder)
    try:
        if isinstance(searcher, str):
            searcher = bench.searcher(searcher, env.settings.seed)
        path = folder and Path(folder, CHECKPOINT)
        saved = read_checkpoint(path) if path and path.is_file() else None
        mark = {'run': identity_of(env, searcher)}
        if saved and saved.get('run') != mark['run']:
            raise ValueError(f'{path} is of another search: its network, images, budgets, settings or searcher differ; '
                             'give another folder')
        history = saved['history'] if saved else ()
        log = EpisodeLog(folder, env, searcher, history=history, mark=mark) if folder else None
        if saved:
            go_on(env, searcher, bench.counter, saved)
        return run_search(env, searcher, bench.counter, episodes, log, history)
    finally:
        bench.counter.close()


def check_history(space: Space, history: Sequence[Mapping]) -> None:
    """Raise ValueError if an episode of a search before records does not have its cost here, or is above a budget."""
    for number, record in enumerate(history):
        try:
            strategy, ratio = record['strategy'], float(record['ratio'])
            here = space.cost.ratio(strategy)
            above = [budget.cost.name for budget in space.constraints if budget.cost.cost(strategy) > budget.limit]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'episode {number} has no strategy and ratio ({error})') from error
        if above or not isclose(ratio, here):
            raise ValueError(f'this is a search under other budgets: the ratio of episode {number} was {ratio:.6g} and '
                             f'is {here:.6g} here' + (f', above the budget of {", ".join(above)}' if above else ''))


def identity_of(env: SearchEnv, searcher: Searcher) -> str:
    """Return a digest of what a search depends on, but for the pixels of its images and how long it goes on."""
    space = env.space
    usual = EpisodeSettings()  # what came later counts where it changes something
    settings = {name: value for name, value in asdict(env.settings).items()
                if name in FIRST_SETTINGS or value != getattr(usual, name)}
    return digest_of_value({
        'searcher': searcher.name, 'weights': env.weights_digest(), 'settings': settings,
        'images': [env.train_loader.num_images, env.val_loader.num_images],
        'budgets': [[budget.cost.digest(), budget.limit] for budget in space.constraints],
        'bits': [*space.range, space.wall, space.pairs], **space.asked})


def run_search(env: SearchEnv, searcher: Searcher, counter: ImageCounter, episodes: int, log: EpisodeLog | None = None,
               history: Sequence[dict] = (), *, reuse: bool = True) -> Outcome:
    """Run the episodes that are left and return the best one; one that diverges counts as the worst.

    Args:
        env: where strategies are evaluated.
        searcher: who proposes them.
        counter: of the images that pass through the network.
        episodes: of the whole search.
        log: what records it; of several processes the main one has it.
        history: records of the episodes of a search that goes on.
        reuse: a strategy that comes again keeps its first result instead of being evaluated again.

    Raises:
        FloatingPointError: all episodes diverged.
    """
    history, agent = list(history), getattr(searcher, 'agent', None)
    known = {str(record['strategy']): record for record in reversed(history)}
    for episode in range(len(history), episodes):
        start, strategy = time.time(), searcher.propose()
        if strategy is None:
            break
        seen = known.get(str(strategy)) if reuse else None
        outcome = outcome_of(seen) if seen else env.evaluate_strategy(strategy, episode)
        known.setdefault(str(strategy), vars(outcome))
        delta = agent.delta(episode) if agent else None
        searcher.observe(strategy, getattr(outcome, searcher.told))
        about = {name: value for name, value in vars(outcome).items() if value is not None or name not in SPARSE}
        losses = getattr(searcher, 'losses', {'value_loss': None, 'policy_loss': None})
        history.append({'episode': episode, **about, **losses, 'delta': delta, 'images': counter.counts,
                        'seconds': time.time() - start})
        if log:
            log.add(history[-1])
            if len(history) % max(episodes // 10, 1) == 0 and len(history) < episodes:  # at the end `finish` draws
                log.plot()
    if log:
        log.finish()
    best = max(history, key=searcher.rank)
    if best.get('diverged'):
        raise FloatingPointError(f'all {len(history)} episodes diverged, the last one: {history[-1]["diverged"]}')
    return outcome_of(best)


def go_on(env: SearchEnv, searcher: Searcher, counter: ImageCounter, saved: Mapping, *, reuse: bool = True) -> None:
    """Bring a new searcher, the counter and the environment's screen to where a search was.

    `saved` is its checkpoint; `reuse` as of `run_search`.

    Raises:
        ValueError: it is of another search.
    """
    history = saved['history']
    told = [(record['strategy'], record[searcher.told]) for record in history]
    if 'agent' in saved:
        searcher.resume(told, saved['agent'])
    else:
        replay(searcher, told)
    if history:
        counter.counts = history[-1]['images']
    first = {str(record['strategy']): record for record in reversed(history)}
    env.screen.pairs = [(record['screened'], record['accuracy']) for record in history
                        if record.get('finetuned') and record['screened'] is not None
                        and (not reuse or record is first[str(record['strategy'])])]


def outcome_of(record: Mapping) -> Outcome:
    """Return the `Outcome` in the record of an episode."""
    return Outcome(**{field.name: record[field.name] for field in fields(Outcome) if field.name in record})
