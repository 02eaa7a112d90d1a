"""csrc/checkpoint/safetensors.cc on sharded models: model.safetensors.index.json and the files that it names."""

import json

import hostile
import numpy as np
import pytest

import lynx_rt
from lynx_rt import _C_testing

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
WEIGHT_MAP = {"a": FIRST, "b": FIRST, "c": SECOND}


def shard(tensors):
    """tensors: name -> bytes, all U8."""
    header, data = {}, b""
    for name, raw in tensors.items():
        header[name] = hostile.entry("U8", (len(raw),), (len(data), len(data) + len(raw)))
        data += raw
    return hostile.encode(header, data)


@pytest.fixture
def model(tmp_path):
    """Makes a sound model of two shards; returns a function that replaces its index (a dict, or raw bytes)."""
    (tmp_path / FIRST).write_bytes(shard({"a": b"AA", "b": b"BBB"}))
    (tmp_path / SECOND).write_bytes(shard({"c": b"C"}))

    def index(content):
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "model.safetensors.index.json").write_bytes(text)
        return tmp_path

    index({"metadata": {"total_size": 6}, "weight_map": WEIGHT_MAP})
    index.folder = tmp_path
    return index


def refused(folder, *says, field=None):
    with pytest.raises(lynx_rt.CheckpointError) as caught:
        _C_testing.read_checkpoint(folder)
    message = str(caught.value)
    for text in says:
        assert text in message
    if field is not None:
        assert caught.value.field == field
    assert message.isprintable()


def test_reads_all_shards(model):
    found = _C_testing.read_checkpoint(model.folder)
    assert found["files"] == [str(model.folder / FIRST), str(model.folder / SECOND)]
    assert found["tensors"] == {"a": ("U8", (2,), 2, 0), "b": ("U8", (3,), 3, 0), "c": ("U8", (1,), 1, 1)}
    assert found["total_bytes"] == 6
    assert _C_testing.checkpoint_tensor(model.folder, "c").tobytes() == b"C"


def test_metadata_is_optional_and_not_trusted(model):
    for index in ({"weight_map": WEIGHT_MAP}, {"metadata": {"total_size": -1}, "weight_map": WEIGHT_MAP}):
        assert _C_testing.read_checkpoint(model(index))["total_bytes"] == 6


def test_one_file_wins_over_an_index(model):
    (model.folder / "model.safetensors").write_bytes(shard({"whole": b"W"}))
    assert set(_C_testing.read_checkpoint(model.folder)["tensors"]) == {"whole"}


def test_shards_may_be_links(model, tmp_path_factory):
    blob = tmp_path_factory.mktemp("blobs") / "blob"  # how the Hugging Face cache stores files
    (model.folder / SECOND).rename(blob)
    (model.folder / SECOND).symlink_to(blob)
    assert set(_C_testing.read_checkpoint(model.folder)["tensors"]) == {"a", "b", "c"}


def test_missing_shard(model):
    (model.folder / SECOND).unlink()
    shard_path = str(model.folder / SECOND)
    refused(model.folder, "index.json", "does not exist", shard_path, field=shard_path)


def test_broken_shard_is_named(model):
    data = (model.folder / SECOND).read_bytes()
    (model.folder / SECOND).write_bytes(data[:-1])
    refused(model.folder, SECOND, "truncated", field=str(model.folder / SECOND))


def test_shard_is_a_folder(model):
    (model.folder / SECOND).unlink()
    (model.folder / SECOND).mkdir()
    refused(model.folder, SECOND, "found a folder")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "sub/../sub/x.safetensors", "sub//x.safetensors", "./" + FIRST, "..", ".", "", "sub\\x", "..\\x", "/",
     FIRST + "/", FIRST + "\0", "a\nb", "\x1b[31m", "../" * 1000 + "etc/passwd"],
)  # fmt: skip
def test_shard_name_must_stay_in_the_folder(model, name):
    # The file that the name leads to exists and is sound: only the name is at fault.
    outside = model.folder / "sub"
    outside.mkdir()
    (outside / "x.safetensors").write_bytes(shard({"c": b"C"}))
    refused(model({"weight_map": {**WEIGHT_MAP, "c": name}}), "index.json", '"c"', "same folder", field="c")


