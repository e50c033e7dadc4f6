"""The family of data faults. Each crosses processes, so its args rebuild it."""

from __future__ import annotations

from dataclasses import dataclass, fields


class PipelineError(Exception):
    """A fault in the data or its directories that a person has to mend: PipelineError(message)."""


class ResourcesError(PipelineError):
    """A stage asks for CPUs or GPUs that Ray has not: ResourcesError(message)."""


@dataclass(eq=False, repr=False)
class _FieldsError(PipelineError):
    """An error with fields instead of a message."""

    def __post_init__(self) -> None:
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
