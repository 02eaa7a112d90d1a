"""GPTQ's two ways to store zero points, as they are or less one, and files that hold one way and declare the other."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import quantized_formats as qf
import tiny_models as tm
from test_quantized_formats import GATE, MODEL, ODD, assert_same, is_module, quantized, refused, write

from lynx_rt import _C, CheckpointError, Engine

SYM = qf.GPTQ | {"sym": True}
ABSENT = {key: value for key, value in qf.GPTQ.items() if key != "sym"}


def form_of(bits, *, less_one, zero=None):
    return qf.Format(f"gptq_{bits}", {}, qf.gptq(bits, 32, less_one=less_one, zero=zero), "float16")


def warnings_of(folder):
    found = _C.inspect(str(folder))["warnings"]
    assert found == _C.Engine(str(folder), num_threads=1, max_num_seqs=2).model_info()["warnings"]
    return found


# Model, bits, checkpoint_format, quantization_config; the odd model has words with fields that mean nothing.
SYMMETRIC = [(MODEL["float16"], bits, says, SYM) for bits in (4, 8) for says in ("gptq", "gptq_v2", None)]
SYMMETRIC += [(ODD, 4, "gptq", SYM), (MODEL["float16"], 4, "gptq", ABSENT)]


@pytest.mark.parametrize("less_one", [True, False])
@pytest.mark.parametrize("tiny, bits, says, config", SYMMETRIC)
def test_the_file_tells_where_zero_points_are_symmetric(plain, tmp_path, tiny, bits, says, config, less_one):
    tensors, model = plain(tiny)
    codes, values = quantized(form_of(bits, less_one=less_one, zero=1 << (bits - 1)), tensors, model)
    config = config | {"bits": bits} | ({} if says is None else {"checkpoint_format": says})
    assert_same(tmp_path, codes, values, model, config)
    texts = warnings_of(tmp_path / "quantized")
    assert len(texts) == (less_one != (says != "gptq_v2"))
    held = "gptq" if less_one else "gptq_v2"
    assert all(f"are those of {held}, as which they are read" in text for text in texts)


@pytest.mark.parametrize("sym", [True, False])
def test_the_engine_warns(plain, tmp_path, sym):
    tensors, model = plain(MODEL["float16"])
    codes, _ = quantized(form_of(4, less_one=not sym, zero=8 if sym else 7), tensors, model)
    folder = write(tmp_path / "model", codes, model | {"quantization_config": SYM | {"sym": sym}})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Engine(folder, skip_tokenizer_init=True, num_threads=1, max_num_seqs=2).close()
    assert len([w for w in caught if "checkpoint_format gptq" in str(w.message)]) == sym


@pytest.mark.parametrize("says", ["gptq", "gptq_v2"])
def test_asymmetric_files_are_believed(plain, tmp_path, says):
    """They are, even if all zero points happen to be stored as the middle."""
    tensors, model = plain(MODEL["float16"])
    less_one = says == "gptq"
    codes, values = quantized(form_of(4, less_one=less_one, zero=8 + less_one), tensors, model)
    assert_same(tmp_path, codes, values, model, qf.GPTQ | {"checkpoint_format": says})
    assert warnings_of(tmp_path / "quantized") == []


def change_one(codes, change, name=GATE + "qzeros"):
    """Changes one word of the zero points of one expert."""
    words = codes[name].clone()
    words[0, 0] = change(int(words[0, 0]))
    return codes | {name: words}


def test_other_zero_points_than_symmetric_ones(plain, tmp_path):
    tensors, model = plain(MODEL["float16"])
    for less_one in (True, False):
        codes, _ = quantized(form_of(4, less_one=less_one, zero=8), tensors, model)
        folder = write(tmp_path / "bad", change_one(codes, lambda word: word ^ 1), model | {"quantization_config": SYM})
        refused(folder, CheckpointError, "1 contradictory", GATE + "qzeros", "other zero points than 8", "sym true")
    # Without `sym` the config is believed where the file is not symmetric.
    absent = write(
        tmp_path / "absent", change_one(codes, lambda word: word ^ 1), model | {"quantization_config": ABSENT}
    )
    assert warnings_of(absent) == []


def test_a_file_of_both_kinds(plain, tmp_path):
    tensors, model = plain(MODEL["float16"])
    codes, _ = quantized(form_of(4, less_one=True, zero=8), tensors, model)
    codes[GATE + "qzeros"] = codes[GATE + "qzeros"] + 0x11111111
    folder = write(tmp_path / "bad", codes, model | {"quantization_config": SYM})
    refused(folder, CheckpointError, GATE + "qzeros", "as they are", "less one", "the same in all tensors")


def test_zero_points_of_both_readings_of_15(plain, tmp_path):
    """Stored less one, 0 is 15, which some readers take for 16."""
    tensors, model = plain(MODEL["float16"])
    codes, values = quantized(form_of(4, less_one=True), tensors, model)
    assert_same(tmp_path, codes, values, model, qf.GPTQ)
    (text,) = warnings_of(tmp_path / "quantized")
    expected = sum(
        (np.unpackbits(codes[name].numpy().view(np.uint8)).reshape(-1, 4).sum(1) == 4).sum()
        for name in codes
        if name.endswith("qzeros")
    )
    assert text.startswith(f"{expected} zero points") and expected > 100
    codes, values = quantized(form_of(4, less_one=False), tensors, model)
    assert_same(tmp_path, codes, values, model, qf.GPTQ | {"checkpoint_format": "gptq_v2"})
    assert warnings_of(tmp_path / "quantized") == []


def test_modules_with_settings_of_their_own(plain, tmp_path):
    """`dynamic`: bits and groups by module, and modules that are not quantised."""
    tensors, model = plain(MODEL["float16"])
    random, codes, values = np.random.default_rng(5), {}, {}
    for name, tensor in tensors.items():
        write_one = qf.gptq(4, 32, zero=8)
        if "down_proj" in name:
            write_one = qf.gptq(8, 16, zero=128, g_idx="plain")
        elif "q_proj" in name:
            write_one = qf.gptq(8, 32, zero=128)
        elif "k_proj" in name:
            write_one = qf.gptq(4, 16, zero=8)
        if not is_module(name, tensor, False) or "v_proj" in name:
            codes[name] = values[name] = tensor
            continue
        stored, value = write_one(name, *tensor.shape, random)
        codes |= stored
        values[name] = value.contiguous()
    dynamic = {
        r"+:.*\.experts\.\d+\.down_proj": {"bits": 8, "group_size": 16, "desc_act": True},
        r".*q_proj.*": {"bits": 8},
        r"+:.*k_proj.*": {"group_size": 16},
        r"-:.*v_proj.*": {},
    }
    config = SYM | {"dynamic": dynamic}
    assert_same(tmp_path, codes, values, model, config)
    text = _C.inspect(str(tmp_path / "quantized"))["quantization"]
    settings = ["int4, a scale to 32", "int8, a scale to 16", "int4, a scale to 16", "int8, a scale to 32"]
    assert text == "gptq: " + " or ".join(f"{s} inputs" for s in settings)
    # A zero point of its own kind is allowed where a rule says so.
    name = "model.layers.0.self_attn.q_proj.qzeros"
    odd = write(
        tmp_path / "odd", change_one(codes, lambda word: word ^ 1, name), model | {"quantization_config": config}
    )
    refused(odd, CheckpointError, name, "other zero points than 128")
    dynamic[".*q_proj.*"]["sym"] = False
    write(tmp_path / "odd", change_one(codes, lambda word: word ^ 1, name), model | {"quantization_config": config})
    assert warnings_of(tmp_path / "odd") == []


def test_groups_that_cannot_be_told_apart(plain, tmp_path):
    tiny = tm.Tiny("ambiguous", (3, 1, 16), 96, 61, (4, 2, 32), layers=1, dtype="float16")
    tensors, model = plain(tiny)
    config = SYM | {"group_size": 64, "dynamic": {"+:.*": {"group_size": 48}}}
    codes, values = quantized(qf.Format("g", {}, qf.gptq(4, 64, zero=8, g_idx="plain"), "float16"), tensors, model)
    assert_same(tmp_path, codes, values, model, config)  # the index of groups tells
    codes, _ = quantized(qf.Format("g", {}, qf.gptq(4, 64, zero=8)), tensors, model)
    bad = write(tmp_path / "bad", codes, model | {"quantization_config": config})
    refused(bad, CheckpointError, "contradictory", "fits int4, a scale to 64 inputs and int4, a scale to 48 inputs")


@pytest.mark.parametrize("name, form, config", [
    ("quantize_config.json", "gptq", {k: v for k, v in qf.GPTQ.items() if k != "quant_method"}),
    ("quantize_config.json", "awq", qf.AWQ),
    ("quant_config.json", "awq", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
])  # fmt: skip
def test_a_config_of_its_own(plain, tmp_path, name, form, config):
    """AutoGPTQ and AutoAWQ once wrote a file of its own, beside a config.json without quantization_config."""
    form = next(f for f in qf.FORMATS if f.name == form)
    tensors, model = plain(MODEL["float16"])
    codes, values = quantized(form, tensors, model)
    with_both = write(tmp_path / "both", codes, model | {"quantization_config": form.config})
    folder = write(tmp_path / "alone", codes, model)
    refused(folder, CheckpointError, "no quantization_config")
    (folder / name).write_text(json.dumps(config))
    both, alone = (_C.Engine(str(f), num_threads=1, max_num_seqs=2).forward([3, 7, 1]) for f in (with_both, folder))
    np.testing.assert_array_equal(both, alone)
    write(folder, values, model)
    refused(folder, CheckpointError, name, "no weight is quantised")
    (folder / name).write_text(json.dumps({"quant_method": "hqq"}))
    with pytest.raises(Exception, match="hqq") as caught:
        _C.inspect(str(folder))
    assert name in str(caught.value)
