"""Files named by path, hub reference or URL: fetched once, checked, and refused with the reason."""

import hashlib
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from idol.weights import hub
from idol.weights.hub import FetchError
from tests.idol.file_server import serving

CONTENT = bytes(range(256)) * 5000
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Any]:
    with serving() as state:
        state.files["/weights.pth"] = CONTENT
        state.repository["IDOL/YTVIS19_R50_502AP.pth"] = CONTENT
        yield state


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port that is taken, but where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IDOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_PAUSE", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def hugging_face(server, tmp_path, monkeypatch) -> Any:
    """The hub library, pointed at the server and at an empty cache."""
    library = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Versions since 2.0 keep a list of their own in the home directory.
    monkeypatch.setattr(
        constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False
    )
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return library


def gets(server):
    return [r for r in server.requests if r[0] == "GET" and not r[1].startswith("/api/")]


# ---------------------------------------------------------------- paths and forms


def test_a_path_is_its_own_file(tmp_path):
    (tmp_path / "x#1.pth").write_bytes(b"x")
    assert hub.fetch(str(tmp_path / "x#1.pth")) == tmp_path / "x#1.pth"


def test_a_missing_path_tells_the_forms_a_source_can_have(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"hf://owner/repo@revision/path"):
        hub.fetch(str(tmp_path / "nothing.pth"))


def test_a_folder_is_refused_with_the_checkpoint_inside_it(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").touch()
    with pytest.raises(FetchError, match=r"is a folder.*Did you mean .*checkpoint\.safetensors"):
        hub.fetch(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("s3://bucket/x.pth", "begins with s3://, but a source is"),
        ("http://example.org/x.pth", "not encrypted"),
        ("https:///x.pth", "names no host"),
        ("https://example.org/x.pth#sha256=abc", r"64 hex digits, got 'abc' \(3 characters\)"),
        ("hf://owner/repo", "names no file of a repository"),
        ("hf://owner/repo/../x.pth", "names no file"),
        ("hf://owner/repo@/x.pth", "Empty revision after '@'"),
        ("hf://gr oup/models/x.pth", "Invalid HF URI"),
    ],
)
def test_a_source_of_another_form_is_refused_before_any_request(source, reason):
    with pytest.raises(FetchError, match=reason):
        hub.fetch(source)


@pytest.mark.parametrize(
    ("source", "kind", "repository", "revision", "file"),
    [
        ("hf://a/b/c.pth", "model", "a/b", None, "c.pth"),
        ("hf://a/b@v1/c/d.pth", "model", "a/b", "v1", "c/d.pth"),
        ("hf://a/b@refs/pr/3/c/d.pth", "model", "a/b", "refs/pr/3", "c/d.pth"),
        ("hf://a/b@x%2Fy/c.pth", "model", "a/b", "x/y", "c.pth"),
        ("hf://datasets/a/b/c.pth", "dataset", "a/b", None, "c.pth"),
    ],
)
def test_a_hub_reference_names_repository_revision_and_file(
    source, kind, repository, revision, file, monkeypatch, tmp_path
):
    import huggingface_hub

    asked = []

    def download(*where, **options):
        asked.append((*where, options))
        return str(tmp_path / "x")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.fetch(source) == tmp_path / "x"
    assert asked == [(repository, file, {"repo_type": kind, "revision": revision})]


# ---------------------------------------------------------------- URLs


def test_a_url_is_downloaded_once_and_keeps_its_name(server, cache):
    path = hub.fetch(f"{server.url}/weights.pth")
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.pth"
    assert cache in path.parents
    assert hub.fetch(f"{server.url}/weights.pth") == path
    assert len(server.requests) == 1
    assert sorted(p.name for p in path.parent.iterdir()) in ([".lock", "weights.pth"], [path.name])


def test_a_right_digest_passes_and_a_wrong_one_keeps_nothing(server, cache):
    assert hub.fetch(f"{server.url}/weights.pth#sha256={SHA.upper()}").read_bytes() == CONTENT
    server.files["/other.pth"] = CONTENT
    with pytest.raises(FetchError, match=f"has SHA-256 {SHA}, not {'0' * 64}"):
        hub.fetch(f"{server.url}/other.pth#sha256={'0' * 64}")
    assert not list(cache.rglob("other.pth*"))


