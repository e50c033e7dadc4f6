"""Files of torch.save: read in every form they have, and never executed."""

import argparse
import collections
import contextlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from idol.weights import torch_file
from idol.weights.report import CheckpointError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Payload:
    """What a file that runs code when read looks like."""

    def __reduce__(self):
        return (print, ("code ran",))


def weights():
    return {"detr.a": torch.arange(12.0).view(3, 4), "detr.n": torch.tensor(3)}


def write(path, blob, zipped=True, **options):
    torch.save(blob, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def assert_same(read, expected):
    assert list(read) == list(expected)
    for key, value in expected.items():
        assert torch.equal(read[key], value)
        assert read[key].dtype == value.dtype


@FORMATS
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {}}, "iteration": 11999},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": collections.OrderedDict(state), "scheduler": {"last_epoch": 1}},
        lambda state: {**state, "epoch": 3},
        lambda state: {k: torch.nn.Parameter(v, v.is_floating_point()) for k, v in state.items()},
    ],
    ids=["bare", "detectron2", "state_dict", "ordered", "beside", "parameters"],
)
def test_the_weights_are_found_bare_or_in_a_wrapper(tmp_path, zipped, wrap):
    path = write(tmp_path / "x.pth", wrap(weights()), zipped)
    read = torch_file.read(path)
    assert_same(read, weights())
    assert not any(tensor.requires_grad for tensor in read.values())


@FORMATS
def test_plain_values_beside_the_weights_are_skipped_without_running_their_code(tmp_path, zipped):
    beside = {
        "loss": np.float64(0.5),
        "curve": np.arange(5.0),
        "args": argparse.Namespace(lr=1e-4, path=tmp_path),
        "when": {1, 2},
    }
    path = write(tmp_path / "x.pth", {"model": weights(), **beside}, zipped)
    known = set(torch.serialization.get_safe_globals())
    assert_same(torch_file.read(path), weights())
    # Nothing was made known to torch beyond this one reading.
    assert set(torch.serialization.get_safe_globals()) == known


def test_names_that_older_numpy_wrote_are_known(tmp_path):
    blob = pickle.dumps(np.float64(2.0), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in blob
    path = write(tmp_path / "x.pth", {"model": weights()})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stored = members["x/data.pkl"]
    # {"model": ..., "loss": numpy scalar}: put before the STOP of the outer dictionary's pickle.
    inner = b"X\x04\x00\x00\x00loss" + blob[2:-1] + b"s."
    assert stored.endswith(b".")
    members["x/data.pkl"] = stored[:-1] + inner
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert_same(torch_file.read(path), weights())


@FORMATS
@pytest.mark.parametrize("where", ["model", "beside"])
def test_a_file_that_would_run_code_is_refused_by_its_name_and_does_not_run(
    tmp_path, zipped, where, capsys
):
    blob = {"model": Payload()} if where == "model" else {"model": weights(), "x": Payload()}
    path = write(tmp_path / "evil.pth", blob, zipped)
    with pytest.raises(CheckpointError, match=r"would execute code of .*print.*weights_only=False"):
        torch_file.read(path)
    assert "code ran" not in capsys.readouterr().out


@FORMATS
def test_a_whole_module_is_refused_naming_its_classes(tmp_path, zipped):
    path = write(tmp_path / "x.pth", {"model": torch.nn.Linear(2, 2)}, zipped)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        torch_file.read(path)


def test_the_legacy_pickle_of_detectron2_is_refused_with_how_to_convert_it(tmp_path, capsys):
    path = tmp_path / "model_final.pkl"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"model": {"w": np.zeros(3)}, "x": Payload()}, protocol))
        with pytest.raises(CheckpointError, match=r"plain Python pickle.*convert it once"):
            torch_file.read(path)
    assert "code ran" not in capsys.readouterr().out


