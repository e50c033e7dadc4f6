"""Two real processes: one gradient, also where one has nothing, and one end where one diverges."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import idol
from idol.learning import Diverged
from idol.learning.pieces import part_of_batch
from idol.learning.training import Trainer
from tests.idol.learning import made_up_pairs as made
from tests.idol.learning.test_pieces import gradients, worst

COUNTS = ((2, 0, 3), (0, 0, 1), (0, 0, 0), (3, 2, 1))
"""Instances of the three pairs of a batch: the workers have one pair and two."""
MICRO = (0, 1)


def settings(micro, *more):
    return made.config(
        "losses.normaliser=global", "train.pairs_per_batch=3", f"train.micro_batch={micro}", *more
    )


def case(counts, micro, dtype, part=slice(None)):
    examples = made.examples(counts, seed=sum(counts))[part]
    return settings(micro), made.batch(examples, dtype)


CASES = [(n, m, d) for n in COUNTS for m in MICRO for d in (torch.float64, torch.float32)]


def one_worker(rank, store, out):
    """A process of the tests below: gradients of its parts of all batches, then a divergence."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    part = part_of_batch(3, rank, 2)
    mine = slice(part.start, part.stop)
    found = [shared_gradients(*case(*which, mine)) for which in CASES]
    answers = [diverge(rank, mine, micro) for micro in MICRO]
    torch.save((found, answers), f"{out}.{rank}")
    torch.distributed.destroy_process_group()


def shared_gradients(config, batch):
    torch.manual_seed(0)
    model = idol.IDOL(config).to(batch.key_images.dtype)
    trainer = Trainer(model, config, wrap=DistributedDataParallel)
    found = {}

    def keep(*_):
        found.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer.optimizer.register_step_pre_hook(keep)
    numbers = trainer.step(batch)
    return found, numbers


def diverge(rank, mine, micro):
    """A NaN in the last pair, which the second worker has: what each says, and its weights."""
    config, batch = case((3, 2, 1), micro, torch.float32, mine)
    if rank == 1:
        batch.reference_images[-1] = torch.nan
    torch.manual_seed(0)
    trainer = Trainer(idol.IDOL(config), config, wrap=DistributedDataParallel)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    try:
        trainer.step(batch)
    except Diverged as error:
        same = all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
        return str(error), error.step, error.pairs, same
    return None


@pytest.mark.slow
def test_two_workers_share_the_gradient_of_the_whole_batch_and_end_together(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path / "out"))
    torch.multiprocessing.spawn(one_worker, arguments, nprocs=2)
    (first, one), (second, other) = (torch.load(tmp_path / f"out.{rank}") for rank in range(2))
    for which, (found, numbers), (again, same) in zip(CASES, first, second, strict=True):
        expected, whole = gradients(*case(*which))
        assert worst(found, expected) < (1e-12 if which[2] is torch.float64 else 1e-5), which
        assert all(torch.equal(value, again[name]) for name, value in found.items())
        assert numbers == same
        assert numbers == pytest.approx(whole, rel=1e-5), which
    for micro, mine, theirs in zip(MICRO, one, other, strict=True):
        assert mine[1:] == (0, (0, 0), True)
        assert "gradient norm is nan" in mine[0]
        assert theirs[1:] == (0, (2, 2) if micro else (1, 2), True)
        assert "must be finite" in theirs[0]
