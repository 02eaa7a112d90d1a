"""Malformed GGUF files: each ends in a CheckpointError that says what is wrong with which key or tensor."""

from __future__ import annotations

import copy
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(Path(__file__).parent))
import gguf_bytes as gb
import gguf_files as gf
from family_models_gemma import gemma4
from family_models_hybrid import HALF, linear, moe
from family_parity import Row, write
from gguf_bytes import Raw, Tensor

from lynx_rt import _C, CheckpointError, ModelNotFoundError, UnsupportedModelError

F32, Q8_0 = 0, 8
SMALL = gb.File(
    [
        ("general.architecture", gb.STRING, "llama"),
        ("x.list", gb.ARRAY, (gb.UINT32, [1, 2])),
        ("x.text", gb.STRING, "äé"),
    ],
    [Tensor("a", [4, 2], F32, 0), Tensor("b", [32], Q8_0, 32)],
    bytes(32 + 34 + 30),
)


def small(**changes: object) -> gb.File:
    file = copy.deepcopy(SMALL)
    for name, value in changes.items():
        setattr(file, name, value)
    return file


def with_key(key: object, kind: int, value: object) -> gb.File:
    return small(metadata=[*SMALL.metadata, (key, kind, value)])


def with_tensors(*tensors: Tensor) -> gb.File:
    return small(tensors=list(tensors))


def nested(depth: int) -> Raw:
    """Returns arrays in arrays, with one number in the innermost."""
    return Raw(struct.pack("<IQ", gb.ARRAY, 1) * depth + struct.pack("<IQI", gb.UINT32, 1, 7))


