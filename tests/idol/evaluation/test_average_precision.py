import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from idol.evaluation import average_precision, matching
from idol.evaluation.average_precision import evaluate
from idol.masks import rle
from idol.ytvis import truth

CASES = [
    "case01_basic",
    "case02_one_video_one_class",
    "case04_crowd",
    "case05_sizes",
    "case07_empty_videos_absent_class",
    "case08_many_classes",
    "case10_polygon_and_uncompressed_rle",
    "case11_perfect",
    "case13_odd_ids_and_stated_areas",
    "case14_quirk_short_predictions",
    "case15_quirk_gt_id_zero",
    "case16_quirk_size_mismatch",
    "case17_occlusion_a",
    "case20_quirk_empty_results",
]
REFUSED = {
    "case14_quirk_short_predictions": r"results\[\d+\].segmentations has 7 entries",
    "case16_quirk_size_mismatch": r"results\[\d+\].segmentations\[0\] has size \[63, 95\]",
}
SIZE = (1, 40)


def strip(first: int, last: int) -> dict:
    """A mask in a picture one pixel high: pixels first..last."""
    mask = np.zeros(SIZE, np.uint8)
    mask[0, first : last + 1] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def dataset(annotations: list[dict], videos: int = 1, length: int = 2) -> dict:
    return {
        "videos": [
            {"id": v + 1, "height": SIZE[0], "width": SIZE[1], "length": length}
            for v in range(videos)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i + 1, "video_id": 1, "category_id": 1, "iscrowd": 0, **a}
            for i, a in enumerate(annotations)
        ],
    }


def result(score: float, *segmentations: dict | None, **changes: int) -> dict:
    return {
        "video_id": 1,
        "category_id": 1,
        "score": score,
        "segmentations": list(segmentations),
        **changes,
    }


def random_case(seed: int, videos: int = 3, occlusion: bool = False) -> tuple[dict, list[dict]]:
    """Truth and results that partly agree, with absent frames and distinct scores."""
    rng = np.random.default_rng(seed)
    annotations, entries = [], []
    for video_id in range(1, videos + 1):
        for _ in range(rng.integers(0, 4)):
            start, width = int(rng.integers(0, 25)), int(rng.integers(4, 15))
            category_id = int(rng.integers(1, 3))
            masks = [strip(start, start + width) if rng.random() < 0.8 else None for _ in range(2)]
            masks[0] = masks[0] or (None if masks[1] else strip(start, start + width))
            annotation = {
                "video_id": video_id,
                "category_id": category_id,
                "segmentations": masks,
                "iscrowd": int(rng.random() < 0.1),
            }
            if occlusion:
                words = list(truth.OCCLUSION_SCORES)
                annotation["occlusion"] = [str(rng.choice(words)), None]
            annotations.append(annotation)
            for _ in range(rng.integers(0, 3)):
                moved = max(0, start + int(rng.integers(-2, 3)))
                found = [strip(moved, moved + width) if m else None for m in masks]
                entries.append(
                    result(rng.random(), *found, video_id=video_id, category_id=category_id)
                )
        entries.append(result(rng.random(), strip(0, 3), None, video_id=video_id))
    return dataset(annotations, videos), entries


def same(a: average_precision.Metrics, b: average_precision.Metrics) -> None:
    assert a.stats == b.stats
    assert a.per_class == b.per_class
    assert a.missing_videos == b.missing_videos
    np.testing.assert_array_equal(a.precision, b.precision)
    np.testing.assert_array_equal(a.recall, b.recall)


# ---- stored outputs of the official evaluators ---------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_official_evaluator(shared: Path, name: str):
    case = shared / "reference" / "eval_cases" / name
    for evaluator, expected in json.loads((case / "expected.json").read_text()).items():
        if "error" in expected:
            assert expected["error"] == "IndexError"
            with pytest.raises(IndexError):
                evaluate(case / "gt.json", case / "results.json", compat=True)
            continue
        ours_alone = name in REFUSED or name == "case15_quirk_gt_id_zero"
        for compat in (True,) if ours_alone else (True, False):
            metrics = evaluate(case / "gt.json", case / "results.json", compat=compat)
            ours = {key: metrics.stats[key] for key in expected["stats"]}
            assert ours == pytest.approx(expected["stats"], abs=1e-9)
            if evaluator == "ovis":
                # The official order too, and nothing besides.
                assert list(metrics.stats.values()) == pytest.approx(expected["stats_vector"])
            assert metrics.to_dict()["per_class"].keys() == expected["per_class"].keys()
            for category_id, row in expected["per_class"].items():
                assert metrics.per_class[int(category_id)] == pytest.approx(row, abs=1e-9)
            np.testing.assert_allclose(
                metrics.precision.sum(axis=(0, 1, 2))[:4],
                expected["precision_sum_by_area_maxdet"],
                atol=1e-6,
            )


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_official_evaluator_scores_oddly_is_refused(shared: Path, name: str):
    case = shared / "reference" / "eval_cases" / name
    with pytest.raises(ValueError, match=REFUSED[name]):
        evaluate(case / "gt.json", case / "results.json")


