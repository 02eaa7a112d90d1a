"""quantization="int8" and "int4": reproducible like unquantised weights, close to them, cached on request, refused where useless."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, alone, engine, run
from isas import ISAS

from lynx_rt import _C, CheckpointError, ValidationError

SCHEMES = ["int8", "int4"]
MODELS = ["groups3", "bf16"]


def jobs_for(model):
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, tm.ALL[model].vocab, n).tolist() for n in (1, 2, 17, 40, 61)]
    return [Job(p, {"logprobs": 2, "max_tokens": 8 + i}) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model", MODELS)
def test_a_request_gets_the_bits_that_it_gets_alone(tiny_path, model, scheme):
    path, jobs = tiny_path(model), jobs_for(model)
    expected = [r.bits for r in alone(path, jobs, quantization=scheme)]
    for options in [
        {},
        {"num_threads": 2},
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"block_size": 4, "num_threads": 3},
    ]:
        got = run(engine(path, quantization=scheme, **options), jobs, check=True)
        assert [r.bits for r in got] == expected, options
    exact = [Job(j.prompt, {**j.options, "exact": True}, j.arrival) for j in jobs]
    others = [Job([5, 6, 7], {"max_tokens": 30}), Job([8, 9], {"max_tokens": 30})]
    got = run(engine(path, quantization=scheme, expert_selection="oea:k0=1"), exact + others)
    assert [r.bits for r in got[: len(jobs)]] == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_instruction_set(nano_path, scheme, isa):
    """Beside the products, instruction sets round differently: the logits agree to what bfloat16 makes of that."""
    tokens = list(range(20, 80))
    best, this = (
        np.array(_C.Engine(nano_path, quantization=scheme, isa=i, dtype="float32").forward(tokens))
        for i in ("scalar", isa)
    )
    # A float32 rounding may move one value in thousands to the next step of its group, 1/254 of the largest.
    assert np.abs(best - this).max() < 0.05 * np.abs(best).max()


@pytest.fixture(scope="module")
def texts():
    """Questions and answers of every task: token ids, and where the answer begins."""
    from lynx_rt import Engine, shipped_model

    tasks = Path(__file__).parents[2] / "bench" / "tasks"
    with Engine(shipped_model()) as e:
        tokenizer = e.get_tokenizer()
    out = []
    for file in sorted(tasks.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[:6]:
            item = json.loads(line)
            out.append((tokenizer.encode(f"{item['prompt']} {item['answer']}"), len(tokenizer.encode(item["prompt"]))))
    return out


@pytest.mark.parametrize("scheme, agreement", [("int8", 0.99), ("int4", 0.95)])
def test_the_trained_model_hardly_changes_its_mind(nano_path, texts, scheme, agreement):
    """The share of answer tokens where the most likely one stays the same; bench/results has the accuracy of whole answers."""
    plain, quantized = (_C.Engine(nano_path, quantization=q) for q in ("none", scheme))
    same = []
    for tokens, start in texts:
        first, second = (np.array(e.forward(tokens))[start - 1 : -1].argmax(1) for e in (plain, quantized))
        same += (first == second).tolist()
    assert len(same) > 500
    assert np.mean(same) >= agreement


def test_sizes(nano_path):
    """128 columns and one scale cost 132 bytes in int8, 68 in int4; attention and the output projection are int8 in both."""
    infos = {q: _C.Engine(nano_path, quantization=q).model_info() for q in ("none", "int8", "int4")}
    config = json.loads((Path(nano_path) / "config.json").read_text())
    hidden, width, experts, layers = (
        config[key] for key in ("hidden_size", "moe_intermediate_size", "num_experts", "num_hidden_layers")
    )
    heads, groups, size, vocab = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    )

    def packed(bits, rows, cols):
        return rows * -(-cols // 128) * (4 + 16 * bits)

    def model(bits):
        q, kv = heads * size, groups * size
        attention = packed(8, q, hidden) + 2 * packed(8, kv, hidden) + packed(8, hidden, q)
        expert = 2 * packed(bits, width, hidden) + packed(bits, hidden, width)
        return packed(8, vocab, hidden) + layers * (attention + experts * expert)

    plain_matrices = vocab * hidden + layers * (
        2 * heads * size * hidden + 2 * groups * size * hidden + 3 * experts * width * hidden
    )
    tied = config["tie_word_embeddings"]
    rest = infos["none"]["weight_bytes"] - 2 * (plain_matrices - (vocab * hidden if tied else 0))
    for bits in (8, 4):
        assert infos[f"int{bits}"]["weight_bytes"] == rest + model(bits)


def test_progress_reaches_the_total(nano_path):
    seen = []
    _C.Engine(nano_path, quantization="int4", on_load_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cache_gives_the_same_weights(nano_path, tmp_path, scheme):
    folder = tmp_path / "made" / "by the engine"
    without = _C.Engine(nano_path, quantization=scheme).forward([3, 4, 5])
    first = _C.Engine(nano_path, quantization=scheme, quantization_cache=str(folder)).forward([3, 4, 5])
    (file,) = folder.iterdir()
    before = file.stat()
    np.testing.assert_array_equal(first, without)
    np.testing.assert_array_equal(
        _C.Engine(nano_path, quantization=scheme, quantization_cache=str(folder)).forward([3, 4, 5]), without
    )
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    # Proof that it is read: other weights give other logits.
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    file.write_bytes(data)
    changed = _C.Engine(nano_path, quantization=scheme, quantization_cache=str(folder)).forward([3, 4, 5])
    assert not np.array_equal(changed, without)


def test_one_cache_folder_for_several_models(tiny_path, tmp_path):
    """Schemes, models and changed files do not get each other's weights."""
    cache = str(tmp_path / "cache")
    path = tmp_path / "model"
    shutil.copytree(tiny_path("bf16"), path)

    def logits(p, scheme):
        return _C.Engine(str(p), quantization=scheme, quantization_cache=cache).forward([1, 2, 3])

    first = logits(path, "int8")
    logits(path, "int4")
    logits(tiny_path("groups3"), "int8")
    assert len(list(Path(cache).iterdir())) == 3
    np.testing.assert_array_equal(logits(path, "int8"), first)
    assert len(list(Path(cache).iterdir())) == 3
    (path / "model.safetensors").touch()
    logits(path, "int8")
    assert len(list(Path(cache).iterdir())) == 4