HUGE = struct.pack("<Q", 1 << 60)
CASES = {
    "magic": (small(magic=b"GGML"), "general", 'does not begin with "GGUF"'),
    "version_1": (small(version=1), "version", "expected version 2 or 3 of GGUF, got 1"),
    "big_endian": (small(version=3 << 24), "version", "expected version 2 or 3 of GGUF, got 50331648"),
    "tensor_count": (small(num_tensors=1 << 40), "number of tensors", "for which the file has room, got 1099511627776"),
    "tensor_count_all_bits": (small(num_tensors=(1 << 64) - 1), "number of tensors", "got 18446744073709551615"),
    "metadata_count": (small(num_metadata=1 << 61), "number of metadata", "for which the file has room"),
    "one_tensor_too_many": (small(num_tensors=3), "name of tensor 2", "name of tensor 2: expected a name, got none"),
    "long_key": (with_key(Raw(HUGE + b"x"), 4, 1), "key 3 of the metadata", "for which the file has room, got 1152921504606846976"),
    "long_string": (with_key("k", gb.STRING, Raw(HUGE)), "k", "for which the file has room, got 1152921504606846976"),
    "long_array": (with_key("k", gb.ARRAY, Raw(struct.pack("<I", 4) + HUGE)), "k", "for which the file has room"),
    "long_array_of_bytes": (with_key("k", gb.ARRAY, Raw(struct.pack("<IQ", 0, 1 << 20))), "k", "has room, got 1048576"),
    "deep_arrays": (with_key("k", gb.ARRAY, nested(100)), "k", "arrays in arrays, more than 8 deep"),
    "kind": (with_key("k", 13, Raw(bytes(8))), "k", "unknown type of metadata 13"),
    "kind_of_items": (with_key("k", gb.ARRAY, Raw(struct.pack("<IQ", 99, 0))), "k", "unknown type of metadata 99"),
    "bool": (with_key("k", gb.BOOL, Raw(b"\x02")), "k", "expected 0 or 1 for a bool, got 2"),
    "key_not_utf8": (with_key(b"\xff\xfe", 4, 1), "key 3 of the metadata", "expected UTF-8"),
    "value_not_utf8": (with_key("k", gb.STRING, b"\xed\xa0\x80"), "k", "expected UTF-8"),
    "key_twice": (with_key("x.text", 4, 1), "x.text", 'the metadata has the key "x.text" twice'),
    "alignment_0": (with_key("general.alignment", 4, 0), "general.alignment", "expected a multiple of 8"),
    "alignment_text": (with_key("general.alignment", gb.STRING, "8"), "general.alignment", "expected a multiple of 8"),
    "dimensions": (with_tensors(Tensor("a", [1] * 5, F32, 0)), "a", "expected at most 4 dimensions, got 5"),
    "dimensions_all_bits": (with_tensors(Tensor("a", [], F32, 0)), "a", None),
    "size_overflows": (with_tensors(Tensor("a", [1 << 40, 1 << 40], F32, 0)), "a", "the number of values overflows"),
    "bytes_overflow": (with_tensors(Tensor("a", [1 << 62], F32, 0)), "a", "the number of bytes overflows"),
    "size_negative": (with_tensors(Tensor("a", [1 << 63], F32, 0)), "a", "the number of values overflows"),
    "type": (with_tensors(Tensor("a", [4], 99, 0)), "a", "unknown type 99"),
    "type_removed": (with_tensors(Tensor("a", [32], 31, 0)), "a", "unknown type 31"),
    "part_of_a_block": (with_tensors(Tensor("a", [48], Q8_0, 0)), "a", "a row of Q8_0 is whole blocks of 32 values, got 48"),
    "offset_misaligned": (with_tensors(Tensor("a", [4], F32, 8)), "a", "expected an offset at a multiple of 32, got 8"),
    "offset_outside": (with_tensors(Tensor("a", [4], F32, 1 << 20)), "a", "truncated: tensor"),
    "offset_all_bits": (with_tensors(Tensor("a", [4], F32, (1 << 64) - 32)), "a", "truncated: tensor"),
    "ends_outside": (with_tensors(Tensor("a", [4000], F32, 0)), "a", "of 16000 bytes at 0 ends after the data"),
    "overlap": (with_tensors(Tensor("a", [4, 4], F32, 0), Tensor("b", [4], F32, 32)), "b", "overlaps another tensor"),
    "tensor_twice": (with_tensors(Tensor("a", [4], F32, 0), Tensor("a", [4], F32, 32)), "a", "is there twice"),
    "name_not_utf8": (with_tensors(Tensor(b"\xc0\x80", [4], F32, 0)), "name of tensor 0", "expected UTF-8"),
    "long_name": (with_tensors(Tensor(Raw(HUGE), [4], F32, 0)), "name of tensor 0", "for which the file has room"),
    "split_count": (with_key("split.count", gb.STRING, "2"), "split.count", "expected a number from 0 to 99999"),
    "split_name": (with_key("split.count", 2, 2), "split.count", "expected a name that ends in -00001-of-2.gguf"),
    "lfs": (None, "", "is a git-lfs pointer"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_malformed(name: str, tmp_path: Path) -> None:
    file, field, says = CASES[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(file.encode() if file else b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError) as caught:
        _C.gguf_metadata(str(path))
    assert says in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.field in (field, str(path))
    assert str(caught.value).isprintable()


def test_every_beginning_of_a_file(tmp_path: Path) -> None:
    whole, path = SMALL.encode(), tmp_path / "m.gguf"
    needed = len(whole) - 30  # what comes after is no tensor's
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size >= needed:
            _C.gguf_metadata(str(path))
            continue
        with pytest.raises(CheckpointError):
            _C.gguf_metadata(str(path))


def test_values(tmp_path: Path) -> None:
    """What is odd but legal arrives as it is."""
    metadata = [("general.architecture", gb.STRING, "x"), ("empty", gb.ARRAY, (gb.STRING, [])), ("big", 10, (1 << 64) - 1),
                ("least", 11, -(1 << 63)), ("nested", gb.ARRAY, (gb.ARRAY, [(gb.UINT32, [1]), (gb.STRING, ["a", ""])])),
                ("bool", gb.BOOL, True), ("half", gb.FLOAT32, 0.5), ("byte", 1, -1), ("", gb.STRING, "empty key")]  # fmt: skip
    path = tmp_path / "m.gguf"
    path.write_bytes(gb.File(metadata).encode())
    found = _C.gguf_metadata(str(path))
    assert found.pop("big") == float((1 << 64) - 1)
    assert found == {"general.architecture": "x", "empty": [], "least": -(1 << 63), "nested": [[1], ["a", ""]], "bool": True,
                     "half": 0.5, "byte": -1, "": "empty key"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    keys = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "hidden_size": 64, "head_dim": 16}
    write(Row("qwen3_moe", "hostile", keys), folder / "hf")
    gf.convert(folder / "hf", folder / "m.gguf", Type.Q8_0, parts=12)
    return folder


def test_parts(model: Path, tmp_path: Path) -> None:
    parts = {path.name: path.read_bytes() for path in model.glob("*.gguf")}
    first, second, *_, last = sorted(parts)

    def fails(says: str, changed: dict[str, bytes | None]) -> None:
        for name, data in (parts | changed).items():
            if data is None:
                (tmp_path / name).unlink()
            else:
                (tmp_path / name).write_bytes(data)
        with pytest.raises((CheckpointError, ModelNotFoundError), match=says):
            _C.Engine(str(tmp_path / first))

    fails(f"{second}: expected part 1 of .*, got part 2", {second: parts[last]})
    fails("is there twice|expected part 1", {second: parts[first]})
    fails(f"{second}: truncated", {second: parts[second][:-64]})
    fails(last, {last: None})


def edited(model: Path, tmp_path: Path, edit) -> Path:
    """Writes the whole model in one file after edit(file)."""
    gf.convert(model / "hf", tmp_path / "m.gguf", Type.Q8_0)
    file = gb.decode((tmp_path / "m.gguf").read_bytes())
    assert file.encode() == (tmp_path / "m.gguf").read_bytes()
    edit(file)
    (tmp_path / "m.gguf").write_bytes(file.encode())
    return tmp_path / "m.gguf"


def rename(file: gb.File, name: str, to: str) -> None:
    next(t for t in file.tensors if t.name == name).name = to


def set_key(file: gb.File, key: str, kind: int, value: object) -> None:
    file.metadata = [(k, kind, value) if k == key else (k, t, v) for k, t, v in file.metadata]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda f: rename(f, "blk.0.attn_q.weight", "blk.0.attn_z.weight"), r"(?s)missing.*layers\.0\.self_attn\.q_proj.*blk\.0\.attn_z"),
        (lambda f: rename(f, "blk.1.ffn_up_exps.weight", "blk.1.ffn_up.weight"), r"(?s)layers\.1\.mlp\.experts\.0\.up_proj"),
        (lambda f: rename(f, "output.weight", "blk.99999999999999999999.x"), "unexpected"),
        (lambda f: rename(f, "blk.0.ffn_norm.weight", "blk.0.post_attention_norm.weight"), None),
        (lambda f: rename(f, "blk.0.attn_q_norm.weight", "blk.0.post_attention_norm.weight"), "another tensor of the file is model.layers.0.post"),
        (lambda f: rename(f, "token_embd.weight", "token_embd.bias"), r"token_embd\.weight: missing"),
        (lambda f: set_key(f, "qwen3moe.block_count", 4, 3), r"missing.*layers\.2\."),
        (lambda f: set_key(f, "qwen3moe.block_count", 10, 1 << 63), r"qwen3moe\.block_count: expected an integer"),
        (lambda f: set_key(f, "qwen3moe.block_count", 4, 0), r"qwen3moe\.block_count: expected more"),
        (lambda f: set_key(f, "qwen3moe.expert_count", 4, 5), r"ffn_down_exps\.weight: expected 5 experts as qwen3moe\.expert_count says, got shape \[4, 64, 32\]"),
        (lambda f: set_key(f, "qwen3moe.expert_count", gb.STRING, "many"), r"qwen3moe\.expert_count: expected an integer"),
        (lambda f: set_key(f, "qwen3moe.attention.head_count", gb.ARRAY, (4, [])), r"attention\.head_count: expected a value, got an empty"),
        (lambda f: set_key(f, "qwen3moe.attention.head_count", gb.ARRAY, (9, [(4, [1])])), r"attention\.head_count: expected a value"),
        (lambda f: set_key(f, "qwen3moe.attention.key_length", 4, 0), r"attention\.value_length 16 is not supported; supported: 0"),
        (lambda f: set_key(f, "qwen3moe.rope.freq_base", 6, float("nan")), r"rope\.freq_base: expected a finite number"),
        (lambda f: set_key(f, "qwen3moe.embedding_length", 4, 1 << 31), "hidden_size"),
        (lambda f: f.metadata.remove(next(m for m in f.metadata if m[0] == "qwen3moe.context_length")), r"qwen3moe\.context_length: missing"),
        (lambda f: f.metadata.remove(next(m for m in f.metadata if m[0] == "general.architecture")), "general.architecture: expected a string"),
        (lambda f: set_key(f, "general.architecture", 4, 1), "general.architecture: expected a string, got the number 1"),
    ],
)  # fmt: skip
def test_models(edit, says: str | None, model: Path, tmp_path: Path) -> None:
    path = edited(model, tmp_path, edit)
    if says is None:
        _C.Engine(str(path)).close()
        return
    with pytest.raises((CheckpointError, UnsupportedModelError), match=says) as caught:
        _C.Engine(str(path))
    assert str(path) in str(caught.value) or caught.value.field


