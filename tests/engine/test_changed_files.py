"""Files that are changed while an engine uses them in place: an error if other weights would be read, else none."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from lynx_rt import _C, CheckpointError, Engine

TOKENS = [3, 4, 5]
PAUSE_S = 0.3  # an engine looks at its files every 0.25 s


@pytest.fixture
def model(tiny_path, tmp_path):
    return Path(shutil.copytree(tiny_path("bf16"), tmp_path / "model"))


def core(path, **options):
    return _C.Engine(str(path), num_threads=1, max_num_seqs=2, **options)


def cut_off(file):
    os.truncate(file, file.stat().st_size // 2)


def cut_to_nothing(file):
    os.truncate(file, 0)


def write_in_place(file):
    with file.open("r+b") as f:
        f.seek(-64, os.SEEK_END)
        f.write(bytes(64))


def append(file):
    with file.open("ab") as f:
        f.write(bytes(64))


@pytest.mark.parametrize("change, text", [(cut_off, "was cut off while it is in use"), (cut_to_nothing, "now 0"),
                                          (write_in_place, "was written to while it is in use"), (append, "was written to")])  # fmt: skip
def test_a_changed_checkpoint_is_an_error(model, change, text):
    """Before: reading what was cut off ended the process, and what was written was used as weights."""
    file = model / "model.safetensors"
    with Engine(model, skip_tokenizer_init=True, num_threads=1, max_num_seqs=2) as engine:
        params = {"max_tokens": 4, "ignore_eos": True}
        engine.generate([TOKENS], params)
        time.sleep(PAUSE_S)
        change(file)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=text) as caught:
                engine.generate([TOKENS], params)
            assert caught.value.field == str(file)
        with pytest.raises(CheckpointError, match=text):
            next(iter(engine.stream(TOKENS, params)))
        # It stays an error, though another file has the name by now.
        time.sleep(PAUSE_S)
        file.unlink()
        with pytest.raises(CheckpointError, match=text):
            engine.generate([TOKENS], params)


def test_other_requests_of_the_process_go_on(model, tiny_path):
    first, other = core(model), core(tiny_path("bf16"))
    expected = other.forward(TOKENS)
    time.sleep(PAUSE_S)
    cut_off(model / "model.safetensors")
    with pytest.raises(CheckpointError, match="cut off"):
        first.forward(TOKENS)
    np.testing.assert_array_equal(other.forward(TOKENS), expected)


@pytest.mark.parametrize("how", ["replaced", "replaced by a short one", "removed"])
def test_a_file_that_was_replaced_or_removed_stays_in_use(model, how):
    file = model / "model.safetensors"
    engine = core(model)
    expected = engine.forward(TOKENS)
    if how == "removed":
        file.unlink()
    else:
        other = file.with_suffix(".other")
        other.write_bytes(b"something else" * (10_000 if how == "replaced" else 1))
        other.rename(file)
    time.sleep(PAUSE_S)
    np.testing.assert_array_equal(engine.forward(TOKENS), expected)


@pytest.mark.parametrize("change, text", [(cut_off, "was cut off"), (write_in_place, "was written to")])
def test_a_changed_file_of_quantised_weights_is_an_error(model, tmp_path, change, text):
    cache = tmp_path / "cache"
    options = {"quantization": "int8", "quantization_cache": str(cache)}
    expected = core(model, **options).forward(TOKENS)
    (file,) = cache.iterdir()
    engine = core(model, **options)
    np.testing.assert_array_equal(engine.forward(TOKENS), expected)
    time.sleep(PAUSE_S)
    change(file)
    with pytest.raises(CheckpointError, match=text) as caught:
        engine.forward(TOKENS)
    assert caught.value.field == str(file)