def test_an_annotation_of_id_0_is_found_unless_compat_is_asked_for(shared: Path):
    case = shared / "reference" / "eval_cases" / "case15_quirk_gt_id_zero"
    truth_of = json.loads((case / "gt.json").read_text())
    scores = evaluate(truth_of, case / "results.json").stats
    for annotation in truth_of["annotations"]:
        annotation["id"] += 1
    assert scores == evaluate(truth_of, case / "results.json", compat=True).stats
    assert scores["AP"] > evaluate(case / "gt.json", case / "results.json", compat=True).stats["AP"]


def test_videos_whose_truth_cannot_be_read_are_left_out_with_their_results(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    seen = [{"segmentations": [strip(0, 9), None], "video_id": v} for v in (1, 2)]
    data = dataset(seen, videos=2)
    data["annotations"][1]["segmentations"] = [strip(0, 9)]
    found = [result(0.9, strip(0, 9), None, video_id=v) for v in (1, 2)]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(found))
    for results in (found, file):
        metrics = evaluate(data, results)
        assert (metrics.stats["AP"], metrics.num_videos) == (pytest.approx(1.0), 1)
    assert "1 of 2 videos are not scored" in caplog.text
    assert "video 2 (annotation 2 has 1 segmentations for 2 frames)" in caplog.text
    with pytest.raises(ValueError, match="video 2: annotation 2 has 1 segmentations"):
        evaluate(dict(data, videos=data["videos"][1:]), [])


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_compiled_code_scores_the_same(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    case = shared / "reference" / "eval_cases" / name
    files = case / "gt.json", case / "results.json"
    loaded = rle.compile_kernel()
    monkeypatch.setattr(rle, "_COMPILE_FROM", 1 << 60)
    monkeypatch.setattr(rle._Read, "kernel", None)
    expected = evaluate(*files)
    monkeypatch.setattr(rle._Read, "kernel", loaded)
    same(evaluate(*files), expected)


# ---- by hand -------------------------------------------------------------------------------------


def test_average_precision_worked_by_hand():
    a = {"segmentations": [strip(0, 14), strip(0, 14)]}  # 30 pixels
    b = {"segmentations": [strip(15, 29), strip(15, 29)]}
    metrics = evaluate(
        dataset([a, b]),
        [
            # 15 + 7 pixels of a, none outside: IoU 22/30 = 0.733, right at .5, .55, .6, .65, .7.
            result(0.9, strip(0, 14), strip(0, 6)),
            # On nothing: always wrong.
            result(0.8, strip(30, 35), None),
            # b itself: always right.
            result(0.7, strip(15, 29), strip(15, 29)),
        ],
    )
    # Five thresholds see right, wrong, right: recall 1/2, 1/2, 1 and precision 1, 1/2, 2/3. Up to
    # recall .50 (51 of 101 points) precision is 1, beyond (50 points) 2/3.
    low = (51 + 50 * 2 / 3) / 101
    # The others see wrong, wrong, right: recall 0, 0, 1/2 and precision 0, 0, 1/3. From the right
    # made monotone, 51 points have 1/3, the rest 0.
    high = 51 / 3 / 101
    expected = {
        "AP": (low + high) / 2,
        "AP50": low,
        "AP75": high,
        # All are small (at most 128^2 pixels); there is no truth of the other sizes.
        "APs": (low + high) / 2,
        "APm": -1.0,
        "APl": -1.0,
        # The best track alone recalls 1/2 at five thresholds and 0 at five.
        "AR1": 0.25,
        # All three recall 1 at five and 1/2 at five.
        "AR10": 0.75,
        "AR100": 0.75,
        "ARs": 0.75,
        "ARm": -1.0,
        "ARl": -1.0,
    }
    assert metrics.stats == pytest.approx(expected)
    assert list(metrics.stats) == list(expected)
    assert metrics.per_class[1]["AP"] == pytest.approx(expected["AP"])
    # There is no true dog, so it enters no mean.
    assert set(metrics.per_class[2].values()) == {-1.0}


def test_occlusion_levels_ignore_instances_of_other_levels():
    open_, hidden = "no_occlusion", "severe_occlusion"
    annotations = [
        {"segmentations": [strip(0, 9)] * 2, "occlusion": [open_, open_]},  # score 0: slight
        {"segmentations": [strip(20, 29)] * 2, "occlusion": [hidden, None]},  # 0.75: heavy
    ]
    metrics = evaluate(dataset(annotations), [result(0.9, strip(0, 9), strip(0, 9))])
    # The slight one is found; its finder is no false positive of the heavy level.
    assert metrics.stats["AP_so"] == pytest.approx(1.0)
    assert metrics.stats["AP_mo"] == -1.0
    assert metrics.stats["AP_ho"] == 0.0
    assert metrics.stats["AR_so"] == 1.0
    # Half of the recall points have precision 1: 51 of 101.
    assert metrics.stats["AP"] == pytest.approx(51 / 101)


def test_a_crowd_is_neither_found_nor_missed():
    crowd = {"segmentations": [strip(0, 9)] * 2, "iscrowd": 1}
    single = {"segmentations": [strip(20, 29)] * 2}
    metrics = evaluate(
        dataset([crowd, single]),
        [
            result(0.9, strip(0, 9), strip(0, 9)),
            result(0.8, strip(0, 9), strip(0, 9)),
            result(0.7, strip(20, 29), strip(20, 29)),
        ],
    )
    assert metrics.stats["AP"] == pytest.approx(1.0)


# ---- laws ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16))
def test_perfect_results_score_one(seed):
    data, _ = random_case(seed)
    entries = [
        result(0.5, *a["segmentations"], video_id=a["video_id"], category_id=a["category_id"])
        for a in data["annotations"]
        if any(a["segmentations"])
    ]
    data["annotations"] = [a for a in data["annotations"] if any(a["segmentations"])]
    data["annotations"] = [{**a, "iscrowd": 0} for a in data["annotations"]]
    metrics = evaluate(data, entries)
    truths = bool(data["annotations"])
    for name in ("AP", "AP50", "AP75", "APs", "AR10", "AR100"):
        assert metrics.stats[name] == (pytest.approx(1.0) if truths else -1.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16), st.randoms())
