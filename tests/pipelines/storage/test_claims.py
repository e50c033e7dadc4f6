"""A directory is new, unfinished or finished, and belongs to one run of one stage."""

import json
import os

import pyarrow as pa
import pytest

from idol.ytvis.videos import Reject
from pipelines.errors import ManifestError
from pipelines.storage import claims, manifest, schemas, tables

CONFIG = {"max_gap": 5, "sizes": (1, 2)}
REJECT = Reject(4, "a.jpg", "the frame does not exist")


def shard(video_id: int) -> pa.Table:
    row = {"video_id": video_id, "path": "p", "reason": "r"}
    return schemas.table([row, row], schemas.REJECTS)


def finished(path, stage="prepare", config=CONFIG, input_hash="h"):
    output = claims.prepare_output(path, stage, config, input_hash)
    for index in range(2):
        tables.commit(shard(index), output.shard(index))
    return output.finish(total_shards=2)


def test_an_equal_run_finds_the_finished_output(tmp_path):
    written = finished(tmp_path / "out")
    assert claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h").finished == written


def test_what_a_killed_preflight_left_is_gone_in_the_end(tmp_path):
    left = tmp_path / "out" / "_probe-64579630"
    claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
    left.mkdir()
    (left / "driver").touch()
    finished(tmp_path / "out")
    assert not left.exists()


def test_of_two_equal_runs_the_second_to_end_finds_what_the_first_has_written(
    tmp_path, monkeypatch
):
    second = claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
    written = finished(tmp_path / "out")
    commit, left = tables.commit, []

    def commit_too_late(table, path):
        if not left:
            left.append(path)
            raise FileNotFoundError(path)  # the first has removed it, half written
        commit(table, path)

    monkeypatch.setattr(tables, "commit", commit_too_late)
    assert second.finish(total_shards=2) == written
    assert left
    (tmp_path / "out" / manifest.MANIFEST).unlink()
    left.clear()
    with pytest.raises(ManifestError, match="holds no finished"):
        second.finish(total_shards=2)


@pytest.mark.parametrize(
    ("stage", "config", "input_hash", "words"),
    [
        ("detect", CONFIG, "h", "stage 'prepare', not 'detect'"),
        ("prepare", {**CONFIG, "max_gap": 6}, "h", "max_gap was 5, now 6"),
        ("prepare", CONFIG, "other", "input had other content"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_runs_directory_is_refused(tmp_path, stage, config, input_hash, words, complete):
    if complete:
        finished(tmp_path / "out")
    else:
        claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
    with pytest.raises(ManifestError, match=words) as caught:
        claims.prepare_output(tmp_path / "out", stage, config, input_hash)
    assert "--overwrite" in str(caught.value)


@pytest.mark.parametrize("complete", [True, False])
def test_a_directory_belongs_to_its_frames(tmp_path, complete):
    output = claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h", frames="2 files (ab)")
    if complete:
        assert output.finish().frames == "2 files (ab)"
    words = r"its frames were 2 files \(ab\), those given now are 2 files \(cd\)\. Choose another"
    with pytest.raises(ManifestError, match=words):
        claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h", frames="2 files (cd)")
    with pytest.raises(
        ManifestError, match="input had other content, or older code wrote it; its frames were"
    ):
        claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "i", frames="2 files (cd)")
    claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h", frames="2 files (ab)")


def test_outputs_from_before_frames_were_recorded(tmp_path):
    for name in ("with", "without"):
        finished(tmp_path / name)
        path = tmp_path / name / manifest.MANIFEST
        content = json.loads(path.read_text())
        del content["frames"], content["checksum"]
        path.write_text(json.dumps(content))
    assert claims.prepare_output(tmp_path / "without", "prepare", CONFIG, "h").finished is not None
    with pytest.raises(ManifestError, match="its frames were not recorded"):
        claims.prepare_output(tmp_path / "with", "prepare", CONFIG, "h", frames="2 files (ab)")


def test_a_foreign_directory_is_refused_and_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    for overwrite in (False, True):
        with pytest.raises(ManifestError, match="not an output of this project"):
            claims.prepare_output(tmp_path, "prepare", CONFIG, "h", overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ManifestError, match="is a file"):
        claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")


def test_overwriting_deletes_the_stages_own_files_only(tmp_path):
    out = tmp_path / "out"
    finished(out)
    (out / "notes.txt").write_text("mine")
    output = claims.prepare_output(out, "detect", CONFIG, "h", overwrite=True)
    assert output.finished is None
    assert output.missing(2) == [0, 1]
    assert sorted(os.listdir(out)) == ["_started.json", "notes.txt"]


def test_an_unfinished_run_goes_on_with_the_missing_shards(tmp_path):
    out = tmp_path / "out"
    output = claims.prepare_output(out, "prepare", CONFIG, "h")
    tables.commit(shard(1), output.shard(1), rejects=[REJECT])
    with pytest.raises(ManifestError, match="misses 1 of 2 shards"):
        output.finish(total_shards=2)

    resumed = claims.prepare_output(out, "prepare", CONFIG, "h")
    assert resumed.finished is None
    assert resumed.missing(2) == [0]
    tables.commit(shard(0), resumed.shard(0), rejects=[REJECT])
    # The finished shard's rejects are still known, and the same fault counts once.
    assert resumed.finish(total_shards=2).rejects == 1
    assert tables.read_rejects(out) == [REJECT]


def test_going_on_with_other_code_is_recorded(tmp_path, monkeypatch):
    claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
    old = claims.code_version()
    monkeypatch.setattr(claims, "code_version", lambda: "newer")
    output = claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
    assert output.finish().code_version == f"{old} + newer"


def test_an_edited_number_of_shards_is_refused_without_a_list_of_them(tmp_path):
    finished(tmp_path / "out")
    path = tmp_path / "out" / manifest.MANIFEST
    path.write_text(path.read_text().replace('"shards": 2', f'"shards": {2**62}'))
    with pytest.raises(
        ManifestError, match=rf"shard-00002\.parquet, one of its {2**62} shards|edit"
    ):
        manifest.shard_paths(tmp_path / "out", "prepare")


def test_a_finished_directory_that_lost_a_shard_is_not_finished(tmp_path):
    finished(tmp_path / "out")
    (tmp_path / "out" / "shard-00001.parquet").unlink()
    with pytest.raises(ManifestError, match=r"lost shard-00001\.parquet, one of its 2 shards"):
        manifest.shard_paths(tmp_path / "out", "prepare")
    with pytest.raises(ManifestError, match=r"lost shard-00001\.parquet, one of its 2 shards"):
        claims.prepare_output(tmp_path / "out", "prepare", CONFIG, "h")
