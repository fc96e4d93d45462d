"""ONNX graphs of quantized networks against the networks themselves, and the traps that make them slow or wrong."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('onnxruntime', reason='onnxruntime is not installed (requirements-export.txt)')
pytest.importorskip('onnxscript', reason='onnxscript is not installed (requirements-export.txt)')

from lib.export.onnx_file import file_of, make_onnx, with_int8_sums
from lib.export.onnx_graph import marked_graph
from lib.export.onnx_packages import ir, onnx, onnxruntime, openvino
from lib.export.onnx_runtimes import WITHOUT_FUSION, OnnxNetwork, OpenVinoNetwork
from lib.export.onnx_twin import twin_of
from lib.export.onnx_verify import check_codes
from lib.export.onnx_weights import LARGEST_BIAS, pack, unpacked
from lib.network.reach import reach_weights
from lib.quantize.grids import Grids
from lib.quantize.kmeans import CodebookCache
from lib.simulator.layer import LayerRecord
from lib.simulator.measured.onnx_kernel import OnnxKernel
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantizable_layers, quantized_layers
from tests.tiny import sample


class Net(nn.Module):
    """A stem with ReLU6, a residual block with ReLU, a pool, two linear layers: what networks are made of."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu6 = nn.ReLU6()
        self.depthwise, self.bn1, self.relu = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()
        self.pointwise, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.pool, self.fc0, self.relu1, self.fc = nn.MaxPool2d(2), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu6(self.bn0(self.stem(x)))
        x = x + self.bn2(self.pointwise(self.relu(self.bn1(self.depthwise(x)))))
        return self.fc(self.relu1(self.fc0(self.pool(x).flatten(1))))


IMAGES = sample(12, 3, 12, 12)