def test_the_order_of_results_does_not_matter(seed, random):
    data, entries = random_case(seed, occlusion=bool(seed % 2))
    before = evaluate(data, entries)
    random.shuffle(entries)
    same(before, evaluate(data, entries))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16), st.randoms())
def test_splitting_videos_over_workers_changes_nothing(seed, random):
    data, entries = random_case(seed, videos=5)
    known = truth.read(data)
    matches = [
        matching.match_video([e for e in entries if e["video_id"] == v], video)
        for v, video in known.videos.items()
    ]
    random.shuffle(matches)
    same(evaluate(data, entries), average_precision.summarise(matches))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16))
def test_compat_changes_nothing_on_well_formed_input(seed):
    data, entries = random_case(seed, occlusion=bool(seed % 2))
    same(evaluate(data, entries), evaluate(data, entries, compat=True))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16))
def test_an_absent_mask_and_an_empty_one_score_the_same(seed):
    data, entries = random_case(seed)
    nothing = {"size": list(SIZE), "counts": strip(5, 4)["counts"]}
    filled = [{**e, "segmentations": [m or nothing for m in e["segmentations"]]} for e in entries]
    same(evaluate(data, entries), evaluate(data, filled))


# ---- what is missing or malformed ----------------------------------------------------------------


def test_videos_without_results_are_listed_and_scored_as_empty(caplog):
    masks = [strip(0, 9)] * 2
    data = dataset([{"segmentations": masks}, {"segmentations": masks, "video_id": 3}], videos=3)
    metrics = evaluate(data, [result(0.9, *masks)])
    assert metrics.missing_videos == (2, 3)
    assert metrics.num_videos == 3
    assert metrics.stats["AR100"] == 0.5
    assert "2 of 3 videos have no results" in caplog.text
    assert metrics.to_dict()["missing_videos"] == [2, 3]


def test_no_results_score_zero():
    metrics = evaluate(dataset([{"segmentations": [strip(0, 9)] * 2}]), [])
    assert metrics.stats["AP"] == metrics.stats["AR100"] == 0.0
    assert metrics.missing_videos == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": float("nan")}, r"results\[1\].score must be finite, got nan"),
        ({"video_id": 9}, r"results\[1\] has video_id 9, which the truth does not know"),
        ({"category_id": 9}, r"results\[1\] has category_id 9, but the truth has 1, 2"),
        ({"segmentations": [None]}, r"results\[1\].segmentations has 1 entries"),
    ],
)
def test_a_malformed_entry_is_refused_with_its_index(changes, message):
    data = dataset([{"segmentations": [strip(0, 9)] * 2}])
    entries = [result(0.9, None, None), {**result(0.8, None, None), **changes}]
    with pytest.raises(ValueError, match=message):
        evaluate(data, entries)


def test_compat_drops_categories_that_the_truth_does_not_list():
    data = dataset([{"segmentations": [strip(0, 9)] * 2}])
    entries = [result(0.8, strip(0, 9), strip(0, 9)), result(0.9, None, None, category_id=9)]
    same(evaluate(data, entries, compat=True), evaluate(data, entries[:1], compat=True))


def test_summarise_refuses_what_does_not_belong_together():
    one, two = (truth.read(random_case(3, occlusion=o)[0]).videos for o in (False, True))
    with pytest.raises(ValueError, match="no video to score"):
        average_precision.summarise([])
    with pytest.raises(ValueError, match="video 1 was matched twice"):
        average_precision.summarise([matching.match_video([], one[1])] * 2)
    with pytest.raises(ValueError, match="different categories or occlusion"):
        average_precision.summarise(matching.match_video([], v) for v in (one[1], two[2]))
