"""Association with a delay: the exact assignment over a short window, the upper bound of online.

python -m benchmarks.window                      60 videos of each dial
python -m benchmarks.window --every 3            every third frame of them: objects move faster

Detections are linked two by two: a link gains what `robust` finds between the two (cosine of the
embeddings, nearness of the boxes) above its threshold, also over frames in which the object is not
seen. Every detection has one link before and one behind it at most, and all links together gain as
much as they can: an assignment problem, solved exactly. With a delay of D frames the links into a
frame are fixed once D later frames are known; with 0 that is the next assignment of an online
tracker without memory, with all of them the best cover of the video by paths. `robust` itself has
a memory and no delay. Nothing was chosen on these videos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks import machine, replay
from benchmarks.ablation import BLOCKS, HeldOut
from benchmarks.replay import Clip
from benchmarks.tiny_training import DIALS
from idol.arrays import Bools, Floats
from idol.config import TrackerConfig
from idol.masks.greedy import greedy
from idol.structures import Track
from idol.tracker import association
from idol.tracker.online import admitted
from idol.weights import checkpoint

LONGEST = 10
"""Frames that a link may reach over; robust remembers instances longer."""
ALL = 1_000
DELAYS = (0, 1, 2, 5, ALL)


def survivors(clip: Clip, config: TrackerConfig) -> list[tuple[int, int]]:
    """(frame, row) of the detections that enter a tracker: score, then mask NMS."""
    found = []
    for t, frame in enumerate(clip.frames):
        rows = admitted(frame, config)
        conflict = frame.overlaps.numpy()[np.ix_(rows, rows)] > config.mask_nms
        found += [(t, int(rows[i])) for i in greedy(conflict)]
    return found


def gains(clip: Clip, known: Sequence[tuple[int, int]], config: TrackerConfig) -> Floats:
    """(N, N) gain of a link from one detection to another; 0 where there can be none."""
    embeddings = torch.stack([clip.frames[t].embeddings[row] for t, row in known]).numpy()
    boxes = torch.stack([clip.frames[t].boxes[row] for t, row in known]).numpy()
    times = np.array([t for t, _ in known])
    gap = times[None] - times[:, None]
    (alike,) = association._cosines(embeddings, embeddings)
    near = association._proximity(boxes, boxes, np.maximum(gap, 1), config.size_weight)
    found = alike + config.position_weight * near
    allowed: Bools = (gap > 0) & (gap <= LONGEST)
    gain: Floats = np.where(allowed, np.maximum(found - config.match_threshold, 0), 0)
    return gain


def linked(clip: Clip, config: TrackerConfig, delay: int) -> list[Track]:
    """The tracks of a video when links are fixed with this delay."""
    known = survivors(clip, config)
    if not known:
        return []
    gain = gains(clip, known, config)
    times = np.array([t for t, _ in known])
    before = np.full(len(known), -1)  # of each detection, the one that it continues
    free = np.ones(len(known), bool)  # nothing continues it yet
    for fixed in range(len(clip.frames)):
        now = fixed + delay
        sources = np.flatnonzero(free & (times <= now) & (times >= fixed - LONGEST))
        targets = np.flatnonzero((times >= fixed) & (times <= now))
        part = gain[np.ix_(sources, targets)]
        for i, j in zip(*linear_sum_assignment(part, maximize=True), strict=True):
            source, target = sources[i], targets[j]
            if part[i, j] > 0 and (times[target] == fixed or now >= len(clip.frames)):
                before[target], free[source] = source, False
        if now >= len(clip.frames):
            break  # the last window has fixed all
    return tracks_of(clip, known, before.tolist(), config)


def tracks_of(
    clip: Clip, known: Sequence[tuple[int, int]], before: Sequence[int], config: TrackerConfig
) -> list[Track]:
    """Chains of links; those that no detection of new_threshold begins or joins are dropped."""
    number: dict[int, int] = {}
    chains: list[list[int]] = []
    for n, previous in enumerate(before):  # in order of time
        if previous < 0:
            chains.append([])
        number[n] = number[previous] if previous >= 0 else len(chains) - 1
        chains[number[n]].append(n)
    found = []
    for chain in chains:
        places = [known[n] for n in chain]
        scores = torch.stack([clip.frames[t].class_scores[row] for t, row in places])
        # Short ones are dropped as TrackAssembler drops them.
        if float(scores.max()) > config.new_threshold and len(chain) >= config.prune_short:
            found.append(Track(len(found), dict(places), scores.mean(0)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--videos", type=int, default=60, help="of each dial")
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = checkpoint.load(options.weights).eval()
    config = TrackerConfig.robust()
    print(machine.header(machine.command("benchmarks.window")))
    print(replay.heading("robust"))
    for name, dial in DIALS.items():
        blocks = HeldOut(dial, options.every).blocks(model, options.videos)
        runs = {"robust": [replay.score(block, config) for block in blocks]}
        for delay in DELAYS:
            title = "all frames" if delay == ALL else f"{delay} frames"
            runs[f"exact, delay {title}"] = [
                replay.score(block, config, tracks=lambda clip, d=delay: linked(clip, config, d))
                for block in blocks
            ]
        truth = [replay.score(block, config, cheat=True) for block in blocks]
        runs[replay.TRUE_IDENTITIES] = truth
        assert all(len(rows) == BLOCKS for rows in runs.values())
        print(replay.table(name, runs, "robust"), flush=True)


if __name__ == "__main__":
    main()