@FORMATS
def test_views_and_shared_memory_become_tensors_of_their_own(tmp_path, zipped):
    base = torch.arange(1000.0)
    state = {"part": base[10:20], "turned": base[:6].view(2, 3).t(), "twice": base[10:20]}
    read = torch_file.read(write(tmp_path / "x.pth", state, zipped))
    assert_same(read, state)
    assert all(tensor.is_contiguous() for tensor in read.values())
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in read.values())
    assert len({tensor.data_ptr() for tensor in read.values()}) == 3


def test_tensors_do_not_depend_on_the_file_after_reading(tmp_path):
    path = write(tmp_path / "x.pth", weights())
    read = torch_file.read(path)
    path.write_bytes(b"")
    assert_same(read, weights())


@FORMATS
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95, 0.9999])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zipped, part):
    path = write(tmp_path / "x.pth", {"model": {"w": torch.randn(64, 64), **weights()}}, zipped)
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(len(content) * part))])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        torch_file.read(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = write(tmp_path / "x.pth", {"w": torch.ones(64, 64)})
    content = bytearray(path.read_bytes())
    content[content.find(torch.ones(8).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"another checksum .* x/data/0"):
        torch_file.read(path)


def test_a_file_written_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        path = write(tmp_path / "x.pth", weights())
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(torch_file.read(path), weights())


@pytest.fixture(scope="module")
def small_files(tmp_path_factory) -> tuple[Path, list[bytes]]:
    """A path, and the contents of one state dict in both formats."""
    path = tmp_path_factory.mktemp("small") / "x.pth"
    contents = [write(path, {"model": weights(), "l": [1.5, None]}, z).read_bytes() for z in (1, 0)]
    return path, contents


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(
    zipped=st.booleans(),
    changes=st.lists(
        st.tuples(st.integers(0, 2**20), st.sampled_from([0, 1, 4]), st.binary(max_size=4)),
        min_size=1, max_size=6,
    ),
)  # fmt: skip
def test_a_file_with_any_bytes_changed_is_read_or_refused(small_files, zipped, changes):
    path, contents = small_files
    changed = bytearray(contents[0 if zipped else 1])
    for position, removed, added in changes:
        start = position % max(1, len(changed))
        changed[start : start + removed] = added
    path.write_bytes(changed)
    with contextlib.suppress(CheckpointError):
        read = torch_file.read(path)
        # Of a legacy file nothing tells that a number in it is another one.
        expected = weights() if zipped else read
        assert all(torch.equal(read[key], expected[key]) for key in read.keys() & expected.keys())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_protocol_that_is_not_read_is_told_apart_from_code(tmp_path):
    path = write(tmp_path / "x.pth", weights(), pickle_protocol=4)
    with pytest.raises(CheckpointError, match=r"default pickle protocol"):
        torch_file.read(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="TorchScript archive"):
        torch_file.read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b'\n{"error": "not found"}', "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n", r"begins with .*HDF"),
        (b"\x08\x07\x12\x07pytorch", "begins with"),
    ],
)
def test_any_other_kind_of_file_is_named(tmp_path, content, reason):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is no torch file: .*{reason}"):
        torch_file.read(tmp_path / "x.pth")


def test_a_zip_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"of another kind.*a\.npy"):
        torch_file.read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        ([torch.zeros(2)], "but list"),
        ({}, "holds no state dict"),
        ({"model": {}}, "holds no state dict"),
        ({"epoch": 3, "model": None}, r"\{'epoch': 'int', 'model': 'NoneType'\}"),
        ({"model": {"w": np.zeros(3)}}, "Turn NumPy arrays into tensors"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, r"complex.*'w'"),
        ({"w": torch.eye(3).to_sparse()}, r"sparse.*'w'"),
        ({"w": torch.zeros(2, device="meta")}, "without values"),
    ],
)
def test_a_file_without_plain_weights_tells_what_it_holds(tmp_path, blob, reason):
    with pytest.raises(CheckpointError, match=reason):
        torch_file.read(write(tmp_path / "x.pth", blob))
