#!/usr/bin/env bash
# Table 4, ResNet-50: AP 43.9 on the validation set of YouTube-VIS 2021, by the paper. Not trained by us.
#
# DATA  holds coco/ and ytvis21/ as downloaded: a folder that all nodes see, or an address
# OUT   gets all outputs: the same
# RUN   begins every command, such as "python -m jobs.submit --" for a cluster; default: here
set -euo pipefail
: "${DATA:?}" "${OUT:?}"
RUN=${RUN:-}

# 1. Instance segmentation of still images, from an ImageNet backbone.
$RUN python -m jobs.prepare --preset coco_instance_r50 \
    --annotations $DATA/coco/annotations/instances_train2017.json \
    --frames $DATA/coco/train2017 --out $OUT/coco
$RUN python -m jobs.train --preset coco_instance_r50 --pairs $OUT/coco \
    --backbone-weights hf://timm/resnet50.tv_in1k/model.safetensors \
    --workers 8 --gpus --resume --out $OUT/step1

# 2. Videos.
$RUN python -m jobs.prepare --preset ytvis21_r50 \
    --annotations $DATA/ytvis21/train/instances.json \
    --frames $DATA/ytvis21/train/JPEGImages --out $OUT/videos
$RUN python -m jobs.train --preset ytvis21_r50 --pairs $OUT/videos \
    --weights $OUT/step1 --reset-classes \
    --workers 8 --gpus --resume --out $OUT/step2

# The truth is not public: results.zip goes to the server.
# 360 pixels, as in the paper; the released files have 480, as rows with † do.
$RUN python -m jobs.evaluate --checkpoint $OUT/step2/checkpoint.safetensors \
    --annotations $DATA/ytvis21/valid/instances.json --frames $DATA/ytvis21/valid/JPEGImages \
    --set transforms.test_short_side=360 \
    --actors 1..8 --device gpu --out $OUT/valid
