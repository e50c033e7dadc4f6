"""Where the time of a training step goes: data, forward, criterion, backward, optimiser.

python -m benchmarks.training                          the tiny preset, 1 and 2 workers (gloo)
python -m benchmarks.training --pairs runs/demo/pairs  with batches from disk, and the wait for them
python -m benchmarks.training --preset ytvis19_r50 --set train.pairs_per_batch=1 --workers 1

"released, restated" is the released step in plain PyTorch, in the same process, in turns with ours:
one pass of the network for the key frames and one for the references, deformable attention by
grid_sample, assignment and selection image by image and layer by layer, losses by plain autograd,
the contrastive loss over all pairs of positives and negatives, and a parameter group for each
tensor. What is ours alone (the dense loss, the weight average) it leaves out.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import machine
from benchmarks.tiny_training import batch_of
from idol import presets
from idol.config import Config, override
from idol.images.synthetic import SyntheticConfig, make_video
from idol.learning import losses
from idol.learning.assignment import Truths, assign_queries, contrastive_samples
from idol.learning.pieces import part_of_batch
from idol.learning.training import Trainer
from idol.network.model import IDOL
from idol.structures import Outputs, PairBatch, Targets
from pipelines.batches.loader import ClipLoader
from pipelines.storage import paths
from pipelines.training.loop import keep_freed_memory

PARTS = ("data", "forward", "criterion", "backward", "optimiser")
WARM_UP = 3
Row = dict[str, list[float]]


class Clock:
    """The parts of each step of a Trainer, in milliseconds."""

    def __init__(self, trainer: Trainer) -> None:
        self.row: Row = {name: [] for name in PARTS}
        self._mark = 0.0
        trainer.model.register_forward_pre_hook(lambda *_: self._start())
        trainer.model.register_forward_hook(lambda *_: self._take("forward"))
        # What is left of the module around the network is the criterion.
        trainer.network.register_forward_hook(lambda *_: self._take("criterion"))

    def _start(self) -> None:
        self._mark = time.perf_counter()

    def _take(self, name: str) -> None:
        now = time.perf_counter()
        self.row[name].append(1e3 * (now - self._mark))
        self._mark = now

    def step(self, trainer: Trainer, batches: Iterator[PairBatch]) -> None:
        """One step, measured."""
        self._start()
        batch = next(batches)
        self._take("data")
        backward = torch.Tensor.backward

        def timed(tensor: Tensor) -> None:
            self._start()
            backward(tensor)
            self._take("backward")

        torch.Tensor.backward = timed  # type: ignore[assignment,method-assign]
        try:
            trainer.step(batch)
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]
        self._take("optimiser")


def batches_of(config: Config, pairs: str | None, rank: int, workers: int) -> Iterator[PairBatch]:
    """A worker's batches: read from a prepared directory, or a few that lie in memory."""
    count = config.train.pairs_per_batch
    part = part_of_batch(count, rank, workers)
    if pairs is not None:
        loader = ClipLoader(paths.at(pairs), config, rank=rank, world_size=workers, batch=count)
        return (clips.pairs() for clips in loader.batches())
    videos = [make_video(SyntheticConfig.crowded(), (1, i)) for i in range(6)]
    rng = np.random.default_rng(0)
    whole = [batch_of(videos, config, rng) for _ in range(4)]
    fields = PairBatch.__dataclass_fields__
    mine = [
        PairBatch(**{f: getattr(batch, f)[part.start : part.stop] for f in fields})
        for batch in whole
    ]
    return cycle(mine)


def ours(rank: int, config: Config, pairs: str | None, workers: int, steps: int, out: str) -> None:
    """The process of a worker; rank 0 writes what it measured."""
    torch.set_num_threads(1)
    keep_freed_memory()
    store = f"file://{out}.store"
    if workers > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=workers
        )
    torch.manual_seed(0)
    model = IDOL(config)
    trainer = Trainer(model, config, wrap=DistributedDataParallel if workers > 1 else None)
    batches, clock = batches_of(config, pairs, rank, workers), Clock(trainer)
    plain = Plain(IDOL(config)) if workers == 1 else None
    for _ in range(WARM_UP + steps):
        clock.step(trainer, batches)
        if plain is not None:
            plain.step(next(batches))
    if rank == 0:
        torch.save((clock.row, plain.row if plain is not None else None), out)
    if workers > 1:
        torch.distributed.destroy_process_group()


