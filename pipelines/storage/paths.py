"""Places for inputs and outputs: paths on a disk, and addresses in object storage.

An address is "s3://bucket/key", "gs://", "abfs://" (all by pyarrow.fs) or "hf://" (by fsspec, to
read). `at` gives a Path for the former and a RemotePath for the latter; what stages do to files,
both can. UPath was tried: on pyarrow's file systems it loses the bucket, and with fsspec's own it
brings a cloud SDK each (botocore alone weighs 25 MB).
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from idol import files
from idol.addresses import is_remote, shown

if TYPE_CHECKING:  # 0.2 s, which jobs of local files alone, such as scoring, do not need
    import pyarrow as pa
    from pyarrow import fs

_ATTEMPTS = 10  # of one request, further and further apart, 20 s at most: about two minutes
_BUCKETS = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "hf"})


@functools.lru_cache(maxsize=64)
def _storage(bucket: str) -> tuple[fs.FileSystem, str]:
    """The file system behind "scheme://bucket", and what it calls the bucket."""
    from pyarrow import fs

    scheme, _, name = bucket.partition("://")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), name
    if scheme in ("gs", "gcs") and emulator:
        spelt, _, host = emulator.rstrip("/").rpartition("://")
        how = {"endpoint_override": host, "scheme": spelt or "http"}
        return fs.GcsFileSystem(anonymous=True, **how), name
    if scheme in ("abfs", "abfss") and connection:
        return _azure(connection), name.partition("@")[0]
    system, inner = fs.FileSystem.from_uri(bucket)
    if not isinstance(system, fs.S3FileSystem):
        return system, inner
    # Given explicitly, the endpoint of the environment would else be left out.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    spelt, _, host = endpoint.rpartition("://")
    return fs.S3FileSystem(
        region=system.region,
        endpoint_override=host or None,
        scheme=spelt or "https",
        # A bucket that is away for some seconds should not end a job of hours.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    ), inner


def _azure(connection: str) -> fs.FileSystem:
    """By what Azure calls a connection string: "AccountName=...;AccountKey=...;..."."""
    from pyarrow import fs

    given = dict(part.split("=", 1) for part in connection.split(";") if "=" in part)
    spelt, _, place = given.get("BlobEndpoint", "").partition("://")
    host, _, account = place.partition("/")
    # An emulator has the account in the path; all else is reached by the account's name.
    how = {"authority": host, "scheme": spelt} if account.strip("/") else {}
    return fs.AzureFileSystem(
        given["AccountName"],
        account_key=given.get("AccountKey"),
        sas_token=given.get("SharedAccessSignature"),
        **{f"{kind}_storage_{name}": v for kind in ("blob", "dfs") for name, v in how.items()},
    )


def native(path: AnyPath | str) -> tuple[fs.FileSystem, str]:
    """The file system of a path, and what it calls the path: as pyarrow's functions take them.

    Raises: ValueError: nothing here reads such addresses.
    """
    from pyarrow import fs

    address = str(path)
    if not is_remote(address):
        return fs.LocalFileSystem(), address
    scheme, _, inner = address.partition("://")
    try:
        if scheme in _BUCKETS and "?" not in address:
            bucket, _, key = inner.rstrip("/").partition("/")
            system, name = _storage(f"{scheme}://{bucket}")
            return system, f"{name.rstrip('/')}/{key}".rstrip("/")
        system, inner = fs.FileSystem.from_uri(address)  # a query says where and how
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{shown(address)} cannot be opened ({error}). Addresses begin with s3://, gs://, "
            "abfs:// or hf://; anything else is a local path."
        ) from error
    return system, inner


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """An address in object storage, with the part of pathlib.Path that stages use.

    Folders are only what names have in common: nothing makes or removes one by itself. A file
    appears whole when it has been written, or not at all: it is one object.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str | Path) -> RemotePath:
        return RemotePath(f"{self.address.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.address.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        """As of the name, "" where it has none."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> RemotePath:
        """The folder; of a bucket itself, the bucket."""
        scheme, _, inner = self.address.rstrip("/").partition("://")
        return RemotePath(f"{scheme}://{inner.rpartition('/')[0] or inner}")

    def resolve(self) -> RemotePath:
        """Itself: addresses are never relative."""
        return self

    def _info(self) -> fs.FileInfo:
        system, inner = native(self)
        (info,) = system.get_file_info([inner])
        return info

    def exists(self) -> bool:
        """Whether it is a file, or a folder with one."""
        return bool(self._info().type.name != "NotFound")

    def is_file(self) -> bool:
        """Whether it is a file."""
        return bool(self._info().type.name == "File")

    def is_dir(self) -> bool:
        """Whether files lie below it."""
        return bool(self._info().type.name == "Directory")

    def is_symlink(self) -> bool:
        """Object storage has none."""
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in a folder; nothing where there is none."""
        from pyarrow import fs

        system, inner = native(self)
        for info in system.get_file_info(fs.FileSelector(inner, allow_not_found=True)):
            yield self / info.base_name

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What lies in a folder and has a name of this pattern."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: folders are only names."""

    def read_bytes(self) -> bytes:
        """Raises: FileNotFoundError, OSError: there is no such file, or no answer."""
        system, inner = native(self)
        with system.open_input_stream(inner) as stream:
            data: bytes = stream.read()
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content of a text file."""
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete a file. Raises: FileNotFoundError: there is none, unless missing_ok."""
        system, inner = native(self)
        try:
            system.delete_file(inner)
        except FileNotFoundError:
            if not missing_ok:
                raise


AnyPath: TypeAlias = Path | RemotePath


def at(path: str | AnyPath) -> AnyPath:
    """A place by what the user wrote, absolute: workers have a working directory of their own."""
    place = as_written(path)
    return place.expanduser().resolve() if isinstance(place, Path) else place


def as_written(path: str | AnyPath) -> AnyPath:
    """The same, a local path as it is, for what no worker sees: messages then show it so."""
    if isinstance(path, RemotePath):
        return path
    address = str(path)
    if not is_remote(address):
        return Path(address)
    native(address)  # an unknown scheme is an error now, not in a task
    return RemotePath(address.rstrip("/"))


def is_bucket(address: str) -> bool:
    """Whether an address is in object storage that can be written to."""
    return address.partition("://")[0] in _BUCKETS - {"hf"} and is_remote(address)


@contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """As `idol.files.whole_file`; to object storage the finished file is sent, as one object."""
    if not isinstance(path, RemotePath):
        with files.whole_file(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix="idol-upload-") as folder:
        temporary = Path(folder) / path.name
        temporary.touch()
        yield temporary
        from pyarrow import fs

        system, inner = native(path)
        fs.copy_files(str(temporary), inner, destination_filesystem=system)


def write_whole(path: AnyPath, data: bytes) -> None:
    """Write these bytes as a file that appears whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def send_folder(folder: Path, target: RemotePath) -> None:
    """Copy a finished folder to object storage, the files at its top last: they say it is whole."""
    from pyarrow import fs

    system, inner = native(target)
    for path in sorted(folder.iterdir(), key=Path.is_file):
        fs.copy_files(str(path), f"{inner}/{path.name}", destination_filesystem=system)


def open_input(path: AnyPath | str) -> pa.NativeFile:
    """A file to read from at any place.

    Raises: FileNotFoundError, OSError: there is no such file, or no answer.
    """
    system, inner = native(path)
    return system.open_input_file(inner)


@contextmanager
def local_file(path: AnyPath) -> Iterator[Path]:
    """A local file with the content of `path`, for readers of local files; remote ones are fetched.

    Raises: FileNotFoundError, OSError: there is no such file, or no answer.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="idol-download-") as folder:
        target = Path(folder) / path.name
        system, inner = native(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        from pyarrow import fs

        fs.copy_files(inner, str(target), source_filesystem=system)
        yield target


@contextmanager
def fetched(source: str) -> Iterator[str]:
    """What readers of local files and hubs take as a source: of a bucket's file, a copy."""
    if is_bucket(source):
        with local_file(at(source)) as copy:
            yield str(copy)
    else:
        yield source


def move(path: AnyPath, target: AnyPath) -> None:
    """Give a file another name in the same storage, over what was there."""
    if isinstance(path, Path):
        path.replace(str(target))
    else:
        system, inner = native(path)
        system.copy_file(inner, native(target)[1])  # Azure has no move
        system.delete_file(inner)


def remove_tree(path: AnyPath) -> None:
    """Delete a folder of ours with all in it; nothing where there is none."""
    if not isinstance(path, RemotePath):
        shutil.rmtree(path, ignore_errors=True)
    elif path.is_dir():
        system, inner = native(path)
        # At Google the object that would stand for the folder itself is missed at the end.
        with contextlib.suppress(FileNotFoundError):
            system.delete_dir(inner)
