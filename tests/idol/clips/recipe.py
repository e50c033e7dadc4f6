"""Deterministic weights behind the stored numbers of SeqFormer and IFC (their specifications)."""

import zlib

import numpy as np
import torch

from tests.idol import oracle_recipe as idol_recipe

MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)


def keys(key_list):
    """(key, shape) of every tensor in a reference key list that is not of whole numbers."""
    for line in key_list.read_text().splitlines():
        key, shape, dtype = line.split("\t")
        if not dtype.endswith("int64"):
            yield key, [int(x) for x in shape.strip("()[] ").split(",") if x.strip()]


def seqformer_weight(key, shape):
    scale = {"time_attention_weights.weight": 8.0, "linear2_box.weight": idol_recipe.DECODER_BRANCH}
    for ending, factor in scale.items():
        if key.endswith(ending):
            state = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
            std = (1.0 / int(np.prod(shape[1:]))) ** 0.5 * factor
            value = std * state.standard_normal(size=tuple(shape))
            return torch.from_numpy(value.astype(np.float32))
    return idol_recipe.weight(key, shape)


def ifc_weight(key, shape):
    if key == "criterion.empty_weight":
        value = np.ones(shape, np.float32)
        value[-1] = 0.1
        return torch.from_numpy(value)
    state = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    z = state.standard_normal(size=tuple(shape))
    std = (1.0 / shape[1]) ** 0.5 if len(shape) > 1 else 0.1
    decoder = ".clip_decoder." in key
    if key.endswith(("memory_bus", "memory_pos")):
        value = 0.5 * z
    elif key.endswith("class_embed.layers.0.weight"):
        value = 2.0**0.5 * std * z
    elif key.endswith("class_embed.layers.1.weight"):
        value = 2.0 * std * z
    elif key.endswith(("class_embed.layers.0.bias", "class_embed.layers.1.bias")):
        value = 0.1 * z
        if key.endswith("1.bias"):
            value[-1] += 6.3
    elif key.endswith("convert_to_weight.layers.2.weight"):
        value = 1.5 * std * z
    elif key.endswith("convert_to_weight.layers.2.bias"):
        value = 0.1 * z - 0.05
    elif decoder and key.endswith("multihead_attn.in_proj_weight"):
        value = 2.2 * std * z
    elif decoder and key.endswith("self_attn.out_proj.weight"):
        value = 0.3 * std * z
    elif decoder and key.endswith("self_attn.out_proj.bias"):
        value = 0.03 * z
    else:
        return idol_recipe.weight(key, shape)
    return torch.from_numpy(value.astype(np.float32))


def released_state(key_list):
    """The authors' state dict of seqformer_*.txt or ifc_*.txt."""
    weight = ifc_weight if "_ifc_" in key_list.name else seqformer_weight
    return {key: weight(key, shape) for key, shape in keys(key_list)}


def clip(times, height, width, count, seed, padded=None, *, bgr=False):
    """Frames of one synthetic video: images (T, 3, H, W), padding (T, H, W), masks."""
    pictures, masks = zip(
        *(idol_recipe.frame(height, width, t, count, seed) for t in times), strict=True
    )
    size = padded or (height, width)
    images, padding = idol_recipe.batch(pictures, size)
    if bgr:
        images = torch.zeros_like(images)
        for i, picture in enumerate(pictures):
            values = picture[::-1].astype(np.float32) - MEAN_BGR[:, None, None]
            images[i, :, :height, :width] = torch.from_numpy(values)
    return images, padding, masks
