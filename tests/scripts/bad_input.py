"""The table of what a person gets wrong: commands, and what the one line that answers each of them has to say.

A row is `command | words | words ...`. The first word of a command may stand for a longer one (`COMMANDS`), which is
good but for what follows; the files are those of the folder `wrong` in test_bad_input.py.
"""

DIGITS = '--dataset digits --image_size 8 --workers 0 --device cpu'
NET, LINEAR = f'{DIGITS} --arch resnet20', f'{DIGITS} --arch qresnet20 --linear_quantization'
EPISODES = '--train_size 64 --val_size 64 --data_bsize 32 --warmup 0 --train_episode 1 --weights good.pth'
OWN = '--model_file nets.py:build --input_size 1x28x28 --num_classes 10'
TOYNET = ('--strides 1 2 --num_layer_list 1 1 --num_channel_list 8 16 --stem_channel 8 --header_channel 16 '
          '--train_batch 256')
COMMANDS = {
    'search': f'rl_quantize.py {NET} {EPISODES} --preserve_ratio 0.13 --output out',
    'linear_search': f'rl_quantize.py {LINEAR} {EPISODES} --cost table.npy --preserve_ratio 0.6 --output out',
    'tune': f'finetune.py {NET} --weights good.pth --strategy good.json --epochs 1 -c out',
    'linear_tune': f'finetune.py {LINEAR} --weights good.pth --cost table.npy --epochs 1 -c out',
    'train': f'pretrain.py {NET} --epochs 1 -c out',
    'search_again': f'rl_quantize.py {NET} {EPISODES} --preserve_ratio 0.13 --output save --suffix k --overwrite',
    'tune_again': f'finetune.py {NET} --weights good.pth --strategy uniform:4 --epochs 1 -c tuned_k --overwrite',
    'train_again': f'pretrain.py {NET} --epochs 1 -c float --overwrite',
    'train_own': 'pretrain.py --dataset digits --image_size 16 --workers 0 --device cpu --epochs 1 -c out',
    'table': 'make_lookup_table.py --dataset digits --arch resnet20 --output t.npy',
    'own_search': 'rl_quantize.py --recipe fast --dataset digits --image_size 8 --workers 0 --device cpu --output out',
    'own_table': f'make_lookup_table.py {OWN} --output t.npy',
    'csv_table': f'make_lookup_table.py {OWN} --output t.npy --unit ms --from_csv',
    'measure': f'measure.py {OWN}',
    'large': 'measure.py --arch mobilenetv2',
    'budgets': f'rl_quantize.py {NET} {EPISODES} --no-finetune_flag --output out',
    'compare': f'compare_searchers.py {NET} --weights good.pth --budgets uniform:3 --train_size 64 --val_size 24 '
               '--evaluations 4 --final_epochs 0 --seeds 1 --min_bit 2 --max_bit 4 --output out',
    'machines': 'compare_hardware.py --output out',
    'qat': f'qat_train.py {DIGITS} {TOYNET} -c out',
    'qat_lists': f'qat_train.py {DIGITS} {TOYNET} --layer_wbit 8x4,16 --layer_abit 32,8x4 -c out',
    'progressive': f'progressive_search.py {DIGITS} --arch preresnet20 --output out',
    'hybrid': f'hybrid_train.py {DIGITS} --set blocks=[[4,4,1],[4,8,2]] --set quantize_w_blocks=[0] '
              '--set quantize_a_blocks=[0] --set quantize_a=true --set a_bit_width=[[2,1]] '
              '--set post_quantize_w_layers=[-1,1] --set post_quantize_a_layers=[-1,1] --epochs 1 -c out',
    'calibrate': 'hybrid_calibrate.py -c out',
    'experiment': 'hybrid_experiment.py --resume engine/checkpoint.pth.tar --images 40',
    'export': 'export.py --integer --resume engine/checkpoint.pth.tar --images 0 --output out',
}
UNREADABLE = ('nowhere.pth', 'empty.pth', 'truncated.pth', 'text.pth', 'picture.pth', 'module.pth')
NO_WEIGHTS = ('list.pth', 'foreign.pth', 'tensor.pth')
LONG, HUGE = 300 * 'x', '1' + 25 * '0'


def bits(first, last=4, count=20):
    """Return a list of strategy entries with other ones at its ends."""
    return str([first, *[4] * (count - 2), last]).replace(' ', '')


