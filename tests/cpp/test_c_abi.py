"""Tests the C ABI from C99 and C++, from ctypes, and from programs built with the first 0.1 header."""

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from build_tree import install_prefix, run
from c_header import Header

import lynx_rt
from lynx_rt import _C

OLD = Path(__file__).parent / "abi_0_1"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@pytest.fixture(scope="module")
def include() -> Path:
    return install_prefix() / "include"


@pytest.fixture(scope="module")
def header(include: Path) -> Header:
    return Header(include / "lynx_rt" / "lynx_rt.h")


@pytest.fixture(scope="module")
def library() -> Path:
    [path] = install_prefix().glob("lib*/**/liblynx_rt.so")
    return path


def layout(header: Header, include: Path, folder: Path, language: str = "c99") -> dict[str, int]:
    source, program = folder / f"layout.{'c' if language == 'c99' else 'cc'}", folder / f"layout_{language}"
    source.write_text(header.layout_program())
    compiler = "cc" if language == "c99" else "c++"
    run([compiler, f"-std={language}", *WARNINGS, "-I", include, source, "-o", program])
    return {name: int(value) for name, value in (line.split() for line in run([program]).splitlines())}


def test_header_in_c_and_cpp(header: Header, include: Path, tmp_path: Path) -> None:
    in_c = layout(header, include, tmp_path)
    assert in_c == layout(header, include, tmp_path, "c++11")
    for name, struct in header.ctypes().items():
        assert ctypes.sizeof(struct) == in_c[name]
        assert {field: getattr(struct, field).offset for field, _ in struct._fields_} == {
            key.split(".")[1]: value for key, value in in_c.items() if key.startswith(f"{name}.")
        }
    fields = [f"{name}.{field}" for name, members in header.structs.items() for field, _ in members]
    assert len(header.structs) >= 12 and {*fields} < {*in_c}


def test_what_was_in_the_first_header_is_where_it_was(header: Header, include: Path, tmp_path: Path) -> None:
    old_header = Header(OLD / "lynx_rt" / "lynx_rt.h")
    old, new = layout(old_header, OLD, tmp_path), layout(header, include, tmp_path)
    assert len(old) > 40
    for name, value in old.items():
        assert new[name] >= value if name in old_header.structs else new[name] == value, name
    assert set(old_header.functions) < set(header.functions)


def test_program_built_with_the_first_header(
    library: Path, nano_path: str, nano: lynx_rt.Engine, tmp_path: Path
) -> None:
    built, program = tmp_path / "client.o", tmp_path / "client"
    run(["cc", "-std=c99", *WARNINGS, "-I", OLD, "-c", OLD / "client.c", "-o", built])
    run(["cc", built, "-o", program, f"-L{library.parent}", "-llynx_rt"])
    lines = run([program, nano_path], env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)}).splitlines()
    for line, temperature in zip(lines, (0.0, 2.0), strict=True):
        params = lynx_rt.SamplingParams(temperature=temperature, seed=5, max_tokens=8, ignore_eos=True)
        [expected] = nano.generate([[1, 20, 21]], params, use_tqdm=False)
        assert [int(token) for token in line.split()] == expected.outputs[0].token_ids


