"""Files named by a path, a Hugging Face reference or a URL, brought to this machine and checked."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

_log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt, doubled before the third
_TIMEOUT = 30.0  # seconds without a byte
_FORMS = (
    "a path, hf://owner/repo/path/to/file, hf://owner/repo@revision/path/to/file or https://..., "
    "the last three with #sha256=<64 hex digits> at the end where the content is to be checked"
)


class FetchError(ValueError):
    """A file that is not there, could not be brought here, or is not the one asked for."""


class _Reference(NamedTuple):
    """What hf:// names: a file of a repository at a revision."""

    kind: str  # model, dataset or space
    repository: str
    revision: str | None
    file: str


def is_remote(source: str) -> bool:
    """Whether a source is a reference to another machine, and no path."""
    return "://" in source


def cache_folder() -> Path:
    """Where files from URLs are kept: IDOL_CACHE, or ~/.cache/idol-vis. (hf:// has its own.)"""
    return Path(os.environ.get("IDOL_CACHE") or Path.home() / ".cache" / "idol-vis")


def fetch(source: str) -> Path:
    """The path of a file on this machine, downloaded unless it is here already.

    Many processes may ask for one file at once: one downloads, the others wait. What a broken
    download left is continued. A file from the Hugging Face hub is checked against the SHA-256 it
    is stored under there; any other remote file against the one the source gives, if it does.
    source:  a path; hf://owner/repo/path/to/file, optionally with @revision after the repository
             (hf://datasets/owner/repo/... for a data set's); https://...; the last two optionally
             ending with #sha256=<64 hex digits>
    Errors: FileNotFoundError for a path without a file. FetchError, with what was tried and what
            to do, for everything else: unknown form, no network and not in the cache, not found,
            another SHA-256 than expected.
    """
    if not is_remote(source):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"no file at {path}. A source is {_FORMS}.")
        if path.is_dir():
            raise FetchError(f"{path} is a folder, not a file. {_inside(path)}")
        return path
    address, expected = _split_digest(source)
    scheme = urlsplit(address).scheme.lower()
    if scheme == "hf":
        return _from_hub(address, expected)
    if scheme in ("http", "https"):
        _check_transport(address, expected)
        return _from_url(address, expected)
    raise FetchError(f"{source!r} begins with {scheme}://, but a source is {_FORMS}.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(folder: Path) -> str:
    """What a folder has that may have been meant, as a sentence."""
    found = sorted(
        str(path)
        for pattern in ("*.safetensors", "*.pth", "*.pt", "*/*.safetensors", "*/*.pth")
        for path in folder.glob(pattern)
    )
    return f"Did you mean {found[0]}?" if found else "Name a file in it."


def _split_digest(source: str) -> tuple[str, str | None]:
    """Address and SHA-256 of a source."""
    address, mark, digest = source.partition("#sha256=")
    if not mark:
        return source.partition("#")[0] if source.startswith("http") else source, None
    if not _SHA256.fullmatch(digest.lower()):
        raise FetchError(
            f"#sha256= must be followed by 64 hex digits, got {digest!r} ({len(digest)} characters)"
        )
    return address, digest.lower()


def _check_digest(path: Path, expected: str, source: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise FetchError(
            f"{source} has SHA-256 {found}, not {expected}: it is damaged, or another file than "
            "the one that was meant. Nothing was kept or replaced; check the digest where the file "
            "is published."
        )


# ---------------------------------------------------------------------------- Hugging Face


def _parse_hub(address: str) -> _Reference:
    parts = address.removeprefix("hf://").split("/")
    kind = "model"
    if parts[0] in ("models", "datasets", "spaces"):
        kind = parts.pop(0).removesuffix("s")
    if len(parts) < 3 or not all(part and part not in (".", "..") for part in parts):
        raise FetchError(
            f"{address!r} does not name a file of a repository. The form is "
            "hf://owner/repo/path/to/file or hf://owner/repo@revision/path/to/file, for example "
            "hf://QHL067/VNext_ECCV/IDOL/YTVIS19_R50_502AP.pth"
        )
    owner, repository, file = parts[0], parts[1], parts[2:]
    repository, mark, revision = repository.partition("@")
    if mark and not revision:
        raise FetchError(f"{address!r} has no revision after the @")
    if revision == "refs" and len(file) > 2:  # hf://owner/repo@refs/pr/3/file
        revision, file = "/".join([revision, *file[:2]]), file[2:]
    return _Reference(
        kind, f"{owner}/{repository}", unquote(revision) or None, unquote("/".join(file))
    )


def _from_hub(address: str, expected: str | None) -> Path:
    reference = _parse_hub(address)
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise FetchError(
            f"{address} needs the package huggingface_hub, which cannot be imported ({error}). "
            f"pip install huggingface_hub, or {_by_hand(reference)}"
        ) from error
    path = _ask_hub(huggingface_hub, address, reference)
    # The hub stores big files under their SHA-256, and its cache keeps that as the blob's name.
    name = path.resolve().name
    if _SHA256.fullmatch(name) and sha256_of(path) != name:
        _log.warning("%s in the cache is damaged; downloading it again", path)
        path = _ask_hub(huggingface_hub, address, reference, force_download=True)
        _check_digest(path, path.resolve().name, address)
    if expected is not None:
        _check_digest(path, expected, address)
    return path


def _ask_hub(library: Any, address: str, reference: _Reference, **options: bool) -> Path:
    errors = library.errors
    try:
        return Path(
            library.hf_hub_download(
                reference.repository,
                reference.file,
                repo_type=reference.kind,
                revision=reference.revision,
                **options,
            )
        )
    except errors.LocalEntryNotFoundError as error:
        raise FetchError(_offline(library, address, reference, error)) from error
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{address}: access to {reference.repository} must be granted. Ask for it at "
            f"{_page(reference)}, then log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"{address}: there is no {reference.kind} repository {reference.repository!r}, or it "
            f"is private. Look at {_page(reference)}; for a private one, `hf auth login` or set "
            "HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(
            f"{address}: {reference.repository} has no revision {reference.revision!r}. It is a "
            "branch, a tag or a full commit; leave it out for the newest."
        ) from error
    except errors.EntryNotFoundError as error:
        raise FetchError(
            f"{address}: {reference.repository} has no file {reference.file!r}."
            f"{_similar(library, reference)}"
        ) from error
    except errors.HFValidationError as error:
        raise FetchError(f"{address} is no valid reference: {error}") from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise FetchError(_offline(library, address, reference, error)) from error


def _page(reference: _Reference) -> str:
    folder = {"model": "", "dataset": "datasets/", "space": "spaces/"}[reference.kind]
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{host}/{folder}{reference.repository}"


def _by_hand(reference: _Reference) -> str:
    revision = quote(reference.revision or "main", safe="")
    return (
        f"download {_page(reference)}/resolve/{revision}/{quote(reference.file)} by hand and pass "
        "the path of the file"
    )


def _offline(library: Any, address: str, reference: _Reference, error: Exception) -> str:
    cause = error.__cause__ or error
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    # A variable set after the library was imported has no effect: its own constant counts.
    switched_off = library.constants.HF_HUB_OFFLINE
    network = (
        "not tried, for HF_HUB_OFFLINE is set" if switched_off else f"failed ({_short(reason)})"
    )
    return (
        f"{address} could not be had. Tried: the cache in {library.constants.HF_HUB_CACHE} - not "
        f"there; {_page(reference)} - {network}. "
        + ("Unset HF_HUB_OFFLINE, or " if switched_off else "Try again when it can be reached, or ")
        + f"on a machine that has a network {_by_hand(reference)}."
    )


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def _similar(library: Any, reference: _Reference) -> str:
    """Files of the repository with nearly this name, as a sentence; nothing where it has none."""
    try:
        # A new one: the library's own keeps the endpoint of the moment of its import.
        files = library.HfApi().list_repo_files(
            reference.repository, repo_type=reference.kind, revision=reference.revision
        )
    except (library.errors.HfHubHTTPError, OSError, ValueError):
        return ""
    names = {name.rpartition("/")[2].lower(): name for name in files}
    wanted = reference.file.rpartition("/")[2].lower()
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    found = [names[name] for name in near] or [n for n in files if n.endswith((".pth", ".pt"))][:8]
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""


# ------------------------------------------------------------------------------------- URLs


def _check_transport(url: str, expected: str | None) -> None:
    """Refuse what a stranger on the way could replace: plain http without a digest."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise FetchError(f"{url!r} names no host. A source is {_FORMS}.")
    near = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme.lower() != "https" and expected is None and not near:
        raise FetchError(
            f"{url} is not encrypted, so anyone on the way could replace the file. Use https://, "
            "or append #sha256=<64 hex digits>."
        )


def _from_url(url: str, expected: str | None) -> Path:
    name = re.sub(r"[^\w.\-]", "_", unquote(urlsplit(url).path.rpartition("/")[2]))[-100:]
    # One folder for each URL, so that the file keeps its name, which tells what it is.
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    target = folder / (name or "file")
    # Complete as soon as it has this name; a cache that may only be read needs no lock.
    if _is_there(target, expected):
        return target
    try:
        with _locked(folder):
            if _is_there(target, expected):
                return target
            part = folder / f"{target.name}.part"
            _download(url, part, expected)
            if expected is not None:
                try:
                    _check_digest(part, expected, url)
                except FetchError:
                    part.unlink()
                    raise
            os.replace(part, target)
    except OSError as error:
        raise FetchError(
            f"{url} could not be stored in {folder}: {error}. Make room there, or set IDOL_CACHE "
            "to another folder."
        ) from error
    return target


def _is_there(target: Path, expected: str | None) -> bool:
    return target.is_file() and (expected is None or sha256_of(target) == expected)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, waiting as long as another process downloads into it."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def _download(url: str, part: Path, expected: str | None) -> None:
    """Bring a URL's content into a partial file, going on where an earlier attempt stopped."""
    for attempt in range(_ATTEMPTS):
        try:
            _transfer(url, part, expected)
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == _ATTEMPTS - 1:
                raise FetchError(
                    f"{url}: the server answered {error.code} {error.reason}. Check the address, "
                    "or download the file by hand and pass its path."
                ) from error
        except _Interrupted as error:
            if attempt == _ATTEMPTS - 1:
                raise FetchError(
                    f"{url} could not be read in {_ATTEMPTS} attempts, the last: {error}. It is "
                    f"not in the cache ({part.parent}) either. Run again to go on where it "
                    "stopped, or download it by hand and pass its path."
                ) from error
        else:
            return
        time.sleep(_PAUSE * 2**attempt)


class _Interrupted(Exception):
    """No connection, or one that ended early: worth another attempt."""


def _transfer(url: str, part: Path, expected: str | None) -> None:
    tag = part.with_name(part.name + ".tag")
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "idol-vis"})
    if have:
        # Only of the very same content is the rest wanted: otherwise the server sends it whole.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())
    opener = urllib.request.build_opener(_Redirects(expected))
    try:
        answer = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        tag.unlink(missing_ok=True)  # nothing is left of that range: from the beginning
        raise _Interrupted("the rest of an earlier download is not to be had") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    with answer:
        kind = answer.headers.get_content_type()
        if kind == "text/html" and not part.name.endswith((".html.part", ".htm.part")):
            raise FetchError(
                f"{url} answers with a web page, not with a file. Is it the page about the file, "
                "or one that asks to log in? Copy the address of the download itself."
            )
        resumed = answer.status == 206 and _starts_at(answer.headers["Content-Range"], have)
        if answer.status == 206 and not resumed:
            tag.unlink(missing_ok=True)
            raise _Interrupted("the server sent another part than the one asked for")
        etag = answer.headers["ETag"] or ""
        validator = etag if etag.startswith('"') else answer.headers["Last-Modified"] or ""
        _log.info("downloading %s to %s", url, part.parent)
        with part.open("ab" if resumed else "wb") as file:
            # Noted after the old content is gone: it must never vouch for bytes of another.
            if validator:
                tag.write_text(validator)
            else:
                tag.unlink(missing_ok=True)
            _copy(answer, file)
            file.flush()
            os.fsync(file.fileno())
    tag.unlink(missing_ok=True)


def _copy(answer: Any, file: IO[bytes]) -> None:
    length = answer.headers["Content-Length"]
    left = int(length) if length is not None else None
    while True:
        try:
            block = answer.read(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        if not block:
            break
        file.write(block)
        left = left - len(block) if left is not None else None
    if left:
        raise _Interrupted(f"the connection ended {left} bytes before the end of the file")


def _starts_at(content_range: str | None, have: int) -> bool:
    match = re.match(r"bytes (\d+)-", content_range or "")
    return match is not None and int(match[1]) == have


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirections, but not from https to where the file could be replaced."""

    def __init__(self, expected: str | None) -> None:
        self.expected = expected

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request to follow with; FetchError for a place not to go to."""
        _check_transport(newurl, self.expected)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
