"""The paper's Tables 6 and 7 at laptop size: three trainings, each followed by every association.

python -m benchmarks.ablation                              synthetic videos, both dials
python -m benchmarks.ablation --start random --steps 5500  nothing learned before
python -m benchmarks.ablation --real REAL/instances.json   then real clips, every fourth held out
python -m benchmarks.ablation --table                      the tables of the rows so far

An arm is a way to train the embeddings: an ID head, or contrastively with positives chosen by IoU
or by optimal transport. All arms start from the shipped weights, so that all detect alike. Their
embedding head is replaced by a random one, because it was trained by optimal transport. With
--start random nothing is taken over. The held-out videos are detected once per arm and seed; every
row of the tables is an association on those detections. Held-out videos also come at every 3rd and
5th frame (objects move faster), long (50 to 60 frames) and of one category (no class tells objects
apart). Runs in one process; interrupted, the same command goes on at the last checkpoint, and rows
of --rows are not made again. Nothing was chosen on the held-out videos.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine, recipe_steps, replay
from benchmarks.replay import Clip
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, TRAINING_SEED
from idol import presets
from idol.config import Config, TrackerConfig, override
from idol.files import whole_file
from idol.images.synthetic import SyntheticConfig, make_video
from idol.images.synthetic_dataset import write_dataset
from idol.weights import checkpoint
from idol.ytvis import truth
from pipelines.sources import annotations
from pipelines.sources import frames as frame_files
from pipelines.stages import pairs, train
from pipelines.training.initial_model import Start
from pipelines.training.workers import Workers

ROWS = Path(__file__).with_suffix(".jsonl")
ID_HEAD, IOU, TRANSPORT = "ID head", "contrastive", "contrastive, OT"
ARMS = {
    ID_HEAD: ("losses.identity=1", "losses.reid=0", "losses.reid_aux=0"),
    IOU: ("assignment.selection=iou",),
    TRANSPORT: (),
}
"""How the embeddings are trained; as the paper names it."""
MULTI_CUE, LAST, TEMPORAL = "multi-cues", "embeddings", "embeddings, temporal"
PAPER = TrackerConfig.paper()
ASSOCIATIONS = {
    MULTI_CUE: TrackerConfig.multi_cue(),
    LAST: dataclasses.replace(PAPER, weighting="last"),
    "moving average": dataclasses.replace(PAPER, weighting="momentum"),
    TEMPORAL: PAPER,
    "temporal, T = 10": dataclasses.replace(PAPER, memory_length=10),
    "temporal, threshold 0.3": dataclasses.replace(PAPER, match_threshold=0.3),
    "last, cosine": dataclasses.replace(PAPER, weighting="last", similarity="cosine"),
    "temporal, cosine": dataclasses.replace(PAPER, similarity="cosine"),
    "released": TrackerConfig.released(),
    "robust": TrackerConfig.robust(),
}
"""How detections become tracks. The paper's table has the first, second and fourth."""
TABLE_6 = (
    (ID_HEAD, MULTI_CUE), (ID_HEAD, LAST), (ID_HEAD, TEMPORAL), (IOU, MULTI_CUE), (IOU, LAST),
    (TRANSPORT, LAST), (TRANSPORT, TEMPORAL),
)  # fmt: skip
"""Rows of Table 6; Table 7 has all but the second and third."""
PUBLISHED = {
    6: (30.3, 33.6, 34.8, 31.8, 42.5, 44.8, 46.4),
    7: (11.0, None, None, 18.4, 26.7, 28.3, 30.2),
}
"""AP of these rows in the paper: YouTube-VIS 2019 and OVIS."""
BLOCKS = 4
"""Parts of the held-out videos, each scored by itself: with the seeds they give the intervals."""
METRICS = ("AP", "AP50", "IDF1", "AssA")


@dataclasses.dataclass(frozen=True, slots=True)
class HeldOut:
    """Synthetic videos to score: drawn by a dial, every n-th frame of them."""

    dial: SyntheticConfig
    every: int = 1
    seed: int = HELD_OUT_SEED

    def blocks(self, model: Any, count: int) -> list[list[Clip]]:
        """The model's detections, in BLOCKS parts."""
        low, high = self.dial.length
        # As long as the others once frames are left out.
        drawn = dataclasses.replace(self.dial, length=(low * self.every, high * self.every))
        videos = (make_video(drawn, (self.seed, i)) for i in range(count))
        clips = [replay.detect(model, v, i + 1, self.every) for i, v in enumerate(videos)]
        return [clips[block::BLOCKS] for block in range(BLOCKS)]