def test_ctypes(header: Header, library: Path, nano_path: str, nano: lynx_rt.Engine) -> None:
    """Runs a request with arrays, log probabilities and statistics, through structs that Python lays out from the header."""
    lib, types = ctypes.CDLL(str(library)), header.ctypes()
    Options, Params, Output = (types[f"lynx_rt_{name}"] for name in ("options", "params", "output"))
    lib.lynx_rt_create.restype = ctypes.c_void_p
    lib.lynx_rt_last_error.restype = ctypes.c_char_p
    for name, struct in (("get_stats", "stats"), ("get_model_info", "model_info")):
        getattr(lib, f"lynx_rt_{name}").restype = ctypes.POINTER(types[f"lynx_rt_{struct}"])

    logged = []
    log_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    on_log = log_type(lambda level, text, user: logged.append((level, text.decode(), user)))
    options = Options(size=ctypes.sizeof(Options), expert_selection=b"topk", block_size=8, log_user=77)
    options.on_log = ctypes.cast(on_log, ctypes.c_void_p).value
    handle = lib.lynx_rt_create(nano_path.encode(), ctypes.byref(options))
    assert handle, lib.lynx_rt_last_error()
    engine = ctypes.c_void_p(handle)
    assert [(level, user) for level, _, user in logged] == [(header.enums["lynx_rt_log_level"]["LYNX_RT_LOG_INFO"], 77)]

    Bias = types["lynx_rt_token_bias"]
    bias, prompt = (Bias * 2)(Bias(30, 3.5), Bias(31, -2.0)), (ctypes.c_int32 * 3)(1, 20, 21)
    params = Params(size=ctypes.sizeof(Params), max_tokens=6, ignore_eos=1, has_logprobs=1, logprobs=3)
    params.repetition_penalty, params.logit_bias, params.num_logit_bias = 1.5, bias, 2
    request, tokens, logprobs, finishes = ctypes.c_uint64(), [], [], []

    @ctypes.CFUNCTYPE(None, ctypes.POINTER(Output), ctypes.c_void_p)
    def on_output(output: "ctypes._Pointer", _: int) -> None:
        out = output.contents
        assert out.request_id == request.value
        tokens.extend(out.token_ids[: out.num_tokens])
        for entries in out.logprobs[: out.num_logprobs]:
            logprobs.append([(e.token_id, e.logprob, e.rank) for e in entries.entries[: entries.num_entries]])
        finishes.append(out.finish)

    added = lib.lynx_rt_add_request(engine, prompt, ctypes.c_size_t(3), ctypes.byref(params), ctypes.byref(request))
    assert added == 0, lib.lynx_rt_last_error()
    while lib.lynx_rt_has_unfinished(engine):
        assert lib.lynx_rt_step(engine, on_output, None) == 0
    python = lynx_rt.SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, repetition_penalty=1.5, logit_bias={30: 3.5, 31: -2.0}
    )
    [expected] = nano.generate([[1, 20, 21]], python, use_tqdm=False)
    assert tokens == expected.outputs[0].token_ids
    assert [{token: (logprob, rank) for token, logprob, rank in entries} for entries in logprobs] == [
        {token: (e.logprob, e.rank) for token, e in entries.items()} for entries in expected.outputs[0].logprobs
    ]
    assert finishes == [0] * 5 + [header.enums["lynx_rt_finish"]["LYNX_RT_LENGTH"]]

    info, stats = lib.lynx_rt_get_model_info(engine).contents, lib.lynx_rt_get_stats(engine)
    assert info.model_type == b"qwen3_moe" and info.eos_token_ids[: info.num_eos_token_ids] == [2]
    assert stats.contents.generation_tokens == 6 and stats.contents.kv_blocks_total * 8 >= info.max_model_len
    layers = [stats.contents.layers[i].contents for i in range(stats.contents.num_layers)]
    assert [layer.layer for layer in layers] == list(range(info.num_layers))
    assert all(
        layer.steps == 5 and layer.active == layer.union_before == 5 * info.num_experts_per_tok for layer in layers
    )
    assert {b"attention"} <= {stats.contents.ops[i].contents.name for i in range(stats.contents.num_ops)}
    lib.lynx_rt_free_stats(stats)
    lib.lynx_rt_destroy(engine)


def test_images(header: Header, library: Path, tmp_path: Path) -> None:
    """A prompt with an image gets the tokens that it gets from Python."""
    from tiny_vision import write_model

    write_model(tmp_path)
    e = _C.Engine(str(tmp_path), dtype="float32", num_threads=1)
    placeholder = e.model_info()["image_token_id"]
    patches = np.random.default_rng(1).standard_normal((8, 3 * 2 * 16 * 16)).astype(np.float32)
    ids = [5, placeholder, placeholder, 6]
    given = {"position": 1, "grid_height": 2, "grid_width": 4, "patches": patches, "digest": b"ab"}
    native = _C.SamplingParams()
    native.temperature, native.max_tokens, native.ignore_eos = 0.0, 6, True
    e.add_request(ids, native, None, [given])
    expected = [
        token
        for step in iter(lambda: e.step() if e.has_unfinished() else None, None)
        for o in step
        for token in o.token_ids
    ]

    lib, types = ctypes.CDLL(str(library)), header.ctypes()
    Options, Params, Output, Image = (types[f"lynx_rt_{name}"] for name in ("options", "params", "output", "image"))
    lib.lynx_rt_create.restype = ctypes.c_void_p
    lib.lynx_rt_last_error.restype = ctypes.c_char_p
    lib.lynx_rt_get_model_info.restype = ctypes.POINTER(types["lynx_rt_model_info"])
    options = Options(size=ctypes.sizeof(Options), dtype=b"float32", num_threads=1, encoder_cache_memory_bytes=1 << 20)
    handle = lib.lynx_rt_create(str(tmp_path).encode(), ctypes.byref(options))
    assert handle, lib.lynx_rt_last_error()
    engine = ctypes.c_void_p(handle)
    info = lib.lynx_rt_get_model_info(engine).contents
    assert (info.image_token_id, info.patch_size, info.temporal_patch_size, info.merge_size) == (placeholder, 16, 2, 2)
    image = Image(position=1, grid_height=2, grid_width=4, num_values=patches.size, digest_size=2)
    image.patches = patches.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    image.digest = b"ab"
    params, prompt, request = (
        Params(size=ctypes.sizeof(Params), max_tokens=6, ignore_eos=1),
        (ctypes.c_int32 * 4)(*ids),
        ctypes.c_uint64(),
    )
    added = lib.lynx_rt_add_request_with_images(
        engine,
        prompt,
        ctypes.c_size_t(4),
        ctypes.byref(image),
        ctypes.c_size_t(1),
        ctypes.byref(params),
        ctypes.byref(request),
    )
    assert added == 0, lib.lynx_rt_last_error()
    tokens: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.POINTER(Output), ctypes.c_void_p)
    def on_output(output: "ctypes._Pointer", _: int) -> None:
        tokens.extend(output.contents.token_ids[: output.contents.num_tokens])

    while lib.lynx_rt_has_unfinished(engine):
        assert lib.lynx_rt_step(engine, on_output, None) == 0
    assert tokens == expected and len(tokens) == 6
    lib.lynx_rt_destroy(engine)
