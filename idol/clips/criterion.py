"""Matching and losses of SeqFormer and IFC on clips (specifications 3.2, 3.3 of both)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from idol.clips.network import ClipLayers
from idol.clips.targets import ClipTruth, ifc_truth, seqformer_truth
from idol.config import Config, LossConfig
from idol.learning import losses
from idol.learning.assignment import focal_class_cost, iou_and_giou
from idol.structures import ClipBatch
from ops.linear import full_precision

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
"""SeqFormer's weights of focal class cost, Euclidean distance of boxes and -GIoU."""
CLASS_GAIN, DICE_GAIN = 1.0, 3.0
"""IFC's weights of class score and dice coefficient."""


class Match(NamedTuple):
    """Which object query answers for which instance of a clip, one to one.

    queries: (n,) int64, ascending
    truths:  (n,) int64, the instance of each
    """

    queries: Tensor
    truths: Tensor


@torch.no_grad()
def seqformer_cost(logits: Tensor, boxes: Tensor, truth: ClipTruth) -> Tensor:
    """Cost (Q, G) of every query for every instance of a clip.

    2 · focal class cost + 5 · Euclidean distance of the T · 4 box coordinates - 2 · the mean over
    the frames of the GIoU, absent frames included.

    logits: (Q, K); boxes: (T, Q, 4) cxcywh
    """
    logits, boxes, wanted = logits.float(), boxes.float(), truth.boxes.float()
    of_class = focal_class_cost(logits[:, truth.labels])
    exact = "donot_use_mm_for_euclid_dist"
    rows = boxes.transpose(0, 1).flatten(1)
    distance = torch.cdist(rows[None], wanted.flatten(1)[None], compute_mode=exact)[0]
    giou = iou_and_giou(boxes, wanted.transpose(0, 1).clamp(1e-7, 1))[1].mean(0)
    return BOX_COST * distance + CLASS_COST * of_class - GIOU_COST * giou


@torch.no_grad()
def ifc_gain(logits: Tensor, masks: Tensor, truth: ClipTruth) -> Tensor:
    """Similarity (Q, G) of every query with every instance of a clip.

    Class score + 3 · (2 Σ p t + 1) / (Σ p + Σ t + 1) over all pixels of all frames.

    logits: (Q, K + 1); masks: (Q, T, h, w) logits at the resolution of the truth
    """
    scores = logits.float().softmax(1)[:, truth.labels]
    p, t = masks.float().sigmoid().flatten(1), truth.masks.float().flatten(1)
    dice = (2 * (p @ t.T) + 1) / (p.sum(1)[:, None] + t.sum(1) + 1)
    return CLASS_GAIN * scores + DICE_GAIN * dice


def seqformer_match(logits: Tensor, boxes: Tensor, truth: ClipTruth) -> Match:
    """The match of least total `seqformer_cost`; logits, boxes: as of it.

    Raises: FloatingPointError: a cost is not finite.
    """
    return _optimal(seqformer_cost(logits, boxes, truth))


def ifc_match(logits: Tensor, masks: Tensor, truth: ClipTruth) -> Match:
    """The match of greatest total `ifc_gain`; logits, masks: as of it.

    Raises: FloatingPointError: a similarity is not finite.
    """
    return _optimal(-ifc_gain(logits, masks, truth))


def _optimal(cost: Tensor) -> Match:
    host = cost.cpu().numpy()
    if not np.isfinite(host).all():
        raise FloatingPointError(
            "class logits, boxes and masks must be finite to be matched. Has training diverged? "
            "Lower train.learning_rate or train.clip_norm."
        )
    queries, truths = scipy.optimize.linear_sum_assignment(host)
    return Match(*(torch.from_numpy(x.astype(np.int64)).to(cost.device) for x in (queries, truths)))


class Matched(NamedTuple):
    """One decoder layer of a batch: its number, and per clip its match."""

    layer: int
    matches: Sequence[Match]


