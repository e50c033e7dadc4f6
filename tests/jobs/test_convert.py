"""`python -m jobs.convert`: one JSON line, a report, and outputs that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idol.images import synthetic, synthetic_dataset
from jobs import convert, evaluate
from pipelines.sources import annotations
from tests.pipelines.formats import drawn


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """run(*words): the JSON of the last line, and the lines of the report."""

    def one(*words: object) -> tuple[dict[str, Any], list[str]]:
        convert.main([str(word) for word in words])
        told = capsys.readouterr()
        return json.loads(told.out.splitlines()[-1]), told.err.splitlines()

    return one


def synthetic_set(folder: Path, videos: int, format: synthetic_dataset.Format = "jpeg") -> Path:
    config = synthetic.SyntheticConfig(size=(32, 48), length=(3, 3))
    return synthetic_dataset.write_dataset(folder, config, videos, 0, format=format)


def davis(root: Path, length: int = 3) -> Path:
    drawn.images(root / "JPEGImages" / "bear", [f"{t:05d}.jpg" for t in range(length + 1)])
    for t in range(length):
        mask = drawn.box(t + 1, 2, t + 9, 12)
        drawn.png(root / "Annotations" / "bear" / f"{t:05d}.png", mask * 255, "L")
    return root


def test_sources_of_several_formats_become_one_set(tmp_path: Path, run: Any) -> None:
    drawn.film(tmp_path / "seen.mp4", 2)
    xml = (
        "<annotations><meta><task><size>2</size><labels><label><name>object</name></label>"
        '</labels></task></meta><track id="0" label="object">'
        '<polygon frame="1" points="1,1;9,1;9,9"/><box frame="0"/></track></annotations>'
    )
    (tmp_path / "seen.xml").write_text(xml)
    out = tmp_path / "all.json"
    line, told = run(davis(tmp_path / "davis"), tmp_path / "seen.xml", "--out", out)
    boxes = "shapes that are a box, left out (that is no mask)"
    unnamed = "objects without a category, named 'object'"
    assert line == {
        "out": str(out),
        "frames": str(tmp_path),
        "videos": 2,
        "annotations": 2,
        "categories": ["object"],
        "left_out": 0,
        "told": {
            "frames without a mask file, left out of their video": 1,
            unnamed: 1,
            boxes: 1,
            "categories of one name, merged": 1,
        },
    }
    assert f"1 {boxes} (first: {tmp_path}/seen.xml: seen, track 0)" in told
    assert len(told) == 4
    # What it says is what later jobs take.
    dataset = annotations.read(out, line["frames"])
    assert [video.name for video in dataset.videos] == ["bear", "seen"]
    assert not dataset.rejects


def test_a_broken_video_is_told_and_the_others_are_written(tmp_path: Path, run: Any) -> None:
    root = davis(tmp_path / "davis")
    drawn.png(root / "Annotations" / "lost" / "00000.png", drawn.box(1, 1, 3, 3) * 1)
    line, told = run(root, "--out", tmp_path / "out.json")
    assert (line["videos"], line["left_out"]) == (1, 1)
    assert told[0].startswith(f"left out {root}: lost: there is no folder of images or film")
    # A source that has nothing to read leaves no file.
    (root / "JPEGImages" / "bear").rename(root / "elsewhere")
    with pytest.raises(SystemExit, match=r"ValueError: .* has no video that can be used: bear"):
        run(root, "--out", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_a_set_is_split_into_two_files(
    tmp_path: Path,
    run: Any,
) -> None:
    source = synthetic_set(tmp_path / "set", 5)
    line, _ = run(source, "--out", tmp_path / "a.json", "--split", "0.8", "--seed", "3")
    assert (line["videos"], line["held_out"]["videos"]) == (4, 1)
    assert line["held_out"]["out"] == str(tmp_path / "a_held_out.json")
    paths = [tmp_path / "a.json", tmp_path / "a_held_out.json"]
    parts = [annotations.read(path, line["frames"]) for path in paths]
    assert sorted(v.video_id for part in parts for v in part.videos) == [1, 2, 3, 4, 5]
    assert parts[0].categories == parts[1].categories
    # Again, over its own files; over another's, neither is touched.
    run(source, "--out", tmp_path / "a.json", "--split", "0.8", "--seed", "3")
    (tmp_path / "a_held_out.json").write_text("{}")
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(SystemExit, match=r"a_held_out.json exists and is not an output"):
        run(source, "--out", tmp_path / "a.json", "--split", "0.5")
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "2"], "--split needs a share between 0 and 1"),
        (["--min-score", "0.5"], "--min-score is of --results"),
        (["SOURCE", "--results", "SOURCE"], "--results needs a single source"),
        (
            ["--frames", ".", ".", "."],
            "--frames takes one place, or one for each of the 1",
        ),
        (["--frames", "nowhere"], "the frames nowhere do not exist"),
        (["--format", "cvat"], "is not XML"),
        (["--format", "mots"], "there is no folder of images or film instances.json"),
        (["--results", "SOURCE"], r"results must be a JSON list, got dict. \(Is it the truth"),
    ],
)
def test_a_slip_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    run: Any,
    words: list[str],
    message: str,
) -> None:
    source = synthetic_set(tmp_path / "set", 1)
    before = sorted(tmp_path.rglob("*"))
    given = [str(source) if word == "SOURCE" else word for word in words]
    with pytest.raises(SystemExit, match=message):
        run(source, *given, "--out", tmp_path / "out.json")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", ["mots", "png"])
def test_folders_are_new(tmp_path: Path, run: Any, to: str) -> None:
    source, out = davis(tmp_path / "davis"), tmp_path / "out"
    run(source, "--to", to, "--out", out)
    before = sorted(out.rglob("*"))
    with pytest.raises(SystemExit, match="out is a folder; name a file in it, or a new place"):
        run(source, "--to", to, "--out", out)
    with pytest.raises(SystemExit, match=r"--out .*davis would replace"):
        run(source, "--to", to, "--out", source)
    assert sorted(out.rglob("*")) == before
    run(source, "--out", tmp_path / "out.json")
    with pytest.raises(SystemExit, match=r"FileExistsError: .*out.json exists"):
        run(source, "--to", to, "--out", tmp_path / "out.json")


def test_a_source_is_not_written_over(tmp_path: Path, run: Any) -> None:
    run(davis(tmp_path / "davis"), "--out", tmp_path / "a.json")
    for out in (tmp_path / "a.json", tmp_path / "b.json"):
        source = tmp_path / "a.json"
        if out.name == "b.json":  # the second output of a split is a source
            source = (tmp_path / "a.json").rename(tmp_path / "b_held_out.json")
        with pytest.raises(SystemExit, match=r"would replace .*, which SOURCES reads"):
            run(source, "--out", out, "--split", "0.5")


@pytest.mark.slow
@pytest.mark.ray
def test_films_without_labels_are_evaluated_and_written_as_masks(
    ray_local: None, tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = synthetic_set(tmp_path / "set", 2, "mp4").parent
    line, told = run(folder / "JPEGImages", "--out", tmp_path / "films.json")
    assert (line["videos"], line["annotations"], line["categories"]) == (2, None, [])
    assert "the sources have no labels, so there are no annotations" in told
    words = ["--annotations", str(tmp_path / "films.json"), "--frames", line["frames"]]
    out = tmp_path / "run"
    evaluate.main([*words, "--checkpoint", "shipped", "--out", str(out)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rejects"] == 0
    words = ["--frames", line["frames"], "--results", out / "results.json", "--min-score", "0.01"]
    for to in ("png", "mots", "cocovid"):
        line, _ = run(tmp_path / "films.json", "--to", to, "--out", tmp_path / f"{to}.x", *words)
        assert line["videos"] == 2
        assert line["annotations"] is not None
    assert len(list((tmp_path / "png.x" / "Annotations").rglob("*.png"))) == 6