def trained(model):
    """Return the network with statistics and BatchNorm parameters that no initialization has."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.6, 0.6)  # some are negative
            nn.init.normal_(module.bias, 0.3, 0.5)
    model.train()
    for seed in range(20):
        model(sample(16, 3, 12, 12, seed=seed))
    return model.eval()


def linear(strategy, model=None, affine=False):
    model = convert_to_quantized(trained(Net() if model is None else model), IMAGES)
    Grids(*(('affine', 'channel') if affine else ())).use(quantized_layers(model).values())
    LinearQuantization(model, strategy * len(quantized_layers(model)) if len(strategy) == 1 else strategy, IMAGES)
    return model


def logits(model, images=IMAGES):
    with torch.no_grad():
        return model(images).numpy()


def op_types(file):
    return [node.op_type for node in file.graph.graph]


def check_code_by_code(model, file):
    rows = check_codes(model, file.graph, file.twin.grids, IMAGES)
    assert rows and not {name: row for name, row in rows.items() if not row.is_right}


@pytest.fixture(scope='module')
def marked():
    """Return what `make_onnx` does, exporting networks whose quantizers have the same names once."""
    known = {}

    def make(model, **options):
        twin = twin_of(model, IMAGES[:2])
        names = (type(model).__qualname__, *twin.grids, *twin.weights)
        if names not in known:
            known[names] = marked_graph(twin, IMAGES[:2])
        return file_of(known[names], twin, **options)
    return make


BITS = ([[8, 8]], [[4, 4]], [[2, 2]], [[1, 1]], [[12, 8]], [[8, 8], [3, 1], [5, 7], [1, 3], [8, 16]],
        [[-1, 4], [4, -1], [4, 4], [8, 4], [4, -1]])


@pytest.mark.parametrize('affine', [False, True])
@pytest.mark.parametrize('bits', BITS, ids=str)
def test_every_code_is_that_of_the_network(bits, affine, marked):
    model = linear(bits, affine=affine)
    file = marked(model)
    check_code_by_code(model, file)
    found = OnnxNetwork(file.data, WITHOUT_FUSION)
    expected = logits(model)
    assert np.abs(found(IMAGES) - expected).max() < 0.15 * expected.std()
    for count in (1, 3):
        np.testing.assert_allclose(found(IMAGES[:count]), found(IMAGES)[:count], atol=1e-4)
    assert (file.graph.ir_version, file.graph.opset_imports) == (10, {'': 21})
    assert not {'MatMulNBits', 'DynamicQuantizeMatMul'} & OnnxNetwork(file.data, keep_graph=True).nodes.keys()


@pytest.fixture(scope='module')
def four_bits(marked):
    model = linear([[4, 4]])
    return model, marked(model)


def test_layers_run_on_8_bits_in_one_node_each(four_bits):
    _, file = four_bits
    assert not {'Relu', 'BatchNormalization'} & set(op_types(file))  # either would end the fusion, without a word
    network = OnnxNetwork(file.data, keep_graph=True)
    # stem -> sum and quantizer, pointwise -> sum: float; the fully connected one before the last has its ReLU dropped
    assert network.nodes['QLinearConv'] == 1 and network.nodes['QGemm'] == 2
    assert network.nodes['BatchNormalization'] == 0


def test_a_relu_that_something_else_takes_stays():
    class Two(Net):
        def forward(self, x):
            x = self.relu(self.bn0(self.stem(x)))
            return self.fc(self.fc0(self.pool(x + self.pointwise(x)).flatten(1)))

    model = linear([[4, 4]], Two())
    file = make_onnx(model, IMAGES[:2])
    assert op_types(file).count('Relu') == 1
    check_code_by_code(model, file)


@pytest.mark.parametrize('top', [0.7, 100.0])
def test_a_clip_is_part_of_the_codes(top):
    class Clipped(Net):
        def forward(self, x):
            x = nn.functional.hardtanh(self.bn0(self.stem(x)), -0.2, top)
            return self.fc(self.fc0(self.pool(self.pointwise(x)).flatten(1)))

    model = linear([[5, 5]], Clipped())
    model.pointwise.input_quantizer.range.data.fill_(3.0)
    file = make_onnx(model, IMAGES[:2])
    assert op_types(file).count('Clip') == 4
    check_code_by_code(model, file)


def test_without_the_clip_codes_of_4_bits_are_wrong(four_bits):
    model, file = four_bits
    graph = ir.from_proto(ir.to_proto(file.graph))
    for node in list(graph.graph):
        if node.op_type == 'Clip':
            name = node.outputs[0].name
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            node.outputs[0].name, node.inputs[0].name = f'{name}.old', name
            graph.graph.remove(node, safe=True)
    rows = check_codes(model, graph, file.twin.grids, IMAGES)
    assert not all(row.is_right for row in rows.values())


def test_a_channel_of_no_scale_keeps_its_bias(marked):
    model = trained(Net())
    with torch.no_grad():
        model.bn1.weight[:2] = torch.tensor([1e-12, 0.0])
        model.bn1.bias[:3] = torch.tensor([1.5, 1.25, 0.5])
    model = convert_to_quantized(model, IMAGES)
    LinearQuantization(model, [[4, 4]] * 5, IMAGES)
    file = marked(model)
    bias = file.graph.graph.initializers['depthwise.bias'].const_value.numpy()
    scale = file.graph.graph.initializers['depthwise.bias.scale'].const_value.numpy()
    assert np.abs(bias.astype(np.int64)).max() <= LARGEST_BIAS
    np.testing.assert_allclose((bias * scale)[:2], [1.5, 1.25], rtol=1e-6)
    check_code_by_code(model, file)


@pytest.mark.parametrize('storage', ['int4', 'packed'])
def test_codes_stored_in_fewer_bits_are_the_same_codes(storage, four_bits, marked):
    model, file = four_bits
    smaller = marked(model, storage=storage)
    assert len(smaller.data) < len(file.data) + 6000  # nodes weigh more than so few weights
    for settings in (WITHOUT_FUSION, None):
        np.testing.assert_array_equal(OnnxNetwork(smaller.data, settings)(IMAGES),
                                      OnnxNetwork(file.data, settings)(IMAGES))
    assert OnnxNetwork(smaller.data, keep_graph=True).nodes == OnnxNetwork(file.data, keep_graph=True).nodes
    stored = {name: value.const_value for name, value in smaller.graph.graph.initializers.items()}
    weights = sum(layer.weight.numel() for layer in quantized_layers(model).values())
    names = [name for name in stored if name.endswith('.weight' if storage == 'int4' else '.weight.packed')]
    assert len(names) == 5 and sum(stored[name].nbytes for name in names) == pytest.approx(weights / 2, abs=5)


def test_8_bit_sums_let_every_layer_be_fused(four_bits):
    model, file = four_bits
    fused = with_int8_sums(file, IMAGES)
    network = OnnxNetwork(fused.data, keep_graph=True)
    assert network.nodes['QLinearConv'] == 3 and network.nodes['QLinearAdd'] == 1 and network.nodes['QGemm'] == 2
    assert not {'Conv', 'FusedConv', 'Relu', 'Add'} & network.nodes.keys()
    expected = logits(model)
    assert 0 < np.abs(network(IMAGES) - expected).max() < expected.std()  # another function, near the network's
    with pytest.raises(ValueError, match='no sum'):
        with_int8_sums(make_onnx(linear([[4, 4]], nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())), IMAGES[:2]), IMAGES)


def test_the_kernel_that_is_measured_is_what_becomes_of_a_layer(four_bits, tmp_path):
    """A table of `measured_onnxruntime` times the node that onnxruntime makes of a layer of the exported graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / 'optimized.onnx'), 4
    onnxruntime.InferenceSession(with_int8_sums(four_bits[1], IMAGES).data, options)
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    exported = [node for node in nodes if node.op_type == 'QLinearConv']
    layer = LayerRecord('pointwise', 'conv', 8, 8, (1, 1), (1, 1), 1, 6, 6, 6, 6, 64)
    measured = OnnxKernel(layer, 1, 1)._model(onnx).graph.node[0]
    for node in exported:
        attributes = {entry.name: entry.i for entry in node.attribute if entry.name == 'channels_last'}
        assert (node.op_type, node.domain, attributes) == (measured.op_type, measured.domain, {'channels_last': 1})
    assert len(exported) == 3


