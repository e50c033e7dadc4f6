"""Finished evaluations as what the player reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import page, run_page
from pipelines.report.viewer import Budget, Evaluated, collect
from pipelines.stages import detect, evaluate
from tests.pipelines import perfect


@pytest.fixture
def opened(make_videos: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """opened(lengths, tracker=None): an evaluation of perfect detections, by another tracker."""
    monkeypatch.setattr(detect, "run", perfect.run)
    made: dict[tuple[int, ...], Path] = {}

    def make(lengths: list[int], tracker: str | None = None) -> Evaluated:
        if tuple(lengths) not in made:
            made[tuple(lengths)] = make_videos(lengths, folder=f"data{len(made)}").write()
        request = evaluate.Request(
            annotations=made[tuple(lengths)],
            checkpoint=perfect.weights(tmp_path / "w.safetensors"),
            tracker=tracker,
        )
        out = tmp_path / f"out{len(made)}-{tracker}"
        evaluate.run(request, out, log=False)
        return run_page.opened(out.name, out)

    return make


def test_every_video_has_its_scores_timeline_and_clip(opened: Any) -> None:
    run = opened([6, 3, 5])
    found = collect([run])
    assert found.note == ""
    json.dumps(found.data)
    videos = found.data["videos"]
    assert [(video["id"], video["length"]) for video in videos] == [(1, 6), (2, 3), (3, 5)]
    first = videos[0]
    assert first["frames"] == [0, 1, 2, 3, 4, 5]
    # The car is away in frame 0.
    assert first["truth"] == [
        {"name": "car", "spans": [1, 5]},
        {"name": "person", "spans": [0, 5]},
    ]
    part = first["runs"]["0"]
    assert part["ap"] == pytest.approx(1.0)
    assert part["switches"] == []
    assert part["counted"] == 0
    names = {track["truth"]: track["name"] for track in part["tracks"]}
    assert names == {0: "car", 1: "person"}
    for g, shown in enumerate(part["shown"]):
        (first_frame, last_frame, track) = shown
        assert part["tracks"][track]["truth"] == g
        assert [first_frame, last_frame] == first["truth"][g]["spans"]
    for name in ("film", "truth", "run0"):
        assert found.parts[f"{first['clip']}-{name}"]


def test_runs_on_the_same_videos_share_film_and_truth(opened: Any) -> None:
    runs = [opened([4, 3]), opened([4, 3], "paper"), opened([2])]
    found = collect(runs)
    assert [run["set"] for run in found.data["runs"]] == [0, 0, 1]
    # One alone is called as its run, several as the folder of their labels.
    assert found.data["sets"] == ["data0", "out2-None"]
    assert [sorted(video["runs"]) for video in found.data["videos"]] == [["0", "1"]] * 2 + [["2"]]
    kinds = [name.split("-", 2)[2] for name in found.parts if name.startswith("clip-0-")]
    assert sorted(kinds) == ["film", "run0", "run1", "truth"]


def test_where_not_all_fit_the_page_says_which_have_no_clip(opened: Any) -> None:
    run = opened([3, 3, 3])
    found = collect([run], Budget(total=20_000, least=10_000, most=10_000))
    assert [("clip" in video) for video in found.data["videos"]] == [True, False, True]
    assert "Clips of 2 of 3 videos, evenly from the worst to the best" in found.note
    assert all(video["runs"]["0"]["tracks"] for video in found.data["videos"])
    none = collect([run], Budget(total=0))
    assert none.parts == {}
    assert "Clips of 0 of 3 videos" in none.note


def test_frames_that_are_gone_are_told_and_the_rest_is_shown(opened: Any) -> None:
    run = opened([3, 3])
    Path(run.dataset.videos[0].frames[1]).unlink()
    found = collect([run])
    assert "Of 1 videos the frames cannot be read here: " in found.note
    assert "clip" not in found.data["videos"][0]
    assert found.data["videos"][0]["runs"]["0"]["tracks"]
    assert "clip" in found.data["videos"][1]


def test_equal_runs_give_equal_pages_and_no_name_ends_the_script(opened: Any) -> None:
    run = opened([3])
    made = [page.render(page.Report(title="t", viewer=collect([run]))) for _ in range(2)]
    assert made[0] == made[1]
    assert page.in_script({"name": "</script><script>"}) == (
        r'{"name":"\u003c/script>\u003cscript>"}'
    )


def test_settings_that_differ_are_listed(opened: Any) -> None:
    part = run_page.evaluation_part([opened([3]), opened([3], "paper")])
    assert len(part["provenance"]) == 2
    differing = dict(part["differences"])
    assert differing["tracker.similarity"] == ["cosine", "paper"]
    assert not any(name.startswith("model.") for name in differing)


@pytest.mark.parametrize("values", [{"total": -1}, {"least": 5, "most": 4}])
def test_a_budget_is_checked(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a budget must be 0 or more"):
        Budget(**values)


def test_the_default_budget_of_300_videos_keeps_a_page_below_30_mb() -> None:
    clips, share = Budget().share(300)
    assert clips == 300
    assert 80_000 < share < 100_000
    assert clips * share < 27_000_000
    assert Budget().share(5000)[0] == 650
