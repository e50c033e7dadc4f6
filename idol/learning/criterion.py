"""Outputs and truth to named losses (door 3; specification 3.4, 3.5)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.config import Config
from idol.learning import embedding_losses, losses
from idol.learning.assignment import Assignment, Truths, assign_queries, contrastive_samples
from idol.learning.targets import Flags, PaddedTruths, pad, read_flags, to_device
from idol.masks.resize import STRIDE
from idol.structures import Outputs, PairBatch

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


_Frames = tuple[Outputs, PaddedTruths]
"""B frames whose detections are supervised."""


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
    """Losses of a batch of key/reference pairs, always computed in float32."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(
        self,
        model: MaskModel,
        key: Outputs,
        reference: Outputs,
        batch: PairBatch,
        rng: random.Random,
        samples: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses by name, those of the last decoder layer first.

        model:   computes the masks of the matched queries
        rng:     draws the negatives of the auxiliary embedding loss
        samples: as of embedding_losses.sample_negatives; None: draw them
        returns: loss_ce, loss_bbox, loss_giou, loss_mask, loss_dice, loss_reid, loss_reid_aux,
                 where configured loss_identity and loss_dense, then the first five with suffix
                 _0 .. _{D-2} for the earlier layers; () each, with a gradient (of zero) for the
                 network's outputs even where nothing is matched
        Raises:
            ValueError: outputs and batch do not fit together.
            FloatingPointError: some losses are not finite; names them and the rows of the batch.
        """
        _check_fit(key, reference, batch)
        size = len(batch.key_targets)
        flags = read_flags([*batch.key_targets, *batch.reference_targets])
        on_key, on_reference = flags.present[:size], flags.present[size:]
        frames = [(key, pad(batch.key_targets, on_key, batch.key_padding))]
        if self.config.losses.supervise_reference:
            truths = pad(batch.reference_targets, on_reference, batch.reference_padding)
            frames.append((reference, truths))
        assignments = self._assign(frames)

        layers = self._detection(model, frames, assignments)
        named = {f"loss_{name}": values[-1] for name, values in layers.items()}
        both = [a & b for a, b in zip(on_key, on_reference, strict=True)]
        chosen = contrastive_samples(
            reference.logits[-1],
            reference.refined,
            pad(batch.reference_targets, both, None),
            self.config.assignment,
        )
        best, ratio = assignments[0].best[-1], self.config.losses.negatives_per_positive
        named["loss_reid"], named["loss_reid_aux"] = embedding_losses.contrast(
            key, reference, best, chosen, ratio, rng, samples
        )
        # With a weight of 0 an identity head still gets a gradient, like every parameter.
        if key.identity_head is not None or self.config.losses.identity > 0:
            named["loss_identity"] = self._identity(key, reference, batch, flags, assignments)
        if self.config.model.dense_auxiliary:
            named["loss_dense"] = self._dense(frames)
        for layer in range(len(key.logits) - 1):
            named |= {f"loss_{name}_{layer}": values[layer] for name, values in layers.items()}
        _require_finite(named, key, reference)
        return named

    def total(self, named: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, each times its weight in config.losses: ()."""
        weighted = []
        for name, value in named.items():
            kind = name.removeprefix("loss_")
            head, _, layer = kind.rpartition("_")
            weighted.append(getattr(self.config.losses, head if layer.isdigit() else kind) * value)
        return torch.stack(weighted).sum()

    def _assign(self, frames: list[_Frames]) -> list[Assignment]:
        """Assign all decoder layers of all frames together; one Assignment (D, B) per entry."""
        logits = torch.cat([outputs.logits for outputs, _ in frames], 1)
        boxes = torch.cat([outputs.boxes for outputs, _ in frames], 1)
        fields = zip(*((t.labels, t.boxes, t.valid) for _, t in frames), strict=True)
        joined = map(torch.cat, fields)
        truths = Truths(*(x.expand(len(logits), *x.shape) for x in joined))
        found = assign_queries(logits, boxes, truths, self.config.assignment)
        parts = (np.split(x, len(frames), 1) for x in (found.truth, found.best))
        return [Assignment(truth, best) for truth, best in zip(*parts, strict=True)]

    def _detection(
        self, model: MaskModel, frames: list[_Frames], assignments: list[Assignment]
    ) -> dict[str, Tensor]:
        """The five detection losses, (D,) each, over the number of positives of each layer."""
        depth, device = len(frames[0][0].logits), frames[0][0].logits.device
        totals: dict[str, list[Tensor]] = {name: [] for name in DETECTION_LOSSES}
        positives = np.zeros(depth, np.int64)
        for some, assignment in zip(frames, assignments, strict=True):
            layer, image, query = np.nonzero(assignment.positive)
            row = assignment.truth[layer, image, query]
            positives += np.bincount(layer, minlength=depth)
            counted = 1.0
            if len(layer) == 0:
                # Nothing is matched: one query with weight 0 gives every parameter a gradient (of
                # zero), for which distributed workers wait.
                layer = image = query = row = np.zeros(1, np.int64)
                counted = 0.0
            index = to_device(np.stack([layer, image, query, row]), device)
            for name, values in self._sums(model, some, index, counted).items():
                totals[name].append(values)
        count = to_device(positives, device)
        over_workers = self.config.losses.normaliser == "global"
        count = _mean_over_workers(count) if over_workers else count.clamp(min=1)
        return {name: torch.stack(values).sum(0) / count for name, values in totals.items()}

    def _sums(
        self, model: MaskModel, frames: _Frames, index: Tensor, counted: float
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
        ce = losses.sigmoid_focal(outputs.logits.float(), hot, alpha, gamma)
        predicted = outputs.boxes[layer, image, query].float()
        logits = model.mask_logits(outputs, image, layer, query).float()
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

    def _identity(
        self,
        key: Outputs,
        reference: Outputs,
        batch: PairBatch,
        flags: Flags,
        assignments: list[Assignment],
    ) -> Tensor:
        """Cross-entropy of the identity head on the queries matched in the last decoder layer."""
        size = len(batch.key_targets)
        logits, boxes = reference.logits[-1], reference.boxes[-1]
        on_key, *others = [assignment.truth[-1] for assignment in assignments]
        if not others:
            truths = pad(batch.reference_targets, flags.present[size:], None)
            others = [assign_queries(logits, boxes, truths, self.config.assignment).truth]
        frames = [(key, on_key, flags.identities[:size])]
        frames.append((reference, others[0], flags.identities[size:]))
        return embedding_losses.classify_identities(frames, self.config.model.num_identities)

    def _dense(self, frames: list[_Frames]) -> Tensor:
        """Focal classification of every encoder token not in the padding by the masks that cover
        its centre, over the number of positive tokens (ours)."""
        weights = self.config.losses
        total, count = [], []
        for outputs, truths in frames:
            assert truths.padding is not None, "supervised frames have masks"
            if outputs.dense_logits is None:
                raise ValueError(
                    "model.dense_auxiliary needs Outputs.dense_logits, got None. The network gives "
                    "them in training mode only: call model.train() first."
                )
            logits = outputs.dense_logits.float()
            height, width = truths.padding.shape[1:]
            place = _token_centres(outputs.level_shapes, (height, width)).to(logits.device)
            inside = ~truths.padding.flatten(1)[:, place]  # (B, S)
            hot = torch.zeros_like(logits)
            for b, masks in enumerate(truths.full):
                if len(masks):
                    covered = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
                    seen = covered.flatten(1)[:, place] & truths.valid[b, : len(masks), None]
                    classes = F.one_hot(truths.labels[b, : len(masks)], logits.shape[-1])
                    hot[b] = seen.T.to(logits.dtype) @ classes.to(logits.dtype)
            hot = hot.bool() & inside[..., None]
            loss = losses.sigmoid_focal(logits, hot, weights.focal_alpha, weights.focal_gamma)
            total.append((loss * inside[..., None]).sum())
            count.append(hot.any(-1).sum())
        return torch.stack(total).sum() / torch.stack(count).sum().clamp(min=1)


def _mean_over_workers(count: Tensor) -> Tensor:
    """Mean of a count over the workers of a distributed run; the sum counts as at least 1."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / torch.distributed.get_world_size()


def _token_centres(shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """The pixel under each encoder token's centre: (S,) index into the flattened (H, W)."""
    places = []
    for rows, columns in shapes:
        y = ((torch.arange(rows) + 0.5) * (size[0] / rows)).long()
        x = ((torch.arange(columns) + 0.5) * (size[1] / columns)).long()
        places.append((y[:, None] * size[1] + x).flatten())
    return torch.cat(places)


def _require_finite(named: Mapping[str, Tensor], key: Outputs, reference: Outputs) -> None:
    values = torch.stack([value.detach() for value in named.values()]).cpu()
    if values.isfinite().all():
        return
    bad = [name for name, v in zip(named, values, strict=True) if not v.isfinite()]
    rows = {"key": _bad_rows(key), "reference": _bad_rows(reference)}
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


def _check_fit(key: Outputs, reference: Outputs, batch: PairBatch) -> None:
    size = len(batch.key_targets)
    have = (key.logits.shape[1], reference.logits.shape[1])
    if have != (size, size):
        raise ValueError(
            f"a batch of {size} pairs needs Outputs of {size} key and {size} reference images, "
            f"got {have[0]} and {have[1]}. criterion.split divides one pass over both."
        )
    for b, (a, c) in enumerate(zip(batch.key_targets, batch.reference_targets, strict=True)):
        if len(a.labels) != len(c.labels):
            raise ValueError(
                f"key and reference targets of a pair are the same instances, but pair {b} has "
                f"{len(a.labels)} and {len(c.labels)}. Mark what is not visible by present=False."
            )
