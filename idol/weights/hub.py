"""Files named by a path, a Hugging Face reference or a URL, brought to this machine and checked."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from idol.addresses import is_remote, shown
from idol.files import whole_file

if TYPE_CHECKING:
    from huggingface_hub import HfUri

_log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt; twice as long before the third
_TIMEOUT = 30.0  # seconds without a byte
_HUB_FORM = "hf://owner/repo/path/to/file or hf://owner/repo@revision/path/to/file"
_FORMS = (
    f"a path, {_HUB_FORM}, or https://..., the last three with #sha256=<64 hex digits> at the end "
    "where the content is to be checked"
)


class FetchError(ValueError):
    """A file that is not there, could not be brought here, or is not the one asked for."""


def fetch(source: str) -> Path:
    """The path of a file on this machine, downloaded unless it is here already.

    Processes that ask for one file at once download it once. A file from the Hugging Face hub is
    checked against the SHA-256 that the hub stores it under, any other remote file against the
    one in the source. Files from URLs are kept in IDOL_CACHE, or ~/.cache/idol-vis.

    source: a path; hf://owner/repo/path/to/file, also with @revision after the repository
            (hf://datasets/owner/repo/... for a data set's); https://...; the last two also
            with #sha256=<64 hex digits> at the end
    Raises:
        FileNotFoundError: there is no file at a path.
        FetchError: unknown form, not to be had, or another SHA-256 than expected.
    """
    if not is_remote(source):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"no file at {path}. A source is {_FORMS}.")
        if path.is_dir():
            patterns = ("*.safetensors", "*.pth", "*.pt", "*/*.safetensors", "*/*.pth")
            found = sorted(str(file) for pattern in patterns for file in path.glob(pattern))
            advice = f"Did you mean {found[0]}?" if found else "Name a file in it."
            raise FetchError(f"{path} is a folder, not a file. {advice}")
        return path
    address, mark, digest = source.partition("#sha256=")
    expected = digest.lower() if mark else None
    if expected is not None and not _SHA256.fullmatch(expected):
        raise FetchError(
            f"#sha256= must be followed by 64 hex digits, got {digest!r} ({len(digest)} characters)"
        )
    scheme = urlsplit(address).scheme.lower()
    if scheme == "hf":
        return _from_hub(address, expected)
    if scheme in ("http", "https"):
        return _from_url(address.partition("#")[0], expected)
    raise FetchError(f"{shown(source)!r} begins with {scheme}://, but a source is {_FORMS}.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, expected: str | None, source: str) -> None:
    if expected is not None and (found := sha256_of(path)) != expected:
        raise FetchError(
            f"{shown(source)} has SHA-256 {found}, not {expected}: it is damaged, or another file "
            "than the one that was meant. Check the digest where the file is published."
        )


def _from_hub(address: str, expected: str | None) -> Path:
    from huggingface_hub import errors, parse_hf_uri

    try:
        uri = parse_hf_uri(address)
    except errors.HfUriError as error:
        raise FetchError(f"{error} The form is {_HUB_FORM}.") from None
    if not uri.path_in_repo or uri.is_bucket or ".." in uri.path_in_repo.split("/"):
        raise FetchError(f"{address} names no file of a repository. The form is {_HUB_FORM}.")
    # It tells of every retry in two lines; an error says it all in the end.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    _announce(uri)
    path = _ask_hub(uri)
    # The hub stores big files under their SHA-256, and its cache keeps that as the blob's name.
    name = path.resolve().name
    if _SHA256.fullmatch(name) and sha256_of(path) != name:
        _log.warning("%s in the cache is damaged; downloading it again", path)
        path = _ask_hub(uri, force_download=True)
        _check_digest(path, path.resolve().name, address)
    _check_digest(path, expected, address)
    return path


def _announce(uri: HfUri) -> None:
    """Log how large a file is that is not in the cache yet, before it is downloaded."""
    import httpx2  # what the hub's library connects by
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    place = {"repo_type": uri.type, "revision": uri.revision}
    cached = try_to_load_from_cache(uri.id, uri.path_in_repo, **place)
    if isinstance(cached, str) or constants.HF_HUB_OFFLINE:
        return
    try:
        size = get_hf_file_metadata(hf_hub_url(uri.id, uri.path_in_repo, **place)).size
    except httpx2.TransportError as error:
        told = f"{constants.ENDPOINT} does not answer ({_text(error)}); trying for half a minute"
        _log.warning("%s", told)
        return
    except (OSError, ValueError, httpx2.HTTPError):  # told by the download itself
        return
    if size is not None:
        told = f"{size / 1e6:.1f} MB, once, to {constants.HF_HUB_CACHE}"
        _log.warning("downloading %s: %s", uri.to_uri(), told)


def _ask_hub(uri: HfUri, **options: Any) -> Path:
    """The path of a hub file; FetchError, with what to do, where it cannot be had."""
    from huggingface_hub import constants, errors, hf_hub_download

    options |= {"repo_type": uri.type, "revision": uri.revision}
    try:
        return Path(hf_hub_download(uri.id, uri.path_in_repo, **options))  # nosec B615
    except errors.LocalEntryNotFoundError as error:
        # A variable set after the library was imported has no effect: its own constant counts.
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else _text(error.__cause__ or error)
        message = (
            f"it is not in the cache ({constants.HF_HUB_CACHE}), and the hub was not reached: "
            f"{reason}. {'Unset HF_HUB_OFFLINE' if offline else 'Try again later'}, or download "
            f"{uri.to_url()} on a machine that has a network and pass the file's path"
        )
    except errors.EntryNotFoundError:
        message = f"{uri.id} has no file {uri.path_in_repo!r}{_similar(uri)}"
    except (OSError, ValueError) as error:
        # The library tells a missing repository or revision, and how to log in, in its own words.
        message = _text(error)
    # Not chained: the address of a file in the hub's storage is signed, which is a secret.
    raise FetchError(f"{uri.to_uri()}: {message}")


def _text(error: BaseException) -> str:
    """An error's words in one line, without the queries of URLs."""
    return re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", " ".join(str(error).split()))


def _similar(uri: HfUri) -> str:
    """Files of the repository with nearly this name, as a question; "" where there are none."""
    from huggingface_hub import HfApi

    try:
        # A new HfApi: the library's own keeps the endpoint of the moment of its import.
        files = HfApi().list_repo_files(uri.id, repo_type=uri.type, revision=uri.revision)
    except (OSError, ValueError):
        return ""
    names = {name.rpartition("/")[2].lower(): name for name in files}
    wanted = uri.path_in_repo.rpartition("/")[2].lower()
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    found = [names[name] for name in near] or [n for n in files if n.endswith((".pth", ".pt"))][:8]
    return f". Did you mean {' or '.join(map(repr, found))}?" if found else ""


def _check_transport(url: str, expected: str | None) -> None:
    """Refuse what a stranger on the way could replace: plain http without a digest."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise FetchError(f"{shown(url)!r} names no host. A source is {_FORMS}.")
    near = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme.lower() != "https" and expected is None and not near:
        raise FetchError(
            f"{shown(url)} is not encrypted, so anyone on the way could replace the file. Use "
            "https://, or append #sha256=<64 hex digits>."
        )


def _from_url(url: str, expected: str | None) -> Path:
    from filelock import FileLock

    _check_transport(url, expected)
    name = re.sub(r"[^\w.\-]", "_", unquote(urlsplit(url).path.rpartition("/")[2]))[-100:]
    cache = Path(os.environ.get("IDOL_CACHE") or Path.home() / ".cache" / "idol-vis")
    # One folder for each URL, so that the file keeps its name, which tells what it is.
    target = cache / hashlib.sha256(url.encode()).hexdigest()[:16] / (name or "file")

    def there() -> bool:
        return target.is_file() and (expected is None or sha256_of(target) == expected)

    # A file that has its name is complete, so a cache that may only be read needs no lock.
    if there():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / ".lock"):
            if not there():
                _download(url, target, expected)
    except OSError as error:
        raise FetchError(
            f"{shown(url)} could not be stored in {target.parent}: {error}. Make room there, or "
            "set IDOL_CACHE to another folder."
        ) from error
    return target


def _download(url: str, target: Path, expected: str | None) -> None:
    """Write a URL's content to a file, whole and checked, in at most _ATTEMPTS attempts."""
    # Unlike torch.hub's downloader, requests notices a body shorter than announced; pooch (1.0 s
    # to import instead of 0.2 s) is requests again, and logs whole URLs.
    import requests

    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE * attempt)
        _log.info("downloading %s to %s", shown(url), target.parent)
        try:
            _transfer(url, target, expected)
            return
        except requests.RequestException as error:
            # Its text holds the query and the user of a URL, which may be secrets.
            reason = type(error).__name__
            if error.response is not None:
                reason = f"the server answered {error.response.status_code}"
                if error.response.status_code < 500:
                    break
    raise FetchError(
        f"{shown(url)} could not be read: {reason}. It is not in the cache ({target.parent}) "
        "either. Check the address and the network, or download it by hand and pass its path."
    )


def _transfer(url: str, target: Path, expected: str | None) -> None:
    import requests

    def follow(answer: requests.Response, **_: object) -> None:
        if answer.is_redirect:
            _check_transport(urljoin(answer.url, answer.headers["Location"]), expected)

    # Compressed on the way, a file would be as long as announced only after it is unpacked.
    headers = {"User-Agent": "idol-vis", "Accept-Encoding": "identity"}
    options: dict[str, Any] = {"headers": headers, "hooks": {"response": follow}, "stream": True}
    with requests.get(url, timeout=_TIMEOUT, **options) as answer, whole_file(target) as part:
        answer.raise_for_status()
        kind = answer.headers.get("Content-Type", "")
        if kind.startswith("text/html") and target.suffix not in (".html", ".htm"):
            raise FetchError(
                f"{shown(url)} answers with a web page, not with a file. Is it the page about the "
                "file, or one that asks to log in? Copy the address of the download itself."
            )
        with part.open("wb") as file:
            for block in answer.iter_content(1 << 20):
                file.write(block)
        _check_digest(part, expected, url)