# ---- K-means

@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('count', [1, 8, 1003])
def test_packed_numbers_come_out_as_they_went_in(bits, count):
    index = np.random.default_rng(bits).integers(0, 2**bits, count)
    assert pack(index, bits).nbytes == -(-count // 8) * bits
    x = ir.Value(name='x', shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={'': 21}, name='unpack')
    tape = ir.tape.Tape(graph)
    result = tape.op('Add', [unpacked(tape, 'w', index, bits, np.arange(2**bits, dtype=np.float32)), x])
    result.name, result.type = 'y', ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(result)
    network = OnnxNetwork(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(), keep_graph=True)
    np.testing.assert_array_equal(network.session.run(None, {'x': np.zeros(1, np.float32)})[0], index)
    assert set(network.nodes) == {'Add'}  # all else is folded when it is loaded


class Tokens(nn.Module):
    """A layer of a transformer, in which torch reads the weights of attention without calling their layers."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)
        self.block = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(('kind', 'is_pruned'), [(Net, False), (Net, True), (Tokens, False)])
def test_a_clustered_network_is_packed_and_the_same(kind, is_pruned):
    model = trained(kind())
    reach_weights(model, IMAGES)
    layers = quantizable_layers(model)
    if is_pruned:
        for layer in layers.values():
            layer.weight.data[layer.weight.abs() < layer.weight.abs().median()] = 0
    cache = CodebookCache(is_pruned=is_pruned)
    books = {name: cache.get(name, layer.weight.detach(), bits) for bits, (name, layer) in
             enumerate(layers.items(), start=2)}
    for name, book in books.items():
        layers[name].weight.data.copy_(book.decode())
    file = make_onnx(model, IMAGES[:2], codebooks=books)
    expected = logits(model)
    networks = [OnnxNetwork(file.data, keep_graph=True)]
    networks += [OpenVinoNetwork(file.data)] if openvino else []
    for network in networks:
        np.testing.assert_allclose(network(IMAGES), expected, atol=1e-4 * np.abs(expected).max())
    assert networks[0].nodes['Mod'] == 0 and (networks[0].nodes['Gather'] == 0 or kind is Tokens)  # folded
    stored = sum(value.const_value.nbytes for name, value in file.graph.graph.initializers.items()
                 if name.endswith('.packed'))
    bits = {name: (len(book.centroids) + is_pruned - 1).bit_length() for name, book in books.items()}
    assert stored == sum(-(-layers[name].weight.numel() // 8) * bits[name] for name in books)


# ---- what is refused

def test_images_of_another_shape_are_refused(four_bits):
    network = OnnxNetwork(four_bits[1].data)
    assert network.shape == (3, 12, 12) and network.metadata == {}
    with pytest.raises(ValueError, match=r'\(2, 3, 9, 9\); the ONNX file takes \(N, 3, 12, 12\)'):
        network(sample(2, 3, 9, 9))
    with pytest.raises(ValueError, match='onnxruntime cannot read'):
        OnnxNetwork(b'no network')


def test_a_weight_that_other_code_multiplies_with_is_refused_by_name():
    with pytest.raises(ValueError, match=r'block\.self_attn\..* multiplies with it'):
        make_onnx(linear([[4, 4]], Tokens()), IMAGES[:2])


def test_a_network_without_quantizers_is_refused():
    with pytest.raises(ValueError, match='nothing to export'):
        make_onnx(trained(Net()), IMAGES[:2])
