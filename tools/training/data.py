"""Writes the packed training data: questions of tasks.py, and Python's standard library as prose between them.

    python data.py --tokenizer models/lynx-nano --exclude bench/tasks --out data

The tokenizer is lynx-nano's. Files {code,tasks}.{train,val}.npz hold `tokens` uint16, documents one after the other, each
`<|bos|> text <|eos|>`; `starts`, the documents' first positions; `weight` uint8, 0 on the prompts of tasks. Prompts of the held-out
task sets in --exclude never enter.
"""

import argparse
import os
import random
import re
from pathlib import Path

import numpy as np
import tasks
from tokenizers import Tokenizer

LEFT_OUT = re.compile(r"/(test|tests|idle_test|encodings|lib2to3|__pycache__|site-packages|pydoc_data|turtledemo)/")


def chunks(text, size):
    """Cuts a text into documents of about `size` characters at blank lines."""
    out, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        current += paragraph.strip("\n") + "\n\n"
        if len(current) > size:
            out.append(current.strip())
            current = ""
    return out + ([current.strip()] if current.strip() else [])


def code():
    for file in sorted(Path(os.__file__).parent.rglob("*.py")):
        text = "" if LEFT_OUT.search(str(file)) else file.read_text("utf-8", "replace")
        if len(text) > 300:
            yield from chunks(text, 6000)


def questions(count, seed, exclude):
    r, seen = random.Random(seed), tasks.prompts_in(exclude)
    names, weights = list(tasks.FAMILIES), list(tasks.FAMILIES.values())
    while count:
        item = tasks.make(r.choices(names, weights)[0], r)
        if item["prompt"] not in seen:
            count -= 1
            yield item


def save(tokenizer, path, documents, prompts=None):
    """Encodes texts in blocks; `prompts` are prefixes that get weight 0, `<|bos|>` included."""
    tokens, starts, weights, position = [], [], [], 0
    bos, eos = (tokenizer.token_to_id(name) for name in ("<|bos|>", "<|eos|>"))
    for i in range(0, len(documents), 20000):
        encoded = tokenizer.encode_batch(documents[i : i + 20000], add_special_tokens=False)
        before = tokenizer.encode_batch((prompts or [""] * len(documents))[i : i + 20000], add_special_tokens=False)
        for text, prompt in zip(encoded, before):
            ids = [bos, *text.ids, eos]
            weight = np.ones(len(ids), np.uint8)
            if prompts:
                assert text.ids[: len(prompt.ids)] == prompt.ids
                weight[: len(prompt.ids) + 1] = 0
            tokens.append(np.array(ids, np.uint16))
            weights.append(weight)
            starts.append(position)
            position += len(ids)
    np.savez(path, tokens=np.concatenate(tokens), starts=np.array(starts), weight=np.concatenate(weights))
    print(path, len(documents), "documents,", position, "tokens", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--exclude", nargs="*", default=[])
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=700_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    own = Tokenizer.from_file(f"{options.tokenizer}/tokenizer.json")
    texts = list(code())
    random.Random(options.seed).shuffle(texts)
    held = max(20, len(texts) // 80)
    save(own, f"{options.out}/code.val.npz", texts[:held])
    save(own, f"{options.out}/code.train.npz", texts[held:])
    items = list(questions(options.count, options.seed, options.exclude))
    texts = [f"{item['prompt']} {item['answer']}" for item in items]
    save(own, f"{options.out}/tasks.val.npz", texts[:2000], [item["prompt"] for item in items[:2000]])
    save(own, f"{options.out}/tasks.train.npz", texts[2000:], [item["prompt"] for item in items[2000:]])
