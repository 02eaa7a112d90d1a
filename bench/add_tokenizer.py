"""Writes a folder with a checkpoint's files and a made-up tokenizer, so that a server can be measured on made-up weights.

    python bench/add_tokenizer.py MODEL OUT

MODEL: a folder with a config.json and weights, which OUT links to. Its token i is the text " w<i>".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def main() -> int:
    model, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    out.mkdir(parents=True)
    for file in model.iterdir():
        (out / file.name).symlink_to(file)
    vocabulary = {f"▁w{i}": i for i in range(json.loads((model / "config.json").read_text())["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="▁w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "▁w2", "unk_token": "▁w0"}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
