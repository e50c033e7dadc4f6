"""Outputs and truth to named losses (door 3; specification 3.4, 3.5)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from idol.config import Config
from idol.learning import embedding_losses, losses
from idol.learning.matching import Frames, Matches, match
from idol.learning.targets import to_device
from idol.masks.resize import STRIDE
from idol.structures import Outputs, PairBatch
from ops.linear import full_precision

DETECTION_LOSSES = ("ce", "bbox", "giou", "mask", "dice")
_PER_IMAGE = ("refined", "embeddings", "mask_features", "sizes", "dense_logits")
_PER_LAYER = ("logits", "boxes", "references", "states")


class MaskModel(Protocol):
    """The part of the network that the criterion calls back."""

    def mask_logits(
        self, outputs: Outputs, images: Tensor, layers: Tensor, queries: Tensor
    ) -> Tensor:
        """(n,) image, layer and query indices → (n, H/4, W/4) mask logits."""
        ...


def split(outputs: Outputs, count: int) -> tuple[Outputs, Outputs]:
    """Views of the outputs of one pass: of its first count images (key frames), of the others."""

    def rows(part: slice) -> Outputs:
        fields = {name: getattr(outputs, name)[:, part] for name in _PER_LAYER}
        for name in _PER_IMAGE:
            value = getattr(outputs, name)
            fields[name] = None if value is None else value[part]
        return dataclasses.replace(outputs, **fields)

    return rows(slice(None, count)), rows(slice(count, None))


class Criterion:
    """Losses of a batch of key/reference pairs, always computed in at least float32."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(
        self,
        model: MaskModel,
        key: Outputs,
        reference: Outputs,
        batch: PairBatch,
        rng: random.Random | Sequence[random.Random],
        samples: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses by name, those of the last decoder layer first.

        model:   computes the masks of the matched queries
        rng:     draws the negatives of the auxiliary embedding loss: one for all pairs in their
                 order, as released, or one per pair
        samples: as of embedding_losses.sample_negatives; None: draw them
        returns: loss_ce, loss_bbox, loss_giou, loss_mask, loss_dice, loss_reid, loss_reid_aux,
                 where configured loss_identity and loss_dense, then the first five with suffix
                 _0 .. _{D-2} for the earlier layers; () each, with a gradient (of zero) for the
                 network's outputs even where nothing is matched
        Raises:
            ValueError: outputs and batch do not fit together.
            FloatingPointError: some losses are not finite; names them and the rows of the batch.
        """
        found = match(key, reference, batch, self.config)
        return self.losses(model, found, rng, samples=samples)

    def losses(
        self,
        model: MaskModel,
        found: Matches,
        rng: random.Random | Sequence[random.Random],
        *,
        normalisers: Tensor | None = None,
        samples: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Tensor]:
        """The same from what `match` found.

        normalisers: (D + 3,) what the sums are divided by, as `normalisers` gives; None: that of
                     these counts
        """
        if normalisers is None:
            normalisers = self.normalisers(found.counts())
        *of_layers, contrasted, identified, tokens = normalisers.unbind()
        layers = self._detection(model, found)
        named = {f"loss_{name}": values[-1] / of_layers[-1] for name, values in layers.items()}
        ratio = self.config.losses.negatives_per_positive
        reid, reid_aux = found.contrast.losses(ratio, rng, samples)
        named["loss_reid"], named["loss_reid_aux"] = reid / contrasted, reid_aux / contrasted
        if found.known:
            instances = self.config.model.num_identities
            frames = list(found.outputs.values())
            total = embedding_losses.classify_identities(frames, found.known, instances)
            named["loss_identity"] = total / identified
        if found.dense:
            named["loss_dense"] = self._dense(found) / tokens
        for layer, count in enumerate(of_layers[:-1]):
            named |= {f"loss_{name}_{layer}": v[layer] / count for name, v in layers.items()}
        _require_finite(named, found.outputs)
        return named

    def normalisers(self, counts: Tensor) -> Tensor:
        """What to divide sums by: counts (D + 3,) of a batch, at least 1, or with the global
        normaliser the mean of the counts over the workers, their sum at least 1."""
        if self.config.losses.normaliser == "local":
            return counts.clamp(min=1)
        workers, total = 1, counts.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            workers = torch.distributed.get_world_size()
            torch.distributed.all_reduce(total)
        return total.clamp(min=1) / workers

    def total(self, named: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, each times its weight in config.losses: ()."""
        return losses.weighted_sum(named, self.config.losses)

    def _detection(self, model: MaskModel, found: Matches) -> dict[str, Tensor]:
        """The five detection losses summed over the positives of all supervised frames, (D,)."""
        device = found.frames[0][0].logits.device
        totals: dict[str, list[Tensor]] = {name: [] for name in DETECTION_LOSSES}
        for some, assignment in zip(found.frames, found.assignments, strict=True):
            layer, image, query = np.nonzero(assignment.positive)
            row = assignment.truth[layer, image, query]
            counted = 1.0
            if len(layer) == 0:
                # Nothing is matched: one query with weight 0 gives every parameter a gradient (of
                # zero), for which distributed workers wait.
                layer = image = query = row = np.zeros(1, np.int64)
                counted = 0.0
            index = to_device(np.stack([layer, image, query, row]), device)
            for name, values in self._sums(model, some, index, counted).items():
                totals[name].append(values)
        return {name: torch.stack(values).sum(0) for name, values in totals.items()}

    def _sums(
        self, model: MaskModel, frames: Frames, index: Tensor, counted: float
    ) -> dict[str, Tensor]:
        """The five detection losses summed over the positives, (D,) each.

        index: (4, n) layer, image, query, truth of every positive; counted: 0 if it stands for none
        """
        (outputs, truths), (layer, image, query, row) = frames, index
        alpha, gamma = self.config.losses.focal_alpha, self.config.losses.focal_gamma
        most = truths.labels.shape[1]
        label, box = torch.zeros_like(row), outputs.boxes.new_zeros(len(row), 4)
        if most:
            label, box = truths.labels[image, row], truths.boxes[image, row]
        hot = torch.zeros(outputs.logits.shape, dtype=torch.bool, device=index.device)
        if counted:
            hot[layer, image, query, label] = True
        ce = losses.sigmoid_focal(full_precision(outputs.logits), hot, alpha, gamma)
        predicted = full_precision(outputs.boxes[layer, image, query])
        logits = full_precision(model.mask_logits(outputs, image, layer, query))
        masks = torch.zeros_like(logits, dtype=torch.bool)
        if len(truths.masks):
            masks = truths.masks[image * most + row]
        if logits.shape != masks.shape:
            raise ValueError(
                f"mask logits are {tuple(logits.shape)}, but truth at stride {STRIDE} of the "
                f"padded input is {tuple(masks.shape)}. Were the images padded to a multiple of 32?"
            )
        focal, dice = losses.mask_losses(logits, masks, alpha, gamma)
        values = [losses.box_l1(predicted, box), losses.box_giou(predicted, box), focal, dice]
        stacked = counted * torch.stack(values, 1)  # (n, 4)
        sums = stacked.new_zeros(len(outputs.logits), 4).index_add(0, layer, stacked)
        return dict(zip(DETECTION_LOSSES, (ce.sum((1, 2, 3)), *sums.unbind(1)), strict=True))

    def _dense(self, found: Matches) -> Tensor:
        """Focal classification of the encoder's tokens, summed over all in the picture (ours)."""
        weights, total = self.config.losses, []
        for (outputs, _), (hot, inside) in zip(found.frames, found.dense, strict=True):
            assert outputs.dense_logits is not None, "match has checked it"
            logits = full_precision(outputs.dense_logits)
            loss = losses.sigmoid_focal(logits, hot, weights.focal_alpha, weights.focal_gamma)
            total.append((loss * inside[..., None]).sum())
        return torch.stack(total).sum()