def test_shard_name_too_long(model):
    refused(model({"weight_map": {**WEIGHT_MAP, "c": "x" * 5000}}), "File name too long")


@pytest.mark.parametrize(
    "weight_map",
    [
        {**WEIGHT_MAP, "d": SECOND},  # a tensor that is nowhere: only an error where it is needed
        {"a": FIRST, "c": SECOND},  # "b" is not named
        {**WEIGHT_MAP, "b": SECOND},  # "b" is in the other file
    ],
    ids=["absent", "not_named", "elsewhere"],
)
def test_tensors_are_those_of_the_shards(model, weight_map):
    folder = model({"weight_map": weight_map})
    found = _C_testing.read_checkpoint(folder)
    assert set(found["tensors"]) == {"a", "b", "c"}
    assert _C_testing.checkpoint_tensor(folder, "b").tobytes() == b"BBB"


def test_tensor_in_two_shards(model):
    """The index says which is meant."""
    (model.folder / SECOND).write_bytes(shard({"b": b"XXX", "c": b"C"}))
    assert _C_testing.checkpoint_tensor(model.folder, "b").tobytes() == b"BBB"
    assert _C_testing.checkpoint_tensor(model({"weight_map": {**WEIGHT_MAP, "b": SECOND}}), "b").tobytes() == b"XXX"
    refused(model({"weight_map": {"a": FIRST, "c": SECOND}}), SECOND, FIRST, 'tensor "b"', "which is meant", field="b")


def test_shards_in_folders_below(model):
    (model.folder / "sub" / "further").mkdir(parents=True)
    (model.folder / SECOND).rename(model.folder / "sub" / "further" / SECOND)
    folder = model({"weight_map": {**WEIGHT_MAP, "c": f"sub/further/{SECOND}"}})
    assert _C_testing.checkpoint_tensor(folder, "c").tobytes() == b"C"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\0", "NUL"),
        (b"weight_map", "not valid JSON at byte 1"),
        (b'{"weight_map": {}', "not valid JSON"),
        (b'{"weight_map": {"\xff": "x"}}', "UTF-8"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', 'key "a" appears twice in "weight_map"'),
        (b'{"weight_map": {}, "weight_map": {}}', 'key "weight_map" appears twice'),
        (b"[" * 100_000, "nested deeper than 64"),
        ([], "expected an object, got a list of 0"),
        ("weight_map", "expected an object, got the string"),
        ({}, "weight_map is missing"),
        ({"weight_map": None}, "weight_map: expected an object, got null"),
        ({"weight_map": []}, "weight_map: expected an object, got a list of 0"),
        ({"weight_map": FIRST}, "weight_map: expected an object, got the string"),
        ({"weight_map": {}}, "weight_map names no tensor"),
        ({"weight_map": {"a": 1}}, '"a": expected a file name, got the number 1'),
        ({"weight_map": {"a": None}}, '"a": expected a file name, got null'),
        ({"weight_map": {"a": [FIRST]}}, '"a": expected a file name, got a list of 1'),
        ({"weight_map": {"a": {}}}, '"a": expected a file name, got an object'),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_malformed_index(model, content, says):
    refused(model(content), str(model.folder / "model.safetensors.index.json"), says)


def test_index_is_a_folder(model):
    path = model.folder / "model.safetensors.index.json"
    path.unlink()
    path.mkdir()
    refused(model.folder, "found a folder", field=str(path))


def test_many_tensors_in_many_shards(tmp_path):
    weight_map = {}
    for s in range(20):
        name = f"model-{s:05d}-of-00020.safetensors"
        tensors = {f"layers.{s}.{i}": bytes([s, i]) for i in range(100)}
        (tmp_path / name).write_bytes(shard(tensors))
        weight_map |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = _C_testing.read_checkpoint(tmp_path)
    assert len(found["tensors"]) == 2000 and len(found["files"]) == 20
    assert {found["files"][file] for _, _, _, file in found["tensors"].values()} == {
        str(tmp_path / name) for name in weight_map.values()
    }
    assert np.array_equal(_C_testing.checkpoint_tensor(tmp_path, "layers.7.42"), [7, 42])
