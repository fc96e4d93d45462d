"""The four doors of lib/utils: every name that other code imported from them still imports from there."""

import importlib

import pytest

DOORS = {
    'utils': 'MetricCounter Metrics TableLog derived_seed distributed learning_rate seed_everything set_learning_rate '
             'write_text',
    'data_utils': 'CropLoader DATASETS DatasetSpec ImageFiles ImageLoader LoaderOptions Part SPLIT_SEED Split '
                  'TensorLoader UserBuild UserImages UserPart count_classes create_loaders create_search_loaders '
                  'dataset_spec decode_photographs decode_views fits_memory fixed_view num_classes photograph_bytes '
                  'renormalised scaled_augment search_split train_transform val_transform',
    'quantize_utils': 'CentroidTrainer Codebook CodebookCache HIGH_BIT KMeansQuantization LinearQuantization QConv2d '
                      'QLinear Quantization calibrate calibrating convert_to_quantized distributed has_ranges '
                      'quantizable_layers quantized_layers recognise_codebooks synchronise_signs weight_counts',
    'make_data': 'IMAGE_SUFFIXES REPOSITORY SUBSETS find_strangers link_subset main make_tree read_labels '
                 'refuse_overlap run some_names sort_validation split_dtd',
}


@pytest.mark.parametrize('door', DOORS)
def test_names_of_before_import_from_there(door):
    module = importlib.import_module(f'lib.utils.{door}')
    assert [name for name in DOORS[door].split() if not hasattr(module, name)] == []