def pairs(first, second=(4, 4), count=20):
    """Return one of pairs, with other ones at its beginning."""
    return str([first, list(second), *[[4, 4]] * (count - 2)]).replace(' ', '')


TABLE = f"""
# recipes
train --opt lion | --opt | adamw
train --label_smoothing 1 | --label_smoothing | below 1
tune --ema_decay 1.0 | --ema_decay | below 1
tune --mixup -1 | --mixup | at least 0
tune --randaugment 31 | --randaugment | at most 30
tune --warmup_type linear | warmup_type linear | warmup_epoch
qat_lists --dampening 0.01 | --dampening 0.01 | lsq
qat_lists --lsq_init least_squares | lsq_init | LSQ
linear_tune --kmeans_weights fisher | --kmeans_weights fisher | K-means
tune --kmeans_weights fisher --rounding compensated | --kmeans_weights fisher | --rounding nearest
linear_search --kmeans_weights fisher | --kmeans_weights fisher | K-means
tune --distill_weight 0 --distill float | --distill_weight | above 0
tune --distill float --reset_classifier | --distill float | random
tune --distill float --weights tuned_k/checkpoint.pth.tar | --distill float | kmeans network | pretrain.py
finetune.py {NET} --strategy good.json -c out --distill float | --distill float | --weights
qat --distill float --strategy uniform:4 | --distill float | --weights
compare --distill float | --distill float | --finetune_flag
tune --teacher resnet32 | --teacher | --distill float
tune --distill float --teacher resnet32 | --teacher resnet32 | --teacher_weights
tune --distill float --teacher_weights missing.pth.tar | --distill float | missing.pth.tar
tune --distill float --teacher toynet --teacher_weights good.pth | --distill float | good.pth
train --clip_norm 1 --clip | --clip_norm 1 | --grad_clip 5 | one of them

# names
search --no_such_flag 3 | --no_such_flag
tune --no_such_flag 3 | --no_such_flag
train --no_such_flag 3 | --no_such_flag
train --epoch 3 | --epoch
table --no_such_flag 3 | --no_such_flag
search --arch resnet02 | resnet02 | resnet20
tune --arch resnet02 | resnet02 | resnet20
train --arch resnet02 | resnet02 | resnet20
table --arch resnet02 | resnet02 | resnet20
search --dataset imagnet | imagnet | imagenet | digits | folder
tune --dataset imagnet | imagnet | imagenet | digits | folder
train --dataset imagnet | imagnet | imagenet | digits | folder
table --dataset imagnet | imagnet | imagenet | digits | folder
table --hardware moon | 'moon' | cloud | edge
train --device gpu | gpu | auto | cpu
train --device cpu:x | cpu:x | auto | cpu
train --device cuda:x | cuda:x
train --half maybe | --half | True or False
train --half 2 | --half | True or False

# data
train --dataset folder --data nowhere | wrong/nowhere | train
train --dataset folder --data empty | wrong/empty | train
train --dataset folder --data photos | wrong/photos | train
train --dataset cifar10 --data empty | wrong/empty | expected
train --dataset cifar10 --data nowhere | wrong/nowhere | expected
train --dataset imagenet --data empty | wrong/empty | expected
train --dataset mnist --data empty | wrong/empty | expected
train --dataset dtd --data nowhere | wrong/nowhere | train
search --dataset folder --dataset_root nowhere | wrong/nowhere
search --dataset cifar10 --dataset_root empty | wrong/empty
search --val_size 5000 | 5000 | 479 | val_size

# checkpoints
tune --weights truncated.pth | wrong/truncated.pth
tune --weights foreign.pth | wrong/foreign.pth
search --weights truncated.pth | wrong/truncated.pth
search --weights foreign.pth | wrong/foreign.pth
finetune.py {NET} --resume truncated.pth | wrong/truncated.pth
finetune.py {NET} --resume foreign.pth | wrong/foreign.pth
pretrain.py {NET} --resume truncated.pth | wrong/truncated.pth
pretrain.py {NET} --resume foreign.pth --eval | wrong/foreign.pth
search --weights missing_keys.pth | layer2.0.conv1.weight | --arch
tune --weights other_shape.pth | linear.weight | (7, 64) | (10, 64)
finetune.py {NET} --resume missing_keys.pth --eval | layer2.0.conv1.weight | --arch
finetune.py {NET} --resume other_shape.pth --eval | linear.weight | (7, 64) | (10, 64)
pretrain.py {NET} --resume bare.pth | bare.pth | --weights
finetune.py {NET} --strategy uniform:4 --resume bare.pth | bare.pth | --weights
finetune.py --resume float/checkpoint.pth.tar --strategy uniform:4 --epochs 3 | float/checkpoint.pth.tar | --weights
pretrain.py --resume tuned_k/checkpoint.pth.tar --epochs 3 | tuned_k/checkpoint.pth.tar | finetune.py
finetune.py {NET} --resume good.pth --eval | more than 256 values | --strategy
rl_quantize.py {NET} --train_size 64 --val_size 64 --output out | resnet20 | --weights
pretrain.py {NET} --eval | --resume | --weights
search --weights nan.pth | layer2.0.conv1 | not finite
tune --weights nan.pth | layer2.0.conv1 | not finite
train --weights nan.pth | layer2.0.conv1 | not finite

# strategies
tune --strategy [6,6,6] | 3 entries | 20 quantizable layers
tune --strategy short_strategy.json | 19 entries | has 20 | linear
tune --strategy other_strategy.json | features.18.0
tune --strategy pairs.json | pairs | --linear_quantization
tune --strategy {bits(9)} | 9 | entry 0 (conv1) | 1 to 8
tune --strategy {bits(4, 0)} | entry 19 (linear) | 0 | 1 to 8
tune --strategy {bits(4.5)} | 4.5 | whole number
tune --strategy [] | no list
tune --strategy 6 | 6
tune --strategy [6,6 | list
tune --strategy [6,six] | list
tune --strategy nowhere.json | nowhere.json
tune --strategy broken.json | wrong/broken.json
tune --strategy nothing.json | wrong/nothing.json | strategy
tune --strategy number.json | wrong/number.json | no list
tune --strategy string.json | wrong/string.json | no list
tune --strategy good.pth | wrong/good.pth
tune --strategy empty | empty
tune --strategy uniform:9 | 9 | 1 to 8
tune --strategy uniform:0 | 0 | 1 to 8
tune --strategy uniform: | uniform:K
tune --strategy resnet50 | 54 entries | 20 quantizable layers
finetune.py {NET} --weights good.pth -c out | resnet20 | STRATEGIES | --strategy
finetune.py {NET} --weights good.pth --eval | no strategy for resnet20
linear_tune --strategy good.json | pairs | [w_bit, a_bit]
linear_tune --strategy [[8,-1],[4,4]] | 2 entries | 20 quantizable layers
linear_tune --strategy {pairs([8, -1], (4, 9))} | entry 1 | 9 | 1 to 8
linear_tune --strategy {pairs([8, -1], (4, 4, 4))} | entry 1 | pair
linear_tune --strategy {pairs([-1, -1])} | entry 0 | weight bits -1
linear_tune --strategy {bits([8, -1])} | pairs | entry 1

# budgets and costs
search --preserve_ratio 0.03 | cannot be met | 0.03125
search --preserve_ratio 0 | cannot be met | 0.03125
search --preserve_ratio -1 | cannot be met | 0.03125
search --preserve_ratio nan | cannot be met | 0.03125
search --min_bit 6 --max_bit 4 | --min_bit | --max_bit | 6 | 4
search --min_bit 0 --max_bit 8 | --min_bit | --max_bit | 0 | 8
linear_search --min_bit 1 --max_bit 9 | --min_bit | --max_bit | 1 | 9
search --candidates layer1.*.conv3=4,8 | --candidates layer1.*.conv3=4,8: no layer | similar ones are layer1.
search --candidates 4,8/8 | --candidates '4,8/8': no activation bits
search --candidates 8,8 | --candidates '8,8' | given twice
search --candidates 4,9 | --candidates '4,9' | 1..8
search --candidates 4,8 --min_bit 2 | --candidates 4,8 take the place | --min_bit 2 .. --max_bit 8
search --candidates 4,8 --preserve_ratio 0.12 | strategy of 4,8 bits | possible is 0.12500
search --pin linear=8,8 | --pin 'linear=8,8' | NAME=W with
search --pin liner=8 | --pin liner=8: no layer | linear
search --pin *=8 | strategy of 8 bits | possible is 0.25000
linear_search --pin linear=8 | --pin 'linear=8' | NAME=W,A
linear_search --candidates l*near=4,8 | --candidates l*near=4,8 | first and the last layer
linear_search --cost moon_latency | moon_latency | cloud_latency | edge_latency | .npy
linear_search --cost nowhere.npy | nowhere.npy | make_lookup_table.py
linear_search --cost truncated.npy | wrong/truncated.npy
linear_search --cost text.npy | wrong/text.npy
linear_search --cost short.npy | 19 | 20
linear_search --cost flat.npy | (20, 8) | (layers, 8, 8)
linear_search --cost negative.npy | that is not negative
linear_search --cost other.npy | another network | layer 3 | in_channels
linear_search --cost good.pth | wrong/good.pth | .npy
linear_search --is_pruned | --is_pruned | K-means
budgets --constraint size | --constraint size: expected NAME=RATIO | size=0.3
budgets --constraint size= | expected NAME=RATIO
budgets --constraint =0.3 | expected NAME=RATIO
budgets --constraint size=small | expected NAME=RATIO
budgets --constraint size=uniform:9 | expected NAME=RATIO
budgets --constraint size=0.2 --constraint size=0.3 | model_size has two budgets
budgets --constraint size=0.2 --constraint model_size=0.3 | model_size has two budgets
budgets --preserve_ratio 0.3 --constraint size=0.2 | model_size has two budgets
budgets --constraint moon_latency=0.3 | moon_latency | bitfusion_energy | bitops
budgets --constraint measured_energy=0.3 | measured has no metric 'energy'
budgets --constraint latency=0.5 | --constraint latency | which hardware | bitfusion_latency
budgets --constraint edge.yaml=0.5 | edge.yaml | that of a preset
budgets --constraint nowhere.yaml=0.5 | nowhere.yaml
budgets --constraint nowhere.npy=0.5 | nowhere.npy
budgets --constraint size=0.01 | --constraint size 0.01 cannot be met | 0.03125
budgets --constraint size=nan | cannot be met
budgets --constraint size=-1 | cannot be met
budgets --constraint memory=0.5 | --constraint memory | activation_memory | 1.00000
budgets --constraint size=0.2 --constraint bitfusion_energy=0.3 | --constraint bitfusion_energy 0.3 cannot be met
budgets --constraint up.npy=0.3 --constraint down.npy=3 | up.npy 0.3 | down.npy 3 | cannot be met together | up 0.5
budgets --wall low --constraint size=0.2 | --wall | rounds | greedy

# numbers
train --epochs 0 | --epochs | 0
train --epochs -3 | --epochs | -3
train --train_batch 0 | --train_batch | 0
train --train_batch -5 | --train_batch | -5
train --test_batch 0 | --test_batch | 0
train --lr -0.1 | --lr | -0.1
train --lr fast | --lr | fast
train --momentum -1 | --momentum | -1
train --momentum inf | --momentum
train --wd -1 | --wd | -1
train --workers -1 | --workers | -1
train --start_epoch -1 | --start_epoch | -1
train --start_epoch 5 | --start_epoch | 5
train --image_size 0 | --image_size | 0
train --image_size -8 | --image_size | -8
train --image_size 1000000000 | --image_size | at most 16384
train --num_classes 0 | --num_classes | 0
train --num_classes -2 | --num_classes | -2
train --seed {HUGE} | --seed | too large
train --epochs {HUGE} | --epochs | too large
search --train_episode 0 | --train_episode | 0
search --train_episode -1 | --train_episode | -1
search --data_bsize 0 | --data_bsize | 0
search --test_batch 0 | --test_batch | 0
search --train_size 0 | --train_size | 0
search --val_size 0 | --val_size | 0
search --val_size -1 | --val_size | -1
search --bsize 0 | --bsize | 0
search --rmsize 0 | --rmsize | 0
search --hidden1 0 | --hidden1 | 0
search --n_update 0 | --n_update | 0
search --finetune_epoch 0 | --finetune_epoch | 0
search --finetune_epoch -1 | --finetune_epoch | -1
search --delta_end 0.6 | --delta_end 0.6 is above --init_delta 0.5
search --delta_end 0 | --delta_end | above 0
search --reward luck | --reward | agreement
search --reward kl --use_top5 | --reward kl and --use_top5
search --reward loss --screen 8 | --reward loss and --screen
search --reward agreement --reward_on train | --reward agreement and --reward_on train
search --finetune_lr -1 | --finetune_lr | -1
search --kmeans_iter -1 | --kmeans_iter | -1
search --tau 2 | --tau | 2
search --tau 0 | --tau | above 0
search --discount 2 | --discount | 2
search --lr_a -1 | --lr_a | -1
search --lr_c -1 | --lr_c | -1
search --init_delta -1 | --init_delta | -1
search --float_bit 0 | --float_bit | 0
search --float_bit -8 | --float_bit | -8
search --seed x | --seed | x
pretrain.py --dataset digits --arch mobilenetv2 --width_mult 0 -c out | width
pretrain.py --dataset digits --arch mobilenetv2 --width_mult -1 -c out | width
train --width_mult 0.5 | resnet20 | width
pretrain.py --dataset digits --arch alexnet --image_size 8 -c out | image_size

# networks of one's own
train_own --model_file nets.py:seven | error: nets: | has 7 outputs, the data have 10 classes
train_own --model_file nets.py:Two | error: nets: | returns a tuple of 2 in evaluation mode; expected logits
train_own --model_file nets.py:grey | error: nets: | on two images of 3x16x16
train_own --model_file nets.py:flat | error: nets: | nothing to quantize
train_own --model_file nets.py:flat --arch resnet20 | give one of them
pretrain.py --model_file {LONG}.py:build --dataset digits -c out | there is no file

# tables, and what things cost
table --batch 0 | batch
table --image_size 0 | image_size
table --num_classes 0 | num_classes
table --width_mult 0 --arch mobilenetv2 | width_mult
table --output table.txt | .npy
table --output good.pth/t.npy | --output | cannot be written, name another
own_table --hardware moon | 'moon' | bitfusion | cloud | edge | t4 | FILE.yaml
own_table --hardware measured --metric energy | no metric 'energy' | latency
own_table --hardware chip.yaml:energy | chip.yaml:energy
own_table --hardware nowhere.yaml | nowhere.yaml
own_table --hardware no_parameter.yaml | no_parameter.yaml | no parameter clock | clock_mhz
own_table --hardware broken.yaml | broken.yaml | no valid YAML
own_table --metric area | --metric | latency
own_table --batch 0 | --batch
tune --rounding compensated --keep_bn --bn_batches 2 | --keep_bn | --bn_batches 2
qat_lists --keep_bn | --keep_bn | compensated
budgets --keep_bn --preserve_ratio 0.2 | --keep_bn | --rounding compensated
own_search --model_file nets.py:viewing --val_size 64 --preserve_ratio 0.2 | --channels_last | --channels_last False
own_table --model_file nets.py:nothing | nets.py defines no nothing
own_table --model_file nets.py | FILE.py:NAME
own_table --model_file nowhere.py:build | nowhere.py
own_table --model_file nets.py:fails | no such luck
own_table --model_file nets.py:number | returned a int | nn.Module
own_table --input_size 28x28 | 28x28 | 1x28x28
own_table --input_size 1x0x28 | 1x0x28
own_table --input_size big | big | 224
own_table --input_size 3x28x28 | 3x28x28 | fails on one image
own_table --input_size 28 | 3x28x28 | fails on one image
own_table --output table.txt --hardware measured | .npy | table.txt
own_table --from_csv mine.csv | --unit
own_table --hardware edge --unit ms | --unit ms | --from_csv
csv_table mine.csv --output '' | --output
csv_table nowhere.csv | nowhere.csv
csv_table short.csv | short.csv | no line for 3
csv_table negative.csv | negative.csv, line 2 | -4
csv_table nets.py | nets.py | no column layer
csv_table mine.csv --hardware cloud --batch 4 | --hardware cloud and --batch 4 | leave out
csv_table mine.csv --unit J --metric energy | --metric energy | leave out
csv_table {LONG} | {LONG} | does not exist
measure --strategy [4,4,4] | 3 entries | 4 quantizable layers | 0 ... 7
measure --strategy [[8,8],[4,4]] | 2 entries
measure --strategy [4,4,4,9] | entry 3 | 9
measure --strategy [4,4,[4,4],4] | entry 0 | pairs
measure --strategy uniform:0 | uniform:0 | 1 to 8
measure --strategy uniform: | uniform:K
measure --strategy nowhere.json | nowhere.json | no such file
measure --strategy number.json | number.json | no list
measure --strategy conv9.json | conv9.json | conv9
measure --strategy uniform:4 --compare [4,4] | 2 entries
measure --compare uniform:4 | --compare | --strategy
measure --json --csv | --json | --csv
measure --hardware moon | 'moon' | bitfusion
measure --hardware measured --metric energy | no metric 'energy' | latency
measure --model_file nets.py:nothing | defines no nothing
measure --input_size 1x2 | 1x2
measure --input_size 3x28x28 | 3x28x28 | fails
measure --batch -1 | --batch
measure.py --dataset imagnet --arch resnet20 | imagnet | digits
large --num_classes 1000000000 | --num_classes | at most 10000000
large --num_classes 10000000 | 12,812,223,872 parameters | take fewer classes
large --width_mult 1000000000 | --width_mult | at most 1000
large --width_mult 900 | parameters | fewer channels
large --width_mult inf | --width_mult
large --width_mult nan | --width_mult
large --batch {HUGE} | --batch | too large
large --batch 99999999 | batch is 99999999 | at most 65536
large --input_size 3x1000000000x8 | --input_size | 16384
large --hardware {LONG}.yaml | {LONG} | does not exist
machines a=a --cost moon_latency | moon_latency | bitfusion_energy
machines a=a --cost edge | unknown cost edge
machines a=a --cost measured_energy | no metric 'energy'
machines a=a --cost nowhere.yaml | nowhere.yaml
machines a=a --cost edge_latency --cost nowhere.npy | nowhere.npy
machines a=a | --cost
machines --cost edge_latency | LABEL=FOLDER
machines x=nowhere --cost edge_latency | nowhere | finished
machines f=float_a --cost edge_latency | f: a float network
machines a=a o=resnet32 --cost edge_latency | o is a run of another network than a | resnet32
machines a=a o=classes --cost edge_latency | o is a run of another network than a
machines a=a s=short --cost edge_latency | 19 entries | 20 quantizable layers
machines s=no_args --cost edge_latency | s: | args.json
machines s=broken_args --cost edge_latency | s: | args.json
machines {LONG} --cost bitops | {LONG}
summarize.py a=nowhere | nowhere | finished
summarize.py {LONG} | {LONG} | does not exist

# comparisons of searchers
compare --searchers uniform annealing | annealing is no searcher: expected some of uniform, random
compare --budgets 0.01 | --budgets 0.01 cannot be met | lowest possible is 0.0625
compare --budgets 0.5 0.01 | --budgets 0.01 cannot be met | lowest possible is 0.0625
compare --cost activation_memory | activation_memory
compare --policy [4,4] | --policy | NAME=LIST
compare --policy ilp={bits(4)} | ilp is a searcher
compare --policy ../mine={bits(4)} | NAME=LIST
compare --policy mine={bits(4, count=19)} | --policy mine | 19 entries | 20 quantizable layers
compare --policy mine={bits(9)} | --policy mine | entry 0 (conv1) | 9
compare --policy mine={pairs((8, -1))} | --policy mine | pairs
compare --policy mine=nowhere.json | --policy mine | nowhere.json | no such file
compare --policy mine={bits(4)} --policy mine={bits(5)} | --policy mine is given twice
compare --evaluations 0 | evaluations
compare --screen 8 --finetune_flag | --screen judges a strategy by those before it
compare --min_bit 1 --budgets 0.05 | the searcher progressive: --budgets 0.05 cannot be met

# quantization-aware training
qat | layer_wbit has 13 entries, toynet takes 5: 0 stem (conv); 1 blocks.0 (depthwise, expand, project); 2
qat --layer_wbit 8x5 | layer_abit has 13 entries, toynet takes 5: 0 stem (image); 1 blocks.0 (stem.output
qat --layer_wbit 8x5 --layer_abit 32,9x4 | layer_abit: entry 1 (blocks.0) is 9: expected 1 to 8 or 16
qat --layer_wbit 8,a | argument --layer_wbit: 8,a: 'a' is no number of bits; expected a list like
qat --layer_wbit 8x1000000000 | --layer_wbit | makes more than 10000 entries
qat --layer_wbit {5000 * '9'} | --layer_wbit | no number of bits
qat --stem_channel 1000000000 | --stem_channel | too large
qat --strategy [[8,8],[4,4]] | the list given to --strategy has 2 entries, toynet has 10 quantizable
qat --strategy uniform:9 | has weight bits 9
qat --strategy nowhere.json | no such file
qat --config toynet_cfg9 | --config toynet_cfg9: expected FILE.py:NAME
qat --strategy [4,4] --input_bits 9 | has 2 entries
qat --strategy resnet50 | has 54 entries
qat --strategy {bits(4, count=10)} --input_bits 9 | entry 0 (stem.conv) is 9: expected 1 to 8 or 16 bits
qat_lists --arch resnet20 | resnet20 does not know the option header_channel, num_channel_list
qat --relu_after_add | toynet does not know the option relu_after_add
qat --strides 1 | toynet: strides has 1 entries, num_layer_list 2, num_channel_list 2
qat --alpha 0 | 0 is out of range
qat --act_quantizer relu | invalid choice
qat --opt lion | invalid choice: 'lion'
qat_train.py {NET} -c out | the bits are missing: give --layer_wbit and --layer_abit, --strategy
qat_train.py {NET} --layer_wbit 8x9 --layer_abit 8x9 -c out | resnet20 has no blocks that bit lists could belong to

# progressive searches
progressive --step 0 | argument --step: 0 is too small
progressive --lam -3 | argument --lam: -3 is too small
progressive --interval 3 | argument --interval: invalid choice: 3
progressive --ratio 1.5 | above 0 and at most 1
progressive --ratio 0.01 | a ratio of 0.01 lowers 0 of 36 quantizers at a time
progressive --cost 0.05 | --cost 0.05 cannot be reached: 2 bits everywhere cost 0.0625
progressive --k_bits 1 | --k_bits: the search starts from 1 bits, expected 2 to 8
progressive --info hessian | argument --info: invalid choice: 'hessian'
progressive --val_size 5000 --info acc | cannot be made of
progressive --weights nowhere.pt | does not exist
progressive --weights engine/checkpoint.pth.tar | does not fit the model | check --arch

# the hybrid system and its engine
hybrid --config missing.yaml | missing.yaml: there is no such file
hybrid --config {LONG} | {LONG} | no such file
hybrid --set w_bit_widht=2 | did you mean w_bit_width
hybrid --set mvm.rows=0 | the section mvm:
hybrid --set mvm.raws=8 | the section mvm:
hybrid --set arch=resnet20 | model.arch names a network and model.blocks describes another
hybrid --set blocks=[[4,4,1],[8,8,1]] | block 1 takes 8 channels, block 0 gives 4
hybrid --set kernel_size=2 | kernel_size is 2: expected an odd number
hybrid --set quantize_w_blocks=[5] | there is no block 5, hybrid_cnn has 2 residual blocks
hybrid --strategy [4,4] | has 2 entries, hybrid_cnn has
hybrid --set calibration_num=479 | training images, which are 479: give --set ptq.calibration_num=478
hybrid --eval | give the checkpoint to evaluate by --resume
calibrate --rows 0 | rows is 0
calibrate --rows many | 'many'
calibrate --engine missing.yaml | missing.yaml: there is no such file
calibrate --engine rowz.yaml | engine settings of | rowz.yaml: arrays have no parameter rowz
calibrate --engine list.yaml | expected engine settings
calibrate --backend ideal | nothing to calibrate
calibrate --backend hardware | --driver
calibrate --patterns 1 | at least 2
experiment --images 0 | at least 1
experiment --layers nothing | 'nothing' is no layer; the network has 0 stem.conv, 1 blocks.0.depthwise
experiment --layers 4 | blocks.1.downsample.conv has an input that no quantizer put on a grid
experiment --sweep bits=3 | the engine has no 'bits', it has rows, columns
experiment --sweep adc_bits=3,x | 'x' is no whole number
experiment --sweep read_noise=a | 'a' is no number
experiment --sweep adc_bits | expected adc_bits=VALUE
experiment --sweep rows=128,4 | layer stem.conv: an array of 4 rows
experiment --sweep adc_bits=8,1 | adc_bits is 1
experiment --sweep rows=64 --backend ideal | its products are exact
experiment --calibration missing.json | missing.json: there is no such file
experiment --calibration engine/args.json | is no calibration
experiment --resume missing.pth.tar | missing.pth.tar does not exist
experiment --float_weights missing.pth.tar | missing.pth.tar does not exist
experiment --collect 0 | --collect 0

# files that leave the house
export --format 8,1 | does not fit
export --format x | 'x'
export --format 16,20 | 16,20
export --hardware nothing | nothing
export --resume none.pth.tar | none.pth.tar
export.py --integer --output out | --resume
export.py --resume engine/checkpoint.pth.tar --output out | --integer

# folders: those of other runs stay as they are, also where they were to be replaced
search --output save --suffix k | resnet20_digits_k | --resume | --overwrite
tune -c tuned_k | tuned_k | --resume | --overwrite
train -c float | float | --resume | --overwrite
search --output good.pth | wrong/good.pth
train -c good.pth | wrong/good.pth
train -c good.pth/run | give another folder by --checkpoint
search --output good.pth/run | give another folder by --output
train_again --device gpu | gpu
train_again --arch resnet02 | resnet02
train_again --weights nowhere.pth | nowhere.pth
train_again --dataset folder --data nowhere | nowhere
train_again --train_batch 0 | --train_batch
train_again --lr -1 | --lr
tune_again --strategy [1,2] | 2 entries
tune_again --weights nowhere.pth | nowhere.pth
tune_again --cost nowhere.npy --linear_quantization | nowhere.npy
search_again --preserve_ratio 0.01 | cannot be met
search_again --weights nowhere.pth | nowhere.pth
search_again --val_size 5000 | 5000
search_again --bsize 0 | --bsize

# resuming
rl_quantize.py --resume nowhere | nowhere | no run
rl_quantize.py --resume empty | wrong/empty | no run
rl_quantize.py --resume good.pth | wrong/good.pth
rl_quantize.py --resume run | args.json
rl_quantize.py --resume tuned_k --train_episode 1 --train_size 64 --val_size 64 --preserve_ratio 0.2 | tuned_k
rl_quantize.py --resume state_empty | search.pth.tar
rl_quantize.py --resume state_text | search.pth.tar
rl_quantize.py --resume state_half | search.pth.tar
rl_quantize.py --resume save/resnet20_digits_k --preserve_ratio 0.2 | --preserve_ratio | 0.13 | 0.2
rl_quantize.py --resume save/resnet20_digits_k --candidates 2,4 --pin linear=8 | --candidates was None | --pin was None
rl_quantize.py --resume save/resnet20_digits_k --seed 1 | --seed | 234
rl_quantize.py --resume save/resnet20_digits_k --max_bit 8 --warmup 3 | --max_bit | --warmup
rl_quantize.py --resume save/resnet20_digits_k --arch resnet32 | --arch | resnet20
rl_quantize.py --resume save/resnet20_digits_k --train_episode 2 | 4 episodes | --train_episode 2 | at least 4
pretrain.py --resume float/checkpoint.pth.tar --lr 0.3 | --lr | 0.05 | 0.3
pretrain.py --resume float/checkpoint.pth.tar --seed 1 | --seed | 234
pretrain.py --resume float/checkpoint.pth.tar --train_batch 32 | --train_batch
pretrain.py --resume float/checkpoint.pth.tar -c new | --checkpoint
pretrain.py --resume float/checkpoint.pth.tar --epochs 1 | 3 epochs | --epochs 1 | at least 3
finetune.py --resume tuned_k/checkpoint.pth.tar --strategy uniform:3 | --strategy | uniform:3
finetune.py --resume tuned_k/checkpoint.pth.tar --linear_quantization | --linear_quantization
finetune.py --resume tuned_k/checkpoint.pth.tar --epochs 1 | 2 epochs | --epochs 1
progressive_search.py --resume nowhere | no run is there (args.json is missing); give the folder
hybrid_experiment.py -c elsewhere | give the folder of a run of hybrid_train.py by -c
""".strip().splitlines()
ROWS = [row for row in TABLE if row and not row.startswith('# ')]
ROWS += [f'train --weights {name} | wrong/{name}' for name in (*UNREADABLE, *NO_WEIGHTS)]
