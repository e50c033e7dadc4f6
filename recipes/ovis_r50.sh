#!/usr/bin/env bash
# Table 5, ResNet-50: AP 30.2 on the validation set of OVIS, by the paper. Not trained by us.
#
# DATA  holds coco/ and ovis/ as downloaded: a folder that all nodes see, or an address
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
$RUN python -m jobs.prepare --preset ovis_r50 \
    --annotations $DATA/ovis/train/instances.json \
    --frames $DATA/ovis/train/JPEGImages --out $OUT/videos
$RUN python -m jobs.train --preset ovis_r50 --pairs $OUT/videos \
    --weights $OUT/step1 --reset-classes \
    --workers 8 --gpus --resume --out $OUT/step2

# The truth is not public: results.zip goes to the server.
$RUN python -m jobs.evaluate --checkpoint $OUT/step2/checkpoint.safetensors \
    --annotations $DATA/ovis/valid/instances.json --frames $DATA/ovis/valid/JPEGImages \
    --actors 1..8 --device gpu --out $OUT/valid
