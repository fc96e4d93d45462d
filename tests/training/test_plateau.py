"""The learning rate of hybrid training, against torch's scheduler run epoch by epoch."""

import pytest
import torch

from lib.training.plateau import PlateauRate


def torch_rates(accuracies, lr, **settings):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode='max', **settings)
    rates = []
    for accuracy in accuracies:
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step(accuracy)
    return rates


def test_it_follows_torch_and_a_resumed_run_goes_on_with_the_same_rates():
    accuracies = [50, 60, 60, 60, 59, 61, 61, 61, 61, 61, 61, 61, 70, 70, 70, 70, 70, 70]
    settings = {'factor': 0.5, 'patience': 1, 'threshold': 1e-4, 'cooldown': 1, 'min_lr': 0.01}
    rate, rates = PlateauRate(0.1, **settings), []
    for epoch, accuracy in enumerate(accuracies):
        if epoch == 7:  # killed
            rate = PlateauRate(0.1, **settings, history=list(rate.history))
        rates.append(rate(epoch))
        rate.observe(accuracy)
    assert rates == torch_rates(accuracies, 0.1, **settings)
    assert rates[-1] == 0.01 and rates[0] == 0.1


def test_it_warms_up_on_a_line_and_counts_no_epoch_of_it():
    rate = PlateauRate(0.1, warmup_epochs=4, warmup_lr=0.02, patience=0, factor=0.5)
    for accuracy in (9, 8, 7, 6):
        rate.observe(accuracy)
    assert [rate(epoch) for epoch in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    rate.observe(5)
    rate.observe(4)
    assert rate(6) == pytest.approx(0.05)


def test_epochs_without_evaluation_do_not_count():
    rate = PlateauRate(0.1, patience=0, factor=0.5)
    for accuracy in (50, None, None, 51, None):
        rate.observe(accuracy)
    assert rate(5) == 0.1
