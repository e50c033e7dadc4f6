"""Embeddings contrasted with the memory of a clip: consistent training (Ying et al., CTVIS 2023).

Pairs teach an embedding to agree with that of another frame; online it is compared with a memory
that was fused over many frames. Here that memory is made during training, over the frames of a
clip, and each frame's embedding is contrasted with what it holds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.learning import losses
from idol.learning.assignment import ContrastiveSamples
from idol.learning.embedding_losses import sample_negatives
from idol.learning.targets import to_device
from idol.structures import Outputs
from ops.linear import full_precision

FUSED = -1
"""In place of a frame: the positive is the memory."""


def fuse(vectors: Tensor, entered: Tensor) -> Tensor:
    """A similarity-guided memory, walked over the frames of a clip. Differentiable.

    The first vector is the memory; a later one enters with the weight β = max(0, its mean cosine
    with all that entered before), and the memory keeps 1 - β.

    vectors: (N, T, C) of every instance and frame
    entered: (N, T) bool, whether the vector of this frame enters
    returns: (N, T, C) the memory after each frame; zero before anything has entered
    """
    units = F.normalize(vectors, dim=-1, eps=1e-12)
    cosines = units @ units.transpose(1, 2)
    memory, states = torch.zeros_like(vectors[:, 0]), []
    for t in range(vectors.shape[1]):
        earlier = entered[:, :t]
        count = earlier.sum(1)
        mean = (cosines[:, t, :t] * earlier).sum(1) / count.clamp(min=1)
        share = torch.where(count > 0, mean.clamp(min=0), 1.0)[:, None]
        fused = (1 - share) * memory + share * vectors[:, t]
        memory = torch.where(entered[:, t, None], fused, memory)
        states.append(memory)
    return torch.stack(states, 1)


@dataclass(frozen=True, slots=True)
class Item:
    """One embedding to be contrasted: instance `row` of clip `clip` in frame `frame`.

    positive: the frame of the sighting that is its positive, or FUSED: the memory after frame - 1
    """

    clip: int
    row: int
    frame: int
    positive: int


def items(seen: Bools, rngs: Sequence[random.Random]) -> list[Item]:
    """What is contrasted: every sighting but those of first frames and of instances seen once.

    Seen before: with probability 1/2 against the memory, else against the most recent sighting.
    Seen only later: against the next sighting.

    seen: (B, T, G); rngs: one per clip
    """
    found = []
    for clip, (frames, rng) in enumerate(zip(seen, rngs, strict=True)):
        for row in range(frames.shape[1]):
            times = np.flatnonzero(frames[:, row]).tolist()
            for n, t in enumerate(times):
                if t == 0 or len(times) == 1:
                    continue
                fused = n > 0 and rng.random() < 0.5
                positive = FUSED if fused else times[n - 1] if n else times[1]
                found.append(Item(clip, row, t, positive))
    return found


@dataclass(frozen=True, slots=True)
class MemoryContrast:
    """The decisions about the embeddings of B clips of T frames.

    outputs: of the B · T frames, clip after clip
    best:    (B · T, G) each truth's query
    seen:    (B, T, G) whether a truth is visible
    chosen:  (B · T, G, Q)
    noise:   probability with which another query of a frame enters the memory of an instance that
             was seen before and is not now, as an error of the tracker would
    """

    outputs: Outputs
    best: Ints
    seen: Bools
    chosen: ContrastiveSamples
    noise: float = 0.0

    @property
    def count(self) -> int:
        """Embeddings that are contrasted, as many as `items`."""
        again = self.seen.sum(1) > 1
        return int((self.seen[:, 1:].sum(1) * again).sum())

    def losses(
        self,
        negatives_per_positive: int,
        rng: random.Random | Sequence[random.Random],
        samples: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Eq. 4 and the auxiliary loss, summed over the items: () each, 0 without items.

        Negatives are the queries of the frame before that show something else than the instance:
        what its memory had to be told from.
        """
        clips, frames, truths = self.seen.shape
        rngs = [rng] * clips if isinstance(rng, random.Random) else list(rng)
        wanted = items(self.seen, rngs)
        embeddings = full_precision(self.outputs.embeddings)  # (B T, Q, C)
        if not wanted:
            return 0.0 * embeddings.sum(), 0.0 * embeddings.sum()
        by_instance, entered = self._by_instance(embeddings, rngs)
        memory = fuse(by_instance, entered)

        wanted.sort(key=lambda item: (item.clip, item.frame))
        row, time, positive = np.array(
            [(i.clip * truths + i.row, i.frame, i.positive) for i in wanted]
        ).T
        states, anchors = memory[row, time - 1], by_instance[row, time]
        fused = to_device(positive == FUSED, embeddings.device)[:, None]
        positives = torch.where(fused, states, by_instance[row, positive.clip(0)])
        before = [item.clip * frames + item.frame - 1 for item in wanted]
        others = np.stack([self._others(b, i.row) for b, i in zip(before, wanted, strict=True)])
        with torch.autocast(embeddings.device.type, enabled=False):
            products, start = [], 0
            for frame, group in groupby(before):
                stop = start + len(list(group))
                products.append(anchors[start:stop] @ embeddings[frame].T)
                start = stop
            similarities = torch.cat([torch.cat(products), (anchors * positives).sum(1, True)], 1)
        norms = embeddings.norm(dim=-1)[before]
        norms = torch.cat([norms, positives.norm(dim=1, keepdim=True)], 1)
        cosines = similarities / (norms * anchors.norm(dim=1, keepdim=True)).clamp(min=1e-12)

        last = np.zeros((len(wanted), others.shape[1] + 1), bool)
        last[:, -1] = True
        negatives = np.pad(others, ((0, 0), (0, 1)))
        draws = [rngs[item.clip] for item in wanted]
        sampled = sample_negatives(last, negatives, negatives_per_positive, draws, samples)
        one, many, some = to_device(np.stack([last, negatives, sampled]), embeddings.device)
        contrastive = losses.contrastive_rows(similarities, one, many).sum()
        return contrastive, losses.cosine_rows(cosines, one, some).sum()

    def _by_instance(
        self, embeddings: Tensor, rngs: Sequence[random.Random]
    ) -> tuple[Tensor, Tensor]:
        """(B · G, T, C) each truth's embedding in every frame, and (B · G, T) whether it enters."""
        queries, entered = self.best.clip(0), self.seen.copy()
        clips, frames, truths = self.seen.shape
        if self.noise:
            missing = ~self.seen & (self.seen.cumsum(1) > 0)
            for clip, frame, row in np.argwhere(missing).tolist():
                if rngs[clip].random() < self.noise:
                    drawn = rngs[clip].randrange(embeddings.shape[1])
                    queries[clip * frames + frame, row] = drawn
                    entered[clip, frame, row] = True

        def rows(values: Bools | Ints) -> Tensor:
            by_clip = torch.from_numpy(values).reshape(clips, frames, truths)
            return by_clip.transpose(1, 2).flatten(0, 1).to(embeddings.device)

        image = np.zeros_like(queries) + np.arange(clips * frames)[:, None]
        return embeddings[rows(image), rows(queries)], rows(entered)

    def _others(self, image: int, row: int) -> Bools:
        """(Q,) the queries of a frame that do not show the truth: all, where it is not visible."""
        visible = self.seen.reshape(-1, self.seen.shape[2])[image, row]
        found: Bools = self.chosen.negatives[image, row]
        return found if visible else np.ones_like(found)
