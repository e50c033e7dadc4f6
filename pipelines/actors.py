"""A pool of actors: each loads something expensive once, and works on item after item.

Ray Data has such pools too. Its actors take their arguments from the object store, which is why Ray
prints a red line, that their restart will fail, at the start of every one of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from pipelines.cluster import Pool
from pipelines.errors import ResourcesError


def work(
    kind: type, arguments: Sequence[Any], items: Sequence[Any], pool: Pool, gpus: float
) -> Generator[Any, None, None]:
    """What `kind(*arguments).work(item)` makes of every item, as they end, on the connected Ray.

    All actors are asked for at once, so that an autoscaler brings room for them, and each works
    from when it is up; without more work it goes. One whose process or machine dies starts again
    and does its item again.

    arguments: small, for they travel with each start
    items:     each is asked for when an actor is free for it
    pool:      an item is begun as soon as any actor is up, so only its upper bound counts here
    gpus:      what each actor holds of one, beside a CPU
    Raises: ResourcesError: `kind` cannot be made; whatever `work` raises.
    """
    import ray

    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": -1}
    # Inside a trial of Ray Tune actors would else have to fit into what the trial has reserved.
    remote = ray.remote(**options, scheduling_strategy="DEFAULT")(kind)
    left, items_left = len(items), iter(items)
    members = [remote.remote(*arguments) for _ in range(min(pool.most, left))]
    begun: dict[Any, Any] = {}  # of each call in flight: its actor
    starting = {member.__ray_ready__.remote(): member for member in members}
    try:
        while left or begun:
            done, _ = ray.wait([*begun, *starting], num_returns=1)
            actor = starting.get(done[0]) or begun[done[0]]
            try:
                result = ray.get(done[0])
            except ray.exceptions.ActorDiedError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ResourcesError(f"an actor does not start: {reason}") from error
            fresh = starting.pop(done[0], None) is not None
            begun.pop(done[0], None)
            if left:
                begun[actor.work.remote(next(items_left))] = actor
                left -= 1
            else:
                ray.kill(actor)
            if not fresh:
                yield result
    finally:
        for actor in members:
            ray.kill(actor)
