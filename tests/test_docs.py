"""The site: it builds without a network, has every setting, and names only settings that exist."""

import dataclasses
import html.parser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idol.config import Config
from idol.images.synthetic import SyntheticConfig
from idol.images.synthetic_dataset import write_dataset

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and default of every setting, as --set names it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


SETTINGS = dict(fields(Config()))


class Fetched(html.parser.HTMLParser):
    """What a browser would fetch to show a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        key = {"script": "src", "img": "src", "link": "href", "iframe": "src"}.get(tag)
        if key and given.get(key) and given.get("rel") not in ("canonical", "next", "prev"):
            self.places.append(str(given[key]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra docs (make setup-dev)")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs (make setup-dev)")
    out = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # mkdocs.yml is strict: a dead link, a page that the navigation lacks, or an unknown name of the
    # reference is an error.
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    for page in pages:
        for place in Fetched(page.read_text()).places:
            assert not re.match(r"(https?:)?//", place), f"{page.name}: {place}"


def test_every_setting_is_listed_with_its_meaning(site: Path) -> None:
    page = (site / "settings.html").read_text()
    for section in {name.rpartition(".")[0] for name in SETTINGS} - {""}:
        assert f'id="{section.replace(".", "")}"' in page, section
    named = set(re.findall(r"<td><code>(\w+)</code></td>", page))
    expected = {name.rpartition(".")[2] for name in SETTINGS if "." in name}
    assert expected <= named
    # No field is without a docstring.
    rows = re.findall(r"<tr>\s*<td><code>(\w+)</code></td>.*?<td>([^<]*)", page, re.S)
    assert len(rows) >= len(expected)
    assert "<td></td>" not in page


def test_the_reference_shows_docstrings_with_their_shapes_as_lists(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert "<li><code>source</code>" in re.sub(r"<p>|\n", "", page)
    assert "OnlineSegmenter" in page


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    sections = "|".join(sorted({name.split(".")[0] for name in SETTINGS if "." in name}))
    shown = set(
        re.findall(
            rf"(?:`|--set '?|--grid |--choice |--uniform |--log-uniform )((?:{sections})\.\w+)",
            text,
        )
    )
    unknown = sorted(shown - SETTINGS.keys() - {"model.backbone", "tracker.FIELD", "losses.json"})
    assert not unknown


def test_the_pages_for_vnext_name_enough_settings() -> None:
    text = (ROOT / "docs/vnext.md").read_text()
    assert len(set(re.findall(r"`(\w+\.\w+)`", text)) & SETTINGS.keys()) >= 20


def test_every_benchmark_can_be_imported() -> None:
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    code = f"import importlib\nfor n in {names!r}: importlib.import_module('benchmarks.' + n)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tracker_of_the_page_runs_from_a_module_in_the_current_folder(tmp_path: Path) -> None:
    text = (ROOT / "docs/association.md").read_text()
    (code,) = re.findall(r"```python\n(class Nearest:.*?)```", text, re.DOTALL)
    (tmp_path / "nearest.py").write_text(code)
    write_dataset(tmp_path, SyntheticConfig(length=(4, 4)), 1, 5)
    words = ["track", "JPEGImages/video_0000", "--weights", "shipped", "--out", "seen"]
    words += ["--tracker", "nearest:Nearest", "--no-video"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import jobs; jobs.main({words!r})"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen/tracks.jsonl").read_text()
