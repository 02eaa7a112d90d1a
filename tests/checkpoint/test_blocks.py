"""Quantised weights that are multiplied as they lie in the file, or repacked: which are, that products are right, and what is refused.

The products of such weights take activations as int8, with a scale per 128 columns. `exact_model` makes the inputs of an expert's first
products such that this loses nothing, so that only the input of the last one is rounded, by at most half a step: a bound that a wrong
code, scale, zero point or row is far outside of. Scales are powers of two, so that decoding to 16 bit rounds nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import family_models_special
import family_parity
import quantized_formats as qf
import tiny_models as tm
from driving import Job, alone, engine, run
from test_quantized_formats import BY_NAME, quantized, write

from lynx_rt import _C, CheckpointError, ValidationError

HIDDEN, WIDTH, EXPERTS, TOP_K = 128, 32, 4, 2
MODEL = {d: tm.Tiny("blocks", (2, 1, 32), HIDDEN, HIDDEN, (EXPERTS, TOP_K, WIDTH), layers=1, dtype=d) for d in ("float32", "bfloat16", "float16")}  # fmt: skip
TOKENS = [3, 7, 1, 44, 9]

# What becomes of a weight: used where it lies, repacked to the same size, or decoded to 16 bit.
IN_PLACE = [
    *(BY_NAME[name] for name in ("ct_mxfp4", "ct_int4_group", "ct_int4_group_f16_scale", "ct_int4_group_f32_model", "ct_int4_channel",
                                 "ct_int8_w8a8", "ct_int8_w8a8_tensor", "ct_naive_int8", "ct_naive_int4")),
    qf.Format("ct_int8_w8a8_f16_scale", qf.ct("int-quantized", qf.ints(8, "channel")), qf.int8("channel", scale_dtype=qf.F16)),
    qf.Format("ct_int4_one_group_listed", qf.ct("pack-quantized", qf.ints(4, "group", 32)), qf.packed(4, 32, g_idx="unset")),
]  # fmt: skip
INT4_ASYMMETRIC = qf.Format("ct_int4_asymmetric_32", qf.ct("pack-quantized", qf.ints(4, "group", 32, False)), qf.packed(4, 32, symmetric=False))  # fmt: skip
REPACKED = [
    *(BY_NAME[name] for name in ("gptq", "gptq_bf16_model", "gptq_v2", "awq", "awq_one_group")),
    qf.Format("gptq_order_listed", qf.GPTQ, qf.gptq(4, 32, g_idx="plain", bias=True), "float16"),
    qf.Format("gptq_int8_symmetric", qf.GPTQ | {"bits": 8, "sym": True}, qf.gptq(8, 32, zero=128), "float16"),
    qf.Format("ct_int8_group_32", qf.ct("pack-quantized", qf.ints(8, "group", 32)), qf.packed(8, 32)),
    INT4_ASYMMETRIC,
]
DECODED = [
    *(BY_NAME[name] for name in ("ct_int4_order_not_set", "ct_int4_act_order", "gptq_act_order", "gptq_int8_one_group",
                                 "ct_int8_w8a8_asymmetric", "ct_int8_channel_asymmetric")),
]  # fmt: skip


def powers_of_two(
    random: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, codes: float
) -> torch.Tensor:
    steps = random.integers(-1, 2, shape) + np.round(np.log2(2 * qf.SPREAD / codes))
    return torch.tensor(np.exp2(steps), dtype=torch.float32).to(dtype)


def exact_model(tensors: qf.Tensors) -> None:
    """Makes the attention's output 0, all inputs of the experts +-1, and the logits the model's last hidden state."""
    random = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if "o_proj" in name:
            tensors[name] = torch.zeros_like(tensor)
        elif "embed_tokens" in name:
            tensors[name] = (2 * torch.randint(0, 2, tensor.shape, generator=random) - 1).to(tensor.dtype)
        elif name.endswith("norm.weight"):
            tensors[name] = torch.ones_like(tensor)
        elif name == "lm_head.weight":
            tensors[name] = torch.eye(HIDDEN, dtype=tensor.dtype)


def quantise(form: qf.Format, plain: Any, monkeypatch: pytest.MonkeyPatch, experts_only: bool) -> Any:
    """Returns the tensors of the quantised checkpoint, of one with the decoded values, and the config."""
    monkeypatch.setattr(qf, "scales", powers_of_two)
    tensors, config = plain(MODEL[form.dtype])
    exact_model(tensors)
    form = qf.Format(form.name, form.config, form.write, form.dtype, experts_only or form.experts_only)
    codes, values = quantized(form, tensors, config)
    return codes, values, config | {"quantization_config": form.config}


def forward(folder: Path | str, **options: Any) -> np.ndarray:
    return _C.Engine(str(folder), dtype="float32", num_threads=1, max_num_seqs=2, **options).forward(TOKENS)


def norm(y: np.ndarray) -> np.ndarray:
    return np.sqrt((y * y).mean(-1, keepdims=True))


def check_experts(
    found: np.ndarray, x: np.ndarray, router: np.ndarray, experts: list[dict[str, np.ndarray]], *, oss: bool
) -> None:
    """Compares last hidden states with float64, within half a step of the int8 form of each expert's inner activations."""
    v = x / np.sqrt(1 + 1e-6 if not oss else 1 + 1e-5)
    scores = v @ router.T + (experts[0]["router_bias"] if oss else 0)
    y, bound = x.copy(), np.zeros_like(x)
    for t in range(len(x)):
        chosen = np.argsort(-scores[t], kind="stable")[:TOP_K]
        weights = np.exp(scores[t][chosen] - scores[t].max())
        for e, weight in zip(chosen, weights / weights.sum(), strict=True):
            w = experts[e]
            gate, up = w["gate"] @ v[t], w["up"] @ v[t]
            if oss:
                gate, up = np.minimum(gate + w["gate_bias"], 7), np.clip(up + w["up_bias"], -7, 7)
                h = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            else:
                h = gate / (1 + np.exp(-gate)) * up
            y[t] += weight * (w["down"] @ h + (w["down_bias"] if oss else 0))
            bound[t] += weight * np.abs(w["down"]).sum(1) * np.abs(h).max() / 127 / 2
    # The error of a quotient y / norm(y) is that of y, and that of the norm, which is at most the norm of the error.
    low = norm(y) - norm(bound)
    assert (low > 0).all()
    allowed = bound / low + np.abs(y) / norm(y) * norm(bound) / low + 1e-5
    error = np.abs(found - y / norm(y))
    assert (error <= allowed).all(), (error / allowed).max()
    assert np.median(allowed) < 0.25, "a bound that finds mistakes: elements of a state are 1 in the mean square"