class Plain:
    """The released step, restated."""

    def __init__(self, model: IDOL) -> None:
        self.model, self.config = model.train(), model.config
        self.row: Row = {name: [] for name in PARTS}
        train, groups = self.config.train, []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                slow = train.backbone_rate if name.startswith("backbone.") else 1.0
                groups.append({"params": [parameter], "lr": train.learning_rate * slow})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=train.weight_decay)

    def step(self, batch: PairBatch) -> None:
        """One step, measured."""
        marks = [time.perf_counter()]
        with backend("torch"):
            key = self.model(batch.key_images, batch.key_padding)
            reference = self.model(batch.reference_images, batch.reference_padding)
            marks.append(time.perf_counter())
            total = self._total(key, reference, batch)
            marks.append(time.perf_counter())
            total.backward()
            marks.append(time.perf_counter())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(time.perf_counter())
        self.row["data"].append(0.0)
        for name, (a, b) in zip(PARTS[1:], pairwise(marks), strict=True):
            self.row[name].append(1e3 * (b - a))

    def _total(self, key: Outputs, reference: Outputs, batch: PairBatch) -> Tensor:
        weights = self.config.losses
        frames = [(key, batch.key_targets)]
        if weights.supervise_reference:
            frames.append((reference, batch.reference_targets))
        total = torch.zeros(())
        for layer in range(len(key.logits)):
            sums, count = torch.zeros(5), 0
            for outputs, targets in frames:
                for image, target in enumerate(targets):
                    found, positives = self._image(outputs, layer, image, target)
                    sums, count = sums + found, count + positives
            scales = (weights.ce, weights.bbox, weights.giou, weights.mask, weights.dice)
            total = total + (sums * torch.tensor(scales)).sum() / max(count, 1)
        found = [self._contrast(key, reference, batch, b) for b in range(len(batch.key_targets))]
        values = [value for each in found for value in each]
        total = total + torch.stack(values).sum(0) / max(len(values), 1) if values else total
        extra = [o.dense_logits.sum() for o, _ in frames if o.dense_logits is not None]
        return total + 0.0 * sum(extra) if extra else total  # that head is ours, not the released

    def _image(
        self, outputs: Outputs, layer: int, image: int, target: Targets
    ) -> tuple[Tensor, int]:
        """Sums of the five losses of one image, and its positives."""
        alpha, gamma = self.config.losses.focal_alpha, self.config.losses.focal_gamma
        logits, boxes, rows = (
            outputs.logits[layer, image],
            outputs.boxes[layer, image],
            target.present,
        )
        hot = torch.zeros_like(logits)
        # The released code makes the mask parameters of all queries.
        parameters = outputs.controller(outputs.states[layer, image]).sum() * 0.0
        if not rows.any():
            ce = (
                losses.sigmoid_focal(logits, hot, alpha, gamma).sum() + parameters + boxes.sum() * 0
            )
            return torch.stack([ce, *[parameters] * 4]), 0
        truths = Truths(target.labels[rows], target.boxes[rows], torch.ones(int(rows.sum())).bool())
        found = assign_queries(logits.detach(), boxes.detach(), truths, self.config.assignment)
        (queries,) = np.nonzero(found.positive)
        row = torch.from_numpy(found.truth[queries])
        query = torch.from_numpy(queries)
        hot[query, truths.labels[row]] = 1.0
        mask = self.model.mask_logits(
            outputs, torch.full_like(query, image), torch.full_like(query, layer), query
        )
        truth = target.masks[rows][row][:, 2::4, 2::4].float()
        p = mask.sigmoid()
        inside = 2 * (p * truth).sum((1, 2)) + 1
        dice = 1 - inside / (p.sum((1, 2)) + truth.sum((1, 2)) + 1)
        focal = losses.sigmoid_focal(mask, truth, alpha, gamma).mean((1, 2))
        values = [
            losses.sigmoid_focal(logits, hot, alpha, gamma).sum() + parameters,
            losses.box_l1(boxes[query], truths.boxes[row]).sum(),
            losses.box_giou(boxes[query], truths.boxes[row]).sum(),
            focal.sum(),
            dice.sum(),
        ]
        return torch.stack(values), len(queries)

    def _contrast(self, key: Outputs, reference: Outputs, batch: PairBatch, b: int) -> list[Tensor]:
        """The weighted contrastive and cosine losses of each truth of a pair."""
        here, there = batch.key_targets[b], batch.reference_targets[b]
        rows = here.present & there.present
        if not rows.any():
            return []
        sure = torch.ones(int(rows.sum())).bool()
        assignment, found = self.config.assignment, []
        mine = assign_queries(
            key.logits[-1, b].detach(), key.boxes[-1, b].detach(),
            Truths(here.labels[rows], here.boxes[rows], sure), assignment,
        )  # fmt: skip
        chosen = contrastive_samples(
            reference.logits[-1, b], reference.refined[b],
            Truths(there.labels[rows], there.boxes[rows], sure), assignment,
        )  # fmt: skip
        for g, best in enumerate(mine.best):
            v, others = key.embeddings[b, best], reference.embeddings[b]
            positive, negative = np.flatnonzero(chosen.positives[g]), chosen.negatives[g]
            far = np.flatnonzero(negative)
            wanted = min(self.config.losses.negatives_per_positive * len(positive), len(far))
            sampled = random.sample(far.tolist(), wanted)
            near, away = others[positive] @ v, others[far] @ v
            pairs = (away[None] - near[:, None]).flatten()
            contrast = torch.logsumexp(torch.cat([pairs, pairs.new_zeros(1)]), 0)
            cosines = F.cosine_similarity(v[None], others[[*positive.tolist(), *sampled]])
            wished = torch.tensor([1.0] * len(positive) + [0.0] * wanted)
            aux = ((cosines - wished) ** 2).mean()
            found.append(self.config.losses.reid * contrast + self.config.losses.reid_aux * aux)
        return found


