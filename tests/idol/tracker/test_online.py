"""The tracker: released decisions, the paper's equations, and laws that any tracker must keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.masks import iou
from idol.structures import FrameDetections, Track
from idol.tracker.online import Tracker, TrackerConfig, admitted, track_video
from tests.idol.some_rows import subset

EVERY_CONFIG = {
    "ytvis": TrackerConfig.released("ytvis"),
    "ovis": TrackerConfig.released("ovis"),
    "paper": TrackerConfig.paper(),
    "robust": TrackerConfig.robust(),
    "momentum": TrackerConfig(weighting="momentum", frame_weight=False),
    "gated": TrackerConfig(min_cosine=0.3, same_class=True, temporal_weight=False),
    "argmax": TrackerConfig(assignment="argmax"),
    "hungarian": TrackerConfig(assignment="hungarian"),
    "last": TrackerConfig(weighting="last"),
    "similarity_guided": TrackerConfig(weighting="similarity_guided", similarity="cosine"),
    "multi_cue": TrackerConfig.multi_cue(),
    "weighed": TrackerConfig(
        similarity="cosine", class_weight=0.5, softmax_weight=0.5, new_overlap=0.3
    ),
}
TRACE_CONFIGS = {
    "ytvis": TrackerConfig.released("ytvis"),
    "ovis": TrackerConfig.released("ovis"),
    "ema_only": TrackerConfig(weighting="momentum", frame_weight=False),
    "fw_only": TrackerConfig(weighting="momentum"),
    "mem10": TrackerConfig(memory_length=10),
}


def make_frame(
    index: int,
    scores: Any,
    embeddings: Any,
    overlaps: Any = None,
    labels: Any = None,
    num_classes: int = 3,
    boxes: Any = None,
) -> FrameDetections:
    """A frame of detections whose best class is labels (0 by default), without masks."""
    best = torch.as_tensor(scores, dtype=torch.float32)
    count = len(best)
    label = torch.zeros(count, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    class_scores = torch.zeros(count, num_classes)
    class_scores[torch.arange(count), label] = best
    vectors = torch.as_tensor(embeddings, dtype=torch.float32)
    return FrameDetections(
        frame_index=index,
        scores=best,
        class_scores=class_scores,
        embeddings=vectors if count else vectors.reshape(0, vectors.shape[-1]),
        overlaps=torch.eye(count) if overlaps is None else torch.as_tensor(overlaps),
        boxes=torch.zeros(count, 4)
        if boxes is None
        else torch.as_tensor(boxes, dtype=torch.float32),
    )


def random_video(
    seed: int, length: int, most: int = 8, size: int = 4, distinct: bool = True
) -> list[FrameDetections]:
    """Detections of a few noisy identities with misses, false positives and overlaps."""
    rng = np.random.default_rng(seed)
    identities = rng.normal(size=(most, size)) * 2
    frames = []
    for index in range(length):
        shown = rng.permutation(most)[: rng.integers(0, most + 1)]
        vectors = identities[shown] + 0.3 * rng.normal(size=(len(shown), size))
        levels = rng.permutation(1000)[: len(shown)] if distinct else rng.integers(0, 9, len(shown))
        scores = np.sort(levels / (1000 if distinct else 9))[::-1].copy()
        overlap = rng.random((len(shown), len(shown))) ** 3
        overlap = np.maximum(overlap, overlap.T).astype(np.float32)
        np.fill_diagonal(overlap, 1)
        labels = rng.integers(0, 3, len(shown))
        frames.append(make_frame(index, scores, vectors, overlap, labels))
    return frames


def track(frames: list[FrameDetections], config: TrackerConfig) -> list[list[int]]:
    tracker = Tracker(config)
    return [tracker.update(frame).tolist() for frame in frames]


# --- decisions of the released code ------------------------------------------------------------


@pytest.fixture(scope="module")
def traces(shared: Path) -> Iterator[Any]:
    with np.load(shared / "reference/oracle/tracker_traces.npz") as stored:
        yield {name: stored[name] for name in stored.files}


def trace_frame(stored: Any, sequence: str, t: int) -> FrameDetections:
    prefix = f"{sequence}/in/{t}"
    height, width = stored["mask_hw"]
    packed = stored[f"{prefix}/mask"]
    bits = np.unpackbits(packed, axis=1)[:, : height * width].reshape(len(packed), height, width)
    logits = torch.from_numpy(bits.astype(np.float32)) * 8 - 4
    return make_frame(
        t,
        stored[f"{prefix}/bbox"][:, 4],
        stored[f"{prefix}/emb"],
        iou.mask_iou(logits > 0),
        stored[f"{prefix}/label"],
        num_classes=100,
    )


@pytest.mark.parametrize("name", TRACE_CONFIGS)
def test_every_stored_trace_of_the_released_tracker_is_reproduced(traces: Any, name: str) -> None:
    sequences = [s for s in traces["names"] if f"{s}/out/{name}/0/ids" in traces]
    assert len(sequences) == (56 if name in ("ytvis", "ovis") else 18)
    different = []
    for sequence in sequences:
        tracker = Tracker(TRACE_CONFIGS[name])
        for t in range(int(traces[f"{sequence}/T"])):
            frame = trace_frame(traces, sequence, t)
            out = f"{sequence}/out/{name}/{t}"
            expected = np.full(len(frame), -1)
            # Backdrops (-1) and unmatched (-2) both have no identity.
            expected[traces[f"{out}/kept"]] = np.maximum(traces[f"{out}/ids"], -1)
            ids = tracker.update(frame).numpy()
            if not np.array_equal(ids, expected) or set(tracker.alive) != set(traces[f"{out}/mem"]):
                different.append((sequence, t, ids, expected))
    assert not different


# --- the paper's equations -----------------------------------------------------------------------


def paper_identities(frames: list[FrameDetections], config: TrackerConfig) -> list[list[int]]:
    """Eq. 5, 6 and 7 written out, pair by pair, in double precision."""
    memory: list[dict[str, Any]] = []
    count, result = 0, []
    for clock, frame in enumerate(frames):
        kept: list[int] = []
        for i in range(len(frame)):
            if all(frame.overlaps[k, i] <= config.mask_nms for k in kept):
                kept.append(i)
        vectors = {i: frame.embeddings[i].double().tolist() for i in kept}
        means = []
        for one in memory:
            newest_first = one["vectors"][::-1][: config.memory_length]
            weights = [
                config.tau + config.memory_length / (t + 1) for t in range(len(newest_first))
            ]
            means.append(
                [
                    sum(w * v[c] for w, v in zip(weights, newest_first, strict=True)) / sum(weights)
                    for c in range(len(newest_first[0]))
                ]
            )
        power = {
            (i, j): math.exp(sum(a * b for a, b in zip(vectors[i], mean, strict=True)))
            for i in kept
            for j, mean in enumerate(means)
        }
        sigma = [clock - one["born"] for one in memory]
        wishes: dict[int, list[tuple[float, int]]] = {}
        for i in kept:
            values = []
            for j in range(len(memory)):
                over_memory = (power[i, j] + sigma[j]) / sum(
                    power[i, k] + sigma[k] for k in range(len(memory))
                )
                over_detections = power[i, j] / sum(power[k, j] for k in kept)
                values.append((over_memory + over_detections) / 2)
            if values and max(values) > config.match_threshold:
                j = values.index(max(values))
                wishes.setdefault(j, []).append((-values[j], i))
        ids = [-1] * len(frame)
        known = bool(memory)
        for j, wanted in wishes.items():
            i = min(wanted)[1]
            ids[i] = memory[j]["id"]
            memory[j]["vectors"].append(vectors[i])
            memory[j]["seen"] = clock
        for i in kept:
            limit = config.new_threshold if known else config.first_threshold
            if ids[i] < 0 and frame.scores[i] > limit:
                ids[i] = count
                memory.append({"id": count, "vectors": [vectors[i]], "born": clock, "seen": clock})
                count += 1
        memory = [one for one in memory if clock - one["seen"] < config.memory_lifetime]
        result.append(ids)
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), tau=st.sampled_from([0.0, 0.5, 2.0]), length=st.integers(1, 5))
def test_the_paper_preset_follows_its_equations_written_out(
    seed: int, tau: float, length: int
) -> None:
    config = dataclasses.replace(TrackerConfig.paper(), tau=tau, memory_length=length)
    frames = random_video(seed, 12)
    assert track(frames, config) == paper_identities(frames, config)


def test_large_products_do_not_overflow_the_papers_softmax() -> None:
    vectors = torch.eye(2) * 60  # e^3600
    # Towards its own memory a detection has e^3600, or with the sign turned e^-3600 against 1.
    for sign, expected in ((1, [0, 1]), (-1, [1, 0])):
        frames = [make_frame(t, [0.9, 0.8], vectors * (sign if t else 1)) for t in range(2)]
        assert track(frames, TrackerConfig.paper()) == [[0, 1], expected]


def test_among_several_passing_memories_the_oldest_wins_as_released() -> None:
    # One detection passes 0.5 for every memory whose share of the softmax is above float32's grain.
    # Specification 8: the released rule then prefers age; without frame_weight, likeness decides.
    old, young = [1.0, 0.0], [0.0, 1.0]
    frames = [make_frame(t, [0.9], [old]) for t in range(3)]
    # A lone second detection would be matched as well: both are shown together once.
    frames.append(make_frame(3, [0.9, 0.8], [[9.0, 0.0], [0.0, 9.0]]))
    frames.append(make_frame(4, [0.9], [young]))
    assert track(frames, TrackerConfig())[-1] == [0]
    assert track(frames, TrackerConfig(frame_weight=False))[-1] == [1]


# --- options -------------------------------------------------------------------------------------


def test_a_cosine_gate_keeps_a_stranger_from_taking_the_only_identity() -> None:
    frames = [make_frame(0, [0.9], [[1.0, 0.0]]), make_frame(1, [0.9], [[0.5, 1.0]])]
    assert track(frames, TrackerConfig())[-1] == [0]  # the released tracker's known weakness
    assert track(frames, TrackerConfig(min_cosine=0.7))[-1] == [1]
    assert track(frames, TrackerConfig(min_cosine=0.4))[-1] == [0]
    # Ours weighs likeness and place together: such a stranger is refused away from the instance.
    places = [[[0.0, 0, 10, 10]], [[50.0, 0, 60, 10]]]
    apart = [
        dataclasses.replace(f, boxes=torch.tensor(b)) for f, b in zip(frames, places, strict=True)
    ]
    assert track(apart, TrackerConfig.robust())[-1] == [1]


def test_a_class_gate_keeps_another_class_from_continuing_an_identity() -> None:
    frames = [make_frame(t, [0.9], [[1.0, 0.0]], labels=[t]) for t in range(2)]
    assert track(frames, TrackerConfig())[-1] == [0]
    assert track(frames, TrackerConfig(same_class=True))[-1] == [1]


def test_greedy_serves_the_higher_score_and_argmax_the_more_similar() -> None:
    config = TrackerConfig(similarity="cosine", match_threshold=0.2)
    frames = [
        make_frame(0, [0.9], [[1.0, 0.0]]),
        make_frame(1, [0.9, 0.8], [[1.0, 1.0], [1.0, 0.1]]),
    ]
    assert track(frames, config)[-1] == [0, 1]
    assert track(frames, dataclasses.replace(config, assignment="argmax"))[-1] == [1, 0]


def test_hungarian_takes_the_largest_sum_where_greedy_takes_the_first_best() -> None:
    # Cosines with instances 0 and 1: the first detection 0.9 and 0.8, the second 0.85 and 0.1.
    # Greedy gives instance 0 to the first; both continue only if it takes instance 1.
    start = make_frame(0, [0.9, 0.8], [[1, 0, 0, 0], [0, 1, 0, 0]])
    first = [0.72, 0.64, 0.268, 0]
    second = [0.85, 0.1, 0, 0.517]
    then = make_frame(1, [0.9, 0.8], [first, second])
    config = TrackerConfig(similarity="cosine", match_threshold=0.5)
    assert track([start, then], config)[1] == [0, 2]
    config = dataclasses.replace(config, assignment="hungarian")
    assert track([start, then], config)[1] == [1, 0]


def test_the_place_tells_look_alikes_apart_that_embeddings_confuse() -> None:
    here, there = [0.0, 0, 10, 10], [50.0, 0, 60, 10]
    alike = [[1, 0.01], [1, 0]]
    start = make_frame(0, [0.9, 0.8], alike, boxes=[here, there])
    # Exchanged embeddings: by likeness alone the identities would change places.
    then = make_frame(1, [0.9, 0.8], alike[::-1], boxes=[here, there])
    config = TrackerConfig(similarity="cosine", match_threshold=0.5, assignment="hungarian")
    assert track([start, then], config)[1] == [1, 0]
    config = dataclasses.replace(config, position_weight=0.5)
    assert track([start, then], config)[1] == [0, 1]


def test_two_that_cross_keep_their_identities_by_moving_on_as_they_moved() -> None:
    config = TrackerConfig(
        similarity="cosine", match_threshold=0.5, position_weight=0.5, assignment="hungarian"
    )
    paths = [range(0, 40, 8), range(32, -8, -8)]  # they meet at 16 in the third frame
    frames = [
        make_frame(t, [0.9, 0.8], [[1, 0], [1, 0]], boxes=[[x, 0, x + 10, 10] for x in places])
        for t, places in enumerate(zip(*paths, strict=True))
    ]
    ids = track(frames, config)
    assert ids[0] == ids[1] == [0, 1]
    assert ids[3] == ids[4] == [0, 1]


def test_what_has_the_place_but_not_the_size_does_not_continue_an_instance() -> None:
    whole, part = [0.0, 0, 40, 40], [10.0, 10, 20, 20]
    config = TrackerConfig(
        similarity="cosine", match_threshold=0.6, position_weight=1.0, assignment="hungarian"
    )
    frames = [
        make_frame(0, [0.9], [[1, 0]], boxes=[whole]),
        make_frame(1, [0.9], [[0.0, 1]], boxes=[part]),
    ]
    assert track(frames, config)[1] == [0]
    assert track(frames, dataclasses.replace(config, size_weight=0.5))[1] == [1]


def test_a_duplicate_of_what_has_an_identity_starts_none() -> None:
    start = make_frame(0, [0.9, 0.8], torch.eye(3)[:2])
    # The third shows a part of the first, the fourth a part of the third, the fifth is elsewhere.
    near = torch.eye(4)
    near[0, 2] = near[2, 0] = near[2, 3] = near[3, 2] = 0.3
    then = make_frame(1, [0.9, 0.8, 0.7, 0.6], torch.eye(3)[[0, 1, 2, 2]], near)
    config = TrackerConfig(similarity="cosine")
    assert track([start, then], config)[1] == [0, 1, 2, 3]
    config = dataclasses.replace(config, new_overlap=0.2)
    # What was refused is in nobody's way.
    assert track([start, then], config)[1] == [0, 1, -1, 2]
    assert track([then], config)[0] == [0, 1, -1, 2]


def test_a_duplicate_is_refused_wherever_suppression_put_its_row() -> None:
    # Listed in ascending score, and the first row is suppressed: rows and overlaps must agree.
    near = torch.eye(4)
    near[0, 3] = near[3, 0] = 0.9
    near[1, 2] = near[2, 1] = 0.3
    frame = make_frame(0, [0.5, 0.6, 0.8, 0.9], torch.eye(4), near)
    assert track([frame], TrackerConfig(new_overlap=0.2)) == [[-1, -1, 1, 0]]


def test_an_instance_is_known_as_it_was_of_late_and_as_it_was_all_along() -> None:
    config = TrackerConfig(
        weighting="momentum", momentum=0.1, similarity="cosine", match_threshold=0.8
    )
    turned = [[1.0, 0.0]] * 4 + [[0.6, 0.8]]
    frames = [make_frame(t, [0.9], [v]) for t, v in enumerate(turned)]
    late = [*frames[:4], make_frame(4, [0.9], [[0.85, 0.53]]), make_frame(5, [0.9], [[0.5, 0.86]])]
    assert track(late, config)[-1] == [1]
    both = dataclasses.replace(config, newest_too=True)
    assert track(late, both)[-1] == [0]  # like the newest
    spoilt = [*late[:5], make_frame(5, [0.9], [[0.98, -0.17]])]
    assert track(spoilt, both)[-1] == [0]  # like the average, unlike the newest


def test_a_wavering_class_counts_against_a_match_without_forbidding_it() -> None:
    config = TrackerConfig(similarity="cosine", match_threshold=0.5, class_weight=0.4)
    frames = [
        make_frame(0, [0.9, 0.8], [[1, 0], [0.8, 0.6]], labels=[0, 1]),
        make_frame(1, [0.9], [[0.96, 0.28]], labels=[1]),
    ]
    # Likelier by looks alone (0.96 to 0.936), less so once the classes count.
    assert track(frames, dataclasses.replace(config, class_weight=0.0))[1] == [0]
    assert track(frames, config)[1] == [1]
    alone = [make_frame(t, [0.9], [[1, 0]], labels=[t]) for t in range(2)]
    assert track(alone, config)[1] == [0]
    assert track(alone, dataclasses.replace(config, class_weight=0.6))[1] == [1]


def test_the_newest_goes_with_cosine_only() -> None:
    with pytest.raises(ValueError, match="newest_too goes with similarity cosine, got released"):
        TrackerConfig(newest_too=True)


def test_a_moving_average_weighs_the_newest_embedding_by_momentum() -> None:
    shown = [[1.0, 0.0], [0.0, 1.0]]
    frames = [make_frame(t, [0.9], [v]) for t, v in enumerate(shown)]
    for momentum, expected in ((1.0, [0.0, 1.0]), (0.8, [0.2, 0.8]), (0.0, [1.0, 0.0])):
        config = TrackerConfig(
            weighting="momentum", momentum=momentum, similarity="cosine", match_threshold=-1.0
        )
        tracker = Tracker(config)
        for frame in frames:
            tracker.update(frame)
        assert tracker._memory is not None
        np.testing.assert_allclose(tracker._memory.embeddings[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("weighting", "temporal", "weights"),
    [
        ("paper", True, [0.5 + 2 / 2, 0.5 + 2 / 1]),
        ("paper", False, [1, 1]),
        ("released", True, [0.6 + 1 / 2, 0.4 + 2 / 2]),
        ("released", False, [0.6, 0.4]),
    ],
)
def test_memory_embeddings_are_weighted_as_documented(
    weighting: Any, temporal: bool, weights: list[float]
) -> None:
    config = TrackerConfig(
        weighting=weighting, temporal_weight=temporal, memory_length=2, similarity="cosine",
        match_threshold=-1.0,
    )  # fmt: skip
    tracker = Tracker(config)
    for t, (score, vector) in enumerate([(0.9, [5, 5, 5]), (0.6, [1, 0, 0]), (0.4, [0, 1, 0])]):
        tracker.update(make_frame(t, [score], [vector]))
    assert tracker._memory is not None
    expected = np.array([*weights, 0]) / sum(weights)
    np.testing.assert_allclose(tracker._memory.embeddings[0], expected, atol=1e-6)


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_CONFIG)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_order_in_which_detections_are_listed_changes_no_identity(name: str, seed: int) -> None:
    config = EVERY_CONFIG[name]
    rng = np.random.default_rng(seed)
    straight, shuffled = Tracker(config), Tracker(config)
    for frame in random_video(seed, 10):
        order = torch.from_numpy(rng.permutation(len(frame)))
        ids = straight.update(frame)
        assert torch.equal(shuffled.update(subset(frame, order)), ids[order])


@pytest.mark.parametrize("name", EVERY_CONFIG)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), lifetime=st.integers(1, 4), length=st.integers(1, 4))
def test_identities_are_unique_consecutive_and_forgotten(
    name: str, seed: int, lifetime: int, length: int
) -> None:
    config = dataclasses.replace(EVERY_CONFIG[name], memory_lifetime=lifetime, memory_length=length)
    tracker = Tracker(config)
    last_seen: dict[int, int] = {}
    for t, frame in enumerate(random_video(seed, 15, distinct=False)):
        ids = tracker.update(frame)
        assert ids.dtype == torch.int64
        assert ids.shape == (len(frame),)
        given_ids = [i for i in ids.tolist() if i >= 0]
        assert len(given_ids) == len(set(given_ids)), "one detection per track per frame"
        born = [i for i in given_ids if i not in last_seen]
        assert sorted(born) == list(range(len(last_seen), len(last_seen) + len(born)))
        for i in given_ids:
            assert i in born or t - last_seen[i] <= lifetime, "a forgotten identity came back"
            last_seen[i] = t
        assert set(tracker.alive) == {i for i, seen in last_seen.items() if t - seen < lifetime}
        if tracker._memory is not None:
            assert tracker._memory.history.shape[0] == len(tracker.alive)
            assert tracker._memory.history.shape[1] <= length


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), cut=st.floats(0, 1), mask_nms=st.floats(0, 1))
def test_mask_suppression_commutes_with_a_score_filter(
    seed: int, cut: float, mask_nms: float
) -> None:
    # On the first frame with first_threshold 0 exactly the survivors of mask NMS get identities.
    config = TrackerConfig(mask_nms=mask_nms, first_threshold=0.0, score_threshold=cut)
    frame = random_video(seed, 1, most=20)[0]
    all_kept = Tracker(config).update(frame) >= 0
    passing = frame.scores > max(cut, 1e-9)
    rows = passing.nonzero()[:, 0]
    kept = Tracker(config).update(subset(frame, rows)) >= 0
    assert torch.equal(kept, all_kept[rows])


def test_a_track_survives_a_gap_shorter_than_its_lifetime_also_of_empty_frames() -> None:
    seen = make_frame(0, [0.9], [[1.0, 0.0]])
    for lifetime in (1, 3, 10):
        for missed in (lifetime - 1, lifetime):
            tracker = Tracker(TrackerConfig(memory_lifetime=lifetime))
            tracker.update(seen)
            for t in range(1, missed + 1):
                assert tracker.update(make_frame(t, [], torch.zeros(0, 2))).tolist() == []
            again = dataclasses.replace(seen, frame_index=missed + 1)
            assert tracker.update(again).tolist() == [0 if missed < lifetime else 1]


def test_memory_does_not_grow_with_the_video() -> None:
    tracker = Tracker(TrackerConfig(min_cosine=0.9))
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for t in range(300):  # strangers in every frame: the worst case
        tracker.update(make_frame(t, [0.9, 0.8], torch.randn(2, 16, generator=generator)))
        assert tracker._memory is not None
        sizes.append(tracker._memory.history.nbytes)
    assert len(tracker.alive) <= 20
    assert max(sizes) <= 20 * 3 * 16 * 4


@pytest.mark.parametrize("name", ["ytvis", "paper", "robust"])
def test_a_thousand_detections_in_one_frame_are_tracked(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = 10 * torch.nn.functional.normalize(torch.randn(1000, 32, generator=generator))
    frames = [make_frame(t, torch.linspace(0.99, 0.35, 1000), vectors) for t in range(2)]
    assert track(frames, EVERY_CONFIG[name]) == [list(range(1000))] * 2


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_after_a_long_stretch_of_nothing_identities_go_on_counting(name: str) -> None:
    tracker = Tracker(EVERY_CONFIG[name])
    nothing = [make_frame(t, [], torch.zeros(0, 2)) for t in range(1001)]
    for frame in nothing[:500]:  # also before anything was ever seen
        assert tracker.update(frame).tolist() == []
    assert tracker.update(make_frame(500, [0.9, 0.8], torch.eye(2))).tolist() == [0, 1]
    for frame in nothing[501:]:
        assert tracker.update(frame).tolist() == []
        assert len(tracker.alive) <= 2
    assert tracker.alive == ()
    assert tracker.update(make_frame(1001, [0.9, 0.8], torch.eye(2))).tolist() == [2, 3]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [4, 5])
def test_frames_out_of_order_or_repeated_are_refused(index: int) -> None:
    tracker = Tracker(TrackerConfig())
    tracker.update(make_frame(5, [0.9], [[1.0]]))
    with pytest.raises(ValueError, match=f"frame {index} came after frame 5"):
        tracker.update(make_frame(index, [0.9], [[1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": [[1.0, 0.0], [math.nan, 0.0]]}, r"embeddings of frame 1 .* rows \[1\]"),
        ({"embeddings": [[math.inf, 0.0], [0.0, 0.0]]}, r"embeddings of frame 1 .* rows \[0\]"),
        ({"scores": [math.nan, 0.5]}, r"scores of frame 1 .* rows \[0\]"),
        ({"scores": [1.5, 0.5]}, r"scores of frame 1 must lie in \[0, 1\].*sigmoid"),
        ({"overlaps": [[1.0, math.nan], [0.0, 1.0]]}, r"overlaps of frame 1 .* rows \[0\]"),
        ({"embeddings": [[1.0] * 3, [0.0] * 3]}, "have size 3, those before it 2"),
        ({"embeddings": [[1e30, 0.0], [0.0, 1e30]]}, "overflow float32"),
    ],
)
def test_a_bad_frame_is_refused_and_leaves_the_tracker_as_it_was(
    change: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {"scores": [0.9, 0.8], "embeddings": [[1e9, 0.0], [0.0, 1e9]]}
    tracker = Tracker(TrackerConfig())
    tracker.update(make_frame(0, **good))
    with pytest.raises(ValueError, match=message):
        tracker.update(make_frame(1, **(good | change)))
    assert tracker.update(make_frame(1, **good)).tolist() == [0, 1]


# --- whole videos --------------------------------------------------------------------------------


def lone(t: int, *shown: int, scores: float = 0.9) -> FrameDetections:
    """Frame t with the identities shown, each with its own unmistakable embedding."""
    return make_frame(t, [scores - 0.01 * i for i in range(len(shown))], torch.eye(6)[list(shown)])


COSINE = TrackerConfig(similarity="cosine")


def histories(tracks: list[Track]) -> dict[int, list[int]]:
    return {one.track_id: sorted(one.detections) for one in tracks}


def test_admitted_is_what_passes_or_else_the_best() -> None:
    config = TrackerConfig(score_threshold=0.5)
    assert admitted(make_frame(0, [0.9, 0.6, 0.5], torch.zeros(3, 1)), config).tolist() == [0, 1]
    low = make_frame(0, [0.2, 0.4], torch.zeros(2, 1))
    assert admitted(low, config).tolist() == [1]
    assert admitted(low, dataclasses.replace(config, keep_best=False)).tolist() == []
    assert admitted(make_frame(0, [], torch.zeros(0, 1)), config).tolist() == []


@pytest.mark.parametrize("name", EVERY_CONFIG)
@pytest.mark.parametrize("ordered", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), threshold=st.floats(0.05, 0.95), keep_best=st.booleans())
def test_to_follow_a_frame_is_to_update_with_the_admitted_rows(
    name: str, ordered: bool, seed: int, threshold: float, keep_best: bool
) -> None:
    config = dataclasses.replace(EVERY_CONFIG[name], score_threshold=threshold, keep_best=keep_best)
    at_once, in_steps = Tracker(config), Tracker(config)
    for frame in random_video(seed, 8):
        order = torch.argsort(-frame.scores, stable=True) if ordered else torch.arange(len(frame))
        given_frame = subset(frame, order)
        rows = torch.from_numpy(admitted(given_frame, config))
        ids = in_steps.update(subset(given_frame, rows))
        assert at_once.follow(given_frame) == (rows.tolist(), ids.tolist())
    assert at_once.alive == in_steps.alive


def test_tracks_count_rows_in_the_frames_as_given() -> None:
    # Row 0 fails the threshold, so the tracker sees rows 1 and 2 only.
    frame = make_frame(0, [0.05, 0.9, 0.8], torch.eye(3))
    tracks = track_video([frame], TrackerConfig())
    assert [one.detections for one in tracks] == [{0: 1}, {0: 2}]


def test_class_scores_of_a_track_are_the_mean_over_its_frames() -> None:
    frames = [lone(0, 1, scores=0.9), lone(1), lone(2, 1, scores=0.6)]
    (only,) = track_video(frames, COSINE)
    torch.testing.assert_close(only.class_scores, torch.tensor([0.75, 0, 0]))
    assert only.class_scores.dtype == torch.float32


def test_late_short_tracks_are_pruned_after_two_absent_frames() -> None:
    def video(length: int) -> list[FrameDetections]:
        return [lone(t, 0, 1) if t in (6, 7) else lone(t, 0) for t in range(length)]

    assert histories(track_video(video(9), COSINE)) == {0: list(range(9)), 1: [6, 7]}
    assert histories(track_video(video(10), COSINE)) == {0: list(range(10))}
    three = dataclasses.replace(COSINE, prune_short=2)
    assert 1 in histories(track_video(video(10), three))


def test_a_pruned_identity_that_returns_starts_a_new_history_behind_the_others() -> None:
    shown = {7: (0, 1), 10: (0, 2), 11: (0, 2), 12: (0, 2), 13: (0, 1)}
    frames = [lone(t, *shown.get(t, (0,))) for t in range(14)]
    tracks = track_video(frames, COSINE)
    assert [(one.track_id, sorted(one.detections)) for one in tracks] == [
        (0, list(range(14))),
        (2, [10, 11, 12]),
        (1, [13]),
    ]


def test_pruning_at_the_end_treats_the_last_frames_like_the_others() -> None:
    frames = [lone(t, 0, 1) if t >= 11 else lone(t, 0) for t in range(13)]
    assert histories(track_video(frames, COSINE))[1] == [11, 12]
    at_end = dataclasses.replace(COSINE, prune_at_end=True)
    assert list(histories(track_video(frames, at_end))) == [0]
    assert list(histories(track_video(frames[:1], at_end))) == [0]  # too short a video to judge


def test_a_video_without_frames_or_detections_has_no_tracks() -> None:
    assert track_video([], TrackerConfig()) == []
    empty = [make_frame(t, [], torch.zeros(0, 4)) for t in range(12)]
    assert track_video(empty, TrackerConfig.robust()) == []