def test_a_cached_file_of_another_digest_is_replaced_by_the_right_one_only(server):
    path = hub.fetch(f"{server.url}/weights.pth")
    newer = CONTENT[::-1]
    with pytest.raises(FetchError, match="SHA-256"):
        hub.fetch(f"{server.url}/weights.pth#sha256={hashlib.sha256(newer).hexdigest()}")
    assert path.read_bytes() == CONTENT
    server.files["/weights.pth"] = newer
    again = hub.fetch(f"{server.url}/weights.pth#sha256={hashlib.sha256(newer).hexdigest()}")
    assert again.read_bytes() == newer


def test_a_broken_download_is_tried_again(server):
    server.cut = [1000, 500_000]
    assert hub.fetch(f"{server.url}/weights.pth").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_download_given_up_leaves_nothing_behind(server, cache):
    server.cut = [1000, 0, 0]
    with pytest.raises(FetchError, match=r"could not be read: ChunkedEncodingError"):
        hub.fetch(f"{server.url}/weights.pth")
    assert not [p for p in cache.rglob("*") if p.is_file() and p.name != ".lock"]
    assert hub.fetch(f"{server.url}/weights.pth").read_bytes() == CONTENT


# The traceback under test holds the frame of a socket that was refused, until it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["gone", "broken", "page", "digest", "away", "nobody"])
def test_a_secret_in_a_url_is_in_no_message_and_no_log(server, nobody, caplog, fault):
    secret = "-".join(["never", "shown"])  # in no line of a traceback either
    user = f"http://user:{secret}@"
    server.files["/page"] = b"<html>please log in</html>"
    server.redirect["/away"] = f"http://example.org/weights.pth?token={secret}"
    path = {"page": "/page", "away": "/away", "gone": "/gone"}.get(fault, "/weights.pth")
    digest = f"#sha256={'0' * 64}" if fault == "digest" else ""
    server.cut = [10, 10, 10] if fault == "broken" else []
    address = (nobody if fault == "nobody" else server.url).replace("http://", user)
    with caplog.at_level("INFO"), pytest.raises(FetchError) as caught:
        hub.fetch(f"{address}{path}?token={secret}{digest}")
    told = caplog.text + "".join(traceback.format_exception(caught.value))
    assert "weights.pth" in told or path in told
    assert secret not in told


def test_user_and_password_of_a_url_reach_the_server(server):
    seen = []
    original = server.answer

    def answer(request):
        seen.append(request.headers["Authorization"])
        original(request)

    server.answer = answer
    hub.fetch(server.url.replace("http://", "http://user:word@") + "/weights.pth")
    assert seen == ["Basic dXNlcjp3b3Jk"]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server):
    server.status = [503]
    assert hub.fetch(f"{server.url}/weights.pth").read_bytes() == CONTENT
    server.requests.clear()
    server.status = [404]
    with pytest.raises(FetchError, match="answered 404"):
        hub.fetch(f"{server.url}/gone.pth")
    assert len(server.requests) == 1


def test_a_web_page_instead_of_a_file_is_not_kept(server, cache):
    server.files["/page"] = b"<html>please log in</html>"
    with pytest.raises(FetchError, match="web page"):
        hub.fetch(f"{server.url}/page")
    assert not [p for p in cache.rglob("*") if p.is_file() and p.name != ".lock"]


def test_a_redirection_is_followed_but_not_to_an_unencrypted_stranger(server):
    server.redirect["/moved"] = f"{server.url}/weights.pth"
    assert hub.fetch(f"{server.url}/moved").read_bytes() == CONTENT
    server.redirect["/away"] = "http://example.org/weights.pth"
    with pytest.raises(FetchError, match=r"example\.org.* not encrypted"):
        hub.fetch(f"{server.url}/away")


