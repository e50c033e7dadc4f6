"""The recipe's three steps against training on videos alone, at laptop size, arm by arm.

python -m benchmarks.recipe_steps                              synthetic videos, crowded
python -m benchmarks.recipe_steps --real REAL/instances.json   real clips, every fourth held out
python -m benchmarks.recipe_steps --table                      the table of the rows so far

Step 1 trains instance segmentation on still images, step 2 adds the embedding losses on two views
of each image, step 3 goes on with pairs of video frames. Each starts from the weights of the one
before. Runs in one process; interrupted, the same command goes on at the last checkpoint. A row of
--rows is an arm with a seed; rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, TRAINING_SEED
from idol import presets
from idol.analysis import intervals, score_files
from idol.analysis.score_files import Analyses, FileMetrics
from idol.config import AnalysisConfig, Config, override
from idol.images.synthetic_dataset import FRAMES_FOLDER, write_dataset
from idol.segmenter import OnlineSegmenter
from idol.weights import checkpoint
from idol.ytvis import results, truth
from pipelines.sources import annotations
from pipelines.sources import frames as frame_files
from pipelines.stages import pairs, train
from pipelines.training.initial_model import Start
from pipelines.training.workers import Workers

ROWS = Path(__file__).with_suffix(".jsonl")
STILLS_SEED = 2001
"""Of the still images: none shows what a video of the other seeds shows."""
ANALYSIS = AnalysisConfig(resamples=400)
STILLS = (
    "pairs.pseudo=true",
    "transforms.independent=true",
    "transforms.crop_probability=0.5",
    "transforms.crop_short_sides=[110,128,160]",
    "transforms.crop_range=[96,192]",
)
"""What the coco presets change, at the size of the tiny one."""
SETTINGS = {
    "stills": (*STILLS, "losses.reid=0", "losses.reid_aux=0"),
    "views": STILLS,
    "videos": (),
}
"""By step. As in the released files, videos after other steps have half the learning rate."""
AFTER = ("train.learning_rate=0.0015",)
ARMS = {
    "three steps": (("stills", 1), ("views", 1), ("videos", 1)),
    "videos alone, as many steps": (("videos", 3),),
    "videos alone, the steps of step 3": (("videos", 1),),
}
"""The steps of each arm and their lengths, in units of --steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Annotation files: still images in COCO form, videos to train on, videos to score."""

    stills: Path
    videos: Path
    held_out: Path


def synthetic(out: Path, options: argparse.Namespace) -> Data:
    """Crowded videos, and stills drawn like them with other objects in each."""
    dial = DIALS["crowded"]
    still = dataclasses.replace(dial, length=(1, 1))
    drawn = write_dataset(out / "drawn-stills", still, options.stills, STILLS_SEED)
    return Data(
        stills=as_images(drawn),
        videos=write_dataset(out / "videos", dial, options.videos, TRAINING_SEED),
        held_out=write_dataset(out / "held-out", dial, options.held_out, HELD_OUT_SEED),
    )


def real(out: Path, source: Path) -> Data:
    """Real clips: every fourth is held out, the frames of the others are the stills too.

    The categories are few videos each, so all objects are of one.
    """
    known = json.loads(source.read_text())
    known["categories"] = [{"id": 1, "name": "object"}]
    for item in known["annotations"]:
        item["category_id"] = 1
    frames = source.resolve().parent / FRAMES_FOLDER
    held_out = {video["id"] for video in known["videos"][::4]}
    files = {}
    others = {video["id"] for video in known["videos"]} - held_out
    for name, wanted in (("videos", others), ("held-out", held_out)):
        files[name] = write_part(out / name, known, wanted, frames)
    stills = as_images(files["videos"])
    return Data(stills=stills, videos=files["videos"], held_out=files["held-out"])


def write_part(folder: Path, known: dict[str, Any], wanted: set[int], frames: Path) -> Path:
    """The annotation file of these videos in a folder, beside a link to the frames of all."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FRAMES_FOLDER).exists():
        (folder / FRAMES_FOLDER).symlink_to(frames)
    path = folder / "instances.json"
    videos = [video for video in known["videos"] if video["id"] in wanted]
    tracks = [track for track in known["annotations"] if track["video_id"] in wanted]
    path.write_text(json.dumps({**known, "videos": videos, "annotations": tracks}))
    return path


