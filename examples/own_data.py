"""A data set of one's own: scikit-learn's digits as they are, 8 x 8 pixels and one channel, shifted in training.

`--dataset_file examples/own_data.py:build`; docs/own_model.md goes through it.
"""

import random

import torch
from sklearn.datasets import load_digits


class Digits(torch.utils.data.Dataset):
    """Items (image float32 (1, 8, 8) in [-1, 1], label); every fifth digit is in 'val', the others in 'train'."""

    classes = [str(digit) for digit in range(10)]

    def __init__(self, split, augment):
        digits = load_digits()
        chosen = [i for i in range(len(digits.target)) if (i % 5 == 0) == (split == 'val')]
        self.images = torch.from_numpy(digits.images[chosen]).float().unsqueeze(1) / 8 - 1
        self.labels = digits.target[chosen]
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.augment:  # up to a pixel to the left or to the right
            image = image.roll(random.randint(-1, 1), dims=2)
        return image, int(self.labels[index])


def build(split, augment):
    """Returns the part of the data that is asked for, 'train' or 'val'."""
    return Digits(split, augment)
