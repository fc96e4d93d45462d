"""What a strategy is judged by: each reward against its formula by torch, and on the same images in every episode."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lib.env.judging import JUDGED_EPOCH
from tests.env.environments import ENVS
from tests.tiny import TinyLoader

STRATEGY = {'kmeans': [1, 2, 1, 2], 'linear': [[8, -1], [2, 2], [2, 2], [8, 8]]}


def by_hand(reward, net, reference, images, labels):
    """Score in percent of a network and of the float one."""
    with torch.no_grad():
        logits, theirs = net(images).double(), reference(images).double()
    if reward == 'agreement':
        return 100 * (logits.argmax(1) == theirs.argmax(1)).double().mean().item(), 100.0
    if reward == 'loss':
        return tuple(100 * torch.exp(-F.cross_entropy(each, labels)).item() for each in (logits, theirs))
    divergence = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each)
                                                     for each in (theirs, logits))).mean()
    return 100 * torch.exp(-divergence).item(), 100.0


def learn(net, loader):
    """Train a little, so that not all images have the same class."""
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.3)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(net(loader.images), loader.labels).backward()
        optimizer.step()


@pytest.mark.parametrize('flow', ENVS)
@pytest.mark.parametrize('settings', [{}, {'bn_batches': 2, 'finetune_flag': False}, {'reward_on': 'augmented'}])
@pytest.mark.parametrize('reward', ['agreement', 'loss', 'kl'])
def test_rewards_are_those_of_their_formulas(flow, settings, reward, tiny_net, tiny_loaders):
    learn(tiny_net, tiny_loaders[0])
    reference = copy.deepcopy(tiny_net).eval()
    env = ENVS[flow](tiny_net, tiny_loaders, reward=reward, **settings)
    strategy = STRATEGY[flow]
    env.evaluate_strategy(strategy, 2)  # leaves nothing
    outcome = env.evaluate_strategy(strategy, 1)
    if 'reward_on' in settings:  # in whole batches: 32 images for 20
        tiny_loaders[0].set_epoch(JUDGED_EPOCH)
        images, labels = (torch.cat(each) for each in list(zip(*list(tiny_loaders[0])[:2], strict=True)))
        assert len(images) == env.judged.num_images == 32
    else:
        images, labels = tiny_loaders[1].images, tiny_loaders[1].labels
    score, float_score = by_hand(reward, env.model.eval(), reference, images, labels)
    assert outcome.score == pytest.approx(score, abs=1e-3) and env.float_score == pytest.approx(float_score, abs=1e-3)
    assert outcome.reward == pytest.approx(0.1 * (score - float_score), abs=1e-3) and outcome.reward != 0
    hits = env.model(images).argmax(1) == labels
    assert outcome.accuracy == pytest.approx(100 * hits.double().mean().item())


def test_accuracy_is_rewarded_as_before_and_has_no_other_score(tiny_net, tiny_loaders):
    outcome = ENVS['kmeans'](tiny_net, tiny_loaders).evaluate_strategy([2, 3, 2, 3])
    assert outcome.score is None


def test_the_images_are_those_of_one_epoch_whatever_was_trained_on(tiny_net, tiny_loaders):
    env = ENVS['kmeans'](tiny_net, tiny_loaders, reward_on='augmented', finetune_flag=False)
    seen = []
    for epoch in (0, 3):
        tiny_loaders[0].set_epoch(epoch)
        seen.append(torch.cat([images for images, _ in env.judged]))
    assert torch.equal(*seen)
    tiny_loaders[0].set_epoch(0)
    assert not torch.equal(seen[0][:16], tiny_loaders[0].first_batch()), 'of an epoch that is not trained in'
    assert env.evaluate_strategy([3, 3, 3, 3], 0) == env.evaluate_strategy([3, 3, 3, 3], 7)


def test_more_images_than_there_are_to_train_on_are_all_of_them(tiny_net, tiny_loaders):
    large = TinyLoader(images=100)
    env = ENVS['kmeans'](tiny_net, (tiny_loaders[0], large), reward_on='augmented')
    assert env.judged.num_images == 48 and len(env.judged) == 3


@pytest.mark.parametrize(('settings', 'words'), [
    ({'reward': 'luck'}, "reward 'luck': expected one of accuracy, agreement, loss, kl"),
    ({'reward': 'kl', 'use_top5': True}, 'reward kl and use_top5, which is about accuracies'),
    ({'reward': 'loss', 'screen': 8}, 'reward loss and screen, which is about accuracies'),
    ({'reward': 'agreement', 'reward_on': 'train'}, 'reward agreement and reward_on train'),
])
def test_rewards_that_contradict_other_settings_are_refused(settings, words, tiny_net, tiny_loaders):
    with pytest.raises(ValueError, match=words):
        ENVS['kmeans'](tiny_net, tiny_loaders, **settings)