def seqformer_losses(
    layers: ClipLayers, matched: Matched, truths: Sequence[ClipTruth], config: LossConfig
) -> dict[str, Tensor]:
    """ce, bbox, giou, mask and dice of one decoder layer, each a sum over instances: () each.

    Divide by the number of instances. bbox and giou are means over the frames, mask over the
    pixels of all frames; dice is of the tube as a whole. Absent frames count like others.
    """
    n, alpha, gamma = matched.layer, config.focal_alpha, config.focal_gamma
    assert layers.boxes is not None
    logits = full_precision(layers.logits[n])
    hot = torch.zeros_like(logits, dtype=torch.bool)
    sums = []
    for b, (match, truth) in enumerate(zip(matched.matches, truths, strict=True)):
        hot[b, match.queries, truth.labels[match.truths]] = True
        queries, rows, counted = _rows(match, truth)
        boxes = full_precision(layers.boxes[n, b][:, queries]).transpose(0, 1)  # (n, T, 4)
        flat, wanted = boxes.flatten(0, 1), rows.boxes.flatten(0, 1)
        of_boxes = [losses.box_l1(flat, wanted), losses.box_giou(flat, wanted)]
        masks = full_precision(layers.mask_logits(n, b, queries))
        of_masks = losses.mask_losses(masks.flatten(1, 2), rows.masks.flatten(1, 2), alpha, gamma)
        means = [x.view(len(boxes), -1).mean(1) for x in of_boxes]
        sums.append(counted * torch.stack([*means, *of_masks]).sum(1))
    ce = losses.sigmoid_focal(logits, hot, alpha, gamma).sum()
    named = ("bbox", "giou", "mask", "dice")
    return {"ce": ce, **dict(zip(named, torch.stack(sums).sum(0).unbind(), strict=True))}


def ifc_losses(
    layers: ClipLayers, matched: Matched, truths: Sequence[ClipTruth], config: LossConfig
) -> dict[str, Tensor]:
    """ce, mask and dice of one decoder layer, sums over queries and over instances: () each.

    Divide mask and dice by the number of instances, and ce by the sum of the class weights: it is
    the cross-entropy of all queries, in which "no object" has the weight config.no_object.
    """
    n, alpha, gamma = matched.layer, config.focal_alpha, config.focal_gamma
    logits = full_precision(layers.logits[n])
    nothing = logits.shape[2] - 1
    labels = torch.full(logits.shape[:2], nothing, device=logits.device)
    sums = []
    for b, (match, truth) in enumerate(zip(matched.matches, truths, strict=True)):
        labels[b, match.queries] = truth.labels[match.truths]
        queries, rows, counted = _rows(match, truth)
        masks = resized(layers.mask_logits(n, b, queries), truth)
        of_masks = losses.soft_mask_losses(masks, rows.masks, alpha, gamma)
        sums.append(counted * torch.stack(of_masks).sum(1))
    weights = torch.ones(nothing + 1, device=logits.device)
    weights[nothing] = config.no_object
    ce = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights, reduction="sum")
    return {"ce": ce, **dict(zip(("mask", "dice"), torch.stack(sums).sum(0).unbind(), strict=True))}


def resized(masks: Tensor, truth: ClipTruth) -> Tensor:
    """IFC's mask logits (n, T, h, w) at the resolution of the truth, bilinear, in float32."""
    size = truth.masks.shape[2:]
    return F.interpolate(full_precision(masks), size, mode="bilinear", align_corners=False)


def _rows(match: Match, truth: ClipTruth) -> tuple[Tensor, ClipTruth, float]:
    """Queries, the truth of each, and 1; or, where nothing is matched, one query to count 0 times,
    which gives every parameter a gradient (of zero): distributed workers wait for it."""
    if len(match.queries):
        rows = match.truths
        return (
            match.queries,
            ClipTruth(truth.labels[rows], truth.boxes[rows], truth.masks[rows]),
            1.0,
        )
    frames, *size = truth.masks.shape[1:]
    zero = match.queries.new_zeros(1)
    boxes, masks = truth.boxes.new_zeros(1, frames, 4), truth.masks.new_zeros(1, frames, *size)
    return zero, ClipTruth(zero, boxes, masks), 0.0


