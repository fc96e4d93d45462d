"""Making data sets: the split, links, repetition, interruption, and everything that is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lib.utils import make_data
from lib.utils.data_utils import create_loaders
from lib.utils.make_data import link_subset, main, read_labels, sort_validation, split_dtd


@pytest.fixture
def dtd(tmp_path):
    """Two classes of 10 and 7 images (each its own grey), and a file that is no image."""
    for name, count in (('banded', 10), ('dotted', 7)):
        folder = tmp_path / 'dtd' / 'images' / name
        folder.mkdir(parents=True)
        (folder / '.directory').write_text('KDE')
        for i in range(count):
            Image.new('RGB', (4, 4), (i, 0, len(name))).save(folder / f'{name}_{i:04d}.jpg')
    return tmp_path / 'dtd'


def add_labels(dtd, train, val, test, number=1):
    (dtd / 'labels').mkdir(exist_ok=True)
    for part, names in (('train', train), ('val', val), ('test', test)):
        (dtd / 'labels' / f'{part}{number}.txt').write_text('\n'.join(names) + '\n')


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())


def snapshot(root):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in root.rglob('*')}


def test_split_is_80_to_20_per_class_and_a_partition(dtd, tmp_path):
    message = split_dtd(dtd, tmp_path / 'DTD')
    assert '14 training and 3 validation images in 2 classes, split 80/20' in message
    assert '17 linked now' in message
    made = [name.split('/') for name in files(tmp_path / 'DTD')]
    counts = {(part, name): sum(row[:2] == [part, name] for row in made)
              for part in ('train', 'val') for name in ('banded', 'dotted')}
    assert counts == {('train', 'banded'): 8, ('val', 'banded'): 2, ('train', 'dotted'): 6, ('val', 'dotted'): 1}
    assert sorted(row[2] for row in made) == sorted(path.name for path in dtd.rglob('*.jpg'))


def test_links_are_relative_and_survive_a_move_of_the_data_folder(dtd, tmp_path):
    split_dtd(dtd, tmp_path / 'DTD')
    link = next((tmp_path / 'DTD' / 'val' / 'banded').iterdir())
    assert os.readlink(link) == f'../../../dtd/images/banded/{link.name}'
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + '_moved'))
    train, val, classes = create_loaders('dtd', moved / 'DTD', batch_size=2, image_size=8)
    assert (train.num_images, val.num_images, classes) == (14, 3, 2)
    assert next(iter(val))[0].shape == (2, 3, 8, 8)


def test_links_are_right_where_the_target_is_reached_through_a_link(dtd, tmp_path):
    (tmp_path / 'disk' / 'deep').mkdir(parents=True)
    (tmp_path / 'data').symlink_to(tmp_path / 'disk' / 'deep')
    split_dtd(dtd, tmp_path / 'data' / 'DTD')
    assert len(files(tmp_path / 'disk' / 'deep' / 'DTD')) == 17  # links that resolve


def test_the_split_is_the_same_everywhere(dtd, tmp_path):
    split_dtd(dtd, tmp_path / 'a')
    split_dtd(dtd, tmp_path / 'b', copy=True)
    assert files(tmp_path / 'a') == files(tmp_path / 'b')
    # golden, from the command sha256sum: the names of smallest hash in their class
    assert [name for name in files(tmp_path / 'a') if name.startswith('val')] == [
        'val/banded/banded_0001.jpg', 'val/banded/banded_0009.jpg', 'val/dotted/dotted_0000.jpg']


@pytest.mark.parametrize('copy', [False, True])
def test_a_second_run_changes_nothing_and_a_killed_one_is_completed(dtd, tmp_path, copy):
    target = tmp_path / 'DTD'
    split_dtd(dtd, target, copy=copy)
    before = snapshot(target)
    assert ' 0 ' in split_dtd(dtd, target, copy=copy).split(';')[1]
    assert snapshot(target) == before
    names = files(target)
    for name in names[::2]:
        (target / name).unlink()
    (target / '.partial').write_text('left by a killed copy')
    assert f'{len(names[::2])} ' in split_dtd(dtd, target, copy=copy)
    assert [name for name in files(target) if name != '.partial'] == names


def test_a_copy_follows_no_link_that_somebody_has_put_in_its_way(dtd, tmp_path):
    victim, target = tmp_path / 'victim', tmp_path / 'DTD'
    victim.write_text('precious')
    target.mkdir()
    for name in ('.partial', '.partial.x'):
        (target / name).symlink_to(victim)
    split_dtd(dtd, target, copy=True)
    assert victim.read_text() == 'precious' and not list(target.glob('.partial.*'))


def test_copies_are_files_of_their_own(dtd, tmp_path):
    split_dtd(dtd, tmp_path / 'DTD', copy=True)
    for path in (tmp_path / 'DTD').rglob('*.jpg'):
        assert not path.is_symlink()
        assert path.read_bytes() == (dtd / 'images' / path.parent.name / path.name).read_bytes()


def test_official_splits(dtd, tmp_path):
    names = [f'banded/banded_{i:04d}.jpg' for i in range(10)] + [f'dotted/dotted_{i:04d}.jpg' for i in range(7)]
    add_labels(dtd, names[0::3], names[1::3], names[2::3])
    add_labels(dtd, names[1::3], names[2::3], names[0::3], number=2)
    assert 'official split 1' in split_dtd(dtd, tmp_path / 'one')
    assert files(tmp_path / 'one' / 'val') == sorted(names[2::3])
    assert files(tmp_path / 'one' / 'train') == sorted(names[0::3] + names[1::3])
    split_dtd(dtd, tmp_path / 'two', split=2)
    assert files(tmp_path / 'two' / 'val') == sorted(names[0::3])
    assert '80/20' in split_dtd(dtd, tmp_path / 'zero', split=0)
    with pytest.raises(ValueError, match=r'train11.txt does not exist.*1 to 10'):
        split_dtd(dtd, tmp_path / 'eleven', split=11)
    add_labels(dtd, names, ['woven/woven_0001.jpg'], [])
    with pytest.raises(ValueError, match=r'1 images of official split 1 are not in .*woven/woven_0001.jpg'):
        split_dtd(dtd, tmp_path / 'three')
    add_labels(dtd, names[:9], names[9:], [])
    split_dtd(dtd, tmp_path / 'four')
    add_labels(dtd, names[:9], names[9:-1], [])
    with pytest.raises(ValueError, match=r'1 images of .*images are in no list of official split 1 .*dotted_0006.jpg'):
        split_dtd(dtd, tmp_path / 'five')


def test_another_split_in_the_target_is_refused_by_name_and_left_alone(dtd, tmp_path):
    target = tmp_path / 'DTD'
    split_dtd(dtd, target)
    image = sorted((dtd / 'images' / 'banded').glob('*.jpg'))
    add_labels(dtd, [f'banded/{path.name}' for path in image[:5]], [f'dotted/dotted_{i:04d}.jpg' for i in range(7)],
               [f'banded/{path.name}' for path in image[5:]])
    before = snapshot(target)
    with pytest.raises(ValueError, match=r'holds \d+ files or folders that would not be made now: train/banded/'):
        split_dtd(dtd, target)
    assert snapshot(target) == before


@pytest.mark.parametrize(('stray', 'is_folder'), [('train/banded/other.jpg', False), ('val/extra', True),
                                                  ('notes.txt', False)])
def test_strangers_in_the_target_are_named(dtd, tmp_path, stray, is_folder):
    path = tmp_path / 'DTD' / stray
    path.parent.mkdir(parents=True)
    path.mkdir() if is_folder else path.write_text('mine')
    with pytest.raises(ValueError, match=f'1 files or folders .*{stray}'):
        split_dtd(dtd, tmp_path / 'DTD')
    assert path.exists() and len(files(tmp_path / 'DTD')) == (not is_folder)


def test_strangers_behind_a_linked_train_folder_are_named_too(dtd, tmp_path):
    for folder in ('DTD', 'disk/banded'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'disk' / 'banded' / 'other.jpg').write_text('mine')
    (tmp_path / 'DTD' / 'train').symlink_to(tmp_path / 'disk')
    with pytest.raises(ValueError, match='train/banded/other.jpg'):
        split_dtd(dtd, tmp_path / 'DTD')


@pytest.mark.parametrize('kind', ['link elsewhere', 'dangling link', 'other file', 'link where a copy is wanted'])
def test_a_wrong_file_in_the_place_of_a_right_one_is_named(dtd, tmp_path, kind):
    split_dtd(dtd, tmp_path / 'DTD')
    place = next((tmp_path / 'DTD' / 'train' / 'banded').iterdir())
    if kind != 'link where a copy is wanted':
        place.unlink()
    if kind == 'link elsewhere':
        place.symlink_to(dtd / 'images' / 'dotted' / 'dotted_0001.jpg')
    elif kind == 'dangling link':
        place.symlink_to('nowhere.jpg')
    elif kind == 'other file':
        place.write_text('not the image')
    with pytest.raises(ValueError, match=f'{"banded_" if kind.startswith("link where") else place.name}.* is there, '
                                         'but is not a'):
        split_dtd(dtd, tmp_path / 'DTD', copy=kind.startswith('link where'))


def test_source_and_target_in_one_folder_are_refused(dtd, tmp_path):
    (tmp_path / 'DTD').symlink_to(dtd)  # what a file system that ignores case makes of the two names
    with pytest.raises(ValueError, match='are one folder .*upper from lower case.*--target'):
        split_dtd(dtd, tmp_path / 'DTD')
    with pytest.raises(ValueError, match='lies in'):
        split_dtd(dtd, dtd / 'images' / 'split')


def test_missing_and_empty_sources_are_named(dtd, tmp_path):
    with pytest.raises(ValueError, match='nowhere/images does not exist.*--source'):
        split_dtd(tmp_path / 'nowhere', tmp_path / 'DTD')
    (dtd / 'images' / 'hollow').mkdir()
    with pytest.raises(ValueError, match='no images of hollow'):
        split_dtd(dtd, tmp_path / 'DTD')
    Image.new('RGB', (4, 4)).save(dtd / 'images' / 'hollow' / '1.JPG')
    with pytest.raises(ValueError, match='hollow has a single image'):
        split_dtd(dtd, tmp_path / 'DTD')
    (tmp_path / 'empty' / 'images').mkdir(parents=True)
    with pytest.raises(ValueError, match='no images of any class'):
        split_dtd(tmp_path / 'empty', tmp_path / 'DTD')
    assert not (tmp_path / 'DTD').exists()


@pytest.fixture
def imagenet(tmp_path):
    """Four synsets with one training and one validation image each."""
    for split in ('train', 'val'):
        for i in range(4):
            folder = tmp_path / 'imagenet' / split / f'n0000000{i}'
            folder.mkdir(parents=True)
            Image.new('RGB', (8, 8), (i, i, i)).save(folder / f'{split}.JPEG')
    return tmp_path / 'imagenet'


def test_subset_links_the_first_synsets(imagenet, tmp_path):
    message = link_subset(imagenet, tmp_path / 'subset', 3)
    assert 'n00000000 to n00000002; 6 folders linked now, 0 were there' in message
    assert 'has 4 of 1000 synsets' in message
    link = tmp_path / 'subset' / 'train' / 'n00000001'
    assert os.readlink(link) == '../../imagenet/train/n00000001'
    _, val, classes = create_loaders('imagenet10', tmp_path / 'subset', batch_size=4, image_size=8)
    assert classes == 1000
    assert next(iter(val))[1].tolist() == [0, 1, 2]

    before = snapshot(tmp_path / 'subset')
    assert '0 folders linked now, 6 were there' in link_subset(imagenet, tmp_path / 'subset', 3)
    assert snapshot(tmp_path / 'subset') == before
    link.unlink()
    assert '1 folders linked now, 5 were there' in link_subset(imagenet, tmp_path / 'subset', 3)
    with pytest.raises(ValueError, match=r'2 files or folders .*train/n00000002, val/n00000002'):
        link_subset(imagenet, tmp_path / 'subset', 2)


def test_subset_of_an_incomplete_source_is_refused(imagenet, tmp_path):
    with pytest.raises(ValueError, match='train has 4 class folders, 5 are needed'):
        link_subset(imagenet, tmp_path / 'subset', 5)
    (imagenet / 'val' / 'n00000000').rename(imagenet / 'val' / 'n00000009')
    with pytest.raises(ValueError, match='differ in n00000000, n00000003'):
        link_subset(imagenet, tmp_path / 'subset', 3)
    (imagenet / 'train' / 'n00000001' / 'train.JPEG').unlink()
    with pytest.raises(ValueError, match='no images of n00000001'):
        link_subset(imagenet, tmp_path / 'subset', 3)


NAMES = [f'ILSVRC2012_val_{i:08d}.JPEG' for i in (1, 2, 3)]
SYNSETS = dict(zip(NAMES, ['n01751748', 'n09193705', 'n01751748'], strict=True))


@pytest.fixture
def flat(tmp_path):
    """Three flat validation images and a file with their labels."""
    folder = tmp_path / 'imagenet' / 'val'
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(name)
    (tmp_path / 'labels.txt').write_text('\n'.join(f'{name} {synset}' for name, synset in SYNSETS.items()))
    return folder


def test_validation_images_are_sorted_once(flat, tmp_path):
    labels = tmp_path / 'labels.txt'
    assert '3 images in 2 synsets; 3 moved now' in sort_validation(flat, flat, labels)
    assert files(flat) == sorted(f'{synset}/{name}' for name, synset in SYNSETS.items())
    assert all(path.read_text() == path.name for path in flat.rglob('*.JPEG'))
    before = snapshot(flat)
    assert '0 moved now' in sort_validation(flat, flat, labels)
    assert snapshot(flat) == before
    (flat / 'n01751748' / NAMES[2]).rename(flat / NAMES[2])  # as if killed before the last one
    assert '1 moved now' in sort_validation(flat, flat, labels)
    assert snapshot(flat).keys() == before.keys()


def test_sorting_moves_nothing_unless_all_is_well(flat, tmp_path):
    def refused(message):
        before = snapshot(flat)
        with pytest.raises(ValueError, match=message):
            sort_validation(flat, flat, tmp_path / 'labels.txt')
        assert snapshot(flat) == before

    extra = flat / 'ILSVRC2012_val_00000004.JPEG'
    extra.write_text('unlabelled')
    refused(f'1 files in .* have no label in .*: {extra.name}')
    extra.unlink()
    (flat / NAMES[0]).rename(tmp_path / NAMES[0])
    refused(f'1 files have a label in .* but are not in .*: {NAMES[0]}')
    (tmp_path / NAMES[0]).rename(flat / NAMES[0])
    (flat / 'n01751748').mkdir()
    (flat / 'n01751748' / NAMES[0]).write_text('another')
    refused(f'1 files are both in .* {NAMES[0]}')
    (flat / 'n01751748' / NAMES[0]).rename(flat / 'n01751748' / NAMES[1])
    refused(f'are not where .* puts them: n01751748/{NAMES[1]}')


def test_label_files_in_all_forms_agree(tmp_path):
    plain, script, kit = tmp_path / 'plain.txt', tmp_path / 'valprep.sh', tmp_path / 'ground_truth.txt'
    plain.write_text(''.join(f'{name}\t{synset}\n' for name, synset in SYNSETS.items()))
    script.write_text('mkdir -p n01751748\nmkdir -p n09193705\n'
                      + ''.join(f'mv {name} {synset}/\n' for name, synset in SYNSETS.items()))
    kit.write_text('490\n361\n490\n')
    with pytest.raises(ValueError, match='meta.mat does not exist'):
        read_labels(kit)
    rows = np.array([(361, 'n09193705', 'valley'), (490, 'n01751748', 'sea snake')],
                    dtype=[('ILSVRC2012_ID', 'f8'), ('WNID', 'O'), ('words', 'O')])
    savemat(tmp_path / 'meta.mat', {'synsets': rows})
    assert read_labels(plain) == read_labels(script) == read_labels(kit) == SYNSETS
    kit.write_text('490\n999\n')
    with pytest.raises(ValueError, match='meta.mat does not know'):
        read_labels(kit)
    kit.write_text('490\n')
    rows['WNID'] = ['n09193705', '../../escaped']
    savemat(tmp_path / 'meta.mat', {'synsets': rows})
    with pytest.raises(ValueError, match=r"'\.\./\.\./escaped' is no synset, expected one such as n01751748"):
        read_labels(kit)
    lists = ([1, 2], rows['words'][:1], np.array([('n01751748',)], [('WNID', 'O')]),
             np.array([('x', 'n01751748')], [('ILSVRC2012_ID', 'O'), ('WNID', 'O')]))
    for wrong in ({'other': rows}, *({'synsets': value} for value in lists)):
        savemat(tmp_path / 'meta.mat', wrong)
        with pytest.raises(ValueError, match='meta.mat has no synsets'):
            read_labels(kit)
    (tmp_path / 'meta.mat').write_bytes(b'MATLAB 5.0 MAT-file' + bytes(300))
    with pytest.raises(ValueError, match='meta.mat cannot be read'):
        read_labels(kit)


def test_bad_label_files_are_named(tmp_path):
    with pytest.raises(ValueError, match='none.txt does not exist'):
        read_labels(tmp_path / 'none.txt')
    for content in (b'\xff\xfe', b'9' * 5000, '٣\n'.encode(), b'[' * (1 << 20)):  # the last in no time
        (tmp_path / 'bytes.txt').write_bytes(content)
        with pytest.raises(ValueError, match='bytes.txt (holds no labels|cannot be read)'):
            read_labels(tmp_path / 'bytes.txt')
    (tmp_path / 'caffe.txt').write_text('ILSVRC2012_val_00000001.JPEG 65\n')
    with pytest.raises(ValueError, match='caffe.txt holds no labels.*n01751748'):
        read_labels(tmp_path / 'caffe.txt')


def test_default_folders_are_those_of_the_repository(dtd, imagenet, tmp_path, monkeypatch, capsys):
    (tmp_path / 'data').mkdir()
    dtd.rename(tmp_path / 'data' / 'dtd')
    imagenet.rename(tmp_path / 'data' / 'imagenet')
    monkeypatch.setattr(make_data, 'REPOSITORY', tmp_path)
    monkeypatch.setattr(make_data, 'SUBSETS', {'imagenet100': 3, 'imagenet10': 2})
    for arguments in ([], ['--dataset', 'imagenet100'], ['--dataset', 'imagenet10']):
        main(arguments)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert len(files(tmp_path / 'data' / 'DTD')) == 17
    assert len(list((tmp_path / 'data' / 'imagenet100' / 'val').iterdir())) == 3
    assert len(list((tmp_path / 'data' / 'imagenet10' / 'val').iterdir())) == 2


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--dataset', 'imagenet10', '--copy'], '--copy goes with --dataset dtd only'),
    (['--dataset', 'imagenet10', '--split', '0'], '--split goes with --dataset dtd only'),
    (['--labels', 'x'], '--labels goes with --dataset imagenet_val only'),
    (['--dataset', 'imagenet_val'], 'needs --labels'),
    (['--source', 'nowhere'], 'does not exist'),
])
def test_wrong_commands_end_with_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_runs_from_another_directory(dtd, tmp_path):
    command = [sys.executable, make_data.__file__, '--source', 'dtd', '--target', 'DTD']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '14 training and 3 validation images' in result.stdout
    assert len(files(tmp_path / 'DTD')) == 17
