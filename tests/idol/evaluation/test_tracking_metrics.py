"""HOTA, CLEAR and identity metrics: TrackEval's stored numbers, laws, and cases done by hand."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.evaluation.tracking_counts import ALPHAS, count_frames
from idol.evaluation.tracking_metrics import (
    TrackingOptions,
    count_video,
    scores_of,
    summarise_tracking,
)
from idol.masks import rle
from idol.ytvis import truth

NAMES = {"MOTA": "MOTSA", "sMOTA": "sMOTSA", "MOTP": "MOTSP"}
CASES = ("case01_basic", "case11_perfect")
SIZE = (12, 16)


def score(known, entries, options=None, order=None):
    counted = []
    for video_id in order or known.videos:
        rows = [i for i, e in enumerate(entries) if e["video_id"] == video_id]
        chosen = [entries[i] for i in rows]
        video = known.videos[video_id]
        counted.append(count_video(chosen, video, rows, options or TrackingOptions()))
    return summarise_tracking(counted)


@pytest.mark.parametrize("case", CASES)
def test_every_stored_number_of_trackeval_is_met(case, shared):
    folder = shared / "reference/eval_cases" / case
    known = truth.read(folder / "gt.json")
    found = score(known, json.loads((folder / "results.json").read_text()))
    named = {name: found.per_class[c] for c, name in known.categories.items()}
    named["cls_comb_cls_av"] = found.class_averaged
    named["cls_comb_det_av"] = found.detection_averaged
    compared = 0
    for group, families in json.loads((folder / "expected_trackeval.json").read_text()).items():
        for family in ("HOTA", "CLEAR", "Identity"):
            for name, expected in families.get(family, {}).items():
                if name.endswith("_per_alpha"):
                    got = named[group].per_alpha[name.removesuffix("_per_alpha")]
                else:
                    got = named[group].values[NAMES.get(name, name.removeprefix("CLR_"))]
                np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=f"{group} {name}")
                compared += 1
    assert compared > 60


# ---- made by hand


def scores_of_ids(truth_ids, track_ids, similarity):
    """Scores of one class from the ids, all below 10, that are seen in each frame."""
    ids = [[np.array(i, np.int64) for i in side] for side in (truth_ids, track_ids)]
    return scores_of(count_frames(list(zip(*ids, similarity, strict=True)), 10, 10))


def one_object(*tracks):
    """Counts of one instance seen in every frame; tracks: per frame the id that shows it, or None.

    Similarity is 1 where shown."""
    ids = [[i] if i is not None else [] for i in tracks]
    return scores_of_ids([[7]] * len(tracks), ids, [np.ones((1, len(i))) for i in ids])


def test_a_switch_half_way_costs_association_and_not_detection():
    values = one_object(1, 1, 2, 2).values
    assert (values["IDSW"], values["TP"], values["FP"], values["FN"]) == (1, 4, 0, 0)
    assert values["DetA"] == 1
    # Either pair is together in 2 of 4 frames: TPA 2, FNA 2, FPA 0.
    assert values["AssA"] == pytest.approx(0.5)
    assert values["HOTA"] == pytest.approx(np.sqrt(0.5))
    assert values["IDF1"] == pytest.approx(2 * 2 / (4 + 4))
    assert values["MOTSA"] == pytest.approx(1 - 1 / 4)


def test_a_gap_is_a_fragmentation_only_where_the_frame_has_other_tracks():
    ids = [[1], [9], [1]]
    similarity = [np.ones((1, 1)), np.zeros((1, 1)), np.ones((1, 1))]
    values = scores_of_ids([[7]] * 3, ids, similarity).values
    assert (values["Frag"], values["IDSW"], values["FP"]) == (1, 0, 1)
    # An empty frame leaves TrackEval's pairs as they are.
    assert one_object(1, None, 1).values["Frag"] == 0


def test_an_instance_is_mostly_tracked_partly_tracked_or_mostly_lost():
    assert one_object(*[1] * 9, None).values["MT"] == 1
    assert one_object(*[1] * 8, None, None).values["PT"] == 1
    assert one_object(1, *[None] * 9).values["ML"] == 1


def test_alphas_above_the_similarity_find_nothing():
    scores = scores_of_ids([[1]], [[1]], [np.full((1, 1), 0.62)])
    np.testing.assert_array_equal(scores.per_alpha["HOTA"], (ALPHAS <= 0.62).astype(float))
    assert scores.values["LocA"] == pytest.approx((0.62 * 12 + 1.0 * 7) / 19)


# ---- of masks


def made_up(seed, videos=3, frames=4, classes=2, noise=0.3):
    """Truth as JSON, perfect results for it, and noisy ones."""
    rng = np.random.default_rng(seed)
    document = {
        "categories": [{"id": c + 1, "name": f"c{c + 1}"} for c in range(classes)],
        "videos": [
            {"id": v, "height": SIZE[0], "width": SIZE[1], "length": frames, "file_names": []}
            for v in range(1, videos + 1)
        ],
        "annotations": [],
    }
    for video in document["videos"]:
        video["file_names"] = [f"{video['id']}/{t}.jpg" for t in range(frames)]
    perfect, noisy = [], []
    for video in range(1, videos + 1):
        for _ in range(rng.integers(1, 4)):
            category = int(rng.integers(1, classes + 1))
            shown, moved = [], []
            top, left = rng.integers(0, 6, 2)
            for _ in range(frames):
                picture = np.zeros(SIZE, bool)
                picture[top : top + 5, left : left + 6] = rng.random((5, 6)) < 0.9
                other = picture & (rng.random(SIZE) > noise)
                encoded = [c.decode() for c in rle.encode_masks(np.stack([picture, other]))]
                present = rng.random() < 0.85
                shown.append({"size": list(SIZE), "counts": encoded[0]} if present else None)
                gone = rng.random() < 0.2
                moved.append(None if gone else {"size": list(SIZE), "counts": encoded[1]})
            if not any(shown):
                continue
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "video_id": video,
                    "category_id": category,
                    "iscrowd": 0,
                    "segmentations": shown,
                    "areas": [None if m is None else 1 for m in shown],
                    "bboxes": [None if m is None else [0, 0, 1, 1] for m in shown],
                    "length": frames,
                    "height": SIZE[0],
                    "width": SIZE[1],
                }
            )
            base = {"video_id": video, "category_id": category, "score": float(rng.random())}
            perfect.append({**base, "segmentations": shown})
            noisy.append({**base, "segmentations": moved})
    return document, perfect, noisy


@pytest.fixture
def read(tmp_path) -> Callable[..., Any]:
    def reader(document):
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(document))
        return truth.read(path)

    return reader


@pytest.mark.parametrize("seed", range(5))
def test_perfect_results_score_one(seed, read):
    document, perfect, _ = made_up(seed)
    found = score(read(document), perfect)
    for name in ("HOTA", "DetA", "AssA", "LocA", "MOTSA", "sMOTSA", "IDF1"):
        assert found.detection_averaged.values[name] == pytest.approx(1.0)
        assert found.present_averaged.values[name] == pytest.approx(1.0)
    assert found.detection_averaged.values["IDSW"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_order_of_entries_and_splitting_over_workers_change_nothing(seed, read):
    document, _, noisy = made_up(seed)
    known = read(document)
    expected = score(known, noisy).to_dict()
    rng = np.random.default_rng(seed)
    shuffled = [noisy[i] for i in rng.permutation(len(noisy))]
    assert score(known, noisy, order=[3, 1, 2]).to_dict() == expected
    close(score(known, shuffled).to_dict(), expected)
    # Counts travel between processes.
    parts = [
        pickle.loads(pickle.dumps(count_video([e for e in noisy if e["video_id"] == v], video)))
        for v, video in known.videos.items()
    ]
    assert summarise_tracking(reversed(parts)).to_dict() == expected


def close(got, expected):
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            close(got[key], value)
    else:
        assert got == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_counts_agree_with_each_other_whatever_comes_in(data):
    frames = data.draw(st.integers(1, 5))
    truth_ids, track_ids, similarity = [], [], []
    for _ in range(frames):
        g = data.draw(st.lists(st.integers(0, 3), unique=True))
        n = data.draw(st.lists(st.integers(0, 4), unique=True))
        cells = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
        values = data.draw(st.lists(cells, min_size=len(g) * len(n), max_size=len(g) * len(n)))
        truth_ids.append(g)
        track_ids.append(n)
        similarity.append(np.array(values, float).reshape(len(g), len(n)))
    scores = scores_of_ids(truth_ids, track_ids, similarity)
    values = scores.values
    assert values["TP"] + values["FN"] == sum(map(len, truth_ids))
    assert values["TP"] + values["FP"] == sum(map(len, track_ids))
    assert values["IDTP"] + values["IDFN"] == values["TP"] + values["FN"]
    # Not IDTP <= TP: CLEAR keeps a pair from the frame before even where that costs another one.
    assert values["IDTP"] <= min(sum(map(len, truth_ids)), sum(map(len, track_ids)))
    for name in ("HOTA", "DetA", "AssA", "IDF1", "IDR", "IDP", "LocA"):
        assert 0 <= values[name] <= 1
    np.testing.assert_allclose(
        scores.per_alpha["HOTA"] ** 2, scores.per_alpha["DetA"] * scores.per_alpha["AssA"]
    )
    assert (np.diff(scores.per_alpha["DetA"]) <= 1e-12).all()


def test_low_scores_identical_masks_and_empty_masks_are_tracks_unless_asked(read):
    document, perfect, _ = made_up(1)
    known = read(document)
    twice = copy.deepcopy(perfect)
    for entry in twice:
        entry["category_id"] = 3 - entry["category_id"]
        entry["score"] /= 2
    both = perfect + twice
    assert score(known, both).detection_averaged.values["DetA"] < 0.7
    once = score(known, both, TrackingOptions(one_class=True))
    assert once.detection_averaged.values["HOTA"] == pytest.approx(1.0)
    ghost = {**copy.deepcopy(perfect[0]), "score": 0.01}
    extra = score(known, [*perfect, ghost])
    assert extra.detection_averaged.values["FP"] > 0
    cut = min(e["score"] for e in perfect)
    assert cut > 0.01
    kept = score(known, [*perfect, ghost], TrackingOptions(min_score=cut))
    assert kept.detection_averaged.values["FP"] == 0
    empty = {"size": list(SIZE), "counts": rle.encode_masks(np.zeros((1, *SIZE), bool))[0].decode()}
    filled = copy.deepcopy(perfect)
    for entry in filled:
        entry["segmentations"] = [m or empty for m in entry["segmentations"]]
    absent = sum(m is None for e in perfect for m in e["segmentations"])
    assert absent > 0
    assert score(known, filled).detection_averaged.values["FP"] == absent
    as_absent = score(known, filled, TrackingOptions(empty_masks="absent"))
    assert as_absent.detection_averaged.values["FP"] == 0


def test_bad_options_and_videos_counted_twice_are_refused(read):
    with pytest.raises(ValueError, match="min_score must be a number"):
        TrackingOptions(min_score=float("nan"))
    with pytest.raises(ValueError, match="empty_masks must be"):
        TrackingOptions(empty_masks="maybe")
    document, perfect, _ = made_up(0, videos=1)
    known = read(document)
    counted = count_video(perfect, known.videos[1])
    with pytest.raises(ValueError, match="counted twice"):
        summarise_tracking([counted, counted])
    with pytest.raises(ValueError, match="no video to score"):
        summarise_tracking([])
    broken = {**perfect[0], "segmentations": perfect[0]["segmentations"][:-1]}
    with pytest.raises(ValueError, match="results\\[5\\]"):
        count_video([broken], known.videos[1], [5])
