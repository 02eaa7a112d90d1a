"""csrc/checkpoint/safetensors.cc on single files: every malformed one is refused by name, every legal one is read."""

import os
import threading

import hostile
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lynx_rt
from lynx_rt import _C_testing

by_name = {"ids": lambda case: case.name}


def runs(count):
    # each example overwrites the file in the one tmp_path, which is what the health check warns of
    return settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder, data, name="model.safetensors"):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", hostile.CASES, **by_name)
def test_malformed_file_is_refused_with_its_fault(case, tmp_path):
    path = write(tmp_path, case.data)
    with pytest.raises(lynx_rt.CheckpointError) as caught:
        _C_testing.read_checkpoint(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(path))
    for text in case.says:
        assert text in message
    assert caught.value.field == (str(path) if case.field is None else case.field)
    assert message.isprintable() and len(message) < 1500


@pytest.mark.parametrize("case", hostile.LEGAL, **by_name)
def test_legal_file_is_read(case, tmp_path):
    path = write(tmp_path, case.data)
    for target in (tmp_path, path, str(path)):
        found = _C_testing.read_checkpoint(target)
        assert found["files"] == [str(path)]
        assert found["tensors"] == {n: (d, s, len(raw), 0) for n, (d, s, raw) in case.tensors.items()}
        assert found["total_bytes"] == sum(len(raw) for _, _, raw in case.tensors.values())
    for name, (_, _, raw) in case.tensors.items():
        copy = _C_testing.checkpoint_tensor(path, name)
        assert copy.dtype == np.uint8 and copy.tobytes() == raw


@pytest.mark.parametrize("case", hostile.LEGAL, **by_name)
def test_legal_means_legal_to_the_reference_package(case):
    found = pytest.importorskip("safetensors").deserialize(case.data)
    assert {name: bytes(info["data"]) for name, info in found} == {n: raw for n, (_, _, raw) in case.tensors.items()}


def test_case_names_are_unique():
    names = [case.name for case in hostile.CASES + hostile.LEGAL]
    assert len(names) == len(set(names))


def test_every_prefix_of_a_valid_file_is_refused(tmp_path):
    for cut in range(len(hostile.VALID)):
        path = write(tmp_path, hostile.VALID[:cut])
        with pytest.raises(lynx_rt.CheckpointError):
            _C_testing.read_checkpoint(path)


def test_missing_folder_and_file(tmp_path):
    absent = tmp_path / "absent"
    with pytest.raises(lynx_rt.ModelNotFoundError, match="No such file") as caught:
        _C_testing.read_checkpoint(absent)
    assert isinstance(caught.value, FileNotFoundError) and isinstance(caught.value, lynx_rt.LynxError)
    assert caught.value.field == str(absent)
    with pytest.raises(lynx_rt.ModelNotFoundError) as caught:
        _C_testing.read_checkpoint(tmp_path)
    for text in (str(tmp_path), "model.safetensors", "model.safetensors.index.json"):
        assert text in str(caught.value)


def test_dangling_link_counts_as_missing(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "absent")
    with pytest.raises(lynx_rt.ModelNotFoundError):
        _C_testing.read_checkpoint(tmp_path)


def test_link_to_the_file_is_followed(tmp_path):
    blob = write(tmp_path, hostile.VALID, "blob")  # how the Hugging Face cache stores files
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert set(_C_testing.read_checkpoint(tmp_path)["tensors"]) == {"a", "b"}


def test_folder_in_place_of_the_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(lynx_rt.CheckpointError, match=r"model.safetensors: expected a file, found a folder"):
        _C_testing.read_checkpoint(tmp_path)


def test_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    errors = []

    def read():
        try:
            _C_testing.read_checkpoint(tmp_path)
        except Exception as e:
            errors.append(e)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(errors[0], lynx_rt.CheckpointError) and "regular file" in str(errors[0])


def test_path_that_is_not_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    os.mkdir(folder)
    path = os.fsdecode(os.path.join(folder, b"model.safetensors"))
    with open(path, "wb") as f:
        f.write(hostile.VALID)
    assert _C_testing.read_checkpoint(os.fsdecode(folder))["files"] == [path]
    os.unlink(path)
    with pytest.raises(lynx_rt.ModelNotFoundError):  # its text must not fail to decode
        _C_testing.read_checkpoint(os.fsdecode(folder))


