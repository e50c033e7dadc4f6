#!/usr/bin/env bash
# IFC, ResNet-50: AP 41.6 on the validation set of YouTube-VIS 2019, by its authors. Not trained by us.
#
# DATA  holds coco/ and ytvis19/ as downloaded: a folder that all nodes see, or an address
# OUT   gets all outputs: the same
# RUN   begins every command, such as "python -m jobs.submit --" for a cluster; default: here
set -euo pipefail
: "${DATA:?}" "${OUT:?}"
RUN=${RUN:-}

# 1. Still images, from an ImageNet backbone.
$RUN python -m jobs.prepare --preset ifc_coco_r50 \
    --annotations $DATA/coco/annotations/instances_train2017.json \
    --frames $DATA/coco/train2017 --out $OUT/coco
$RUN python -m jobs.train --preset ifc_coco_r50 --pairs $OUT/coco \
    --backbone-weights hf://timm/resnet50.tv_in1k/model.safetensors \
    --workers 8 --gpus --resume --out $OUT/step1

# 2. Clips of five frames.
$RUN python -m jobs.prepare --preset ifc_ytvis19_r50 \
    --annotations $DATA/ytvis19/train/instances.json \
    --frames $DATA/ytvis19/train/JPEGImages --out $OUT/videos
$RUN python -m jobs.train --preset ifc_ytvis19_r50 --pairs $OUT/videos \
    --weights $OUT/step1 --reset-classes \
    --workers 8 --gpus --resume --out $OUT/step2

# Near-online: clips of 5 frames, one after every frame. Offline: --set clips.length=36.
$RUN python -m jobs.evaluate --checkpoint $OUT/step2/checkpoint.safetensors \
    --annotations $DATA/ytvis19/valid/instances.json --frames $DATA/ytvis19/valid/JPEGImages \
    --actors 1..8 --device gpu --out $OUT/valid
