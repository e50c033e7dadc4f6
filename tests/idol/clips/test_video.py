"""Whole videos by networks of clips: released results, clip cutting, and bounded work."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import idol
from idol.clips import video, weights
from idol.clips.matching import ClipMatcher
from idol.config import ClipConfig
from idol.masks.rle import decode_masks
from tests.idol import oracle_recipe
from tests.idol.clips import recipe
from tests.idol.clips.test_matching import pixels, scored

SIZE = (270, 360)


def released(shared, preset):
    state = recipe.released_state(shared / f"reference/state_dict_{preset}.txt")
    model = idol.clips.build(preset)
    model.load_state_dict(weights.released(state))
    return model


def frames(times):
    pictures = [oracle_recipe.frame(180, 240, t, 4, 3)[0] for t in times]
    return list(oracle_recipe.batch(pictures, (180, 240))[0])


@pytest.mark.slow
@pytest.mark.parametrize("run", ["t5s1", "t5s3", "t36", "t3s2"])
def test_ifc_finds_the_released_instances_of_a_video(run, shared):
    stored = np.load(shared / "reference/oracle/ifc_video.npz")
    model = released(shared, "ifc_r50")
    length, stride = {"t5s1": (5, 1), "t5s3": (5, 3), "t36": (36, 1), "t3s2": (3, 2)}[run]
    config = replace(model.config.clips, length=length, stride=stride)
    matcher = ClipMatcher(config.match_threshold)
    found, clips = scored(matcher), []
    for c, clip in enumerate(video.predict(model, frames(range(13)), config)):
        np.testing.assert_array_equal(list(clip.frames), stored[f"{run}/{c}/frames"])
        np.testing.assert_array_equal(matcher.update(clip), stored[f"{run}/{c}/ids"])
        np.testing.assert_allclose(found["table"], stored[f"{run}/{c}/siou"], atol=1e-4)
        clips.append(clip)
    assert f"{run}/{len(clips)}/ids" not in stored
    whole = video.join(clips, "ifc", (180, 240), SIZE, config)
    same_video(whole, config, stored, run, range(len(whole.masks)), 13, scores=1e-4)


@pytest.mark.slow
def test_seqformer_finds_the_released_instances_of_a_video(shared):
    stored = np.load(shared / "reference/oracle/seqformer_video6.npz")
    model = released(shared, "seqformer_r50")
    images = frames(range(0, 18, 3))
    runs = {"whole": (0, 1), "clip3s1": (3, 1), "clip3s2": (3, 2)}
    for run, (length, stride) in runs.items():
        config = replace(model.config.clips, length=length, stride=stride)
        found = video.segment(model, images, SIZE, config)
        instances = stored[f"{run}/mask_inst"].tolist()
        same_video(found, config, stored, run, instances, 6, scores=1e-5)
        one = replace(config, several_classes=False)
        if f"{run}_argmax/labels" in stored:
            results = found.classes(one)
            labels = stored[f"{run}_argmax/labels"]
            np.testing.assert_array_equal([label for _, label, _ in results], labels)


def same_video(found, config, stored, run, instances, length, scores):
    results = found.classes(config)
    np.testing.assert_array_equal([n for n, *_ in results], stored[f"{run}/inst"])
    np.testing.assert_array_equal([label for _, label, _ in results], stored[f"{run}/labels"])
    got = [score for *_, score in results]
    np.testing.assert_allclose(got, stored[f"{run}/scores"], atol=scores)
    masks = pixels(found, instances, length)
    expected = np.unpackbits(stored[f"{run}/masks"], axis=-1).astype(bool)
    wrong = np.count_nonzero(masks.reshape(expected.shape) != expected)
    assert wrong <= max(2, 2e-5 * np.count_nonzero(expected))


# ---- laws ---------------------------------------------------------------------------------------


def cut(count, length, stride, batch=3):
    """(first, last + 1) of the clips of a video of `count` frames."""
    torch.manual_seed(0)
    model = _Counting()
    config = ClipConfig(length=length, stride=stride, batch_frames=batch)
    images = [torch.full((3, 4, 4), float(t)) for t in range(count)]
    return [(c.frames[0], c.frames[-1] + 1) for c in video.predict(model, images, config)], model


class _Counting(idol.clips.IFC):
    """Frames that are their own number, of which the clips must be the right ones."""

    def __init__(self):
        super().__init__(idol.presets.by_name("ifc_tiny"))
        self.seen = 0
        self.most = 0

    def frames(self, images, padding, length):
        self.seen += len(images)
        numbers = images[:, 0, 0, 0]
        one = idol.clips.ifc.CoarseFrames
        return one(numbers, numbers, numbers, numbers, numbers, numbers)

    def layers(self, frames, length):
        self.most = max(self.most, len(frames))
        logits = torch.zeros(1, 1, 2, 5)
        logits[..., 0] = 9.0
        self.numbers = frames.tokens.tolist()
        assert np.diff(self.numbers).tolist() == [1.0] * (length - 1)
        return idol.clips.ClipLayers(
            logits, None, length, lambda *_: frames.tokens[None, :, None, None].expand(2, -1, 1, 1)
        )


@pytest.mark.parametrize(
    ("count", "length", "stride", "expected"),
    [
        (13, 5, 3, [(0, 5), (3, 8), (6, 11), (8, 13)]),  # IFC specification, section 4
        (13, 5, 7, [(0, 5), (7, 12)]),
        (13, 36, 1, [(0, 13)]),
        (13, 0, 1, [(0, 13)]),
        (5, 5, 1, [(0, 5)]),
        (6, 5, 1, [(0, 5), (1, 6)]),
        (4, 1, 1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (9, 2, 4, [(0, 2), (4, 6), (7, 9)]),
        (1, 5, 2, [(0, 1)]),
        (0, 5, 2, []),
    ],
)
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_clips_are_cut_as_released_and_frames_are_computed_once(
    count, length, stride, expected, batch
):
    spans, model = cut(count, length, stride, batch)
    assert spans == expected
    assert model.seen == count


def test_frames_of_two_sizes_are_refused():
    model = idol.clips.build("ifc_tiny")
    images = [torch.zeros(3, 32, 32), torch.zeros(3, 32, 48)]
    with pytest.raises(ValueError, match="must have one size"):
        list(video.predict(model, images))


@pytest.mark.parametrize("preset", ["seqformer_tiny", "ifc_tiny"])
def test_results_are_entries_of_a_results_file(preset):
    torch.manual_seed(0)
    model = idol.clips.build(preset)
    config = ClipConfig(length=3, stride=2, score_threshold=0.0, match_threshold=0.05)
    images = [torch.randn(3, 50, 70, generator=torch.Generator().manual_seed(t)) for t in range(6)]
    found = video.segment(model, images, (90, 130), config)
    entries = found.entries(7, [11, 12, 13, 14], config)
    assert found.length == 6
    assert len(entries) == 4 * len(found.masks) > 0
    assert {entry["category_id"] for entry in entries} == {11, 12, 13, 14}
    for entry in entries:
        assert entry["video_id"] == 7
        assert len(entry["segmentations"]) == 6
        for mask in filter(None, entry["segmentations"]):
            assert mask["size"] == [90, 130]
            assert decode_masks([mask["counts"].encode()], (90, 130)).any()
    (best,) = {len(found.entries(7, [1] * 4, replace(config, several_classes=False)))}
    assert best == len(found.masks)


def test_a_video_without_frames_has_no_instance():
    found = video.segment(idol.clips.build("ifc_tiny"), [], (4, 4))
    assert found.entries(1, [1] * 4, ClipConfig()) == []