CROWDED = DIALS["crowded"]
SETS = {
    "easy": HeldOut(DIALS["easy"]),
    "crowded": HeldOut(CROWDED),
    "crowded, every 3rd frame": HeldOut(CROWDED, 3),
    "crowded, every 5th frame": HeldOut(CROWDED, 5),
    "crowded, long": HeldOut(dataclasses.replace(CROWDED, length=(50, 60), leaving=0.5)),
    "crowded, one category": HeldOut(dataclasses.replace(CROWDED, look_alike=1.0)),
}


def config_of(arm: str, seed: int, steps: int, more: Sequence[str] = ()) -> Config:
    """The tiny recipe with the arm's training signal."""
    own = (f"train.steps={steps}", f"train.seed={seed}", "train.checkpoint_every=200")
    return override(presets.tiny(), [*ARMS[arm], *own, *more])


def trained(
    arm: str, seed: int, source: Path, out: Path, options: argparse.Namespace, weights: str | None
) -> Path:
    """The checkpoint of an arm; weights: what it goes on from, with real clips."""
    more: tuple[str, ...] = ("train.learning_rate=0.0015", "transforms.stretch=[160,256]")
    steps = options.real_steps
    if weights is None:
        steps, more = options.steps, ()
        if options.start == "shipped":
            weights, more = str(new_embeddings(out, seed)), ("train.learning_rate=0.001",)
    config = config_of(arm, seed, steps, more)
    start = Start(weights=weights, reset_classes=weights is not None)
    folder = out / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
    return Path(str(train.advance(source, folder, config, steps, start, Workers(count=0))))


def new_embeddings(out: Path, seed: int) -> Path:
    """A file of the shipped weights with an embedding head drawn from the seed."""
    path = out / f"start-{seed}.safetensors"
    if not path.exists():
        model = checkpoint.load("shipped")
        torch.manual_seed(seed)
        for layer in model.embedding_head.layers:
            layer.reset_parameters()
        with whole_file(path) as temporary:
            checkpoint.save(model, temporary)
    return path


