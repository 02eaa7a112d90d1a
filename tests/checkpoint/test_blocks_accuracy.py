"""lynx-nano written in quantised formats: products with the codes as they lie hardly change what it answers, beside decoded weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import nano_files

from lynx_rt import _C

pytestmark = pytest.mark.slow

Text = tuple[list[int], int]  # token ids, and where the answer begins


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    from lynx_rt import Engine, shipped_model

    with Engine(shipped_model()) as e:
        tokenizer = e.get_tokenizer()
    out = []
    for file in sorted((Path(__file__).parents[2] / "bench" / "tasks").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[:6]:
            item = json.loads(line)
            out.append((tokenizer.encode(f"{item['prompt']} {item['answer']}"), len(tokenizer.encode(item["prompt"]))))
    return out


@pytest.mark.parametrize("name", ["int4", "awq", "mxfp4", "int8"])
def test_answers(nano_path: str, tmp_path: Path, texts: list[Text], name: str) -> None:
    """The most likely token of the answers is the same for 99 of 100, in every linear layer's format, as with decoded weights."""
    folder = str(nano_files.write(nano_path, name, tmp_path / name))
    as_it_lies, decoded = (_C.Engine(folder, quantization=q) for q in ("none", "dequantize"))
    assert as_it_lies.model_info()["weight_bytes"] < 0.6 * decoded.model_info()["weight_bytes"]
    same = []
    for tokens, start in texts:
        first, second = (np.array(e.forward(tokens))[start - 1 : -1].argmax(1) for e in (as_it_lies, decoded))
        same += (first == second).tolist()
    assert len(same) > 500 and np.mean(same) >= 0.99, np.mean(same)