def experts_of(values: dict[str, torch.Tensor]) -> list[dict[str, np.ndarray]]:
    name = "model.layers.0.mlp.experts.{}.{}_proj.weight"
    return [{p: values[name.format(e, p)].double().numpy() for p in ("gate", "up", "down")} for e in range(EXPERTS)]


@pytest.mark.parametrize("form", IN_PLACE + REPACKED, ids=lambda f: f.name)
def test_experts(plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: qf.Format) -> None:
    codes, values, config = quantise(form, plain, monkeypatch, experts_only=True)
    folder = write(tmp_path / "model", codes, config)
    found, decoded = forward(folder), forward(folder, quantization="dequantize")
    x = values["model.embed_tokens.weight"].double().numpy()[TOKENS]
    check_experts(found, x, values["model.layers.0.mlp.gate.weight"].double().numpy(), experts_of(values), oss=False)
    assert not np.array_equal(found, decoded), "the products took the codes"
    plain_config = {key: value for key, value in config.items() if key != "quantization_config"}
    np.testing.assert_array_equal(decoded, forward(write(tmp_path / "plain", values, plain_config)))


def write_gpt_oss(folder: Path) -> tuple[str, qf.Tensors]:
    """Returns the folder of a gpt-oss model in MXFP4 that exact_model() changed, and its tensors."""

    def edit(tensors: qf.Tensors) -> None:
        family_models_special.to_mxfp4(tensors)
        exact_model(tensors)
        bias = next(name for name in tensors if "o_proj.bias" in name)
        tensors[bias] = torch.zeros_like(tensors[bias])

    keys = family_models_special.gpt_oss(EXPERTS, TOP_K, WIDTH) | {
        "hidden_size": HIDDEN,
        "vocab_size": HIDDEN,
        "num_hidden_layers": 1,
    }
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    row = family_parity.Row(
        "gpt_oss", "blocks", keys, dtype="bfloat16", edit=family_models_special.to_mxfp4, edit_tensors=edit
    )
    path = family_parity.write(row, folder)
    return path, load_file(Path(path) / "model.safetensors")


def decode_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> np.ndarray:
    nibbles = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-3).numpy()
    return qf.E2M1.astype(np.float64)[nibbles] * np.exp2(scales.numpy().astype(np.float64) - 127).repeat(32, -1)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """Rows of gate and up alternate in the file."""
    path, tensors = write_gpt_oss(tmp_path)
    part = {n.removeprefix("model.layers.0.mlp."): t for n, t in tensors.items()}
    double = {n: t.double().numpy() for n, t in part.items() if not n.endswith(("_blocks", "_scales"))}
    both, down = (
        decode_mxfp4(part[f"experts.{n}_blocks"], part[f"experts.{n}_scales"]) for n in ("gate_up_proj", "down_proj")
    )
    bias, down_bias = double["experts.gate_up_proj_bias"], double["experts.down_proj_bias"]
    experts = [
        {"gate": both[e, 0::2], "up": both[e, 1::2], "down": down[e], "gate_bias": bias[e, 0::2], "up_bias": bias[e, 1::2],
         "down_bias": down_bias[e], "router_bias": double["router.bias"]}
        for e in range(EXPERTS)
    ]  # fmt: skip
    x = tensors["model.embed_tokens.weight"].double().numpy()[TOKENS]
    check_experts(forward(path), x, double["router.weight"], experts, oss=True)


