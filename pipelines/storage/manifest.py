"""What a directory holds and from which configuration: written last, by an atomic rename.

A directory is in one of three states. *New*: it does not exist, or is empty. *Unfinished*:
`_started.json` says which stage, configuration and input its shards belong to; the same command
again redoes only the missing shards. *Finished*: `_manifest.json` exists. Directories lie on a
local or shared file system, for the atomicity rests on rename.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import ManifestError
from pipelines.storage import schemas

MANIFEST = "_manifest.json"
STARTED = "_started.json"
REJECTS = "rejects.parquet"

_REJECTS_KEY = b"idol.rejects"
# What a stage may leave at the top of its directory, and all that overwriting ever deletes.
_OWNED = (
    MANIFEST,
    STARTED,
    "*.parquet",
    ".*.part",
    "results.json",
    "results.zip",
    "report.json",
    "report.html",
    "losses.json",
    "checkpoint.safetensors",
    "_*.safetensors",
    "best.json",
    "ledger.jsonl",
    "settings.json",
)
_JOBS = {
    "prepare": "python -m jobs.prepare --annotations ANNOTATIONS.json --out {path}",
    "train": "python -m jobs.train",
    "detect": "python -m jobs.evaluate",
    "track": "python -m jobs.evaluate",
    "evaluate": "python -m jobs.evaluate",
    "sweep": "python -m jobs.sweep",
    "train-sweep": "python -m jobs.sweep",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a finished directory holds, and where every number of it came from."""

    stage: str
    """The stage that wrote it: prepare, train, detect, ..."""
    schema_version: int = schemas.VERSION
    """Version of the tables' schemas."""
    config: dict[str, Any] = field(default_factory=dict)
    """The whole configuration, as plain JSON types."""
    input_hash: str = ""
    """Hash of what the stage read (hash_file of a file, Manifest.hash of a directory)."""
    code_version: str = ""
    """Version of the code, and a hash of its sources; several joined by + after a resume."""
    rows: int = 0
    """Rows over all shards."""
    shards: int = 0
    """Parquet files of rows."""
    rejects: int = 0
    """Rows of rejects.parquet."""
    seconds: float = 0.0
    """Wall-clock seconds, of the last run only where the stage was resumed."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only this stage has to say, as plain JSON types."""

    @property
    def hash(self) -> str:
        """Names the content: everything but how long it took. The next stage's input_hash."""
        values = dataclasses.asdict(self)
        del values["seconds"]
        return hash_value(values)


