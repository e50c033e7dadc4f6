"""What a finished directory holds and from which configuration: read before anything is begun."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from idol.files import parse_json
from pipelines.errors import ManifestError, intact
from pipelines.storage import paths, schemas
from pipelines.storage.layout import shard_path
from pipelines.storage.paths import AnyPath, write_whole

MANIFEST = "_manifest.json"
STARTED = "_started.json"
_CHECKSUM = "checksum"  # of all other fields, beside them in the file

_JOBS = {
    "prepare": "python -m jobs.prepare --annotations ANNOTATIONS.json --out {path}",
    "train": "python -m jobs.train",
    **dict.fromkeys(("detect", "track", "evaluate"), "python -m jobs.evaluate"),
    **dict.fromkeys(("sweep", "train-sweep"), "python -m jobs.sweep"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a finished directory holds, and where every number of it came from."""

    stage: str
    """The stage that wrote it: prepare, train, detect, ..."""
    schema_version: int = schemas.VERSION
    config: dict[str, Any] = field(default_factory=dict)
    """The whole configuration, as plain JSON types."""
    input_hash: str = ""
    """Hash of what the stage read (Manifest.hash of a directory)."""
    frames: str = ""
    """Names the frame files that the stage read, wherever they lay; "" where it read none."""
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
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the JSON files beside it that other jobs read."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only this stage has to say, as plain JSON types."""

    @property
    def hash(self) -> str:
        """Names the content: everything but how long it took and where the frames lay, which
        reports tell. The next stage's input_hash."""
        return hash_value({k: v for k, v in asdict(self).items() if k not in ("seconds", "files")})


_ANY = Manifest(stage="")


def read(path: str | AnyPath, stage: str | None = None) -> Manifest:
    """The manifest of a finished directory.

    stage: what the directory must hold; None: anything
    Raises: ManifestError: it is absent, unfinished, another stage's, or another version's.
    """
    path = paths.at(path)
    wanted = f"'{stage}' output" if stage else "output"
    todo = f"Run `{_JOBS.get(stage or '', 'the job that writes it').format(path=path)}` first."
    if not path.is_dir():
        raise ManifestError(str(path), f"holds no {wanted} (there is no such directory)", todo)
    if not (path / MANIFEST).exists():
        reason = f"holds no finished {wanted} ({MANIFEST} is missing)"
        if (path / STARTED).exists():
            started = load_json(path / STARTED).get("stage")
            reason = f"holds an unfinished '{started}' output ({MANIFEST} is missing)"
            todo = "Run the command that started it again: it goes on where it stopped."
        raise ManifestError(str(path), reason, todo)
    values = load_json(path / MANIFEST)
    stated = values.pop(_CHECKSUM, None)
    if "stage" not in values or not set(values) <= {f.name for f in fields(Manifest)}:
        raise ManifestError(
            str(path), f"holds a {MANIFEST} with unknown or missing fields", "Make it again."
        )
    manifest = Manifest(**values)
    with intact(path / MANIFEST):
        for known in fields(Manifest):
            value, kind = getattr(manifest, known.name), type(getattr(_ANY, known.name))
            if not isinstance(value, (int, float) if kind is float else kind):
                raise TypeError(f"{known.name} is {value!r}")
    if stage is not None and manifest.stage != stage:
        raise ManifestError(str(path), f"holds '{manifest.stage}' output, not '{stage}'", todo)
    version = manifest.schema_version
    if version != schemas.VERSION:
        reason = f"holds tables of schema version {version}, this code reads {schemas.VERSION}"
        raise ManifestError(str(path), reason, "Make it again with --overwrite.")
    with intact(path / MANIFEST):
        if stated is not None and stated != hash_value(values):
            raise ValueError("its checksum is wrong")
    return manifest


def commit(manifest: Manifest, path: AnyPath) -> None:
    """Write the manifest of a directory, with its checksum: from here on it is finished."""
    values = asdict(manifest)
    commit_json({**values, _CHECKSUM: hash_value(values)}, path / MANIFEST)


def read_json(path: AnyPath, stage: str) -> Any:
    """The content of a JSON file of a finished directory.

    Raises: ManifestError: the directory is not finished, or the file is not as it was written.
    """
    known = read(path.parent, stage).files.get(path.name)
    with intact(path):
        data = path.read_bytes()
        if known is not None and known != hashlib.sha256(data).hexdigest():
            raise ValueError("its checksum is wrong")
        return parse_json(data)


def shard_paths(
    path: str | AnyPath, stage: str | None = None, prefix: str = "shard"
) -> list[AnyPath]:
    """The parquet files of a finished directory, in order.

    prefix: see layout.shard_path
    Raises: ManifestError: as in read, or a file of it has gone since.
    """
    path = paths.at(path)
    total = read(path, stage).shards
    there = {shard.name for shard in path.glob(f"{prefix}-*.parquet")}
    wanted = (shard_path(path, index, prefix) for index in range(total))
    # Up to the first that is missing: an edited number of shards may be larger than any list.
    found = list(itertools.takewhile(lambda shard: shard.name in there, wanted))
    if len(found) < total:
        lost = shard_path(path, len(found), prefix).name
        reason = f"lost {lost}, one of its {total} shards"
        raise ManifestError(str(path), reason, "Make it again with --overwrite.")
    return found


def commit_json(value: Any, path: AnyPath) -> None:
    """Write JSON whole or not at all, keys sorted, so that equal values are equal bytes."""
    write_whole(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def load_json(path: AnyPath) -> dict[str, Any]:
    """A mapping that commit_json wrote. Raises: ManifestError: it is none."""
    try:
        values = parse_json(path.read_bytes())
        fault = "" if isinstance(values, dict) else "a mapping"
    except ValueError as error:
        fault = f"JSON ({error})"
    if fault:
        reason = f"holds a {path.name} that is not {fault}"
        raise ManifestError(str(path.parent), reason, "Make it again.")
    found: dict[str, Any] = values
    return found


def hash_value(value: Any) -> str:
    """SHA-256 of a value of plain JSON types, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
