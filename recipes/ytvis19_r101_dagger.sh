#!/usr/bin/env bash
# Table 3, ResNet-101, †: AP 50.1 on the validation set of YouTube-VIS 2019, by the paper. Not trained by us.
#
# DATA  holds coco/ and ytvis19/ as downloaded: a folder that all nodes see, or an address
# OUT   gets all outputs: the same
# RUN   begins every command, such as "python -m jobs.submit --" for a cluster; default: here
set -euo pipefail
: "${DATA:?}" "${OUT:?}"
RUN=${RUN:-}

# 1. Instance segmentation of still images, from an ImageNet backbone.
$RUN python -m jobs.prepare --preset coco_instance_r101 \
    --annotations $DATA/coco/annotations/instances_train2017.json \
    --frames $DATA/coco/train2017 --out $OUT/coco
$RUN python -m jobs.train --preset coco_instance_r101 --pairs $OUT/coco \
    --backbone-weights hf://timm/resnet101.tv_in1k/model.safetensors \
    --workers 8 --gpus --resume --out $OUT/step1

# 2. Embeddings: two views of an image as key and reference. The images are those of step 1.
$RUN python -m jobs.train --preset coco_pairs_r101 --pairs $OUT/coco \
    --weights $OUT/step1 --workers 8 --gpus --resume --out $OUT/step2

# 3. Videos.
$RUN python -m jobs.prepare --preset ytvis19_r101 \
    --annotations $DATA/ytvis19/train/instances.json \
    --frames $DATA/ytvis19/train/JPEGImages --out $OUT/videos
$RUN python -m jobs.train --preset ytvis19_r101 --pairs $OUT/videos \
    --weights $OUT/step2 --reset-classes \
    --workers 8 --gpus --resume --out $OUT/step3

# The truth is not public: results.zip goes to the server.
$RUN python -m jobs.evaluate --checkpoint $OUT/step3/checkpoint.safetensors \
    --annotations $DATA/ytvis19/valid/instances.json --frames $DATA/ytvis19/valid/JPEGImages \
    --actors 1..8 --device gpu --out $OUT/valid
