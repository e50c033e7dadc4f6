"""A directory belongs to one run of one stage, from its claim until its manifest is there.

A directory is in one of three states. *New*: it does not exist, or is empty. *Unfinished*:
`_started.json` says which stage, configuration, input and frames its shards belong to; the same
command again redoes only the missing shards. *Finished*: `_manifest.json` exists, which is written
last. Directories lie on a disk, where files are committed by a rename, or in object storage, where
a file is one object.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from idol.ytvis.videos import Reject
from pipelines.errors import ManifestError, intact
from pipelines.storage import manifest, paths, schemas, tables
from pipelines.storage.layout import LOSSES, PROBE, REPORT, shard_path
from pipelines.storage.manifest import MANIFEST, STARTED, Manifest
from pipelines.storage.paths import AnyPath, RemotePath

OWNED = (
    MANIFEST,
    STARTED,
    "*.parquet",
    "*.arrows",
    "results.json",
    "results.zip",
    "report.json",
    "report.html",
    "losses.json",
    "checkpoint.safetensors",
    "_*.safetensors",
    "best.json",
    "ledger*.jsonl",
    "settings.json",
)
"""What a stage may leave at the top of its directory, and all that overwriting ever deletes."""

_READERS = 16  # footers at once: a bucket answers each after tens of milliseconds

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Output:
    """A directory being written by one stage; made by prepare_output.

    finished: the manifest of an equal, completed run: a stage returns it at once
    """

    path: AnyPath
    stage: str
    config: dict[str, Any]
    input_hash: str
    frames: str
    code_version: str
    finished: Manifest | None = None
    started_at: float = field(default_factory=time.monotonic)
    _read: dict[int, tuple[list[Reject], int]] = field(default_factory=dict)

    def shard(self, index: int) -> AnyPath:
        """Where a shard lies once it is committed."""
        return shard_path(self.path, index)

    def note(self, index: int, rows: int) -> None:
        """What the footer of a shard without rejects says, for whoever knows it: it is not read."""
        self._read[index] = ([], rows)

    def missing(self, total: int) -> list[int]:
        """Indices of the shards 0..total-1 that are not committed yet."""
        # One listing: to ask for each of 100,000 would take a bucket the better part of an hour.
        there = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        return [index for index in range(total) if self.shard(index).name not in there]

    def rejects(self, total: int) -> list[Reject]:
        """The rejects stored in the shards 0..total-1, all of which are committed."""
        return [row for rejects, _ in self._footers(total) for row in rejects]

    def rows(self, total: int) -> int:
        """How many rows the shards 0..total-1 have, all of which are committed."""
        return sum(rows for _, rows in self._footers(total))

    def _footers(self, total: int) -> list[tuple[list[Reject], int]]:
        """What the footers of the shards 0..total-1 say, each read once: rejects, and rows."""
        unread = [index for index in range(total) if index not in self._read]
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda index: tables.shard_footer(self.shard(index)), unread)
            self._read.update(zip(unread, found, strict=True))
        return [self._read[index] for index in range(total)]

    def finish(
        self,
        *,
        total_shards: int = 0,
        rejects: Iterable[Reject] = (),
        rows: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write rejects.parquet, then the manifest: from here on the directory is finished.

        total_shards: all of them must be committed
        rejects:      beside those stored in the shards; repeats merge
        rows:         None: counted from the shards
        Raises: ManifestError: a shard is missing.
        """
        if missing := self.missing(total_shards):
            reason = (
                f"misses {len(missing)} of {total_shards} shards, the first is number {missing[0]}"
            )
            todo = "Run the same command again: only these are redone."
            raise ManifestError(str(self.path), reason, todo)
        faults = sorted({*rejects, *self.rejects(total_shards)})
        if rows is None:
            rows = self.rows(total_shards)
        try:
            self.finished = self._commit(total_shards, faults, rows, _plain(extra or {}))
        except FileNotFoundError:
            # The same command in another process has finished meanwhile, and has removed what it
            # took for left over.
            self.finished = manifest.read(self.path, self.stage)
        return self.finished

    def _commit(
        self, shards: int, faults: Sequence[Reject], rows: int, extra: dict[str, Any]
    ) -> Manifest:
        table = schemas.table([reject._asdict() for reject in faults], schemas.REJECTS)
        tables.commit(table, self.path / tables.REJECTS)
        made = Manifest(
            stage=self.stage,
            config=self.config,
            input_hash=self.input_hash,
            frames=self.frames,
            code_version=self.code_version,
            rows=rows,
            shards=shards,
            rejects=len(faults),
            seconds=round(time.monotonic() - self.started_at, 3),
            files={
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in sorted(self.path / name for name in (REPORT, LOSSES))
                if file.is_file()
            },
            extra=extra,
        )
        for leftover in _leftovers(self.path):
            leftover.unlink(missing_ok=True)
        for probe in [*self.path.glob(f"{PROBE}*")]:
            paths.remove_tree(probe)
        manifest.commit(made, self.path)
        (self.path / STARTED).unlink(missing_ok=True)
        return made


