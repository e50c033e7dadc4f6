"""Clip matching against the released code's traces, and its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from idol.clips.association import ClipAssociation
from idol.clips.matching import ClipDetections, ClipMatcher
from idol.clips.network import ClipOutputs
from idol.clips.video import join, select
from idol.config import ClipConfig
from idol.masks.rle import decode_masks

IFC = ClipConfig(length=5, match_threshold=0.05, score_threshold=0.01)
SEQFORMER = ClipConfig(length=5)


def outputs(logits, frames):
    return ClipOutputs(
        torch.as_tensor(logits), None, frames, lambda rows: rows[:, None, None, None]
    )


def clip_of(stored, at, method, config):
    """The stored outputs of one clip as detections, and the queries that they are."""
    frames = stored[f"{at}/frames"].tolist()
    rows, scores = select(outputs(stored[f"{at}/logits"], len(frames)), method, config)
    logits = torch.from_numpy(stored[f"{at}/masks_x8"]).float() / 8 + 0.0171
    return ClipDetections(frames, scores, logits[rows]), rows


def scored(matcher):
    """A matcher whose last scores are kept, as a table of all instances with all detections."""
    found = {}
    plain = matcher.association.scores

    def scores(frames, count, detections):
        known, values = plain(frames, count, detections)
        found["table"] = np.zeros((matcher.association.instances, count))
        found["table"][known] = values
        return known, values

    matcher.association.scores = scores
    return found


def pixels(video, mask_inst, frames):
    """(n, frames, h, w) bool of some instances."""
    masks = np.zeros((len(mask_inst), frames, *video.size), bool)
    for n, instance in enumerate(mask_inst):
        for t, counts in video.masks[instance].items():
            masks[n, t] = decode_masks([counts], video.size)[0]
    return masks


def same_results(video, config, stored, at, argmax=False):
    results = video.classes(config)
    prefix = "argmax_" if argmax else ""
    expected = stored[f"{at}/{prefix}labels"]
    np.testing.assert_array_equal([label for _, label, _ in results], expected)
    scores = [score for *_, score in results]
    np.testing.assert_allclose(scores, stored[f"{at}/{prefix}scores"], atol=1e-6)
    if f"{at}/inst" in stored and not argmax:
        np.testing.assert_array_equal([n for n, *_ in results], stored[f"{at}/inst"])


def test_every_ifc_trace_has_the_released_identities(shared):
    stored = np.load(shared / "reference/oracle/ifc_clip_traces.npz")
    size = tuple(stored["size"].tolist())
    for name in map(str, stored["names"]):
        frames = int(stored[f"{name}/vts"][0])
        matcher, clips = ClipMatcher(0.05), []
        found = scored(matcher)
        for c in range(int(stored[f"{name}/n_clips"])):
            clip, rows = clip_of(stored, f"{name}/in/{c}", "ifc", IFC)
            clips.append(clip)
            ids = matcher.update(clip)
            at = f"{name}/out/{c}"
            np.testing.assert_array_equal(rows, stored[f"{at}/valid"])
            np.testing.assert_array_equal(ids, stored[f"{at}/ids"], err_msg=at)
            np.testing.assert_allclose(found["table"], stored[f"{at}/siou"], atol=1e-6)
        video = join(clips, "ifc", (0, 0), size, IFC)
        final = f"{name}/final"
        assert len(video.masks) == int(stored[f"{final}/n_inst"])
        same_results(video, IFC, stored, final)
        one = ClipConfig(several_classes=False)
        same_results(video, one, stored, final, argmax=True)
        if len(video.masks):
            masks = pixels(video, range(len(video.masks)), frames)
            packed = np.packbits(masks.reshape(*masks.shape[:2], -1), axis=-1)
            np.testing.assert_array_equal(packed, stored[f"{final}/masks"])


def test_every_seqformer_trace_has_the_released_identities(shared):
    stored = np.load(shared / "reference/oracle/ifc_seqformer_clip_traces.npz")
    image, size = (tuple(stored[k].tolist()) for k in ("image_size", "original_size"))
    for name in map(str, stored["names"]):
        frames = int(stored[f"{name}/vts"][0])
        matcher, clips = ClipMatcher(0.01), []
        found = scored(matcher)
        for c in range(int(stored[f"{name}/n_clips"])):
            clip, rows = clip_of(stored, f"{name}/in/{c}", "seqformer", SEQFORMER)
            clips.append(clip)
            ids = matcher.update(clip)
            at = f"{name}/out/{c}"
            np.testing.assert_array_equal(rows, stored[f"{at}/selected"])
            np.testing.assert_array_equal(ids, stored[f"{at}/ids"], err_msg=at)
            np.testing.assert_allclose(found["table"], stored[f"{at}/siou"], atol=1e-6)
        video = join(clips, "seqformer", image, size, SEQFORMER)
        final = f"{name}/final"
        same_results(video, SEQFORMER, stored, final)
        np.testing.assert_allclose(video.class_scores, stored[f"{final}/out_cls"], atol=1e-6)
        masks = pixels(video, stored[f"{final}/mask_inst"].tolist(), frames)
        np.testing.assert_array_equal(masks.sum((2, 3)), stored[f"{final}/mask_pixels"])
        if f"{final}/masks" in stored:
            packed = np.packbits(masks.reshape(*masks.shape[:2], -1), axis=-1)
            np.testing.assert_array_equal(packed, stored[f"{final}/masks"])


@pytest.mark.parametrize("case", range(12))
def test_seqformer_post_processing_is_the_released_one(case, shared):
    stored = np.load(shared / "reference/oracle/seqformer_postproc.npz")
    name = str(stored["names"][case])
    image, size = (tuple(stored[k].tolist()) for k in ("image_size", "original"))
    frames = int(stored["case_T_len_stride"][case][0])

    def detections(at, start, end):
        span = range(start, end)
        rows, scores = select(outputs(stored[f"{at}/logits"], len(span)), "seqformer", SEQFORMER)
        masks = torch.from_numpy(stored[f"{at}/masks"].astype(np.float32))
        return ClipDetections(span, scores, masks[rows])

    spans = list(zip(stored[f"{name}/clip_start"], stored[f"{name}/clip_end"], strict=True))
    clips = [detections(f"{name}/clip{n}/in", int(a), int(b)) for n, (a, b) in enumerate(spans)]
    matcher = ClipMatcher(0.01)
    assigned = [matcher.update(clip).tolist() for clip in clips]
    np.testing.assert_array_equal(assigned, stored[f"{name}/clip/assign"])
    for kind, parts in (("clip", clips), ("whole", [detections(f"{name}/whole/in", 0, frames)])):
        video = join(parts, "seqformer", image, size, SEQFORMER)
        for how, config in (("multi", SEQFORMER), ("argmax", ClipConfig(several_classes=False))):
            same_results(video, config, stored, f"{name}/{kind}/{how}")
        at = f"{name}/{kind}/multi"
        if f"{at}/masks" in stored:
            masks = pixels(video, stored[f"{at}/mask_inst"].tolist(), frames)
            expected = np.unpackbits(stored[f"{at}/masks"], axis=-1)[..., : size[0] * size[1]]
            assert np.count_nonzero(masks.reshape(expected.shape) != expected) <= 2


# ---- laws ---------------------------------------------------------------------------------------


def strips(frames, *starts):
    """Detections of one pixel row: an instance at each start, 6 pixels wide, of class 0."""
    masks = torch.full((len(starts), len(frames), 1, 40), -20.0)
    for n, start in enumerate(starts):
        masks[n, :, :, start : start + 6] = 20.0
    return ClipDetections(frames, torch.ones(len(starts), 1), masks)


@given(
    length=st.integers(1, 9),
    clip=st.integers(1, 6),
    stride=st.integers(1, 5),
    order=st.permutations(range(3)),
)
def test_overlapping_clips_of_separate_instances_keep_their_identities(length, clip, stride, order):
    matcher = ClipMatcher(0.05)
    starts = [0, 14, 28]
    seen = {}
    for first in range(0, length, min(stride, max(1, clip - 1))):
        frames = range(first, min(first + clip, length))
        shown = starts if first == 0 else [starts[n] for n in order]
        ids = matcher.update(strips(frames, *shown)).tolist()
        for start, identity in zip(shown, ids, strict=True):
            if clip > 1 and length > 1:
                assert seen.setdefault(start, identity) == identity


def test_the_score_is_the_mean_over_clips_and_not_the_iou_with_their_mean():
    # Frame 2 is in three clips. Against the third, the first overlaps by 3 of 9 pixels and the
    # second by 6 of 6: the mean of 1/3 and 1 is 2/3; the IoU of their mean mask is 4.5/7.5.
    matcher = ClipMatcher(0.05)
    matcher.update(strips([0, 1, 2], 0))
    matcher.update(strips([1, 2], 3))
    found = scored(matcher)
    matcher.update(strips([2, 3], 3))
    assert found["table"][0, 0] == pytest.approx(2 / 3, abs=1e-5)


def test_a_pair_at_the_threshold_is_not_joined():
    def fixed(earlier, later, shared):
        return np.array([[0.5 + 0.5e-6]])

    for threshold, expected in ((0.5, 1), (0.49, 0)):
        # The score is 0.5 + 0.5e-6 over 1 + 1e-6 clips: at most 0.5 in exact arithmetic.
        association = ClipAssociation(fixed, threshold)
        association.update([0, 1], 1, None)
        assert association.update([1], 1, None).tolist() == [expected]


def test_only_the_last_clips_as_many_as_the_frames_are_compared():
    # The clip of one frame sees only the clip before it, which does not have the instance there.
    matcher = ClipMatcher(0.05)
    matcher.update(strips([0, 1, 2], 0))
    matcher.update(strips([1, 2], 20))
    assert matcher.update(strips([2], 0)).tolist() == [2]


def test_a_frame_is_finished_once_no_clip_can_cover_it():
    matcher = ClipMatcher(0.05)
    matcher.update(strips([0, 1, 2], 0))
    matcher.update(strips([1, 2, 3], 0))
    assert [frame.index for frame in matcher.finished(1)] == [0]
    assert [frame.index for frame in matcher.finished()] == [1, 2, 3]
    assert list(matcher.finished()) == []
    with pytest.raises(ValueError, match="one that starts at 0 after one that starts at 1"):
        matcher.update(strips([0], 0))
    with pytest.raises(ValueError, match=r"ascending order, got \[4, 4\]"):
        matcher.update(strips([4, 4], 0))


def test_a_long_video_keeps_no_more_than_its_last_clips():
    matcher = ClipMatcher(0.05)
    for first in range(50):
        matcher.update(strips(range(first, first + 4), 0, 20))
        list(matcher.finished(first))
    assert len(matcher.association._clips) == 4
    assert sorted(matcher._sums) == [49, 50, 51, 52]
    assert matcher.association.instances == 2
