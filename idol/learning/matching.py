"""What the losses of a batch are sums over: assignments, samples and labels, decided on values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.config import Config
from idol.learning.assignment import Assignment, Truths, assign_queries, contrastive_samples
from idol.learning.consistent import MemoryContrast
from idol.learning.embedding_losses import PairContrast
from idol.learning.targets import PaddedTruths, pad, read_flags, to_device
from idol.structures import ClipBatch, Outputs, PairBatch

Frames = tuple[Outputs, PaddedTruths]
"""B frames whose detections are supervised."""


class Contrast(Protocol):
    """What embeddings are contrasted with: PairContrast or MemoryContrast."""

    @property
    def count(self) -> int:
        """Embeddings that the losses are sums over."""

    def losses(
        self,
        negatives_per_positive: int,
        rng: random.Random | Sequence[random.Random],
        samples: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """loss_reid, loss_reid_aux: () each."""


@dataclass(frozen=True, slots=True)
class Matches:
    """The decisions about one batch of B pairs, or of B frames of clips.

    outputs:     of the key and of the reference frames, or of the clips' frames, by these names
    frames:      those that are supervised: the key frames, then where configured the references
    assignments: (D, B) each, one per entry of frames
    contrast:    the embeddings
    known:       (B, Q) per entry of outputs, the number of the instance that each query is
                 assigned to in the last layer, -1 for none; () where no loss needs it
    dense:       per entry of frames (B, S, K) bool true classes of the encoder's tokens and (B, S)
                 bool, whether a token lies in the picture; () without that loss
    """

    outputs: dict[str, Outputs]
    frames: list[Frames]
    assignments: list[Assignment]
    contrast: Contrast
    known: tuple[Ints, ...]
    dense: tuple[tuple[Tensor, Tensor], ...]

    def counts(self) -> Tensor:
        """What the losses are means over: (D + 3,) int64 positives of each decoder layer,
        contrasted embeddings, queries of known identity, tokens that show a truth."""
        layers = sum(assignment.positive.sum((1, 2)) for assignment in self.assignments)
        contrasted = self.contrast.count
        identified = sum(int((numbers >= 0).sum()) for numbers in self.known)
        device = self.frames[0][0].logits.device
        host = to_device(np.append(layers, [contrasted, identified]).astype(np.int64), device)
        shown = [hot.any(-1).sum() for hot, _ in self.dense]
        tokens = torch.stack(shown).sum() if shown else host.new_zeros(())
        return torch.cat([host, tokens[None]])


@torch.no_grad()
def match(key: Outputs, reference: Outputs, batch: PairBatch, config: Config) -> Matches:
    """Decide about a batch.

    Raises:
        ValueError: outputs and batch do not fit together.
        FloatingPointError: outputs are not finite.
    """
    _check_fit(key, reference, batch)
    size = len(batch.key_targets)
    flags = read_flags([*batch.key_targets, *batch.reference_targets])
    on_key, on_reference = flags.present[:size], flags.present[size:]
    frames = [(key, pad(batch.key_targets, on_key, batch.key_padding))]
    if config.losses.supervise_reference:
        truths = pad(batch.reference_targets, on_reference, batch.reference_padding)
        frames.append((reference, truths))
    assignments = _assign(frames, config)
    both = [a & b for a, b in zip(on_key, on_reference, strict=True)]
    chosen = contrastive_samples(
        reference.logits[-1],
        reference.refined,
        pad(batch.reference_targets, both, None),
        config.assignment,
    )
    known: tuple[Ints, ...] = ()
    # With a weight of 0 an identity head still gets a gradient, like every parameter.
    if key.identity_head is not None or config.losses.identity > 0:
        rows = [assignment.truth[-1] for assignment in assignments]
        if len(rows) == 1:
            logits, boxes = reference.logits[-1], reference.boxes[-1]
            truths = pad(batch.reference_targets, on_reference, None)
            rows.append(assign_queries(logits, boxes, truths, config.assignment).truth)
        numbers = flags.identities[:size], flags.identities[size:]
        known = tuple(_numbers(*side) for side in zip(rows, numbers, strict=True))
    contrast = PairContrast(key, reference, assignments[0].best[-1], chosen)
    outputs = {"key": key, "reference": reference}
    return Matches(outputs, frames, assignments, contrast, known, _tokens(frames, config))


@torch.no_grad()
def match_clips(outputs: Outputs, batch: ClipBatch, config: Config) -> Matches:
    """The same about B clips of T frames, all of which are supervised.

    outputs: of the B · T frames, clip after clip
    """
    ((_, padding, targets),) = batch.sides()
    flags = read_flags(targets)
    frames = [(outputs, pad(targets, flags.present, padding))]
    assignments = _assign(frames, config)
    unmasked = pad(targets, flags.present, None)
    chosen = contrastive_samples(outputs.logits[-1], outputs.refined, unmasked, config.assignment)
    known: tuple[Ints, ...] = ()
    if outputs.identity_head is not None or config.losses.identity > 0:
        known = (_numbers(assignments[0].truth[-1], flags.identities),)
    valid: Bools = unmasked.valid.cpu().numpy()
    by_clip = valid.reshape(len(batch), -1, valid.shape[1])
    noise = config.losses.memory_noise
    contrast = MemoryContrast(outputs, assignments[0].best[-1], by_clip, chosen, noise)
    tokens = _tokens(frames, config)
    return Matches({"clip": outputs}, frames, assignments, contrast, known, tokens)


def _tokens(frames: list[Frames], config: Config) -> tuple[tuple[Tensor, Tensor], ...]:
    wanted = config.model.dense_auxiliary
    return tuple(_token_classes(*some) for some in frames) if wanted else ()


def _assign(frames: list[Frames], config: Config) -> list[Assignment]:
    """Assign all decoder layers of all frames together; one Assignment (D, B) per entry."""
    logits = torch.cat([outputs.logits for outputs, _ in frames], 1)
    boxes = torch.cat([outputs.boxes for outputs, _ in frames], 1)
    fields = zip(*((t.labels, t.boxes, t.valid) for _, t in frames), strict=True)
    joined = map(torch.cat, fields)
    truths = Truths(*(x.expand(len(logits), *x.shape) for x in joined))
    found = assign_queries(logits, boxes, truths, config.assignment)
    parts = (np.split(x, len(frames), 1) for x in (found.truth, found.best))
    return [Assignment(truth, best) for truth, best in zip(*parts, strict=True)]


def _numbers(truth: Ints, identities: Sequence[Ints]) -> Ints:
    """(B, Q) truths and B times (G_b,) their numbers to (B, Q) numbers; -1: none."""
    # A truth of -1 reads the appended -1.
    found = [np.append(mine, -1)[rows] for mine, rows in zip(identities, truth, strict=True)]
    return np.stack(found)


def _token_classes(outputs: Outputs, truths: PaddedTruths) -> tuple[Tensor, Tensor]:
    """Matches.dense of some frames: a token has the classes of the masks that cover its centre."""
    assert truths.padding is not None, "supervised frames have masks"
    if outputs.dense_logits is None:
        raise ValueError(
            "model.dense_auxiliary needs Outputs.dense_logits, got None. The network gives them in "
            "training mode only: call model.train() first."
        )
    height, width = truths.padding.shape[1:]
    logits = outputs.dense_logits
    place = _token_centres(outputs.level_shapes, (height, width)).to(logits.device)
    inside = ~truths.padding.flatten(1)[:, place]  # (B, S)
    hot = torch.zeros(logits.shape, device=logits.device)
    for b, masks in enumerate(truths.full):
        if len(masks):
            covered = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
            seen = covered.flatten(1)[:, place] & truths.valid[b, : len(masks), None]
            classes = F.one_hot(truths.labels[b, : len(masks)], logits.shape[-1])
            hot[b] = seen.T.to(hot.dtype) @ classes.to(hot.dtype)
    return hot.bool() & inside[..., None], inside


def _token_centres(shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """The pixel under each encoder token's centre: (S,) index into the flattened (H, W)."""
    places = []
    for rows, columns in shapes:
        y = ((torch.arange(rows) + 0.5) * (size[0] / rows)).long()
        x = ((torch.arange(columns) + 0.5) * (size[1] / columns)).long()
        places.append((y[:, None] * size[1] + x).flatten())
    return torch.cat(places)


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
