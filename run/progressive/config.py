"""The uniformly quantized baseline of the progressive search (ProQHA), for scripts/qat_train.py --config.

The values are those of the original's run.sh; SGD decays the clips of PACT, too. docs/progressive.md.
"""

from easydict import EasyDict

quant = EasyDict()
quant.arch = 'preresnet20'
quant.dataset = 'cifar10'
quant.k_bits = 8
quant.weight_quantizer = 'dorefa'
quant.act_quantizer = 'pact'
quant.pact_gradient = 'ste'
quant.alpha = quant.end_alpha = 10.0
quant.clip_decay = 0.0
quant.batch_size = 256
quant.num_workers = 8
quant.opt = 'Sgd'
quant.lr = 0.001
quant.momentum = 0.9
quant.weight_decay = 1e-4
quant.nepochs = 300
quant.lr_schedule = 'multistep'
quant.schedule = [150, 225]
