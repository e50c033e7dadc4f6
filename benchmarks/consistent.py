"""Consistent training against pairs: the shipped weights, trained on for as many frames.

python -m benchmarks.consistent --out runs/consistent            the rows that are missing
python -m benchmarks.consistent --table                          the table of the rows so far

An arm is a training signal of the embeddings; every arm starts from the shipped weights and sees as
many frames in as many steps. Each trained network detects held-out videos of both dials, and these
detections are tracked by several trackers. `--choice` scores videos of other seeds, on which
anything may be chosen. A row of --rows is an arm and a seed; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, replay
from benchmarks.ablation import HeldOut, columns, gap, line, stored, values
from benchmarks.tiny_training import DIALS, HELD_OUT_SEED, TRAINING_SEED
from idol import presets
from idol.config import Config, TrackerConfig, override
from idol.images.synthetic_dataset import write_dataset
from idol.weights import checkpoint
from pipelines.sources import annotations
from pipelines.stages import pairs, train
from pipelines.training.initial_model import Start
from pipelines.training.workers import Workers

ROWS = Path(__file__).with_suffix(".jsonl")
CHOICE_SEED = 3001
FRAMES = 8
"""Of a step, whatever it is cut into."""
MEMORY = ("losses.contrast=memory", "pairs.distinct=true")
ARMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "shipped": (0, ()),
    "pairs": (2, ()),
    "pairs, reid 1": (2, ("losses.reid=1",)),
    "clips of 4": (4, MEMORY),
    "clips of 8": (8, MEMORY),
    "clips of 8, reid 1": (8, (*MEMORY, "losses.reid=1")),
    "clips of 8, noise": (8, (*MEMORY, "losses.memory_noise=0.05")),
}
"""Frames of a sample, and settings. `shipped` is not trained further."""
TRACKERS = {
    "robust": TrackerConfig.robust(),
    "released": TrackerConfig.released(),
    "paper": TrackerConfig.paper(),
}
"""And true identities, which show what detections allow."""


def config_of(arm: str, seed: int, steps: int) -> Config:
    """The tiny recipe with the arm's signal, at a third of its learning rate."""
    clip, settings = ARMS[arm]
    own = (f"train.steps={steps}", f"train.seed={seed}", f"train.pairs_per_batch={FRAMES // clip}")
    more = ("train.learning_rate=1e-3", "train.checkpoint_every=200", f"pairs.clip={clip}")
    return override(presets.tiny(), [*own, *more, *settings])


def trained(arm: str, seed: int, files: Sequence[Path], options: argparse.Namespace) -> Path:
    """The weights of an arm."""
    if arm == "shipped":
        return checkpoint.shipped()
    config = config_of(arm, seed, options.steps)
    made = options.out / f"pairs-{config.pairs.clip}"
    pairs.run(annotations.combine([annotations.read(str(f)) for f in files]), made, config.pairs)
    folder = options.out / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"
    start = Start(weights=str(checkpoint.shipped()), reset_classes=True)
    return Path(str(train.advance(made, folder, config, options.steps, start, Workers(count=0))))


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows that are not there yet, seed by seed."""
    files = [
        write_dataset(options.out / name, dial, options.videos, TRAINING_SEED)
        for name, dial in DIALS.items()
    ]
    of = "choice" if options.choice else "held out"
    for seed in options.seeds:
        for arm in options.arms:
            if arm == "shipped" and seed != options.seeds[0]:
                continue
            there = {(r["of"], r["arm"], r["seed"]) for r in stored(options.rows)}
            if (of, arm, seed) in there:
                continue
            began = time.monotonic()
            model = checkpoint.load(trained(arm, seed, files, options))
            minutes = round((time.monotonic() - began) / 60, 1)
            row = {"of": of, "arm": arm, "seed": seed, "steps": options.steps, "minutes": minutes}
            yield {**row, "scores": scores(model, options)}


def scores(model: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """dial -> tracker -> metric -> its value in every block of videos."""
    found: dict[str, dict[str, Any]] = {}
    for name, dial in DIALS.items():
        drawn = HeldOut(dial, seed=CHOICE_SEED if options.choice else HELD_OUT_SEED)
        blocks = drawn.blocks(model, options.held_out)
        found[name] = {
            tracker: columns([replay.score(block, config) for block in blocks])
            for tracker, config in TRACKERS.items()
        }
        robust = TrackerConfig.robust()
        truth = [replay.score(block, robust, cheat=True) for block in blocks]
        found[name][replay.TRUE_IDENTITIES] = columns(truth)
    return found


def table(all_rows: Sequence[dict[str, Any]], of: str) -> Iterator[str]:
    """Means over seeds and blocks; gaps to `pairs` on the same seeds and blocks with intervals."""
    mine = [row for row in all_rows if row["of"] == of]
    names = (*TRACKERS, replay.TRUE_IDENTITIES)
    of_dial = {
        dial: [{**row, "set": dial, "scores": row["scores"][dial]} for row in mine]
        for dial in DIALS
    }
    head = [f"{dial}, {name}" for dial in DIALS for name in names]
    yield line(["training", "seeds", *head, *(f"{dial}, robust: AP − pairs" for dial in DIALS)])
    yield "|---" * (len(head) + 4) + "|"
    for arm in ARMS:
        there = [row for row in mine if row["arm"] == arm]
        if not there:
            continue
        cells = []
        for dial, flat in of_dial.items():
            for name in names:
                ap, idf1 = (values(flat, dial, arm, name, m).mean() for m in ("AP", "IDF1"))
                cells.append(f"{ap:.1f} ({idf1:.1f})")
        gaps = []
        for dial, flat in of_dial.items():
            ends = (values(flat, dial, one, "robust") for one in (arm, "pairs"))
            gaps.append("–" if arm in ("shipped", "pairs") else gap(*ends))
        yield line([arm, str(len(there)), *cells, *gaps])


def main(argv: Sequence[str] | None = None) -> None:
    """Make the rows that are not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/consistent"))
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines, a finished row each")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--videos", type=int, default=150, help="training videos of each dial")
    parser.add_argument("--held-out", type=int, default=60, help="test videos of each dial")
    parser.add_argument("--choice", action="store_true", help="score videos of other seeds")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine.header(machine.command("benchmarks.consistent")), flush=True)
    if not options.table:
        for row in rows(options):
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['of']}: {row['arm']}, seed {row['seed']} is done", flush=True)
    print("\n".join(table(stored(options.rows), "choice" if options.choice else "held out")))


if __name__ == "__main__":
    main()