def prepare_output(
    out: str | AnyPath,
    stage: str,
    config: Mapping[str, Any],
    input_hash: str,
    *,
    frames: str = "",
    overwrite: bool = False,
) -> Output:
    """Claim a directory for one run of a stage, or find what an equal run left there.

    out:       new or empty, or left by the same stage with the same configuration and input
    config:    of the stage, in plain JSON types
    frames:    of the dataset, where the stage reads its frames
    overwrite: delete an earlier output of this project first (never a foreign directory)
    Raises: ManifestError: the directory holds anything else.
    """
    path = paths.at(out)
    output = Output(path, stage, _plain(config), input_hash, frames, code_version())
    claim = {
        "stage": stage,
        "schema_version": schemas.VERSION,
        "config": output.config,
        "input_hash": input_hash,
        "frames": frames,
    }
    if path.exists() and not path.is_dir():
        raise ManifestError(str(path), "is a file, not a directory", "Choose another --out.")
    ours = is_claimed(path)
    if overwrite and ours:
        _clear(path)
    if (path / MANIFEST).exists():
        _check_claim(path, manifest.load_json(path / MANIFEST), claim, "finished")
        manifest.shard_paths(path, stage)  # a finished directory that lost files is not finished
        output.finished = manifest.read(path, stage)
        return output
    versions = []
    if (path / STARTED).exists():
        previous = manifest.load_json(path / STARTED)
        _check_claim(path, previous, claim, "unfinished")
        with intact(path / STARTED):
            versions = [str(version) for version in previous.get("code_versions", [])]
    elif path.is_dir() and any(path.iterdir()) and not ours:
        raise ManifestError(
            str(path),
            f"exists and is not an output of this project (neither {MANIFEST} nor {STARTED})",
            "Choose another --out, or empty it yourself: --overwrite does not delete such files.",
        )
    if output.code_version not in versions:
        if versions:
            _log.warning("%s was started by other code; finished shards are kept", path)
        versions.append(output.code_version)
        manifest.commit_json({**claim, "code_versions": versions}, path / STARTED)
    output.code_version = " + ".join(versions)
    return output


def is_claimed(path: AnyPath) -> bool:
    """Whether a directory is, or will be, the output of a stage."""
    return any((path / name).exists() for name in (MANIFEST, STARTED))


def owns(file: Path) -> bool:
    """Whether a file has a name that stages give to files of their directories."""
    return any(file.match(pattern) for pattern in OWNED)


@functools.cache
def code_version() -> str:
    """The version, and a hash of the sources: a job's working directory carries no repository."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ("idol", "jobs", "ops", "pipelines"):
        for source in sorted((root / room).rglob("*")):
            if source.suffix in {".py", ".cu", ".cpp"}:
                digest.update(source.relative_to(root).as_posix().encode() + b"\0")
                digest.update(source.read_bytes() + b"\0")
    try:
        release = metadata.version("idol-vis")
    except metadata.PackageNotFoundError:
        release = "0"  # run from a plain folder, as in a submitted job
    return f"{release}-{digest.hexdigest()[:12]}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return plain


def _check_claim(
    path: AnyPath, previous: Mapping[str, Any], claim: dict[str, Any], state: str
) -> None:
    """Refuse a directory that belongs to another stage, configuration, input or frames."""
    # An output of a stage without frames has no entry for them where it is an old one.
    previous = {"frames": "", **previous}
    differing = [name for name, value in claim.items() if previous.get(name) != value]
    if not differing:
        return
    # Missing frames make another input too, so of input and frames both are told.
    told = differing if differing[0] == "input_hash" else differing[:1]
    difference = "; ".join(_difference(name, previous.get(name), claim[name]) for name in told)
    reason = f"holds the {state} output of another run: {difference}"
    todo = "Choose another --out, or pass --overwrite to delete it."
    raise ManifestError(str(path), reason, todo)


def _difference(name: str, old: Any, new: Any) -> str:
    """Of one entry of a claim, in words."""
    if name == "stage":
        return f"it is of stage {old!r}, not {new!r}"
    if name == "schema_version":
        return f"its schema version is {old}"
    if name == "config":
        return "its configuration differs: " + "; ".join(_differences(old, new)[:4])
    if name == "input_hash":
        return "its input had other content, or older code wrote it"
    return f"its frames were {old or 'not recorded'}, those given now are {new}"


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix} was {old!r}, now {new!r}"]


def _clear(path: AnyPath) -> None:
    """Delete a stage's own files, the manifest first: half deleted must not look finished."""
    for file in [*(file for pattern in OWNED for file in path.glob(pattern)), *_leftovers(path)]:
        if file.is_file() or file.is_symlink():
            file.unlink(missing_ok=True)


def _leftovers(path: AnyPath) -> Iterator[AnyPath]:
    """Files that a killed process has left half written (idol.files.whole_file)."""
    if isinstance(path, RemotePath):  # where a file is there when it is whole
        return
    for owned in OWNED:
        stem, suffix = owned.rsplit(".", 1)
        yield from path.glob(f".{stem}.????????.{suffix}")
