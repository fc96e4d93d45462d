import json

import pytest

from lib.simulator.layer import LayerRecord


def record(**changes):
    entries = dict(name='conv', kind='conv', in_channels=8, out_channels=16, kernel=(3, 5), stride=(2, 1), groups=4)
    sizes = dict(in_h=14, in_w=10, out_h=7, out_w=10, num_weights=480)
    return LayerRecord(**{**entries, **sizes, **changes})


def test_macs_are_counted_per_image_and_call():
    assert record().macs == 7 * 10 * 16 * (8 // 4) * 3 * 5
    assert record(calls=3).macs == 3 * record().macs
    assert record(calls=0, out_h=0, out_w=0).macs == 0


@pytest.mark.parametrize('channels, groups, expected', [(8, 8, True), (8, 4, False), (1, 1, False)])
def test_is_depthwise(channels, groups, expected):
    assert record(in_channels=channels, out_channels=16, groups=groups).is_depthwise is expected


def test_round_trip_through_json():
    assert LayerRecord.from_dict(json.loads(json.dumps(record().to_dict()))) == record()


def test_from_dict_names_the_wrong_key():
    entries = record().to_dict()
    del entries['calls']
    assert LayerRecord.from_dict(entries) == record()
    with pytest.raises(ValueError, match="'conv'.*dilation"):
        LayerRecord.from_dict({**entries, 'dilation': 1})
    del entries['groups']
    with pytest.raises(ValueError, match='groups'):
        LayerRecord.from_dict(entries)


@pytest.mark.parametrize('changes', [{'kind': 'pool'}, {'groups': 3}, {'kernel': (0, 3)}, {'calls': -1}])
def test_impossible_layers_are_refused(changes):
    with pytest.raises(ValueError, match='conv'):
        record(**changes)
