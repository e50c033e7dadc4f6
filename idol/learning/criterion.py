"""From what the network says and what is true to named losses (door 3; specification 3.4, 3.5)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.arrays import Ints
from idol.config import Config
from idol.learning import embedding_losses, losses
from idol.learning.assignment import Assignment, assign, select
from idol.learning.targets import MASK_STRIDE, Flags, PaddedTargets, pad, read_flags, to_device
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


def split(outputs: Outputs, count: int) -> tuple[Outputs, Outputs]:
    """Divide one pass over key and reference frames.

    outputs: of B images
    count:   how many of them, from the front, are key frames
    returns: Outputs of the first count images, Outputs of the others; views, no copies
    """

    def rows(part: slice) -> Outputs:
        fields: dict[str, Tensor] = {}
        for names, index in ((_PER_IMAGE, (part,)), (_PER_LAYER, (slice(None), part))):
            for name in names:
                value = getattr(outputs, name)
                if value is not None:
                    fields[name] = value[index]
        return dataclasses.replace(outputs, **fields)  # type: ignore[arg-type]

    return rows(slice(None, count)), rows(slice(count, None))


class Criterion:
    """Losses of a batch of key/reference pairs, in float32 whatever the network computes in.

    Three choices differ from the released code where the configuration asks for it:
    losses.supervise_reference gives the five detection losses to both frames of a pair,
    model.num_identities adds the "ID head" of the paper's ablation, and model.dense_auxiliary a
    classification of every encoder token.
    """

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
        """Unweighted losses by name, the last decoder layer's first.

        model:     what gave the outputs; asked for the masks of the matched queries only
        key:       Outputs of the B key frames
        reference: Outputs of the B reference frames, in the same order
        batch:     the truth
        rng:       draws the negatives of the auxiliary embedding loss
        samples:   instead of drawing: for each truth visible in both frames that has a positive,
                   in order, indices into its list of negatives in ascending query order
        returns:   loss_ce, loss_bbox, loss_giou, loss_mask, loss_dice, loss_reid, loss_reid_aux,
                   loss_identity where the network has an identity head, loss_dense with
                   model.dense_auxiliary, then the first five again with suffix _0 .. _{D-2} for
                   the earlier layers; () each, and each depends on the network's outputs even
                   where nothing is matched
        errors:    ValueError where outputs and batch do not fit together;
                   FloatingPointError naming the losses and rows of the batch that are not finite
        """
        _check_fit(key, reference, batch)
        size = len(batch.key_targets)
        flags = read_flags([*batch.key_targets, *batch.reference_targets])
        on_key, on_reference = flags.present[:size], flags.present[size:]
        frames = [(key, pad(batch.key_targets, on_key, batch.key_padding))]
        if self.config.losses.supervise_reference:
            truths = pad(batch.reference_targets, on_reference, batch.reference_padding)
            frames.append((reference, truths))
        assignments = _assign_all(frames, self.config)

        layers = self._detection(model, frames, assignments)
        named = {f"loss_{name}": values[-1] for name, values in layers.items()}
        both = [a & b for a, b in zip(on_key, on_reference, strict=True)]
        there = pad(batch.reference_targets, both, None)
        selection = select(
            reference.logits[-1],
            reference.refined,
            there.labels,
            there.boxes,
            self.config.assignment,
            there.valid,
        )
        named["loss_reid"], named["loss_reid_aux"] = embedding_losses.contrast(
            key,
            reference,
            assignments[0].best[-1],
            selection,
            self.config.losses.negatives_per_positive,
            rng,
            samples,
        )
        # A head whose loss weighs nothing still takes part: every parameter gets a gradient.
        if key.identity_head is not None or self.config.losses.identity > 0:
            named["loss_identity"] = self._identity(key, reference, batch, flags, assignments)
        if self.config.model.dense_auxiliary:
            paddings = [batch.key_padding, batch.reference_padding]
            named["loss_dense"] = self._dense(frames, paddings)
        for layer in range(len(key.logits) - 1):
            for name, values in layers.items():
                named[f"loss_{name}_{layer}"] = values[layer]
        self._require_finite(named, key, reference)
        return named

    def total(self, named: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, each times its weight in config.losses: ()."""
        weighted = []
        for name, value in named.items():
            kind = name.removeprefix("loss_")
            head, _, layer = kind.rpartition("_")
            weighted.append(getattr(self.config.losses, head if layer.isdigit() else kind) * value)
        return torch.stack(weighted).sum()

    def _detection(
        self,
        model: MaskModel,
        frames: list[tuple[Outputs, PaddedTargets]],
        assignments: list[Assignment],
    ) -> dict[str, Tensor]:
        """The five detection losses, (D,) each, over all positives of a layer together."""
        depth = len(frames[0][0].logits)
        totals: dict[str, list[Tensor]] = {name: [] for name in DETECTION_LOSSES}
        positives = np.zeros(depth, np.int64)
        for (outputs, truths), assignment in zip(frames, assignments, strict=True):
            layer, image, query = np.nonzero(assignment.positive)
            row = assignment.truth[layer, image, query]
            positives += np.bincount(layer, minlength=depth)
            counted = 1.0
            if len(layer) == 0:
                # Nothing matched: one query stands in at weight 0, so that every parameter
                # still gets its (zero) gradient and distributed workers do not wait.
                layer = image = query = row = np.zeros(1, np.int64)
                counted = 0.0
            index = to_device(np.stack([layer, image, query, row]), outputs.logits.device)
            for name, values in self._frame_losses(model, outputs, truths, index, counted).items():
                totals[name].append(values)
        count = to_device(positives, frames[0][0].logits.device)
        if self.config.losses.normaliser == "global":
            count = _mean_over_workers(count)
        else:
            count = count.clamp(min=1)
        return {name: torch.stack(values).sum(0) / count for name, values in totals.items()}

    def _frame_losses(
        self,
        model: MaskModel,
        outputs: Outputs,
        truths: PaddedTargets,
        index: Tensor,
        counted: float,
    ) -> dict[str, Tensor]:
        """Sums over positives, (D,) each.

        index:   (4, n) layer, image, query and truth of every positive
        counted: 1, or 0 where index is a stand-in for no positive at all
        """
        weights = self.config.losses
        layer, image, query, row = index
        if truths.labels.shape[1] == 0:  # no truth in any frame: nothing to look up
            label = torch.zeros_like(row)
            box = outputs.boxes.new_zeros(len(row), 4)
        else:
            label, box = truths.labels[image, row], truths.boxes[image, row]
        hot = torch.zeros(outputs.logits.shape, dtype=torch.bool, device=index.device)
        if counted:
            hot[layer, image, query, label] = True
        ce = losses.sigmoid_focal(
            outputs.logits.float(), hot, weights.focal_alpha, weights.focal_gamma
        )
        predicted = outputs.boxes[layer, image, query].float()
        logits = model.mask_logits(outputs, image, layer, query).float()
        if len(truths.masks):
            masks = truths.masks[image * truths.labels.shape[1] + row]
        else:
            masks = torch.zeros_like(logits, dtype=torch.bool)
        if logits.shape != masks.shape:
            raise ValueError(
                f"mask logits are {tuple(logits.shape)}, but truth at stride {MASK_STRIDE} of the "
                f"padded input is {tuple(masks.shape)}. Were the images padded to a multiple of 32?"
            )
        focal, dice = losses.mask_losses(logits, masks, weights.focal_alpha, weights.focal_gamma)
        per_positive = {
            "bbox": losses.box_l1(predicted, box),
            "giou": losses.box_giou(predicted, box),
            "mask": focal,
            "dice": dice,
        }
        stacked = counted * torch.stack(list(per_positive.values()), 1)  # (n, 4)
        sums = stacked.new_zeros(len(outputs.logits), 4).index_add(0, layer, stacked)
        return {"ce": ce.sum((1, 2, 3)), **dict(zip(per_positive, sums.unbind(1), strict=True))}

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
        if len(assignments) > 1:
            on_reference: Ints = assignments[1].truth[-1]
        else:
            truths = pad(batch.reference_targets, flags.present[size:], None)
            on_reference = assign(
                reference.logits[-1],
                reference.boxes[-1],
                truths.labels,
                truths.boxes,
                self.config.assignment,
                truths.valid,
            ).truth
        frames = [
            (key, assignments[0].truth[-1], flags.identities[:size]),
            (reference, on_reference, flags.identities[size:]),
        ]
        return embedding_losses.classify_identities(frames, self.config.model.num_identities)

    def _dense(self, frames: list[tuple[Outputs, PaddedTargets]], paddings: list[Tensor]) -> Tensor:
        """Focal classification of every encoder token, over the number of positive tokens (ours).

        A token's classes are those of the masks that cover its centre; padding does not count.
        """
        weights = self.config.losses
        total, count = [], []
        for (outputs, truths), padding in zip(frames, paddings, strict=False):
            if outputs.dense_logits is None:
                raise ValueError(
                    "model.dense_auxiliary needs Outputs.dense_logits, got None. The network gives "
                    "them in training mode only: call model.train() first."
                )
            logits = outputs.dense_logits.float()
            place = _token_centres(outputs.level_shapes, (padding.shape[1], padding.shape[2]))
            place = place.to(logits.device)
            inside = ~padding.flatten(1)[:, place]  # (B, S)
            hot = torch.zeros_like(logits)
            for b, masks in enumerate(truths.full):
                if len(masks):
                    covered = _to_size(masks, (padding.shape[1], padding.shape[2]))
                    seen = covered.flatten(1)[:, place] & truths.valid[b, : len(masks), None]
                    classes = F.one_hot(truths.labels[b, : len(masks)], logits.shape[-1])
                    hot[b] = seen.T.to(logits.dtype) @ classes.to(logits.dtype)
            hot = hot.bool() & inside[..., None]
            loss = losses.sigmoid_focal(logits, hot, weights.focal_alpha, weights.focal_gamma)
            total.append((loss * inside[..., None]).sum())
            count.append(hot.any(-1).sum())
        return torch.stack(total).sum() / torch.stack(count).sum().clamp(min=1)

    def _require_finite(
        self, named: Mapping[str, Tensor], key: Outputs, reference: Outputs
    ) -> None:
        values = torch.stack([value.detach() for value in named.values()]).cpu()
        if values.isfinite().all():
            return
        bad = [name for name, v in zip(named, values, strict=True) if not v.isfinite()]
        rows = {
            side: _bad_rows(outputs) for side, outputs in (("key", key), ("reference", reference))
        }
        where = "; ".join(f"{side} rows {found}" for side, found in rows.items() if found)
        raise FloatingPointError(
            f"every loss must be finite, but {', '.join(bad)} "
            f"{'is' if len(bad) == 1 else 'are'} not. Network outputs that are not finite: "
            f"{where or 'none, so look at the truth boxes and masks'}. Has training diverged? "
            "Lower train.learning_rate or train.clip_norm."
        )


