"""The streaming assembler: what it emits, when, and that streaming equals the whole video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.structures import FrameDetections
from idol.tracker.online import Tracker, TrackerConfig, admitted
from idol.tracker.tracks import AssembledTrack, TrackAssembler
from tests.idol.some_rows import subset


def make_frame(index: int, scores: list[float], masks: bool = True) -> FrameDetections:
    count = len(scores)
    return FrameDetections(
        frame_index=index,
        scores=torch.tensor(scores),
        class_scores=torch.tensor(scores).reshape(count, 1).repeat(1, 2),
        embeddings=torch.zeros(count, 2),
        overlaps=torch.eye(count),
        boxes=torch.zeros(count, 4),
        masks=tuple(f"{index}.{row}".encode() for row in range(count)) if masks else (),
    )


def random_frames(seed: int, length: int) -> list[FrameDetections]:
    """A few noisy identities that come and go, so that tracks end, are dropped and start again."""
    rng = np.random.default_rng(seed)
    identities = rng.normal(size=(6, 4)) * 2
    frames = []
    for index in range(length):
        shown = rng.permutation(6)[: rng.integers(0, 4)]
        scores = np.sort(rng.random(len(shown)))[::-1].copy()
        base = make_frame(index, scores.tolist())
        noisy = identities[shown] + 0.3 * rng.normal(size=(len(shown), 4))
        frames.append(replace(base, embeddings=torch.from_numpy(noisy).float()))
    return frames


def whole_video(
    frames: list[FrameDetections], config: TrackerConfig
) -> list[tuple[int, dict[int, int], list[float]]]:
    """The rule of the released code over the whole video, every history looked at every frame."""
    tracker = Tracker(config)
    kept: dict[int, list[tuple[int, int, int]]] = {}
    clock = -1
    for clock, frame in enumerate(frames):
        rows = torch.from_numpy(admitted(frame, config))
        ids = tracker.update(subset(frame, rows)).tolist()
        for track_id, row in zip(ids, rows.tolist(), strict=True):
            if track_id >= 0:
                kept.setdefault(track_id, []).append((clock, frame.frame_index, row))
        if clock > config.prune_after:
            kept = {
                i: seen
                for i, seen in kept.items()
                if len(seen) >= config.prune_short or seen[-1][0] > clock - 2
            }
    if config.prune_at_end and clock > config.prune_after:
        kept = {i: seen for i, seen in kept.items() if len(seen) >= config.prune_short}
    by_index = {frame.frame_index: frame for frame in frames}
    result = []
    for track_id, seen in kept.items():
        rows_of = {index: row for _, index, row in seen}
        scores = [by_index[index].class_scores[row].double() for _, index, row in seen]
        result.append((track_id, rows_of, torch.stack(scores).mean(0).float().tolist()))
    return result


def stream(frames: list[FrameDetections], config: TrackerConfig) -> list[AssembledTrack]:
    tracker, assembler = Tracker(config), TrackAssembler(config, keep_masks=True)
    done = []
    for frame in frames:
        rows = torch.from_numpy(admitted(frame, config))
        ids = tracker.update(subset(frame, rows)).tolist()
        done += assembler.add(frame, rows.tolist(), ids, tracker.alive)
    return done + assembler.finish()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(0, 40),
    lifetime=st.integers(1, 12),
    short=st.integers(0, 5),
    after=st.sampled_from([0, 3, 8]),
    at_end=st.booleans(),
)
def test_streamed_tracks_in_order_of_position_are_those_of_the_whole_video(
    seed: int, length: int, lifetime: int, short: int, after: int, at_end: bool
) -> None:
    config = TrackerConfig(
        memory_lifetime=lifetime, prune_short=short, prune_after=after, prune_at_end=at_end
    )
    frames = random_frames(seed, length)
    done = sorted(stream(frames, config), key=lambda one: one.position)
    expected = whole_video(frames, config)
    assert [(d.track.track_id, d.track.detections) for d in done] == [e[:2] for e in expected]
    for one, (_, rows, scores) in zip(done, expected, strict=True):
        np.testing.assert_allclose(one.track.class_scores.numpy(), scores, rtol=1e-6)
        assert one.masks == {index: frames[index].masks[row] for index, row in rows.items()}


def test_a_long_track_is_emitted_in_the_frame_in_which_the_tracker_forgets_it() -> None:
    assembler = TrackAssembler(TrackerConfig(), keep_masks=True)
    for index in range(4):
        assert assembler.add(make_frame(index, [0.5]), [0], [7], [7]) == []
    (ended,) = assembler.add(make_frame(4, []), [], [], [])
    assert ended.track.detections == {0: 0, 1: 0, 2: 0, 3: 0}
    assert ended.masks == {0: b"0.0", 1: b"1.0", 2: b"2.0", 3: b"3.0"}
    assert not assembler._histories
    assert assembler.finish() == []


def test_a_short_track_is_dropped_after_two_frames_of_absence() -> None:
    assembler = TrackAssembler(TrackerConfig(prune_after=0))
    assembler.add(make_frame(0, [0.5]), [0], [0], [0])
    assembler.add(make_frame(1, []), [], [], [0])
    assert list(assembler._histories) == [0]
    assembler.add(make_frame(2, []), [], [], [0])
    assert not assembler._histories


def test_nothing_is_kept_of_ended_tracks_however_long_the_stream() -> None:
    assembler = TrackAssembler(TrackerConfig())
    emitted = 0
    for index in range(300):
        emitted += len(assembler.add(make_frame(index, [0.5]), [0], [index // 5], [index // 5]))
        assert len(assembler._histories) <= 1
    assert emitted == 59


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [([0], [0, 1], "as many, got 1 and 2"), ([0, 1], [3, 3], "gives \\[3\\] several")],
)
def test_a_frame_that_does_not_fit_is_refused_and_changes_nothing(
    rows: list[int], ids: list[int], message: str
) -> None:
    assembler = TrackAssembler(TrackerConfig())
    with pytest.raises(ValueError, match=message):
        assembler.add(make_frame(0, [0.5, 0.4]), rows, ids, ids)
    assert not assembler._histories
    assert assembler.finish() == []


def test_a_finished_video_takes_no_frames() -> None:
    assembler = TrackAssembler(TrackerConfig())
    assembler.finish()
    with pytest.raises(ValueError, match="new TrackAssembler"):
        assembler.add(make_frame(0, [0.5]), [0], [0], [0])
