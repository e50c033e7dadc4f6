#!/usr/bin/env bash
# SeqFormer, ResNet-50: AP 45.1 on the validation set of YouTube-VIS 2019, by its authors, who start
# from COCO weights that they have not published; here from an ImageNet backbone. Not trained by us.
#
# DATA  holds ytvis19/ as downloaded: a folder that all nodes see, or an address
# OUT   gets all outputs: the same
# RUN   begins every command, such as "python -m jobs.submit --" for a cluster; default: here
set -euo pipefail
: "${DATA:?}" "${OUT:?}"
RUN=${RUN:-}

$RUN python -m jobs.prepare --preset seqformer_ytvis19_r50 \
    --annotations $DATA/ytvis19/train/instances.json \
    --frames $DATA/ytvis19/train/JPEGImages --out $OUT/videos
$RUN python -m jobs.train --preset seqformer_ytvis19_r50 --pairs $OUT/videos \
    --backbone-weights hf://timm/resnet50.tv_in1k/model.safetensors \
    --workers 8 --gpus --resume --out $OUT/train

# The whole video is one clip. For long ones: --set clips.length=10.
$RUN python -m jobs.evaluate --checkpoint $OUT/train/checkpoint.safetensors \
    --annotations $DATA/ytvis19/valid/instances.json --frames $DATA/ytvis19/valid/JPEGImages \
    --actors 1..8 --device gpu --out $OUT/valid
