"""Where and on what a script works: the device, and the images as loaders."""

from dataclasses import dataclass

import torch
from _resume import may_have_moved

from lib.runtime import distributed
from lib.utils.data_utils import create_loaders, create_search_loaders, dataset_spec


def find_device(name):
    """Return the torch device of `--device`.

    Raises:
        ValueError: CUDA is asked for and there is none, or the name is unknown.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if name.split(':')[0] not in ('cpu', 'cuda'):
        raise ValueError(f'--device {name}: expected auto, cpu, cuda or cuda:N')
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'--device {name}: this PyTorch sees no CUDA device; take --device cpu')
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'--device {name}: expected auto, cpu, cuda or cuda:N') from error


def start_device(name):
    """Join the processes that torchrun started, if it did; return the torch device of this process."""
    return distributed.start(find_device(name))


@dataclass(frozen=True)
class Data:
    """The images of a run; every field is the option of its name.

    `resume` is the run that goes on, which may find its images in another place.
    """

    dataset: str
    dataset_root: str | None = None
    dataset_file: str | None = None
    num_classes: int | None = None
    train_batch: int | None = None
    test_batch: int = 512
    image_size: int | None = None
    normalize: str | None = None
    workers: int = 0
    seed: int = 234
    cache: str = 'off'
    cache_size: int = 256
    on_bad_image: str = 'refuse'
    randaugment: int | None = None
    randaugment_ops: int = 2
    download: bool = False
    resume: str | None = None


def image_size(data, network):
    """Return the side of the images: the option, the data set's, or 299 for the inception family instead of 224.

    None leaves it to a data set of the user's own.
    """
    if data.image_size or data.dataset_file:
        return data.image_size
    return network.resolution(dataset_spec(data.dataset).resolution)


def loaders_of(data, network, device, needs_labels='what is done here', **parts):
    """Return (training loader, validation loader, number of classes) of `Data` for a `Network`.

    `needs_labels` says what images without labels are refused for; None: nothing.
    `parts`: `train_size` and `val_size` make it two parts of the training images, for a search; `splits` says what to
    read, and what loaders come back; `shard` goes before that of this process.
    """
    create = create_search_loaders if 'train_size' in parts else create_loaders
    run = distributed.main_first if data.download else distributed.on_all  # who comes later finds what was downloaded
    options = {'batch_size': data.train_batch or data.test_batch, 'test_batch_size': data.test_batch,
               'workers': data.workers, 'seed': data.seed, 'download': data.download, 'device': device,
               'image_size': image_size(data, network), 'pin_memory': device.type == 'cuda',
               'dataset_file': data.dataset_file, 'num_classes': data.num_classes, 'cache': data.cache,
               'cache_size': data.cache_size, 'on_bad_image': data.on_bad_image,
               'randaugment': None if data.randaugment is None else (data.randaugment_ops, data.randaugment),
               'shard': (distributed.rank(), distributed.world_size()),
               'normalize': 'symmetric' if network.tensorflow else data.normalize}
    with may_have_moved(data.resume, 'dataset_root', data.dataset_root):
        found = run(create, data.dataset, data.dataset_root, **{**options, **parts})
    if needs_labels and not all(loader.labelled for loader in found[:-1]):
        source = f'--dataset_file {data.dataset_file}' if data.dataset_file else f'--dataset_root {data.dataset_root}'
        raise ValueError(f'{source}: these images have no labels, and {needs_labels} needs them')
    return found
