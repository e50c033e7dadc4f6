"""The family of data faults. Each crosses processes, so its args rebuild it."""

from __future__ import annotations


class PipelineError(Exception):
    """A fault in the data or its directories that a person has to mend: PipelineError(message)."""


class ResourcesError(PipelineError):
    """A stage asks for CPUs or GPUs that Ray has not: ResourcesError(message)."""


class DatasetError(PipelineError):
    """A whole annotation file cannot be used: nothing is started.

    path:   the file
    reason: the rule and what came instead
    todo:   what to do next
    """

    def __init__(self, path: str, reason: str, todo: str) -> None:
        super().__init__(path, reason, todo)
        self.path = path
        self.reason = reason
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} {self.todo}"


class VideoError(PipelineError):
    """One video cannot be used: it is recorded in rejects.parquet and the job goes on.

    video_id: the dataset's id
    path:     the frame, video file or annotation file at fault
    reason:   the rule and what came instead
    """

    def __init__(self, video_id: int, path: str, reason: str) -> None:
        super().__init__(video_id, path, reason)
        self.video_id = video_id
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"video {self.video_id}: {self.path}: {self.reason}"


class ManifestError(PipelineError):
    """A directory does not hold what a stage needs, or must not be written to.

    path:   the directory
    reason: the rule and what came instead
    todo:   what to do next
    """

    def __init__(self, path: str, reason: str, todo: str) -> None:
        super().__init__(path, reason, todo)
        self.path = path
        self.reason = reason
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.path} {self.reason}. {self.todo}"
