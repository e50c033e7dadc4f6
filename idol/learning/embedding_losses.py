"""Losses of the embeddings: paper Eq. 4, the released code's auxiliary loss, and the ID head."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idol.arrays import Bools, Ints
from idol.learning import losses
from idol.learning.assignment import ContrastiveSamples
from idol.learning.targets import to_device
from idol.structures import Outputs
from ops.linear import full_precision


def contrast(
    key: Outputs,
    reference: Outputs,
    best: Ints,
    chosen: ContrastiveSamples,
    negatives_per_positive: int,
    rng: random.Random | Sequence[random.Random],
    samples: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 4 and the auxiliary loss (specification 3.3), summed over the truths with a positive.

    best:    (B, G) each truth's query on the key frame
    chosen:  (B, G, Q), on the reference frame
    rng:     one for all pairs in their order, or one per pair
    samples: as of sample_negatives, for the truths with a positive
    returns: loss_reid (), loss_reid_aux (); both 0 with a gradient of 0 if no truth has a positive
    """
    device = key.embeddings.device
    pair, row = np.nonzero(chosen.positives.any(-1))
    if len(pair) == 0:
        ends = full_precision(key.embeddings), full_precision(reference.embeddings)
        nothing = 0.0 * (ends[0].sum() + ends[1].sum())
        return nothing, nothing
    positives, negatives = chosen.positives[pair, row], chosen.negatives[pair, row]
    draws = rng if isinstance(rng, random.Random) else [rng[int(b)] for b in pair]
    sampled = sample_negatives(positives, negatives, negatives_per_positive, draws, samples)
    positive, negative, sample = to_device(np.stack([positives, negatives, sampled]), device)
    pairs, queries = to_device(np.stack([pair, best[pair, row]]), device)

    vectors = full_precision(key.embeddings[pairs, queries])  # (n, C)
    others = full_precision(reference.embeddings)
    ends = np.cumsum(np.bincount(pair, minlength=len(others))).tolist()
    # Float32 also under autocast: a similarity is a sum of C products, not normalised, and enters
    # an exponential.
    with torch.autocast(device.type, enabled=False):
        spans = enumerate(itertools.pairwise([0, *ends]))
        products = [vectors[i:j] @ others[b].T for b, (i, j) in spans if j > i]
        similarities = torch.cat(products)  # (n, Q)
    norms = others.norm(dim=-1)[pairs] * vectors.norm(dim=-1)[:, None]
    cosines = similarities / norms.clamp(min=1e-12)
    contrastive = losses.contrastive_rows(similarities, positive, negative).sum()
    return contrastive, losses.cosine_rows(cosines, positive, sample).sum()


@dataclass(frozen=True, slots=True)
class PairContrast:
    """The decisions about the embeddings of B pairs; fields as of `contrast`."""

    key: Outputs
    reference: Outputs
    best: Ints
    chosen: ContrastiveSamples

    @property
    def count(self) -> int:
        """Truths with a positive."""
        return int(self.chosen.positives.any(-1).sum())

    def losses(
        self,
        negatives_per_positive: int,
        rng: random.Random | Sequence[random.Random],
        samples: Sequence[Sequence[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `contrast`."""
        ends = self.key, self.reference
        return contrast(*ends, self.best, self.chosen, negatives_per_positive, rng, samples)


def sample_negatives(
    positives: Bools,
    negatives: Bools,
    per_positive: int,
    rng: random.Random | Sequence[random.Random],
    samples: Sequence[Sequence[int]] | None = None,
) -> Bools:
    """Choose the negatives of the auxiliary loss, per_positive times as many as positives.

    positives, negatives: (n, Q), each row with a positive
    rng:     one for all rows in their order, or one per row
    samples: instead of drawing: for each of the n truths, indices into its list of negatives in
             ascending query order
    returns: (n, Q) bool
    """
    if samples is not None and len(samples) != len(positives):
        raise ValueError(
            "samples must have one entry per truth visible in both frames that has a positive, "
            f"{len(positives)}, got {len(samples)}"
        )
    chosen = np.zeros_like(negatives)
    for i, (mine, others) in enumerate(zip(positives, negatives, strict=True)):
        (candidates,) = np.nonzero(others)
        if samples is None:
            wanted = min(per_positive * int(mine.sum()), len(candidates))
            mine_rng = rng if isinstance(rng, random.Random) else rng[i]
            drawn: Sequence[int] = mine_rng.sample(range(len(candidates)), wanted)
        else:
            drawn = samples[i]
        chosen[i, candidates[np.asarray(drawn, np.int64)]] = True
    return chosen


def classify_identities(
    frames: Sequence[Outputs], known: Sequence[Ints], num_identities: int
) -> Tensor:
    """Cross-entropy of the "ID head", which classifies embeddings by instance (paper Sec. 4.5).

    frames:  key frames and reference frames: Outputs of B images
    known:   of both (B, Q), the number in the training set of the instance each query is assigned
             to; -1: none, or not known
    returns: () sum over the queries of known identity; 0 with a gradient of 0 if none
    Raises: ValueError: the network has no identity head, or a number is not below num_identities.
    """
    head = frames[0].identity_head
    if head is None:
        raise ValueError(
            "losses.identity needs a network with an identity head, but model.num_identities is "
            "0. Set it to the number of instances in the training set (jobs.train does)."
        )
    embeddings, numbers = [], []
    for outputs, mine in zip(frames, known, strict=True):
        if mine.max(initial=-1) >= num_identities:
            raise ValueError(
                f"identities must be below model.num_identities ({num_identities}), got "
                f"{mine.max()}. Was the head made for another training set?"
            )
        image, query = np.nonzero(mine >= 0)
        index = to_device(np.stack([image, query]), outputs.embeddings.device)
        embeddings.append(outputs.embeddings[index[0], index[1]])
        numbers.append(mine[image, query])
    number = to_device(np.concatenate(numbers), embeddings[0].device)
    if len(number) == 0:
        # One embedding passes through the head, so that its weights get a gradient (of zero).
        first = frames[0].embeddings
        return 0.0 * (full_precision(head(first[:1, 0])).sum() + full_precision(first).sum())
    logits = full_precision(head(torch.cat(embeddings)))
    return F.cross_entropy(logits, number, reduction="sum")
