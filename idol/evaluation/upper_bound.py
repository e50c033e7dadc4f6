"""What the best association of given masks can reach: a bound on the AP of any tracker."""

from __future__ import annotations

import numpy as np

from idol.arrays import Floats, Ints
from idol.evaluation import matching
from idol.evaluation.matching import VideoMatches
from idol.ytvis.truth import VideoTruth


def match(truth: VideoTruth, frame: Ints, area: Floats, intersection: Floats) -> VideoMatches:
    """Matches of the bound: no tracks of these masks, with one a frame at most, have a higher AP.

    Every instance is found up to the highest IoU that any choice of masks has with it, under its
    own class, and nothing is found wrongly. So what identities cannot mend (classes, the order of
    scores, false positives) is counted as mended too: the true loss is at most what this says.

    frame:        (R,)   of every mask
    area:         (R,)   pixels
    intersection: (R, G) pixels shared with each instance
    """
    best = best_iou(frame, area, intersection, truth.areas.sum(axis=1))
    found = matching.match_entries(
        truth, truth.category_ids, best, truth.average_areas, np.diag(best), True, compat=False
    )
    for category_id, matched in found.matched.items():
        found.ignored[category_id] |= ~matched
    return found


def best_iou(frame: Ints, area: Floats, intersection: Floats, truth_area: Ints) -> Floats:
    """(G,) highest spatio-temporal IoU of each instance with at most one mask of every frame.

    frame, area, intersection: as of `match`
    truth_area:                (G,) pixels of every instance in all frames
    """
    best = np.zeros(len(truth_area))
    for g, pixels in enumerate(truth_area.tolist()):
        rows = np.flatnonzero(intersection[:, g])
        frames, shared = frame[rows], intersection[rows, g]
        outside = area[rows] - shared
        first = np.unique(np.sort(frames), return_index=True)[1]
        # Dinkelbach's method for the largest ratio of two sums: take what adds to shared - ratio *
        # union, and the ratio of that, until it stays. A few steps reach the exact maximum.
        while True:
            gain = shared - best[g] * outside
            chosen = np.lexsort((-gain, frames))[first]
            chosen = chosen[gain[chosen] > 0]
            reached = shared[chosen].sum() / max(1, pixels + outside[chosen].sum())
            if reached <= best[g]:
                break
            best[g] = reached
    return best