@pytest.mark.parametrize("form", [f for f in IN_PLACE + REPACKED if not f.experts_only], ids=lambda f: f.name)
def test_output_projection(plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: qf.Format) -> None:
    """Logits are within half a step of each input: of 128 columns, whose largest has 127 steps."""
    monkeypatch.setattr(qf, "scales", powers_of_two)
    tensors, config = plain(MODEL[form.dtype])
    exact_model(tensors)
    x = forward(write(tmp_path / "plain", tensors, config)).astype(np.float64)
    codes, value = form.write("lm_head.weight", HIDDEN, HIDDEN, np.random.default_rng(1))
    del tensors["lm_head.weight"]
    config["quantization_config"] = {k: v for k, v in form.config.items() if k != "ignore"}
    found = forward(write(tmp_path / "quantized", tensors | codes, config))
    w = value.double().numpy()
    bound = np.abs(x).max(1, keepdims=True) / 127 / 2 * np.abs(w).sum(1) + 1e-5 * (np.abs(x) @ np.abs(w).T)
    error = np.abs(found - x @ w.T)
    assert (error <= bound).all() and error.max() > 0, (error / bound).max()
    assert bound.max() < 0.1 * np.abs(x @ w.T).max(), "a bound that finds mistakes"


def sizes(folder: Path | str, **options: Any) -> tuple[int, int, int]:
    """(bytes in files, bytes in memory of their own, bytes decoded, converted or repacked) after loading."""
    info = _C.Engine(str(folder), num_threads=1, max_num_seqs=2, **options).model_info()
    mapped = info["mapped_weight_bytes"]
    return mapped, info["weight_bytes"] - mapped, info["copied_weight_bytes"]


@pytest.mark.parametrize("form", IN_PLACE + REPACKED + DECODED, ids=lambda f: f.name)
def test_what_takes_memory(plain: Any, tmp_path: Path, form: qf.Format) -> None:
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    folder = write(tmp_path / "model", codes, config | {"quantization_config": form.config})
    mapped, own, _ = sizes(folder)
    dequantized = sizes(folder, quantization="dequantize")
    options = {option["quantization"]: option for option in _C.inspect(str(folder))["options"]}
    assert list(options) == ["none", "dequantize", "int8", "int4"]
    for name in options:
        expected = sizes(folder, quantization=name)[:2]
        assert (options[name]["mapped_weight_bytes"], options[name]["anonymous_weight_bytes"]) == expected, name
    if form in IN_PLACE:
        assert own == 0 and mapped > dequantized[0]
    elif form in REPACKED:
        assert 0 < own < 0.7 * dequantized[1] and mapped == dequantized[0]
    else:
        assert (mapped, own) == dequantized[:2]


@pytest.mark.parametrize(
    "form", [BY_NAME["gptq"], BY_NAME["awq"], INT4_ASYMMETRIC, BY_NAME["gptq_act_order"]], ids=lambda f: f.name
)
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_second_start_maps_what_the_first_repacked(
    plain: Any, tmp_path: Path, form: qf.Format, quantization: str
) -> None:
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    folder = write(tmp_path / "model", codes, config | {"quantization_config": form.config})
    options = {"quantization": quantization, "quantization_cache": str(tmp_path / "cache")}
    seen: list[tuple[int, int]] = []
    expected, first = (forward(folder, **o) for o in ({"quantization": quantization}, options))
    second = forward(folder, **options, on_load_progress=lambda *progress: seen.append(progress))
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)
    assert seen and seen[-1][0] == seen[-1][1]
    assert sizes(folder, **options)[1:] == (0, 0), "nothing is copied"
    assert sizes(folder, quantization=quantization)[2] > 0


