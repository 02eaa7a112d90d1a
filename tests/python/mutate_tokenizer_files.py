"""Mutates tokenizer folders, and loads and uses each. test_tokenizer_fuzz.py runs it in a process of its own.

usage: mutate_tokenizer_files.py SEEDS WORK FIRST COUNT

SEEDS: a folder of model folders.  WORK: a scratch folder; WORK/case is the number of the case in progress.
It prints a line per fault: case, what is wrong. The process ends if a case takes 2 s of CPU time (SIGPROF), or 1 GB of memory more
than before it (the allocator aborts).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lynx_rt import LynxError, Tokenizer
from lynx_rt.engine.generation_config import load_generation_config
from lynx_rt.text.chat import render_chats

TEXTS = ["", " a b", "The quick 日本 e\u0301 👩‍👩‍👧", "<s>x</s> <|user|> fox\n\t12", "<unk> \x00 ▁▁q"]
CPU_SECONDS = 2.0
MEMORY_BYTES = 1 << 30
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "tiktoken.model", "tekken.json")
SCALARS: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        255,
        2**31,
        2**32,
        2**63,
        2**64,
        10**30,
        0.5,
        -1.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "",
        " ",
        "a",
        "▁",
        "<s>",
        "</s>",
        "<unk>",
        "\ud800",
        "\x00",
        "日本",
        "x" * 5000,
        "[",
        "(a*)*b",
        "\\p{L}+",
        "$A",
        "{{ x }}",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"type": "x"},
        {"content": "<s>"},
        ["<s>", 0],
        {"String": " "},
        {"Regex": "("},
        {"Fixed": 2**40},
    ),
]
_TYPES = """
BPE Unigram WordPiece WordLevel ByteLevel Metaspace Sequence Split Replace ByteFallback Fuse Strip Prepend Precompiled NFC NFKC
Lowercase BertNormalizer Whitespace Digits TemplateProcessing BertProcessing RobertaProcessing CTC BPEDecoder Punctuation
"""
_KEYS = """
bos_token eos_token unk_token pad_token image_token added_tokens_decoder extra_special_tokens additional_special_tokens
add_bos_token add_eos_token add_prefix_space split_special_tokens legacy tokenizer_class chat_template model_type content special
lstrip type prepend_scheme ids id eos_token_id temperature top_k top_p do_sample max_new_tokens repetition_penalty text_config
truncation padding dropout unk_id byte_fallback merges vocab normalizer decoder pattern
"""
TYPES, KEYS = _TYPES.split(), _KEYS.split()


def pick(value: Any, rng: random.Random) -> Any:
    """Picks a list or object inside, mostly a shallow one: settings are shallow, the vocabulary is deep."""
    while True:
        children = list(value.values() if isinstance(value, dict) else value)
        inside = [child for child in children[:60] if isinstance(child, dict | list)]
        if not inside or rng.random() < 0.3:
            return value
        value = rng.choice(inside)


def copied(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except RecursionError:
        return None


def mutate_json(value: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not isinstance(value, dict | list):
            return rng.choice(SCALARS)
        place = pick(value, rng)
        new = rng.choice((rng.choice(SCALARS), rng.choice(SCALARS), rng.choice(TYPES), pick(value, rng)))
        new = copied(new)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        action = rng.choice((0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5))
        if not keys or action == 0:
            if isinstance(place, dict):
                place[rng.choice(KEYS)] = new
            else:
                place.insert(rng.randrange(len(place) + 1), new)
        elif action == 1:
            del place[rng.choice(keys)]
        elif action == 2 and isinstance(place, list):
            rng.shuffle(place)
        elif action == 3 and isinstance(place, dict) and "type" in place:
            place["type"] = rng.choice(TYPES)
        elif action == 4:
            key = rng.choice(keys)
            for _ in range(rng.choice((1, 3, 50, 120, 2000))):
                new = [new] if rng.random() < 0.5 else {"type": "Sequence", "decoders": [new]}
            place[key] = new
        else:
            place[rng.choice(keys)] = new
    return value


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0:
                del out[place:]
            case 1:
                out[place:place] = rng.choice(
                    (b"\xff", b"\x00", b'"', b"}", b"[" * 3000, b"\n", b" -1", b"9" * 5000, b"\xff" * 9)
                )
            case 2:
                del out[place : place + rng.choice((1, 2, 20))]
            case 3:
                other = rng.randrange(len(out) + 1)
                out[place:place] = out[other : other + 40]
            case _:
                if place < len(out):
                    out[place] = rng.choice((out[place] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    return bytes(out)


def dump(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 100_000


def make_case(seeds: list[Path], folder: Path, rng: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(rng.choice(seeds), folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    vocabulary = [file for file in files if file.name in VOCABULARIES]
    chosen = [rng.choice(rng.choice((files, vocabulary))) for _ in range(rng.choice((1, 1, 1, 2)))]
    for file in dict.fromkeys(chosen):
        data = file.read_bytes()
        if file.suffix == ".json" and rng.random() < 0.85:
            file.write_text(dump(mutate_json(json.loads(data), rng)), encoding="utf-8", errors="surrogatepass")
        elif rng.random() < 0.02:
            file.unlink()
        else:
            file.write_bytes(mutate_bytes(data, rng))


def allowed(call: Callable[[], Any]) -> Any:
    """Returns the call's result; None if it raises a LynxError, which must have a short text."""
    try:
        return call()
    except LynxError as error:
        text = str(error)
        assert 0 < len(text) < 3000, f"a text of {len(text)} characters: {text[:80]}"
        return None


def use(folder: Path) -> None:
    """Loads and uses what it can; any error but a LynxError is raised."""
    with contextlib.suppress(LynxError):
        load_generation_config(folder)
    tokenizer = allowed(lambda: Tokenizer(folder))
    if tokenizer is None:
        return
    with contextlib.suppress(LynxError):
        render_chats([{"role": "user", "content": "x"}], tokenizer)
    size = tokenizer.vocab_size
    for text in TEXTS:
        for special in (False, True):
            ids = allowed(lambda: tokenizer.encode(text, special))
            if ids is None:
                continue
            again = allowed(lambda: tokenizer.encode_batch([text, text], special))
            assert again == [ids, ids], "a batch differs from one"
            whole = allowed(lambda: tokenizer.decode(ids, special))
            assert whole is None or isinstance(whole, str)
            allowed(lambda: stream(tokenizer, ids, special))
            for token_id in ids[:5]:
                allowed(lambda: tokenizer.token_bytes(token_id))
    allowed(lambda: tokenizer.decode([*range(min(size, 40)), size + 5]))


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool) -> str:
    detokenizer = tokenizer.detokenizer(skip, ids[:2])
    return "".join([*[detokenizer.add(token_id) for token_id in ids], detokenizer.finish()])


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    seeds, work = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2])
    first, count = int(sys.argv[3]), int(sys.argv[4])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for case in range(first, first + count):
        (work / "case").write_text(str(case))
        make_case(seeds, work / "folder", random.Random(case))
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY_BYTES, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            use(work / "folder")
        except BaseException as error:
            print(f"{case}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
