"""Brings what a job on a cluster has made to this machine: its log, its result, its files."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idol.addresses import is_remote, shown
from pipelines import job_server
from pipelines.errors import PipelineError
from pipelines.storage import paths

LOG = "log.txt"
RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was brought here, and what was not.

    folder: where it lies
    files:  what was written there
    kept:   what the result names and stays where it is, with the reason
    """

    folder: Path
    files: tuple[Path, ...]
    kept: tuple[tuple[str, str], ...]


def fetch(client: Any, submission_id: str, to: Path) -> Fetched:
    """Write a job's log, its last JSON line, and the files that this line names by address.

    to: gets a folder of the job's name, whose files of an earlier fetch are replaced
    Raises: PipelineError: the cluster knows no such job; a file that is named cannot be read.
    """
    job_server.job(client, submission_id)
    log = job_server.log(client, submission_id)
    folder = to / submission_id
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / LOG]
    paths.write_whole(files[0], log.encode())
    result = job_server.result(log)
    if result is None:
        return Fetched(folder, tuple(files), ())
    files.append(folder / RESULT)
    paths.write_whole(files[1], (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    named = dict.fromkeys(_places(result))
    addresses = [place for place in named if is_remote(place)]
    if climbing := [place for place in addresses if ".." in place.split("/")]:
        # The log is the job's word: what it names must not be written elsewhere.
        raise PipelineError(f"{shown(climbing[0])} leads out of the folder it is fetched to.")
    # Files of several evaluations have the same names, in folders of their own.
    common = posixpath.commonpath([posixpath.dirname(a) for a in addresses]) if addresses else ""
    kept = []
    for place in named:
        if not is_remote(place):
            kept.append((place, "a path of the cluster; only addresses can be fetched"))
        elif (reason := _copy(place, target := folder / posixpath.relpath(place, common))) is None:
            files.append(target)
        else:
            kept.append((shown(place), reason))
    return Fetched(folder, tuple(files), tuple(kept))


def _copy(address: str, target: Path) -> str | None:
    """Copy a file of object storage; where it is none, the reason why it is not copied."""
    try:
        if not paths.is_bucket(address):
            return "it is not in object storage"
        source = paths.at(address)
        if not source.is_file():
            return "a folder" if source.is_dir() else "it is not there"
        target.parent.mkdir(parents=True, exist_ok=True)
        with paths.local_file(source) as copy, paths.whole_file(target) as written:
            shutil.copyfile(copy, written)
    except OSError as error:
        raise PipelineError(f"{shown(address)} cannot be fetched: {error}") from error
    return None


def _places(value: Any) -> Iterator[str]:
    """Every text in a result that names a place: an address or an absolute path."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _places(part)
    elif isinstance(value, list):
        for part in value:
            yield from _places(part)
    elif isinstance(value, str) and (is_remote(value) or value.startswith("/")):
        yield value
