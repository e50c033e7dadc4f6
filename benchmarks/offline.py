"""IDOL and its offline rivals trained for the same minutes: oracles over clip lengths.

python -m benchmarks.offline --minutes 45        the rows that are missing, then the tables
python -m benchmarks.offline --table             the tables of the rows so far
python -m benchmarks.offline --smoke --out /tmp/offline --rows /tmp/offline.jsonl

Trains IDOL, IDOL with the ID head of the ablation (a tracker of per-frame classifiers, in the place
of CrossVIS's row), SeqFormer and IFC, tiny each, on easy and on crowded synthetic videos. A row of
--rows is a set, an arm and a seed; rows that are there are not made again, and an interrupted
training goes on at its last checkpoint. Tables 1 and 2 and Figures 1 and 3 of the paper.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import idol
from benchmarks import machine
from benchmarks.analysis import standalone
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, TRAINING_SEED
from idol import presets
from idol.analysis import score_files
from idol.analysis.oracles import CLIP_LENGTHS, OracleExperiments
from idol.analysis.score_files import Analyses
from idol.clips import video as clip_video
from idol.clips.network import ClipNetwork
from idol.config import AnalysisConfig, Config, override
from idol.images.synthetic_dataset import write_dataset
from idol.images.transforms import normalise
from idol.learning.training import Trainer
from idol.segmenter import OnlineSegmenter
from idol.ytvis import truth
from idol.ytvis.results import Entry
from pipelines.batches import loader, pair_sets
from pipelines.report import charts
from pipelines.sources import annotations
from pipelines.sources import frames as frame_files
from pipelines.sources.annotations import VideoRecord
from pipelines.stages import pairs, train
from pipelines.training import networks
from pipelines.training.workers import Workers

ROWS = Path(__file__).with_suffix(".jsonl")
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "IDOL": ("tiny", ()),
    "ID head": ("tiny", ("losses.identity=1", "losses.reid=0", "losses.reid_aux=0")),
    "SeqFormer": ("seqformer_tiny", ()),
    "IFC": ("ifc_tiny", ()),
}
"""Preset and settings of each arm."""
SMOKE = ("transforms.stretch=[64,96]", "model.num_queries=12", "train.pairs_per_batch=2")
WARM_UP, TIMED = 3, 12  # steps; the second tell how many fit into the minutes
_SCORED = AnalysisConfig(resamples=0)


def config_of(arm: str, seed: int, steps: int, *, smoke: bool) -> Config:
    """The configuration of an arm."""
    preset, settings = ARMS[arm]
    own = [f"train.steps={steps}", f"train.seed={seed}", "train.checkpoint_every=100"]
    return override(presets.by_name(preset), [*settings, *(SMOKE if smoke else ()), *own])


def prepared(source: Path, out: Path, arm: str, *, smoke: bool) -> Path:
    """What an arm trains on: pairs, or clips of as many frames as its preset says."""
    config = config_of(arm, 0, 1, smoke=smoke)
    made = out / f"pairs-{config.pairs.clip}-{config.pairs.max_gap}"
    pairs.run(annotations.read(str(source)), made, config.pairs)
    return made


def steps_of(arm: str, made: Path, out: Path, minutes: float, *, smoke: bool) -> int:
    """Optimiser steps of an arm in so many minutes of a processor, measured once and kept."""
    kept = out / "steps.json"
    known: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}
    name = f"{arm} {minutes:g}"
    if name not in known:
        config = train.with_categories(
            config_of(arm, 0, 1, smoke=smoke), *pair_sets.of(made).categories()
        )
        config = train.with_identities(config, made)
        trainer = Trainer(networks.make(config), config, loss=networks.loss(config))
        clips = loader.ClipLoader(
            made,
            config,
            batch=config.train.pairs_per_batch,
            identities=loader.number_instances(made) if config.model.num_identities else None,
        )
        with contextlib.closing(clips.batches()) as batches:
            for step in range(WARM_UP + TIMED):
                if step == WARM_UP:
                    began = time.process_time()
                trainer.step(networks.batch(config, next(batches)))
        known[name] = max(1, round(60 * minutes * TIMED / (time.process_time() - began)))
        kept.write_text(json.dumps(known))
    return known[name]


def row_of(
    arm: str, seed: int, made: Path, held_out: Path, out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and score an arm with a seed, as plain JSON types."""
    steps = steps_of(arm, made, out, options.minutes, smoke=options.smoke)
    folder = out / f"{arm.replace(' ', '-')}-{seed}"
    config = config_of(arm, seed, steps, smoke=options.smoke)
    train.run(made, folder, config, workers=Workers(count=0), resume=True)
    model = networks.load(folder / train.WEIGHTS)
    lengths = tuple(options.lengths)
    row: dict[str, Any] = {"arm": arm, "seed": seed, "minutes": options.minutes, "steps": steps}
    if isinstance(model, ClipNetwork):
        whole = scored(whole_videos(model, held_out), held_out, folder / "results.json", ())
        row["predicted"] = whole.predicted.stats["AP"]
        row["frame"], row["clip"] = {}, {}
        for length in lengths:
            entries = separate_clips(model, held_out, length)
            found = scored(entries, held_out, folder / f"clips-{length}.json", (length,))
            row["frame"][str(length)] = found.frame.stats["AP"]
            row["clip"][str(length)] = found.clips[length].stats["AP"]
        return row
    found = scored(online(model, held_out), held_out, folder / "results.json", lengths)
    row["predicted"] = found.predicted.stats["AP"]
    row["frame"] = {str(length): found.frame.stats["AP"] for length in lengths}
    row["clip"] = {str(length): found.clips[length].stats["AP"] for length in lengths}
    return row