def synthetic(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the synthetic sets that are not there yet."""
    out: Path = options.out / "synthetic"
    files = [
        write_dataset(out / name, dial, options.videos, TRAINING_SEED)
        for name, dial in DIALS.items()
    ]
    source = out / "pairs"
    both = annotations.combine([annotations.read(str(path)) for path in files])
    pairs.run(both, source, presets.tiny().pairs)
    for seed, arm in missing(options, list(SETS)):
        began = time.monotonic()
        model = checkpoint.load(trained(arm, seed, source, out, options, None))
        for name, held_out in SETS.items():
            blocks = held_out.blocks(model, options.held_out)
            minutes = round((time.monotonic() - began) / 60, 1)
            row = {"set": name, "arm": arm, "seed": seed, "steps": options.steps}
            row["start"] = options.start
            yield {**row, "minutes": minutes, "scores": scores(blocks)}


def real(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the real clips: the arms' synthetic weights, trained on three clips of four."""
    out: Path = options.out / "real"
    data = recipe_steps.real(out, options.real)
    source = out / "pairs"
    settings = override(presets.tiny(), ["pairs.max_side=320"]).pairs
    pairs.run(annotations.read(str(data.videos)), source, settings)
    for seed, arm in missing(options, ["real"]):
        began = time.monotonic()
        first = trained(arm, seed, options.out / "synthetic" / "pairs",
                        options.out / "synthetic", options, None)  # fmt: skip
        model = checkpoint.load(trained(arm, seed, source, out, options, str(first)))
        blocks = [list(real_clips(model, data.held_out))]
        minutes = round((time.monotonic() - began) / 60, 1)
        row = {"set": "real", "arm": arm, "seed": seed, "steps": options.real_steps}
        row["start"] = options.start
        yield {**row, "minutes": minutes, "scores": scores(blocks)}


def real_clips(model: Any, held_out: Path) -> Iterator[Clip]:
    """The model's detections on the clips of a YouTube-VIS file."""
    known = truth.read(held_out)
    for video in annotations.read(str(held_out)).videos:
        shown = frame_files.read_many(video.frames, video_id=video.video_id, size=video.size)
        yield replay.detect_frames(model, shown, known.videos[video.video_id])


def missing(options: argparse.Namespace, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Seeds and arms of which not all these sets have a row."""
    for seed in range(options.seeds):
        for arm in ARMS:
            wanted = (seed, arm, options.start)
            done = [r for r in stored(options.rows) if (r["seed"], r["arm"], r["start"]) == wanted]
            there = {r["set"] for r in done}
            if not there.issuperset(names):
                yield seed, arm


def scores(blocks: Sequence[Sequence[Clip]]) -> dict[str, dict[str, list[float]]]:
    """association -> metric -> its value in every block."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, config in ASSOCIATIONS.items():
        runs = [replay.score(block, config) for block in blocks]
        found[name] = columns(runs)
    runs = [replay.score(block, TrackerConfig.robust(), cheat=True) for block in blocks]
    return {**found, replay.TRUE_IDENTITIES: columns(runs)}


def columns(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """METRICS of several runs, two digits each."""
    return {metric: [round(run[metric], 2) for run in runs] for metric in METRICS}


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """All tables, as Markdown: means over seeds and blocks, 95 % intervals of the paired gaps."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    head = ["training", "association", "paper: YTVIS 2019", "paper: OVIS"]
    yield "\n".join([line([*head, *names]), "|---" * (4 + len(names)) + "|"])
    for n, (arm, name) in enumerate(TABLE_6):
        paper = [PUBLISHED[table][n] for table in (6, 7)]
        cells = [told(values(rows, one, arm, name)) for one in names]
        yield line([arm, name, *("" if value is None else str(value) for value in paper), *cells])
    yield ""
    yield line(["claim", *names])
    yield "|---" * (1 + len(names)) + "|"
    for claim, (arm, name), (other, another) in CLAIMS:
        cells = []
        for one in names:
            first, second = values(rows, one, arm, name), values(rows, one, other, another)
            cells.append(gap(first, second))
        yield line([claim, *cells])
    for arm in ARMS:
        yield ""
        yield line([f"AP (IDF1), {arm}", *names])
        yield "|---" * (1 + len(names)) + "|"
        for name in (*ASSOCIATIONS, replay.TRUE_IDENTITIES):
            cells = []
            for one in names:
                ap, idf1 = (values(rows, one, arm, name, m) for m in ("AP", "IDF1"))
                cells.append(f"{told(ap)} ({told(idf1)})" if len(ap) else "")
            yield line([name, *cells])


CLAIMS = (
    ("contrastive by IoU against ID head, multi-cues", (IOU, MULTI_CUE), (ID_HEAD, MULTI_CUE)),
    ("contrastive by IoU against ID head, embeddings", (IOU, LAST), (ID_HEAD, LAST)),
    ("embeddings against multi-cues, contrastive by IoU", (IOU, LAST), (IOU, MULTI_CUE)),
    ("embeddings against multi-cues, OT", (TRANSPORT, LAST), (TRANSPORT, MULTI_CUE)),
    ("optimal transport against IoU, embeddings", (TRANSPORT, LAST), (IOU, LAST)),
    ("temporal against the last embedding, OT", (TRANSPORT, TEMPORAL), (TRANSPORT, LAST)),
    ("the same by cosine", (TRANSPORT, "temporal, cosine"), (TRANSPORT, "last, cosine")),
)
"""What the paper says is better, and than what."""


def values(
    rows: Sequence[dict[str, Any]], name: str, arm: str, association: str, metric: str = "AP"
) -> np.ndarray:
    """(S, B) a metric of every seed and block."""
    mine = [row for row in rows if (row["set"], row["arm"]) == (name, arm)]
    mine.sort(key=lambda row: int(row["seed"]))
    return np.array([row["scores"][association][metric] for row in mine])


def told(found: np.ndarray) -> str:
    """The mean; nothing where there is no row yet."""
    return f"{found.mean():.1f}" if len(found) else ""


def gap(first: np.ndarray, second: np.ndarray) -> str:
    """Mean of the paired differences over seeds and blocks, with its interval."""
    count = min(len(first), len(second))
    if not count:
        return ""
    mean, half = replay.interval((first[:count] - second[:count]).ravel().tolist())
    return f"{mean:+.1f}" if np.isnan(half) else f"{mean:+.1f} ± {half:.1f}"


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def stored(path: Path) -> list[dict[str, Any]]:
    """The finished rows."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are not there yet, seed by seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--real", type=Path, help="YouTube-VIS JSON of real clips")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines, a finished row each")
    parser.add_argument("--start", choices=("shipped", "random"), default="shipped")
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--real-steps", type=int, default=600, help="of each on real clips")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=150, help="training videos of each dial")
    parser.add_argument("--held-out", type=int, default=60, help="test videos of each set")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.ablation")), flush=True)
    if not options.table:
        there = {(r["set"], r["arm"], r["seed"], r["start"]) for r in stored(options.rows)}
        for row in real(options) if options.real else synthetic(options):
            if (row["set"], row["arm"], row["seed"], row["start"]) in there:
                continue
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['set']}, {row['arm']}, seed {row['seed']} is done", flush=True)
    known = [row for row in stored(options.rows) if row["start"] == options.start]
    print("\n".join(tables(known)))


if __name__ == "__main__":
    main()