def test_absurd_numbers_of_experts(model: Path, tmp_path: Path) -> None:
    """A shape without values may have any number of them; it must not take memory for each."""

    def edit(file: gb.File) -> None:
        tensor = next(t for t in file.tensors if t.name == "blk.0.ffn_up_exps.weight")
        tensor.dims = [0, 1, 1 << 40]

    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up_exps\.weight"):
        _C.Engine(str(edited(model, tmp_path, edit)))


def test_fuzz(tmp_path: Path) -> None:
    """LYNX_RT_FUZZ_CHECKPOINTS is the number of cases, LYNX_RT_FUZZ_FIRST the number of the first one."""
    count = int(os.environ.get("LYNX_RT_FUZZ_CHECKPOINTS", "400"))
    first = os.environ.get("LYNX_RT_FUZZ_FIRST", "0")
    rows = [
        Row("qwen3_moe", "fuzz", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "hidden_size": 64}),
        Row("gpt_oss", "fuzz", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3, "hidden_size": 64, "head_dim": 32}),
        Row("llama", "fuzz", {"hidden_size": 64}),
        Row("qwen3_5_moe_text", "fuzz", linear(2, 4, 16, 16, hidden_size=64) | moe(4, 2, 32) | HALF),
        Row("gemma4_text", "fuzz", gemma4(4, 2, 32, hidden_size=64, head_dim=16, global_head_dim=32)),
    ]  # fmt: skip
    for row in rows:
        write(row, tmp_path / row.id)
        gf.convert(
            tmp_path / row.id, tmp_path / f"{row.model_type}.gguf", lambda n: Type.Q8_0 if "attn" in n else Type.F32
        )
    script = Path(__file__).with_name("fuzz_gguf.py")
    done = subprocess.run([sys.executable, script, tmp_path, str(count), first], capture_output=True, text=True)
    current = tmp_path / "current"
    last = current.read_text() if current.exists() else "none"
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nlast case: {last}"
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert result["answer"] > 0.05 * count and result["CheckpointError"] > 0.2 * count, result