def _require_finite(named: Mapping[str, Tensor], outputs: Mapping[str, Outputs]) -> None:
    values = torch.stack([value.detach() for value in named.values()]).cpu()
    if values.isfinite().all():
        return
    bad = [name for name, v in zip(named, values, strict=True) if not v.isfinite()]
    rows = {side: _bad_rows(some) for side, some in outputs.items()}
    where = "; ".join(f"{side} rows {found}" for side, found in rows.items() if found)
    raise FloatingPointError(
        f"every loss must be finite, but {', '.join(bad)} "
        f"{'is' if len(bad) == 1 else 'are'} not. Network outputs that are not finite: "
        f"{where or 'none, so look at the truth boxes and masks'}. Has training diverged? "
        "Lower train.learning_rate or train.clip_norm."
    )


def _bad_rows(outputs: Outputs) -> list[int]:
    """Images whose logits, boxes, embeddings or mask features are not all finite."""
    images = len(outputs.embeddings)
    values = [outputs.logits.transpose(0, 1), outputs.boxes.transpose(0, 1)]
    values += [outputs.embeddings, outputs.mask_features]
    fine = [value.isfinite().reshape(images, -1).all(1) for value in values]
    return [int(row) for row in torch.nonzero(~torch.stack(fine).all(0)).flatten()]
