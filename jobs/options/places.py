"""Where a job may write: one rule for every option of every job, checked before any work."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_type_hints

import tyro

from idol.addresses import is_remote, shown

if TYPE_CHECKING:
    from pipelines.storage.paths import AnyPath

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How s3://bucket/x begins once it is a Path, which makes one slash of two."""
_START = 1024  # bytes by which an existing file is recognised


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What an option writes, as in `out: Annotated[Path, places.PAGE]`.

    name: what messages call it
    ours: whether an existing file, given with its first bytes, is an earlier one of this kind;
          None: a folder, of which pipelines.storage.claims says what may be in it already
    holds: files of a folder that claims knows nothing of
    adds:  files are only added, so the place may be another option's too
    """

    name: str
    ours: Callable[[IO[bytes], bytes], bool] | None
    holds: Mapping[str, Kind] = field(default_factory=dict)
    adds: bool = False


def _begins(pattern: bytes) -> Callable[[IO[bytes], bytes], bool]:
    return lambda file, start: re.match(pattern, start) is not None


def _is_score(file: IO[bytes], start: bytes) -> bool:
    if not zipfile.is_zipfile(file):
        return start.startswith((b'{"AP"', b'{"entries"'))
    from idol.ytvis import submission

    with zipfile.ZipFile(file) as archive:
        return archive.namelist() == [submission.MEMBER]


SCORES = Kind("an output of jobs.score", _is_score)
RESULTS = Kind("results of this project", _begins(rb'\[\s*(\{"category_id"|\]\s*$)'))
ANNOTATIONS = Kind(
    "an output of jobs.convert",
    _begins(rb'\{"info": \{"description": "written by python -m jobs\.'),
)
PAGE = Kind("a page of this project", _begins(rb'(?s).*<meta name="generator" content="idol-vis">'))
FILM = Kind("a film", _begins(rb"(?s).{4}ftyp"))
NETWORK = Kind("an exported network", _begins(rb"\x08|PK"))
COMPARISON = Kind("a comparison", _begins(rb'(\{\s*"[^"]*":\s*){2}\{\s*"AP'))
FOLDER = Kind("a folder", None)
LOG = Kind("a folder", None, adds=True)
EVALUATIONS = Kind("a folder", None, {"comparison.json": COMPARISON, "comparison.html": PAGE})
STREAM = Kind(
    "a folder",
    None,
    {
        "results.json": RESULTS,
        "annotated.mp4": FILM,
        "coco.json": ANNOTATIONS,
        "tracks.jsonl": Kind("rows of jobs.track", _begins(rb'\{"video":')),
        "tracks.parquet": Kind("a table", _begins(b"PAR1")),
        "mot.txt": Kind("MOT results", _begins(rb"\d+,\d+,")),
        "mots.txt": Kind("MOTS results", _begins(rb"\d+ \d+ \d+ ")),
        "cvat.xml": Kind("CVAT annotations", _begins(rb"<\?xml")),
    },
)
CHECK = Kind(
    "a folder",
    None,
    {
        "check.json": Kind("an output of jobs.check", _begins(rb'\{\s*"checked": ')),
        "check.html": PAGE,
    },
)
WALK = Kind("a folder", None, {"report.html": PAGE})


def check(job: Any) -> None:
    """Look at the options that are places: those of type Path, and those with a Kind.

    No Path is an address. A file to be written is no input of the job and no file of a stage's
    directory, its folder is there and can be written to, and what it replaces is of its own kind.
    In a job that a cluster was given, what is written has an absolute path.

    Raises: ValueError, OSError: the rule, what came instead, and what to do.
    """
    written: dict[str, tuple[Path, Kind]] = {}
    read: list[tuple[str, Path]] = []
    addresses: list[tuple[str, str, Kind | None]] = []
    for option, hint in get_type_hints(type(job), include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        kind = next((k for k in marks if isinstance(k, Kind)), None)
        named = tyro.conf.Positional not in marks
        flag = "--" + option.replace("_", "-") if named else option.upper()
        for value in _values(getattr(job, option)):
            if isinstance(value, Path) and _ADDRESS.match(str(value)):
                raise ValueError(
                    f"{flag} {str(value).replace(':/', '://', 1)} is an address, but object "
                    "storage is not supported there. Give a path, such as that of a mounted disk."
                )
            if is_remote(str(value)):
                addresses.append((flag, str(value).rstrip("/"), kind))
            elif kind is not None:
                _check_absolute(flag, Path(value))
                if not kind.adds:
                    written[flag] = Path(value), kind
            elif os.path.exists(value):
                read.append((flag, Path(value)))
    for flag, (path, kind) in written.items():
        _check_inputs(flag, path, kind, read)
        if kind.ours is not None:
            _check_file(flag, path, kind)
        for name, inner in kind.holds.items():
            _check_replaced(flag, path / name, inner)
    places = [path.resolve() for path, _ in written.values()]
    if len(set(places)) < len(places):
        raise ValueError(f"{' and '.join(written)} name one file; name them differently")
    for flag, address, kind in addresses:
        others = [other for other, same, _ in addresses if same == address and other != flag]
        if kind is not None and others:
            raise ValueError(f"{flag} and {others[0]} name {shown(address)}. Write elsewhere.")
        if kind is not None:
            _check_address(flag, address, kind)


def _check_absolute(flag: str, path: Path) -> None:
    """Refuse a relative path where the working directory is a copy of the code on some node."""
    from pipelines import cluster

    if not cluster.submitted() or path.expanduser().is_absolute():
        return
    here = os.environ.get(cluster.SUBMITTED_FROM, "/shared")
    raise ValueError(
        f"{flag} {path} is relative, but this job was sent to a cluster and runs in a copy of the "
        "code there, which is deleted with all in it. Give an absolute path on storage that every "
        f"node sees, such as {os.path.normpath(os.path.join(here, path))}, or an address such as "
        f"s3://bucket/{path.name}."
    )


def _check_address(flag: str, address: str, kind: Kind) -> None:
    """Refuse to write where nothing can be written, or over what is not ours."""
    if address.startswith("hf://"):
        raise ValueError(
            f"{flag} {shown(address)}: hf:// can only be read here. Write to a folder, s3://, "
            "gs:// or abfs://, and upload it with the Hub's own tools."
        )
    from pipelines.storage import paths

    place = paths.at(address)
    if kind.ours is not None:
        _check_replaced(flag, place, kind)
    for name, inner in kind.holds.items():
        _check_replaced(flag, place / name, inner)


def _values(value: Any) -> Iterator[str | Path]:
    """The texts and paths of an option, one by one."""
    if isinstance(value, str | Path):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _values(one)


def _check_inputs(flag: str, path: Path, kind: Kind, read: list[tuple[str, Path]]) -> None:
    """Refuse to replace what the job reads, and to write among the files of a folder it reads."""
    if not path.exists():
        return
    for other, source in read:
        lost = path.samefile(source)
        if kind.ours is None and not lost and path.samefile(source.parent):
            from pipelines.storage import claims

            lost = source.name in kind.holds or claims.owns(source)
        if lost:
            raise ValueError(
                f"{flag} {path} would replace {source}, which {other} reads. Write elsewhere."
            )


def _check_file(flag: str, path: Path, kind: Kind) -> None:
    """Refuse what cannot be written now, or must not be: it should not take an hour to find out."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the folder {path.parent} does not exist, so {flag} {path} cannot be written; make "
            "it, or write elsewhere"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{flag} {path} is a folder; name a file in it, or a new place")
    if path.exists():
        from pipelines.storage import claims

        if claims.is_claimed(path.parent) and claims.owns(path):
            raise ValueError(
                f"{flag} {path} would replace a file of the output in {path.parent}, which other "
                "jobs read. Write elsewhere."
            )
    _check_replaced(flag, path, kind)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{flag}: {error.strerror}", str(path)) from error


def _check_replaced(flag: str, path: AnyPath, kind: Kind) -> None:
    """Refuse an existing file of another kind."""
    if kind.ours is None or not path.exists():
        return
    from pipelines.storage import paths

    fits = path.is_file()
    if fits:
        with paths.local_file(path) as local, local.open("rb") as file:
            start = file.read(_START)
            fits = not start or kind.ours(file, start)
    if not fits:
        raise ValueError(
            f"{flag}: {path} exists and is not {kind.name}, so it is not replaced. Write "
            "elsewhere, or remove it yourself."
        )