def test_missing_tensor(tmp_path):
    path = write(tmp_path, hostile.VALID)
    with pytest.raises(lynx_rt.CheckpointError, match='missing tensor "c"') as caught:
        _C_testing.checkpoint_tensor(path, "c")
    assert caught.value.field == "c"


def test_copy_outlives_the_file(tmp_path):
    path = write(tmp_path, hostile.VALID)
    copy = _C_testing.checkpoint_tensor(path, "a")
    path.unlink()
    copy[0] = 99  # writable, and not a view of the read-only mapping
    assert copy.tolist() == [99, *range(1, 12)]


def test_large_header(tmp_path):
    """100 000 tensors, about what the largest published models hold in all their shards."""
    count = 100_000
    header = {f"model.layers.{i}.weight": hostile.entry("U8", (1,), (i, i + 1)) for i in range(count)}
    path = write(tmp_path, hostile.encode(header, bytes(count)))
    assert len(_C_testing.read_checkpoint(path)["tensors"]) == count


DTYPES = {
    np.bool_: "BOOL", np.uint8: "U8", np.int8: "I8", np.uint16: "U16", np.int16: "I16", np.uint32: "U32",
    np.int32: "I32", np.uint64: "U64", np.int64: "I64", np.float16: "F16", np.float32: "F32", np.float64: "F64",
    np.complex64: "C64",
}  # fmt: skip

arrays = st.sampled_from(list(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda n: n != "__metadata__")
# Not {}: safetensors 0.8.0 writes broken JSON for no tensors with empty metadata.
metadata = st.none() | st.fixed_dictionaries({"format": st.text(max_size=9)})


@runs(150)
@given(st.dictionaries(names, arrays, max_size=8), metadata)
def test_reads_what_the_reference_package_writes(tmp_path, tensors, metadata):
    reference = pytest.importorskip("safetensors.numpy")
    path = write(tmp_path, reference.save(tensors, metadata))
    found = _C_testing.read_checkpoint(path)
    assert found["tensors"] == {n: (DTYPES[a.dtype.type], a.shape, a.nbytes, 0) for n, a in tensors.items()}
    for name, array in tensors.items():
        assert _C_testing.checkpoint_tensor(path, name).tobytes() == array.tobytes()


HEADER = hostile.VALID[:-16]
# half of the bytes keep the JSON plausible, so that the damage gets past the parser
new_bytes = st.integers(0, 255) | st.sampled_from(b'0123456789[]{},:"-.eE ')
edits = st.lists(st.tuples(st.integers(0, len(HEADER) - 1), new_bytes), min_size=1, max_size=6)


@runs(800)
@given(edits)
@example([(0, 0)])
@example([(7, 255)])
def test_damaged_header_is_refused_or_read_within_bounds(tmp_path, edits):
    damaged = bytearray(hostile.VALID)
    for at, byte in edits:
        damaged[at] = byte
    _refused_or_readable(write(tmp_path, bytes(damaged)))


@runs(300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["w", "dtype", "shape", "data_offsets"]) | st.text(), inner, max_size=4)
        ),
    )
)
def test_any_json_as_entry_is_refused_or_read_within_bounds(tmp_path, value):
    _refused_or_readable(write(tmp_path, hostile.encode({"w": value}, bytes(8))))


def _refused_or_readable(path):
    """Whatever is read must be what the reference package reads; being stricter than it is allowed."""
    try:
        found = _C_testing.read_checkpoint(path)
    except lynx_rt.CheckpointError as e:
        assert str(e).startswith(str(path))
        return
    reference = pytest.importorskip("safetensors").deserialize(path.read_bytes())
    assert set(found["tensors"]) == {name for name, _ in reference}
    for name, info in reference:
        dtype, shape, size, _ = found["tensors"][name]
        assert (dtype, list(shape), size) == (info["dtype"], info["shape"], len(info["data"]))
        assert _C_testing.checkpoint_tensor(path, name).tobytes() == info["data"]
