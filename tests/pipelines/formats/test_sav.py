"""SA-V: masks on every fourth frame of a film."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.formats import sav
from tests.pipelines.formats import drawn


def masklet(*rows: tuple[int, ...]) -> list[list[dict[str, Any]]]:
    """One row per annotated frame: the left edge of every object, -1 where it is not seen."""
    return [
        [
            {
                "size": list(drawn.SIZE),
                "counts": drawn.counts(drawn.box(left, 2, left + 6 * (left >= 0), 9)).decode(),
            }
            for left in row
        ]
        for row in rows
    ]


def write(folder: Path, content: Any, kind: str = "manual", name: str = "sav_000001") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{kind}.json"
    path.write_text(json.dumps(content))
    return path


def video(*rows: tuple[int, ...], name: str = "sav_000001") -> dict[str, Any]:
    return {"video_id": name, "video_frame_count": 9.0, "masklet": masklet(*rows)}


def test_masks_belong_to_every_fourth_frame(tmp_path: Path) -> None:
    drawn.film(tmp_path / "sav_000001.mp4", 9)
    path = write(tmp_path, video((1, 20), (2, -1), (3, 22)))
    found = sav.read(path)
    assert drawn.file_names(found.content) == {
        "sav_000001": [f"sav_000001.mp4#{t}" for t in (0, 4, 8)]
    }
    (_, first), (_, second) = drawn.objects(found.content)["sav_000001"]
    shapes = [drawn.counts(drawn.box(left, 2, left + 6, 9)) for left in (1, 2, 3, 20, 22)]
    assert sorted([first, second], key=str) == sorted(
        [shapes[:3], [shapes[3], None, shapes[4]]], key=str
    )
    assert found.notes == {"objects without a category, named 'object'": (2, "sav_000001")}


def test_masks_of_people_go_before_automatic_ones(tmp_path: Path) -> None:
    films = tmp_path / "films"
    for name in ("a", "b"):
        drawn.film(films / f"{name}.mp4", 5)
    labels = tmp_path / "labels"
    write(labels, video((1,), (2,), name="a"), "manual", "a")
    write(labels, video((1, 9), (2, 9), name="a"), "auto", "a")
    write(labels, video((5,), (6,), name="b"), "auto", "b")
    (labels / "read_me.json").write_text("[]")
    found = sav.read(labels, films)
    assert {name: len(rows) for name, rows in drawn.objects(found.content).items()} == {
        "a": 1,
        "b": 1,
    }
    kind = "automatic masks beside those of people, left out"
    assert found.notes[kind] == (1, "a_auto.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"video_id": "sav_000001"}, "has no 'masklet', a list of masks"),
        ([], "has no 'masklet'"),
        ({"masklet": [None]}, "has no 'masklet'"),
        (video(*[(1,)] * 4), "has masks for 4 frames, each 4th of the film, but .* has 9"),
        (video(), "has masks for 0 frames"),
        (video((1,), name="other"), r"there is no film .*other.mp4; name its folder: --frames"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: Any, reason: str) -> None:
    drawn.film(tmp_path / "sav_000001.mp4", 9)
    with pytest.raises(ValueError, match=reason):
        sav.read(write(tmp_path, content))
