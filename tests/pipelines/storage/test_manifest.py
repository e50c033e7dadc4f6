"""A finished directory says what it holds; any other says what to do."""

import json
import os

import pytest

from pipelines.errors import ManifestError
from pipelines.storage import claims, layout, manifest
from tests.pipelines.storage.test_claims import CONFIG, finished


def test_what_was_written_is_what_is_read(tmp_path):
    written = finished(tmp_path / "out")
    assert written == manifest.read(tmp_path / "out", "prepare")
    assert (written.rows, written.shards, written.rejects) == (4, 2, 0)
    assert written.config == {"max_gap": 5, "sizes": [1, 2]}
    assert [p.name for p in manifest.shard_paths(tmp_path / "out")] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == [
        "_manifest.json",
        "rejects.parquet",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]


def test_the_hash_names_the_content_and_not_the_time_it_took(tmp_path):
    first, again = finished(tmp_path / "a"), finished(tmp_path / "b")
    other = finished(tmp_path / "c", config={"max_gap": 6})
    assert first.hash == again.hash != other.hash


def test_reading_an_absent_directory_says_what_to_run(tmp_path):
    with pytest.raises(ManifestError, match=r"no such directory.*python -m jobs.prepare"):
        manifest.read(tmp_path / "none", "prepare")


def test_reading_an_unfinished_directory_says_so(tmp_path):
    claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
    with pytest.raises(ManifestError, match=r"unfinished 'prepare' output.*goes on"):
        manifest.read(tmp_path / "out", "prepare")


def test_reading_another_stages_directory_says_so(tmp_path):
    finished(tmp_path / "out")
    with pytest.raises(ManifestError, match="'prepare' output, not 'detect'"):
        manifest.read(tmp_path / "out", "detect")


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 3}', '{"stage": "prepare", "new": 1}'])
def test_a_broken_manifest_is_an_error_and_not_a_crash(tmp_path, text):
    finished(tmp_path / "out")
    (tmp_path / "out" / manifest.MANIFEST).write_text(text)
    with pytest.raises(ManifestError, match=r"_manifest\.json"):
        manifest.read(tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", 5), ("rows", "4"), ("shards", None), ("config", []), ("extra", 1), ("seconds", "a")],
)
@pytest.mark.parametrize("checked", [True, False])
def test_an_edited_manifest_is_refused_by_name(tmp_path, field, value, checked):
    finished(tmp_path / "out")
    path = tmp_path / "out" / manifest.MANIFEST
    content = {**json.loads(path.read_text()), field: value}
    if not checked:  # as written before manifests had a checksum
        del content["checksum"]
    path.write_text(json.dumps(content))
    if checked or field != "rows" or value != 5:
        with pytest.raises(ManifestError, match=r"_manifest\.json is damaged, or was changed"):
            manifest.read(tmp_path / "out")


def test_a_changed_report_is_refused_by_name(tmp_path):
    output = claims.prepare_output(tmp_path / "out", "evaluate", CONFIG, "h")
    path = output.path / layout.REPORT
    manifest.commit_json({"AP": 0.5}, path)
    output.finish()
    assert manifest.read_json(path, "evaluate") == {"AP": 0.5}
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(ManifestError, match=r"report\.json is damaged, .*its checksum is wrong"):
        manifest.read_json(path, "evaluate")


def test_tables_of_another_schema_version_are_refused(tmp_path):
    finished(tmp_path / "out")
    path = tmp_path / "out" / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 999}))
    with pytest.raises(ManifestError, match="schema version 999"):
        manifest.read(tmp_path / "out")