def as_images(source: Path) -> Path:
    """Every annotated frame of a YouTube-VIS file as a still image of a COCO file beside it."""
    known = json.loads(source.read_text())
    images: list[dict[str, Any]] = []
    first: dict[int, int] = {}
    for video in known["videos"]:
        first[video["id"]] = len(images) + 1
        images += [
            {"file_name": name, "height": video["height"], "width": video["width"]}
            for name in video["file_names"]
        ]
    items = [
        {"image_id": first[track["video_id"]] + t, "category_id": track["category_id"],
         "segmentation": mask, "iscrowd": 0}
        for track in known["annotations"]
        for t, mask in enumerate(track["segmentations"])
        if mask is not None
    ]  # fmt: skip
    path = source.with_name("stills.json")
    content = {
        "images": [{"id": i, **image} for i, image in enumerate(images, 1)],
        "categories": known["categories"],
        "annotations": [{"id": i, **item} for i, item in enumerate(items, 1)],
    }
    path.write_text(json.dumps(content))
    return path


def config_of(step: str, first: bool, steps: int, seed: int) -> Config:
    """The configuration of a step of an arm."""
    settings = SETTINGS[step] + (AFTER if step == "videos" and not first else ())
    own = (f"train.steps={steps}", f"train.seed={seed}", "train.checkpoint_every=100")
    return override(presets.tiny(), [*settings, *own])


def prepared(data: Data, out: Path) -> dict[str, Path]:
    """What each step trains on: the directory that prepare wrote of it."""
    made = {}
    for name, path, step in (("stills", data.stills, "stills"), ("videos", data.videos, "videos")):
        made[name] = out / f"pairs-{name}"
        wanted = config_of(step, True, 1, 0).pairs
        pairs.run(annotations.read(str(path)), made[name], wanted)
    return {"stills": made["stills"], "views": made["stills"], "videos": made["videos"]}


def scored(weights: Path, held_out: Path, out: Path) -> FileMetrics:
    """Detect, track and score the held-out videos."""
    model = checkpoint.load(weights)
    entries: list[results.Entry] = []
    for video in annotations.read(str(held_out)).videos:
        segmenter = OnlineSegmenter(model)
        for frame in frame_files.read_many(video.frames, video_id=video.video_id, size=video.size):
            segmenter(frame)
        entries += segmenter.finish_ytvis(video.video_id)
    path = out / "results.json"
    results.write(path, entries)
    known = truth.read(held_out)
    (found,) = score_files.run(known, {"ours": path}, Analyses(config=ANALYSIS), workers=1).files
    return found


