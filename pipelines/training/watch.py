"""What a training tells while it runs, on its way to the progress bar and the experiment log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import cluster
from pipelines.report import experiment_log
from pipelines.training.checkpoints import Report
from pipelines.training.loop import VALIDATED
from pipelines.training.mailbox import Mailbox
from pipelines.training.seat import STEP

_LOOK_S = 0.5


class Watch:
    """Moves the bar and fills the log, from the reports or, in the end, from the curve.

    Reports may be lost with a process, the curve lies in the checkpoints: so in the log no step is
    missing, and none is there twice.

    total: steps
    """

    def __init__(self, total: int, log: experiment_log.Log | None) -> None:
        self._log = log
        self._bar = cluster.progress(total, "train", "steps")
        self._known = set() if log is None else log.steps("loss")
        self._scores: list[str] = []  # of the newest validation

    def begin(self, curve: Sequence[Report]) -> None:
        """What was done before this process."""
        if curve:
            # Of what others have done the bar must not take the speed.
            self._bar.initial = self._bar.n = curve[-1][0]
        self.fill(curve)

    def tell(self, step: int, values: dict[str, float]) -> None:
        """Take a report; without values: a checkpoint."""
        self._bar.update(max(0, step - self._bar.n))
        if not values:
            return
        found = {n: v for n, v in values.items() if n.startswith(VALIDATED)}
        if found:
            self._scores = [f"{n.removeprefix(VALIDATED)} {100 * v:.1f}" for n, v in found.items()]
        self._bar.set_postfix_str(", ".join([f"loss {values['loss']:.2f}", *self._scores]))
        self.fill([(step, values)])

    def fill(self, curve: Sequence[Report]) -> None:
        """Log what is not logged yet."""
        new = [(step, values) for step, values in curve if step not in self._known]
        if self._log is not None and new:
            self._log.curve(new)
            self._known |= {step for step, _ in new}

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    @contextlib.contextmanager
    def callback(self) -> Iterator[Any]:
        """What Ray Train calls with every report, in its controller, while the block runs."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # Beside the driver, as the controller is: no other machine's end is the end of the log.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
        over = threading.Event()

        def look() -> None:
            last = False
            while not last:
                last = over.wait(_LOOK_S)
                with contextlib.suppress(ray.exceptions.RayError):  # the curve has it, too
                    for step, values in ray.get(mailbox.take.remote()):
                        self.tell(step, values)

        thread = threading.Thread(target=look, name="progress", daemon=True)
        thread.start()
        patience = 10
        try:
            yield _told(mailbox)
            patience = 120  # on a busy machine the actor may have started only now
        finally:
            over.set()
            thread.join(patience)


def _told(mailbox: Any) -> Any:
    """The callback. A class of a function, because its base is Ray's."""
    from ray.train import UserCallback

    class Told(UserCallback):  # type: ignore[misc]
        def after_report(self, run_context: Any, metrics: list[Any], checkpoint: Any) -> None:
            values = dict(metrics[0])
            mailbox.put.remote(values.pop(STEP), values)

    return Told()