class ClipCriterion:
    """Losses of a batch of clips; every decoder layer has a matching of its own."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.boxes = config.model.method == "seqformer"

    def truths(self, batch: ClipBatch) -> list[ClipTruth]:
        """The truth of every clip in the form of the method."""
        size = (batch.images.shape[3], batch.images.shape[4])
        return [(seqformer_truth if self.boxes else ifc_truth)(t, size) for t in batch.targets]

    @torch.no_grad()
    def match(self, layers: ClipLayers, truths: Sequence[ClipTruth]) -> list[Matched]:
        """The matches of all decoder layers. Raises: FloatingPointError: outputs not finite."""
        found = []
        for n, logits in enumerate(layers.logits):
            matches = []
            for b, truth in enumerate(truths):
                if self.boxes:
                    assert layers.boxes is not None
                    matches.append(seqformer_match(logits[b], layers.boxes[n, b], truth))
                    continue
                every = torch.arange(logits.shape[1], device=logits.device)
                masks = resized(layers.mask_logits(n, b, every), truth)
                matches.append(ifc_match(logits[b], masks, truth))
            found.append(Matched(n, matches))
        return found

    def __call__(self, layers: ClipLayers, batch: ClipBatch) -> dict[str, Tensor]:
        """Unweighted losses by name, those of the last decoder layer first.

        returns: loss_ce, loss_mask, loss_dice, for SeqFormer loss_bbox and loss_giou; then all with
                 suffix _0 .. _{D-2} for the earlier layers; () each
        Raises: FloatingPointError: outputs or losses are not finite.
        """
        truths = self.truths(batch)
        matched = self.match(layers, truths)
        return self.losses(layers, matched, truths, self.normalisers(self.counts(truths)))

    def counts(self, truths: Sequence[ClipTruth]) -> Tensor:
        """(2,) float32 of a batch: instances, and the sum of the class weights of all queries."""
        instances = [len(truth.labels) for truth in truths]
        queries, nothing = self.config.model.num_queries, self.config.losses.no_object
        weights = [min(n, queries) + nothing * max(0, queries - n) for n in instances]
        device = truths[0].labels.device
        return torch.tensor([sum(instances), sum(weights)], dtype=torch.float32, device=device)

    def normalisers(self, counts: Tensor) -> Tensor:
        """(2,) what to divide by: the mean of the instances over the workers, at least 1; and this
        worker's own class weights. counts: (2,) as of `counts`, of all that the worker has."""
        instances = counts[:1].clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(instances)
            instances /= distributed.get_world_size()
        return torch.cat([instances.clamp(min=1), counts[1:]])

    def losses(
        self,
        layers: ClipLayers,
        matched: Sequence[Matched],
        truths: Sequence[ClipTruth],
        normalisers: Tensor,
    ) -> dict[str, Tensor]:
        """The same from what `match` found; normalisers: (2,) as of `normalisers`."""
        named: dict[str, Tensor] = {}
        for one in (matched[-1], *matched[:-1]):
            of_layer = (seqformer_losses if self.boxes else ifc_losses)(
                layers, one, truths, self.config.losses
            )
            suffix = "" if one is matched[-1] else f"_{one.layer}"
            for name, value in of_layer.items():
                by = normalisers[int(name == "ce" and not self.boxes)]
                named[f"loss_{name}{suffix}"] = value / by
        bad = [name for name, value in named.items() if not torch.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"every loss must be finite, but {', '.join(bad)} are not. Has training diverged? "
                "Lower train.learning_rate or train.clip_norm."
            )
        return named

    def total(self, named: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, each times its weight in config.losses: ()."""
        return losses.weighted_sum(named, self.config.losses)