def test_a_host_that_cannot_be_reached_tells_what_to_do(nobody):
    with pytest.raises(FetchError, match=r"could not be read: ConnectionError.*by hand"):
        hub.fetch(f"{nobody}/x.pth")


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("IDOL_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="IDOL_CACHE"):
        hub.fetch(f"{server.url}/weights.pth")


def test_threads_that_want_one_file_download_it_once(server):
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: hub.fetch(f"{server.url}/weights.pth"), range(16)))
    assert len(paths) == 1
    assert paths.pop().read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_processes_that_want_one_file_download_it_once(server):
    # The module alone: importing the package would take each process seconds.
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('hub', sys.argv[1])\n"
        "hub = sys.modules['hub'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(hub)\n"
        "print(hub.sha256_of(hub.fetch(sys.argv[2])))\n"
    )
    command = [sys.executable, "-c", program, hub.__file__, f"{server.url}/weights.pth"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == [SHA] * 3
    assert len(server.requests) == 1


# ---------------------------------------------------------------- Hugging Face


@pytest.mark.usefixtures("hugging_face")
def test_a_hub_file_is_fetched_once_and_then_found_without_a_network(server, monkeypatch):
    from huggingface_hub import constants

    source = "hf://group/models/IDOL/YTVIS19_R50_502AP.pth"
    path = hub.fetch(source)
    assert path.read_bytes() == CONTENT
    assert path.name == "YTVIS19_R50_502AP.pth"
    assert hub.fetch("hf://group/models@v1/IDOL/YTVIS19_R50_502AP.pth").read_bytes() == CONTENT
    assert len(gets(server)) == 1
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch(source) == path
    assert hub.fetch(f"{source}#sha256={SHA}") == path
    assert not server.requests


@pytest.mark.usefixtures("hugging_face")
def test_a_wrong_digest_of_a_hub_file_is_refused():
    with pytest.raises(FetchError, match=f"has SHA-256 {SHA}, not {'1' * 64}"):
        hub.fetch(f"hf://group/models/IDOL/YTVIS19_R50_502AP.pth#sha256={'1' * 64}")


@pytest.mark.usefixtures("hugging_face")
def test_a_damaged_hub_cache_is_noticed_and_downloaded_again(server):
    source = "hf://group/models/IDOL/YTVIS19_R50_502AP.pth"
    path = hub.fetch(source)
    path.resolve().write_bytes(CONTENT[:-1] + b"!")
    assert hub.fetch(source).read_bytes() == CONTENT
    # A server whose content is not what its own digest says cannot mend it.
    path.resolve().write_bytes(CONTENT[:-1] + b"!")
    original = server.answer

    def lie(request):
        reply = request.reply
        request.reply = lambda status, body, **headers: reply(status, body[::-1], **headers)
        original(request)

    server.answer = lie
    with pytest.raises(FetchError, match=f"not {SHA}"):
        hub.fetch(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf://nobody/nothing/x.pth", r"Repository Not Found.*private or gated"),
        ("hf://group/models@v9/x.pth", "Revision Not Found.*v9"),
        (
            "hf://group/models/YTVIS19_R50_495AP.pth",
            r"no file 'YTVIS19_R50_495AP.pth'. Did you mean 'IDOL/YTVIS19_R50_502AP.pth'\?",
        ),
    ],
)
@pytest.mark.usefixtures("hugging_face")
def test_what_the_hub_does_not_have_is_told_by_kind(source, reason):
    with pytest.raises(FetchError, match=reason):
        hub.fetch(source)


@pytest.mark.usefixtures("hugging_face")
def test_offline_without_a_cached_file_tells_what_was_tried_and_how_to_get_it(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError) as caught:
        hub.fetch("hf://group/models@v1/IDOL/x.pth")
    for part in ("not in the cache", "HF_HUB_OFFLINE is set", "/group/models/blob/v1/IDOL/x.pth"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("hugging_face")
def test_an_unreachable_hub_tells_the_reason_and_how_to_get_the_file(nobody, monkeypatch):
    from huggingface_hub import constants

    template = nobody + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(FetchError, match=r"not in the cache.*not reached: .*download .*x\.pth"):
        hub.fetch("hf://group/models/IDOL/x.pth")