def scored(
    entries: Iterator[Entry], held_out: Path, path: Path, lengths: tuple[int, ...]
) -> OracleExperiments:
    """All oracles of some results."""
    path.write_text(json.dumps(list(entries)))  # results.write leaves out first_frame
    analyses = Analyses(oracle=lengths or (1,), config=_SCORED)
    (found,) = score_files.run(truth.read(held_out), {"ours": path}, analyses, workers=1).files
    assert found.oracles is not None
    return found.oracles


def online(model: Any, held_out: Path) -> Iterator[Entry]:
    """Entries of IDOL, frame by frame."""
    for video in annotations.read(str(held_out)).videos:
        segmenter = OnlineSegmenter(model)
        for frame in _frames(video):
            segmenter(frame)
        yield from segmenter.finish_ytvis(video.video_id)


def whole_videos(model: ClipNetwork, held_out: Path) -> Iterator[Entry]:
    """Entries of a network of clips, its clips joined as released."""
    config = model.config
    for video in annotations.read(str(held_out)).videos:
        images = (normalise(frame, config.transforms) for frame in _frames(video))
        found = idol.clips.segment(model, images, video.size)
        yield from found.entries(video.video_id, config.category_ids, config.clips)


def separate_clips(model: ClipNetwork, held_out: Path, length: int) -> Iterator[Entry]:
    """Entries of clips of `length` frames that share none: what oracles join."""
    config = model.config
    clips = replace(config.clips, length=length, stride=length)
    for video in annotations.read(str(held_out)).videos:
        images = [normalise(frame, config.transforms) for frame in _frames(video)]
        size, ids = (images[0].shape[1], images[0].shape[2]), config.category_ids
        # The last clip would be moved back over the one before: the rest is a clip of its own.
        even = len(images) - len(images) % length
        for start, part in ((0, images[:even]), (even, images[even:])):
            for found in clip_video.predict(model, part, clips):
                moved = replace(
                    found, frames=range(start + found.frames[0], start + found.frames[-1] + 1)
                )
                yield from clip_video.clip_entries(
                    moved, config.model.method, size, video.size, video.video_id, ids, clips
                )


def _frames(video: VideoRecord) -> Iterator[Any]:
    return frame_files.read_many(video.frames, video_id=video.video_id, size=video.size)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds in percent: predicted and oracles, then oracles over clip lengths."""
    lengths = sorted({int(n) for row in rows for n in row["clip"]})
    head = " | ".join(f"{kind} {n}" for n in lengths for kind in ("frame", "clip"))
    lines = [
        f"| set | arm | seeds | steps | predicted | {head} |",
        "|---" * (5 + 2 * len(lengths)) + "|",
    ]
    for kind in DIALS:
        for arm in ARMS:
            mine = [row for row in rows if (row["set"], row["arm"]) == (kind, arm)]
            if not mine:
                continue
            values = [[row["predicted"] for row in mine]]
            for n in lengths:
                for part in ("frame", "clip"):
                    values.append([row[part][str(n)] for row in mine if str(n) in row[part]])
            cells = [_cell(value) for value in values]
            start = [kind, arm, str(len(mine)), str(mine[0]["steps"])]
            lines.append("| " + " | ".join([*start, *cells]) + " |")
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]], kind: str) -> str:
    """AP over the frames of a clip, means over seeds, as the paper's Figures 1 and 3: an SVG file.

    Lines are clip oracles; dotted: predicted.
    """
    lengths = sorted({int(n) for row in rows for n in row["clip"]})
    drawn = []
    for place, arm in enumerate(ARMS):
        mine = [row for row in rows if (row["set"], row["arm"]) == (kind, arm)]
        if mine:
            own = 100 * statistics.fmean(row["predicted"] for row in mine)
            ends = [(0.0, own), (len(lengths) - 1.0, own)]
            curve = [
                (float(x), 100 * statistics.fmean(row["clip"][str(n)] for row in mine))
                for x, n in enumerate(lengths)
            ]
            drawn.append(charts.Line(f"{arm}: predicted", ends, place, "dotted"))
            drawn.append(charts.Line(f"{arm}: clip oracle", curve, place))
    names = [str(n) for n in lengths]
    title = f"AP over clip length, {kind} videos"
    label = "frames in a clip"
    return standalone(charts.lines(drawn, title, x_label=label, x_names=names, legend=True))


def _cell(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f}" if values else "–"


def stored(path: Path) -> list[dict[str, Any]]:
    """The finished rows."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are not there yet, seed by seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/offline"))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines, a finished row each")
    parser.add_argument("--minutes", type=float, default=45, help="of training, on one core")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", nargs="+", choices=list(DIALS), default=list(DIALS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(CLIP_LENGTHS))
    parser.add_argument("--videos", type=int, default=60, help="training videos")
    parser.add_argument("--held-out", type=int, default=30, help="test videos")
    parser.add_argument("--smoke", action="store_true", help="small frames and few queries")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--figures", type=Path, help="folder that gets a curve of each set")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.offline")))
    for seed in () if options.table else range(options.seeds):
        for kind in options.sets:
            out = options.out / kind
            source = write_dataset(out / "videos", DIALS[kind], options.videos, TRAINING_SEED)
            held = write_dataset(out / "held-out", DIALS[kind], options.held_out, HELD_OUT_SEED)
            for arm in options.arms:
                key = (kind, arm, seed)
                if any((r["set"], r["arm"], r["seed"]) == key for r in stored(options.rows)):
                    continue
                made = prepared(source, out, arm, smoke=options.smoke)
                row = {"set": kind, **row_of(arm, seed, made, held, out, options)}
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    found = stored(options.rows)
    print(tables(found))
    for kind in options.sets if options.figures else ():
        (options.figures / f"offline-{kind}.svg").write_text(figure(found, kind))


if __name__ == "__main__":
    main()