def _assign_all(frames: list[tuple[Outputs, PaddedTargets]], config: Config) -> list[Assignment]:
    """Assign all decoder layers of all frames, in one go where the frames' rows are equal."""
    logits = torch.cat([outputs.logits for outputs, _ in frames], 1)
    boxes = torch.cat([outputs.boxes for outputs, _ in frames], 1)
    joined = [torch.cat(parts) for parts in zip(
        *[(t.labels, t.boxes, t.valid) for _, t in frames], strict=True)]  # fmt: skip
    depth = len(logits)
    labels, truth_boxes, valid = (x.expand(depth, *x.shape) for x in joined)
    found = assign(logits, boxes, labels, truth_boxes, config.assignment, valid)
    edges = np.cumsum([o.logits.shape[1] for o, _ in frames])[:-1]
    return [
        Assignment(truth=truth, best=best)
        for truth, best in zip(
            np.split(found.truth, edges, 1), np.split(found.best, edges, 1), strict=True
        )
    ]


def _mean_over_workers(count: Tensor) -> Tensor:
    """Mean of a count over the workers of a distributed run; of the batch's count, at least 1."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / torch.distributed.get_world_size()


def _to_size(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (G, h, w) masks with False at the bottom and right to (G, H, W)."""
    return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def _token_centres(shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """The pixel under each encoder token's centre: (S,) index into the flattened (H, W)."""
    places = []
    for rows, columns in shapes:
        y = ((torch.arange(rows) + 0.5) * (size[0] / rows)).long()
        x = ((torch.arange(columns) + 0.5) * (size[1] / columns)).long()
        places.append((y[:, None] * size[1] + x).flatten())
    return torch.cat(places)


def _bad_rows(outputs: Outputs) -> list[int]:
    """Images whose logits, boxes, embeddings or mask features are not all finite."""
    fine = torch.stack(
        [
            outputs.logits.isfinite().flatten(2).all(2).all(0),
            outputs.boxes.isfinite().flatten(2).all(2).all(0),
            outputs.embeddings.isfinite().flatten(1).all(1),
            outputs.mask_features.isfinite().flatten(1).all(1),
        ]
    ).all(0)
    found: list[int] = torch.nonzero(~fine).flatten().tolist()
    return found


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