@contextmanager
def backend(name: str) -> Iterator[None]:
    """A block in which deformable attention is computed in this way."""
    os.environ["IDOL_MSDA_BACKEND"] = name
    try:
        yield
    finally:
        del os.environ["IDOL_MSDA_BACKEND"]


def measured(function: Callable[..., None], *arguments: object, workers: int) -> tuple[Row, Row]:
    """What rank 0 of new processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "row")
        torch.multiprocessing.spawn(function, (*arguments, out), nprocs=workers)
        found: tuple[Row, Row] = torch.load(out)
        return found


def line(name: str, row: Row) -> tuple[str, float]:
    """A row of the table, medians without the first steps; the whole step's milliseconds."""
    steps = list(zip(*(row[part] for part in PARTS), strict=True))[WARM_UP:]
    whole = statistics.median(sum(step) for step in steps)
    cells = [f"{statistics.median(part):.0f}" for part in zip(*steps, strict=True)]
    return f"| {name} | {' | '.join(cells)} | {whole:.0f} |", whole


def main(argv: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    parser.add_argument("--pairs", help="directory of jobs.prepare; without: batches in memory")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(argv)
    config = override(presets.by_name(options.preset), options.set)
    print(machine.header(machine.command("benchmarks.training")))
    print(f"{config.train.pairs_per_batch} pairs a step, milliseconds, medians of "
          f"{options.steps} steps, one thread a worker\n")  # fmt: skip
    print(f"| step | {' | '.join(PARTS)} | whole |")
    print("|---" * (len(PARTS) + 2) + "|")
    ratio = 0.0
    for workers in options.workers:
        given = (config, options.pairs, workers, options.steps)
        mine, plain = measured(ours, *given, workers=workers)
        text, whole = line(f"ours, {workers} worker{'s' * (workers > 1)}", mine)
        print(text, flush=True)
        if plain:
            text, slow = line("released, restated", plain)
            print(text, flush=True)
            ratio = slow / whole
    if ratio:
        print(f"\nThe released step takes {ratio:.2f} times as long as ours.")


if __name__ == "__main__":
    main()
