"""Error shares: fixing regains what the error cost, never lowers AP, and all fixes give 1."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idol.analysis import causes
from idol.analysis import shares as error_shares
from idol.analysis.causes import CAUSES
from idol.config import AnalysisConfig
from idol.evaluation import average_precision
from idol.ytvis import results, truth
from idol.ytvis.truth import VideoTruth
from tests.idol.analysis.test_clips import entry, moving, strip, video
from tests.idol.analysis.test_oracles import random_video
from tests.idol.evaluation.test_average_precision import random_case

CONFIG = AnalysisConfig()
A, B = moving(4, 0, 0, 10), moving(4, 20, 0, 10)


def shares(*videos: tuple[list[dict[str, Any]], VideoTruth]) -> error_shares.ErrorShares:
    return error_shares.summarise(
        [causes.causes_of_video(r, range(len(r)), known, CONFIG) for r, known in videos]
    )


def regained(rows: list[dict[str, Any]], known: VideoTruth) -> dict[str, float]:
    """What is not zero."""
    return {k: v for k, v in shares((rows, known)).regained.items() if abs(v) > 1e-9}


def test_each_fix_regains_what_its_error_cost() -> None:
    one, two = video(4, A), video(4, A, B, categories=1)
    wrong_class = [entry(0.9, A, category_id=2)]
    assert regained(wrong_class, one) == pytest.approx({"class": 1, "all": 1})
    poor = [entry(0.9, [strip(0, 3)] * 4)]
    assert regained(poor, one) == pytest.approx({"mask": 1, "all": 1})
    nothing: list[dict[str, Any]] = []
    assert regained(nothing, one) == pytest.approx({"missed": 1, "all": 1})
    swapped = [entry(0.9, A[:2] + B[2:]), entry(0.8, B[:2] + A[2:])]
    assert regained(swapped, two) == pytest.approx({"switch": 1, "association": 1, "all": 1})
    parts = [[m if t == k else None for t, m in enumerate(A)] for k in range(4)]
    pieces = [entry(0.9 - k / 9, part) for k, part in enumerate(parts)]
    fragmented = {"fragmentation": 1, "association": 1, "all": 1}
    assert regained(pieces, one) == pytest.approx(fragmented)
    # A false track before the right one: precision 1/2 at every recall.
    ghost = [entry(0.9, [strip(30, 35)] * 4), entry(0.8, A)]
    assert regained(ghost, one) == pytest.approx({"background": 0.5, "all": 0.5})
    # The duplicate comes before B is found: 1 up to recall 1/2, then 2/3.
    double = [entry(0.9, A), entry(0.8, A), entry(0.7, B)]
    gap = 50 / 101 / 3
    assert regained(double, two) == pytest.approx({"duplicate": gap, "all": gap})


def test_a_perfect_method_has_nothing_to_regain() -> None:
    found = shares(([entry(0.9, A)], video(4, A)))
    assert found.ap == pytest.approx(1)
    assert set(found.regained.values()) == {0.0}
    assert set(found.counts.values()) == {0}


@settings(max_examples=80, deadline=None)
@given(cases=st.lists(random_video(), min_size=1, max_size=3))
def test_no_fix_lowers_ap_and_all_give_one(cases: Any) -> None:
    videos = []
    for number, (rows, known) in enumerate(cases):
        found = causes.causes_of_video(rows, range(len(rows)), known, CONFIG)
        videos.append(_renumbered(found, number))
    found = error_shares.summarise(videos)
    assert all(value >= -1e-12 for value in found.regained.values())
    assert found.fixed["all"] == pytest.approx(1)
    # Joint fixes neither: more causes never regain less.
    for k in range(len(CAUSES)):
        more = error_shares.fixed_ap(videos, CAUSES[: k + 1])
        assert more >= error_shares.fixed_ap(videos, CAUSES[:k]) - 1e-12


def _renumbered(found: causes.VideoErrors, video_id: int) -> causes.VideoErrors:
    return dataclasses.replace(found, video_id=video_id)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_ap_without_any_fix_is_that_of_the_evaluator(seed: int) -> None:
    data, entries = random_case(seed)
    known = truth.read(data)
    videos = []
    for video_id, of_video in known.videos.items():
        rows = [i for i, e in enumerate(entries) if e["video_id"] == video_id]
        videos.append(causes.causes_of_video([entries[i] for i in rows], rows, of_video, CONFIG))
    official = average_precision.evaluate(known, entries).stats["AP"]
    assert error_shares.summarise(videos).ap == pytest.approx(official)


def test_stored_cases_have_their_official_ap_before_and_one_after(shared: Any) -> None:
    for name in ("case01_basic", "case04_crowd", "case08_many_classes", "case05_sizes"):
        case = shared / "reference" / "eval_cases" / name
        known, entries = truth.read(case / "gt.json"), results.read(case / "results.json")
        videos = []
        for video_id, of_video in known.videos.items():
            rows = [i for i, e in enumerate(entries) if e["video_id"] == video_id]
            videos.append(
                causes.causes_of_video([entries[i] for i in rows], rows, of_video, CONFIG)
            )
        found = error_shares.summarise(videos)
        assert found.ap == pytest.approx(average_precision.evaluate(known, entries).stats["AP"])
        assert found.fixed["all"] == pytest.approx(1)
        assert min(found.regained.values()) >= -1e-12


def test_the_worst_come_first_with_what_is_needed_to_look_at_them() -> None:
    good, bad = ([entry(0.9, A)], video(4, A)), ([entry(0.9, [strip(0, 3)] * 4)], video(4, A))
    videos = [
        _renumbered(causes.causes_of_video(rows, [k], known, CONFIG), k + 1)
        for k, (rows, known) in enumerate([good, bad])
    ]
    found = error_shares.summarise(videos)
    assert [row.video_id for row in found.videos] == [2, 1]
    assert found.videos[0].errors["mask"] == 1
    assert (found.videos[0].instances, found.videos[0].found) == (1, 0)
    assert [i.entry for i in found.instances] == [1, 0]
    written = found.to_dict(1)
    assert [row["video_id"] for row in written["worst_videos"]] == [2]
    assert written["worst_instances"][0]["cause"] == "mask"


def test_nothing_to_find_has_no_ap_and_nothing_to_regain() -> None:
    found = shares(([entry(0.9, A)], video(4)))
    assert found.ap == found.fixed["all"] == -1.0
    assert set(found.regained.values()) == {0.0}


def test_wrong_use_is_said() -> None:
    with pytest.raises(ValueError, match="there is no cause 'blur'; causes are class, mask"):
        error_shares.fixed_ap([], ["blur"])
    with pytest.raises(ValueError, match="there is no video to analyse"):
        error_shares.summarise([])