def test_the_rest_of_gpt_oss_is_quantised(tmp_path: Path) -> None:
    """quantization="int8": attention and output projection, but not the experts, which stay as they lie."""
    path, _ = write_gpt_oss(tmp_path)
    options = {option["quantization"]: option for option in _C.inspect(path)["options"]}

    def read(quantization: str) -> tuple[int, int]:
        e = engine(path, quantization=quantization)
        run(e, [Job([1, 2, 3], {"max_tokens": 2})])
        return e.stats()["bytes_read_experts"], e.stats()["bytes_read_dense"]

    (experts, dense), (experts_int8, dense_int8) = read("none"), read("int8")
    assert experts == experts_int8 > 0 and dense_int8 < dense
    in_files = options["none"]["mapped_weight_bytes"]
    per_row = HIDDEN // 2 + HIDDEN // 32
    of_experts = EXPERTS * (2 * WIDTH * per_row + HIDDEN * (WIDTH // 2 + WIDTH // 32))
    assert of_experts < options["int8"]["mapped_weight_bytes"] < in_files
    # Biases of gate and up alternate in the file, so they are copied.
    assert options["none"]["anonymous_weight_bytes"] < 0.05 * in_files


@pytest.mark.parametrize(
    "form",
    [BY_NAME["ct_mxfp4"], BY_NAME["ct_int4_group"], BY_NAME["gptq"], BY_NAME["ct_int8_w8a8"]],
    ids=lambda f: f.name,
)
def test_a_request_gets_the_bits_that_it_gets_alone(plain: Any, tmp_path: Path, form: qf.Format) -> None:
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    path = str(write(tmp_path / "model", codes, config | {"quantization_config": form.config}))
    random = np.random.default_rng(3)
    jobs = [
        Job(random.integers(0, HIDDEN, n).tolist(), {"logprobs": 2, "max_tokens": 5 + n % 3})
        for n in (1, 2, 17, 40, 61)
    ]
    expected = [r.bits for r in alone(path, jobs)]
    for options in [{}, {"num_threads": 2}, {"max_num_batched_tokens": 16, "max_num_seqs": 4}]:
        assert [r.bits for r in run(engine(path, **options), jobs, check=True)] == expected, options
    exact = [Job(j.prompt, {**j.options, "exact": True}) for j in jobs]
    others = [Job([5, 6, 7], {"max_tokens": 30}), Job([8, 9], {"max_tokens": 30})]
    got = run(engine(path, expert_selection="oea:k0=1"), exact + others)
    assert [r.bits for r in got[: len(jobs)]] == expected


SCALES = {"ct_mxfp4": 255, "ct_int4_group": float("nan"), "ct_int4_group_f16_scale": float("inf"), "ct_int8_w8a8_tensor": float("-inf"),
          "gptq": float("nan"), "awq": float("inf"), "fp8_block": float("nan"), "fp8_block_e8m0": 255, "gptq_act_order": float("nan")}  # fmt: skip


@pytest.mark.parametrize("quantization", ["none", "dequantize", "int8"])
@pytest.mark.parametrize("name", SCALES)
def test_scales_that_are_not_finite(plain: Any, tmp_path: Path, name: str, quantization: str) -> None:
    form = BY_NAME[name]
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    scale = next(
        n
        for n in reversed(codes)
        if n.endswith(("weight_scale", "weight_scale_inv", ".scales")) and ".experts.2.down" in n
    )
    codes[scale] = codes[scale].clone()
    (codes[scale].view(torch.uint8) if isinstance(SCALES[name], int) else codes[scale]).view(-1)[-1] = SCALES[name]
    folder = write(tmp_path / "bad", codes, config | {"quantization_config": form.config})
    with pytest.raises(CheckpointError, match="expected finite scales") as caught:
        _C.Engine(str(folder), num_threads=1, max_num_seqs=2, quantization=quantization)
    assert caught.value.field == scale and scale in str(caught.value)


def test_an_expert_with_two_forms_is_decoded(plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and up enter one op, so that they have one form: the file's where both have one, else 16 bit."""
    codes, values, config = quantise(BY_NAME["ct_int4_group"], plain, monkeypatch, experts_only=True)
    for expert in range(EXPERTS):
        name = f"model.layers.0.mlp.experts.{expert}.gate_proj.weight"
        for part in [n for n in codes if n.startswith(name)]:
            del codes[part]
        codes[name] = values[name]
    folder = write(tmp_path / "model", codes, config)
    x = values["model.embed_tokens.weight"].double().numpy()[TOKENS]
    check_experts(
        forward(folder), x, values["model.layers.0.mlp.gate.weight"].double().numpy(), experts_of(values), oss=False
    )
    gates = EXPERTS * HIDDEN * WIDTH * 2
    assert sizes(folder)[1] == gates  # the ups, decoded


@pytest.mark.parametrize("field, options", [
    ("quantization_cache", {"quantization": "dequantize", "quantization_cache": "x"}),
    ("quantization", {"quantization": "decode"}),
])  # fmt: skip
def test_options(plain: Any, tmp_path: Path, field: str, options: dict[str, str]) -> None:
    tensors, config = plain(MODEL["bfloat16"])
    codes, _ = quantized(BY_NAME["ct_int4_group"], tensors, config)
    folder = write(tmp_path / "model", codes, config | {"quantization_config": BY_NAME["ct_int4_group"].config})
    with pytest.raises(ValidationError) as caught:
        _C.Engine(str(folder), **options)
    assert caught.value.field == field