@dataclass(slots=True)
class Output:
    """A directory being written by one stage; made by prepare_output.

    `finished` is the manifest of an equal, completed run, or None: a stage returns it at once.
    """

    path: Path
    stage: str
    config: dict[str, Any]
    input_hash: str
    code_version: str
    finished: Manifest | None = None
    started_at: float = field(default_factory=time.monotonic)

    def shard(self, index: int) -> Path:
        """Where shard `index` lies once it is committed."""
        return self.path / f"shard-{index:05d}.parquet"

    def missing(self, total: int) -> list[int]:
        """Indices of the shards 0..total-1 that are not committed yet."""
        return [index for index in range(total) if not self.shard(index).exists()]

    def finish(
        self,
        *,
        total_shards: int = 0,
        rejects: Iterable[Mapping[str, Any]] = (),
        rows: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write rejects.parquet, then the manifest: from here on the directory is finished.

        total_shards: all of them must be committed
        rejects:      {video_id, path, reason} beside those stored in the shards; repeats merge
        rows:         default: counted from the shards
        """
        missing = self.missing(total_shards)
        if missing:
            raise ManifestError(
                str(self.path),
                f"misses {len(missing)} of {total_shards} shards, the first is number {missing[0]}",
                "Run the same command again: only these are redone.",
            )
        paths = [self.shard(index) for index in range(total_shards)]
        faults = {(int(row["video_id"]), str(row["path"]), str(row["reason"])) for row in rejects}
        for path in paths:
            faults.update((r["video_id"], r["path"], r["reason"]) for r in shard_rejects(path))
        names = schemas.REJECTS.names
        table = schemas.table(
            [dict(zip(names, row, strict=True)) for row in sorted(faults)], schemas.REJECTS
        )
        commit_table(table, self.path / REJECTS)
        manifest = Manifest(
            stage=self.stage,
            config=self.config,
            input_hash=self.input_hash,
            code_version=self.code_version,
            rows=sum(map(count_rows, paths)) if rows is None else rows,
            shards=total_shards,
            rejects=len(faults),
            seconds=round(time.monotonic() - self.started_at, 3),
            extra=_plain(extra or {}),
        )
        for leftover in self.path.glob(".*.part"):
            leftover.unlink(missing_ok=True)
        commit_json(dataclasses.asdict(manifest), self.path / MANIFEST)
        (self.path / STARTED).unlink(missing_ok=True)
        self.finished = manifest
        return manifest


def prepare_output(
    out: str | Path,
    stage: str,
    config: Mapping[str, Any],
    input_hash: str,
    *,
    overwrite: bool = False,
) -> Output:
    """Claim a directory for one run of a stage, or find what an equal run left there.

    out:        a new or empty directory; or one left unfinished, or finished, by the same stage
                with the same configuration and input
    config:     the stage's configuration as a mapping of plain JSON types
    input_hash: names what is read
    overwrite:  delete an earlier output of this project first (never a foreign directory)
    Errors:     ManifestError when the directory holds anything else
    """
    path = Path(out)
    config = _plain(config)
    claim = {
        "stage": stage,
        "schema_version": schemas.VERSION,
        "config": config,
        "input_hash": input_hash,
    }
    if path.exists() and not path.is_dir():
        raise ManifestError(str(path), "is a file, not a directory", "Choose another --out.")
    ours = any((path / name).exists() for name in (MANIFEST, STARTED))
    if overwrite and ours:
        _clear(path)
    output = Output(path, stage, config, input_hash, code_version())
    if (path / MANIFEST).exists():
        previous = _load(path / MANIFEST)
        _check_claim(path, previous, claim, "finished")
        shard_paths(path, stage)  # a finished directory that lost files is not finished
        output.finished = read(path, stage)
        return output
    if (path / STARTED).exists():
        previous = _load(path / STARTED)
        _check_claim(path, previous, claim, "unfinished")
        versions = [str(version) for version in previous.get("code_versions", [])]
        if output.code_version not in versions:
            log.warning("%s was started by other code; finished shards are kept", path)
            versions.append(output.code_version)
            commit_json({**claim, "code_versions": versions}, path / STARTED)
        output.code_version = " + ".join(versions)
        return output
    if path.is_dir() and any(path.iterdir()) and not ours:
        raise ManifestError(
            str(path),
            f"exists and is not an output of this project (neither {MANIFEST} nor {STARTED})",
            "Choose another --out, or empty it yourself: --overwrite does not delete such files.",
        )
    path.mkdir(parents=True, exist_ok=True)
    commit_json({**claim, "code_versions": [output.code_version]}, path / STARTED)
    return output


def read(path: str | Path, stage: str | None = None) -> Manifest:
    """The manifest of a finished directory.

    stage:  what the directory must hold; None: anything
    Errors: ManifestError if it is absent, unfinished, another stage's, or another version's
    """
    path = Path(path)
    wanted = f"'{stage}' output" if stage else "output"
    todo = f"Run `{_JOBS.get(stage or '', 'the job that writes it').format(path=path)}` first."
    if not path.is_dir():
        raise ManifestError(str(path), f"holds no {wanted} (there is no such directory)", todo)
    if not (path / MANIFEST).exists():
        reason = f"holds no finished {wanted} ({MANIFEST} is missing)"
        if (path / STARTED).exists():
            started = _load(path / STARTED).get("stage")
            reason = f"holds an unfinished '{started}' output ({MANIFEST} is missing)"
            todo = "Run the command that started it again: it goes on where it stopped."
        raise ManifestError(str(path), reason, todo)
    values = _load(path / MANIFEST)
    known = {f.name for f in dataclasses.fields(Manifest)}
    if "stage" not in values or not set(values) <= known:
        raise ManifestError(
            str(path), f"holds a {MANIFEST} with unknown or missing fields", "Make it anew."
        )
    manifest = Manifest(**values)
    if stage is not None and manifest.stage != stage:
        raise ManifestError(str(path), f"holds '{manifest.stage}' output, not '{stage}'", todo)
    if manifest.schema_version != schemas.VERSION:
        raise ManifestError(
            str(path),
            f"holds tables of schema version {manifest.schema_version}, "
            f"this code reads {schemas.VERSION}",
            "Make it anew with --overwrite.",
        )
    return manifest


def shard_paths(path: str | Path, stage: str | None = None) -> list[Path]:
    """The parquet files of a finished directory, in order.

    Errors: ManifestError as in read, and where a file of it has gone since
    """
    path = Path(path)
    manifest = read(path, stage)
    output = Output(path, manifest.stage, {}, "", "")
    missing = output.missing(manifest.shards)
    if missing:
        raise ManifestError(
            str(path),
            f"lost {len(missing)} of its {manifest.shards} shards, "
            f"the first is {output.shard(missing[0]).name}",
            "Make it anew with --overwrite.",
        )
    return [output.shard(index) for index in range(manifest.shards)]


def commit_table(
    table: pa.Table,
    path: Path,
    *,
    rejects: Sequence[Mapping[str, Any]] = (),
    row_group_size: int | None = None,
) -> None:
    """Write a parquet file that is either whole or absent.

    rejects: {video_id, path, reason} found while making this shard. They travel in the file
             itself, so that a resumed stage knows them without redoing the shard.
    """
    if rejects:
        metadata = {**(table.schema.metadata or {}), _REJECTS_KEY: json.dumps(list(rejects))}
        table = table.replace_schema_metadata(metadata)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as stream:
            pq.write_table(table, stream, compression="zstd", row_group_size=row_group_size)
            stream.flush()
            os.fsync(stream.fileno())
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def commit_bytes(data: bytes, path: Path) -> None:
    """Write a file that is either whole or absent."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def commit_json(value: Any, path: Path) -> None:
    """Write JSON, keys sorted, so that equal values are equal bytes."""
    commit_bytes((json.dumps(value, sort_keys=True, indent=1) + "\n").encode(), path)


def shard_rejects(path: Path) -> list[dict[str, Any]]:
    """The rejects that commit_table stored with a shard."""
    metadata = pq.read_schema(path).metadata or {}
    found: list[dict[str, Any]] = json.loads(metadata.get(_REJECTS_KEY, b"[]"))
    return found


def count_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def read_rejects(path: str | Path) -> list[dict[str, Any]]:
    """The rejects of a finished directory: {video_id, path, reason}, sorted."""
    rows: list[dict[str, Any]] = pq.read_table(Path(path) / REJECTS).to_pylist()
    return rows


def hash_file(path: str | Path) -> str:
    """SHA-256 of a local file's bytes, in hex."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """SHA-256 of a value of plain JSON types, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_version() -> str:
    """The version, and a hash of the sources of the four rooms.

    A hash of the files, not of a commit: a job's working directory carries no repository, and a
    commit says nothing about edits after it.
    """
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in ("idol", "jobs", "ops", "pipelines"):
        for source in sorted((root / room).rglob("*")):
            if source.suffix in {".py", ".cu", ".cpp"}:
                digest.update(source.relative_to(root).as_posix().encode() + b"\0")
                digest.update(source.read_bytes() + b"\0")
    return f"{_release()}-{digest.hexdigest()[:12]}"


def _release() -> str:
    from importlib import metadata

    try:
        return metadata.version("idol-vis")
    except metadata.PackageNotFoundError:
        return "0"  # run from a plain folder, as in a submitted job


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back (tuples become lists), so that comparing is comparing."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values)))
    return plain


def _load(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(
            str(path.parent), f"holds a {path.name} that is not JSON ({error})", "Make it anew."
        ) from error
    if not isinstance(values, dict):
        raise ManifestError(
            str(path.parent), f"holds a {path.name} that is not a mapping", "Make it anew."
        )
    return values


def _check_claim(
    path: Path, previous: Mapping[str, Any], claim: dict[str, Any], state: str
) -> None:
    """Refuse a directory that belongs to another stage, configuration or input."""
    if previous.get("stage") != claim["stage"]:
        difference = f"it is of stage {previous.get('stage')!r}, not {claim['stage']!r}"
    elif previous.get("schema_version") != claim["schema_version"]:
        difference = f"its schema version is {previous.get('schema_version')}"
    elif previous.get("config") != claim["config"]:
        difference = "its configuration differs: " + "; ".join(
            _differences(previous.get("config"), claim["config"])[:4]
        )
    elif previous.get("input_hash") != claim["input_hash"]:
        difference = "its input had other content"
    else:
        return
    raise ManifestError(
        str(path),
        f"holds the {state} output of another run: {difference}",
        "Choose another --out, or pass --overwrite to delete it.",
    )


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return found
    return [] if old == new else [f"{prefix} was {old!r}, now {new!r}"]


def _clear(path: Path) -> None:
    """Delete a stage's own files, the manifest first: half deleted must not look finished."""
    for pattern in _OWNED:
        for file in path.glob(pattern):
            if file.is_file() or file.is_symlink():
                file.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")


def _publish(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    # The rename itself must survive a power cut, not only the bytes.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
