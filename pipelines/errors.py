"""The family of data faults. Each crosses processes, so its args rebuild it."""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ParamSpec

from idol.addresses import is_remote, without_secrets


class PipelineError(Exception):
    """A fault in the data or its directories that a person has to mend: PipelineError(message)."""


class ResourcesError(PipelineError):
    """A stage asks for CPUs or GPUs that Ray has not: ResourcesError(message)."""


def origin(error: BaseException) -> BaseException:
    """What a task or worker raised, out of the errors that Ray makes of it; others as they are."""
    while type(error).__module__.partition(".")[0] == "ray":
        workers = getattr(error, "worker_failures", None) or {}  # of Ray Train, by rank
        inner = getattr(error, "cause", None) or next(iter(workers.values()), error.__cause__)
        inner = inner or error.__context__  # Ray Tune raises its own while it handles ours
        if inner is None:
            break
        error = inner
    return error


P = ParamSpec("P")


def carried(work: Callable[P, Mapping[str, Any]]) -> Callable[P, dict[str, Any]]:
    """A function of rows for Ray Data that returns its data faults; `raise_carried` raises them.

    Ray Data logs a traceback, and hands on an error's text without its fields.
    """

    @functools.wraps(work)
    def carrying(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        try:
            return {**work(*args, **kwargs), "error": b""}
        except (PipelineError, OSError) as error:
            return {"error": pickle.dumps(error)}

    return carrying


def raise_carried(row: Mapping[str, Any]) -> None:
    """Raise what a function that is `carried` met while it made this row."""
    if row["error"]:
        raise pickle.loads(row["error"])  # nosec B301


@dataclass(eq=False, repr=False)
class _FieldsError(PipelineError):
    """An error with fields instead of a message."""

    def __post_init__(self) -> None:
        # They are printed, and stored with rejects.
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), str):
                setattr(self, field.name, without_secrets(value))
        # Pickle calls the class with args.
        super().__init__(*(getattr(self, field.name) for field in fields(self)))


@dataclass(eq=False, repr=False)
class DatasetError(_FieldsError):
    """A whole annotation file cannot be used: nothing is started.

    reason: the rule and what came instead
    todo:   what to do next
    """

    path: str
    reason: str
    todo: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} {self.todo}"


@dataclass(eq=False, repr=False)
class VideoError(_FieldsError):
    """One video cannot be used: Reject(*args) goes to rejects.parquet and the job goes on.

    path:   the frame, video file or annotation file at fault
    reason: the rule and what came instead
    """

    video_id: int
    path: str
    reason: str

    def __str__(self) -> str:
        return f"video {self.video_id}: {self.path}: {self.reason}"


@dataclass(eq=False, repr=False)
class ManifestError(_FieldsError):
    """A directory does not hold what a stage needs, or must not be written to."""

    path: str
    reason: str
    todo: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}. {self.todo}"


@contextlib.contextmanager
def intact(path: object) -> Iterator[None]:
    """Take apart what a stage has stored. Raises: ManifestError: that is not what it has written.

    path: the file that is at fault for whatever goes wrong in the block
    """
    try:
        yield
    except PipelineError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError) as error:
        # Errors of a disk have a number; those of Arrow have none, and a network is no damage.
        if isinstance(error, OSError) and (error.errno or is_remote(str(path))):
            raise
        raise _damaged(path, error) from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error


def _damaged(path: object, error: Exception) -> ManifestError:
    told = (str(error).splitlines() or [""])[0]
    reason = f"is damaged, or was changed by hand ({type(error).__name__}: {told})"
    return ManifestError(str(path), reason, "Make it again with --overwrite.")
