"""Float networks from the options, and whether they fit their images."""

from dataclasses import dataclass, fields
from functools import cached_property, partial

import torch

import models
from lib.network.check import check_network, check_parameters
from lib.network.hooks import probe
from lib.network.reach import reach_weights
from lib.runtime.user_code import load_model

USUAL_CLASSES, USUAL_WIDTH = 10**5, 4  # up to which a network is built without asking how large it will be
VARIANT = ('width_mult', 'mode', 'tensorflow')  # options that tell networks of one architecture apart


@dataclass(frozen=True)
class Network:
    """A float network by its name or file; every field is the option of its name.

    `network_options` are further arguments of the network's builder, `seed` that of its random weights.
    `attention_products` is None of runs from when strategies reached only what the forward of a layer multiplies.
    """

    arch: str
    model_file: str | None = None
    width_mult: float = 1.0
    mode: str | None = None
    num_classes: int | None = None
    tensorflow: bool = False
    network_options: dict | None = None
    attention_products: bool | None = False
    seed: int = 234

    def __post_init__(self):
        if self.model_file and (self.mode or self.width_mult != 1):
            raise ValueError('--width_mult and --mode belong to networks of --arch: leave them out with --model_file')

    @cached_property
    def is_twin(self):
        """Whether the linearly quantized twin is named, by a q before the name of the float network."""
        return (not self.model_file and self.arch.startswith('q')
                and self.arch not in models.list_models(quantized=False))

    @property
    def variant(self):
        """Which variant of its architecture it is: {option: value}, those with the default left out."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in VARIANT
                and getattr(self, field.name) != field.default}

    @property
    def reach(self):
        """What strategies reach, see `reach_weights`."""
        return {None: 'layers', False: 'weights', True: 'products'}[self.attention_products]

    @property
    def float_name(self):
        """Name of the float network; of an own one that of its file."""
        return self.arch[1:] if self.is_twin else self.arch

    def resolution(self, usual):
        """Return the side of the images it was made for, where that of the data set is as usual, 224."""
        return models.default_resolution(self.float_name) if usual == 224 and not self.model_file else usual

    def build(self, classes):
        """Return the network with random weights.

        Raises:
            ValueError: it is unknown or its file fails, or an option does not belong to it.
        """
        if self.model_file:
            return load_model(self.model_file, classes)
        options = {**(self.network_options or {}), **({'mode': self.mode} if self.mode else {})}
        make = partial(models.create_model, self.float_name, num_classes=classes, width_mult=self.width_mult, **options)
        if classes > USUAL_CLASSES or self.width_mult > USUAL_WIDTH or options:
            check_parameters(make, f'{self.arch} of {classes} classes and width {self.width_mult:g}')
        return make()


def build_model(network, classes, shape, device, loaders=(), batch_option='--train_batch'):
    """Return the float network on `device`, checked.

    Args:
        network: the `Network`.
        classes: number of classes of the data; the network's own go before.
        shape: (C, H, W) of an image.
        device: where the network goes.
        loaders: ([training loader,] validation loader) whose batches it has to take.
        batch_option: option of the training batch size, for messages.

    Raises:
        ValueError: the network is unknown, does not take such images, or does not return logits.
    """
    torch.manual_seed(network.seed)
    classes = network.num_classes or classes
    model = network.build(classes)
    if network.tensorflow:
        models.tensorflow_style(model)
    model = model.to(device)
    check_model(network, model, shape, classes, loaders, batch_option)
    return reach_weights(model, probe(model, shape), network.reach)


def check_model(network, model, shape, classes, loaders=(), batch_option='--train_batch'):
    """Raise ValueError, with the options that help, where the network does not take the images of the loaders."""
    named = dict(zip(('training', 'evaluation')[2 - len(loaders):], loaders, strict=True))
    single = {mode: loader.batch_size for mode, loader in named.items() if loader.batches.smallest == 1}
    try:
        check_network(model, shape, classes, single)
    except ValueError as error:
        advice = '; another --image_size?' if ' fails ' in str(error) and not network.model_file else ''
        if ' one image ' in str(error):
            mode = 'training' if ' training mode' in str(error) else 'evaluation'
            option = {'training': batch_option, 'evaluation': '--test_batch'}[mode]
            advice = (f'; one image is what batches of {single[mode]} leave for the last one: take another {option}, '
                      'or let the network take one image (in its forward, flatten(1) in place of squeeze())')
        raise ValueError(f'{network.arch}: {error}{advice}') from error