def test_a_damaged_cache_is_named(nano_path, tmp_path):
    options = {"quantization": "int4", "quantization_cache": str(tmp_path)}
    _C.Engine(nano_path, **options)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    size = whole.index(len(whole).to_bytes(8, "little"))  # where the header says how long the file is

    def of_length(n):
        return whole[:size] + n.to_bytes(8, "little") + (whole[size + 8 :] + bytes(64))[: n - size - 8]

    assert of_length(len(whole)) == whole
    shorter, longer = of_length(len(whole) - 64), of_length(len(whole) + 64)
    for content in (b"", b"something else" * 1000, whole[:-64], whole[: len(whole) // 2], shorter, longer):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            _C.Engine(nano_path, **options)


def test_an_unwritable_cache_is_named(nano_path, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValidationError, match=r"quantization_cache: .*file"):
        _C.Engine(nano_path, quantization="int8", quantization_cache=str(tmp_path / "file"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"quantization": "int3"}, 'quantization: expected none, dequantize, int8 or int4, got "int3"'),
        ({"quantization_cache": "somewhere"}, "quantization_cache: expected none without quantization"),
        (
            {"quantization": "int8", "quantization_cache": "x", "load_format": "dummy"},
            "quantization_cache: expected none with load_format",
        ),
    ],
)
def test_refused(nano_path, options, message):
    with pytest.raises(ValidationError, match=message):
        _C.Engine(nano_path, **options)


def test_selection_works_on_quantized_experts(nano_path):
    e = engine(nano_path, quantization="int4", expert_selection="lynx")
    rng = np.random.default_rng(0)
    jobs = [Job(rng.integers(10, 60, 5).tolist(), {"max_tokens": 12}) for _ in range(12)]
    assert all(len(r.tokens) == 12 for r in run(e, jobs))
    layers = e.stats()["layers"]
    assert sum(layer["active"] for layer in layers) < sum(layer["union_before"] for layer in layers)