def row_of(
    arm: str, seed: int, made: dict[str, Path], data: Data, out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and score an arm with a seed: the row of the table, as plain JSON types."""
    name = f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
    # AP by the number of steps: a run that goes on has no longer the weights of its earlier points.
    cache = out / f"{name}.json"
    curve: dict[str, float] = json.loads(cache.read_text()) if cache.exists() else {}
    weights: str | None = None
    unit = options.steps
    done, total = 0, unit * sum(units for _, units in ARMS[arm])
    found = None
    started = time.monotonic()
    for step, units in ARMS[arm]:
        length, folder = units * unit, out / f"{name}-{step}"
        config = config_of(step, weights is None, length, seed)
        every = unit // options.points if step == "videos" and options.points else length
        for until in range(every, length + 1, every):
            saved = train.advance(
                made[step], folder, config, until, Start(weights=weights), Workers(count=0)
            )
            at = str(done + until)
            # After step 1 the embeddings are random still.
            if step != "stills" and (at not in curve or done + until == total):
                found = scored(saved, data.held_out, out)
                curve[at] = found.metrics.stats["AP"]
                cache.write_text(json.dumps(curve))
                print(f"{arm}, seed {seed}: AP {percent([curve[at]])} at {at}", flush=True)
        weights, done = str(saved), done + length
    assert found is not None, "the last point is always scored"
    interval = found.intervals["AP"]
    return {
        "arm": arm,
        "seed": seed,
        "steps": total,
        **{name: found.metrics.stats[name] for name in ("AP", "AP50", "AP75", "AR10")},
        "interval": [interval.low, interval.high],
        "curve": [[int(at), round(value, 4)] for at, value in curve.items()],
        "draws": [round(float(value), 4) for value in found.draws["AP"]],
        # Of the last start alone where the row was interrupted, and of a machine with other work.
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def percent(values: Sequence[float]) -> str:
    """Numbers in percent, with a space between them."""
    return " ".join(f"{100 * value:.1f}" for value in values)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with intervals over draws of the held-out videos, as Markdown."""
    lines = ["| arm | steps | AP, mean | 95 % | AP of each seed | AP50 | AP75 | AR10 |"]
    lines.append("|---" * 8 + "|")
    mean: dict[str, tuple[float, Any]] = {}
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        every = [row["AP"] for row in mine]
        mean[arm] = statistics.fmean(every), np.mean([row["draws"] for row in mine], 0)
        low_high = intervals.interval(mean[arm][1], mean[arm][0], ANALYSIS)
        assert low_high is not None
        others = [statistics.fmean(r[k] for r in mine) for k in ("AP50", "AP75", "AR10")]
        cells = [arm, str(mine[0]["steps"]), percent([mean[arm][0]])]
        cells += [percent([low_high.low]) + " – " + percent([low_high.high]), percent(every)]
        lines.append("| " + " | ".join([*cells, *(percent([o]) for o in others)]) + " |")
    first, *rest = mean
    lines.append("")
    for other in rest:
        gap = mean[first][0] - mean[other][0]
        found = intervals.difference(mean[first][1], mean[other][1], gap, ANALYSIS)
        low, high = found.interval.low, found.interval.high
        lines.append(
            f"{first} minus {other}: {100 * gap:+.1f} AP ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    for arm in mean:
        mine = [dict(map(tuple, row["curve"])) for row in rows if row["arm"] == arm]
        # A row may have been made with more points than another.
        common = [at for at in mine[0] if all(at in curve for curve in mine)]
        at = ", ".join(
            f"{100 * statistics.fmean(curve[step] for curve in mine):.1f} at {step}"
            for step in common
        )
        lines.append(f"{arm}, mean AP over the steps: {at}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are not there yet, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--real", type=Path, help="YouTube-VIS JSON of real clips")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines, a finished row each")
    parser.add_argument("--steps", type=int, default=400, help="of each of the three")
    parser.add_argument("--points", type=int, default=0, help="scores in --steps; 0: the last")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stills", type=int, default=1200, help="synthetic still images")
    parser.add_argument("--videos", type=int, default=60, help="synthetic training videos")
    parser.add_argument("--held-out", type=int, default=40, help="synthetic test videos")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    name = "real" if options.real else "synthetic"
    out = options.out / name
    print(machine.header(machine.command("benchmarks.recipe_steps")))
    if not options.table:
        data = real(out, options.real) if options.real else synthetic(out, options)
        made = prepared(data, out)
        for seed in range(options.seeds):
            for arm in ARMS:
                if any((r["arm"], r["seed"]) == (arm, seed) for r in stored(options.rows, name)):
                    continue
                row = {"set": name, **row_of(arm, seed, made, data, out, options)}
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(stored(options.rows, name)))


def stored(path: Path, name: str) -> list[dict[str, Any]]:
    """The finished rows of a set."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["set"] == name]


if __name__ == "__main__":
    main()
