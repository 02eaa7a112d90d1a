"""Makes `tokenizers.Tokenizer`s of other vocabulary files: vocab.json with merges.txt, tiktoken's, Mistral's tekken.json."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from lynx_rt.errors import shown
from lynx_rt.text.detokenizer import bytes_of_char
from lynx_rt.text.tokenizer_config import TokenizerConfig

# Patterns that cut text into words before merging. They are part of the models' definitions.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
CL100K = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_UPPER, _LOWER = (rf"[{letters}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for letters in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST}"
)
_NUM_KIMI_SPECIALS = 256
_MAX_SPECIALS = 100_000  # limit on the ids after a tiktoken vocabulary, gaps included
_HUNYUAN_SPECIALS = (
    *("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"),
    *(f"<|extra_{place}|>" for place in range(205)),
)


def read_vocab_and_merges(
    vocab: Mapping[str, int], merges: str, qwen: bool, config: TokenizerConfig
) -> tokenizers.Tokenizer:
    """Makes the byte-level BPE of GPT2Tokenizer or Qwen2Tokenizer.

    vocab: token -> id.  merges: a pair per line; lines that start with "#version" are comments.
    """
    if bad := next((token for token, place in vocab.items() if type(place) is not int or not 0 <= place < 2**32), None):
        raise ValueError(f"the id of {shown(bad)} must be an integer from 0 on, got {shown(vocab[bad])}")
    pairs = []
    for number, line in enumerate(merges.split("\n"), 1):
        if line.strip() and not line.startswith("#version"):
            tokens = line.rstrip("\r").split(" ")
            if len(tokens) != 2:
                raise ValueError(f"merges.txt, line {number}: expected two tokens, got {shown(line)}")
            pairs.append((tokens[0], tokens[1]))
    backend = tokenizers.Tokenizer(models.BPE(dict(vocab), pairs, continuing_subword_prefix="", end_of_word_suffix=""))
    space = config.values.get("add_prefix_space") is True
    if qwen:
        backend.normalizer = normalizers.NFC()
    _set_byte_level(backend, QWEN if qwen else None, space)
    return backend


def read_tiktoken(data: bytes, kind: str, config: TokenizerConfig) -> tokenizers.Tokenizer:
    """Reads a tiktoken file: a token in base64 and its rank per line. kind: the tokenizer class, which decides the pattern."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        match line.split():
            case []:
                continue
            case [token, rank] if rank.isdigit() and len(rank) < 10:
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            case _:
                raise ValueError(f"line {number}: expected a token in base64 and its rank, got {shown(line)}")
    size = max(ranks.values(), default=-1) + 1
    added = config.older if config.listed is None else config.listed
    listed = {place: token.content for place, token in added.items() if size <= place < size + _MAX_SPECIALS}
    if kind == "HYTokenizer":
        listed = dict(enumerate(_HUNYUAN_SPECIALS, size)) | listed
    end = max([*listed, size - 1]) + 1
    if kind == "TikTokenTokenizer":
        end = max(end, size + _NUM_KIMI_SPECIALS)
    pattern = {"TikTokenTokenizer": KIMI, "HYTokenizer": QWEN, "QWenTokenizer": QWEN}.get(kind, CL100K)
    specials = [listed.get(place, f"<|reserved_token_{place}|>") for place in range(size, end)]
    backend = _byte_level_bpe(ranks, pattern)
    if pattern is QWEN:
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return backend


def read_tekken(content: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Reads Mistral's tekken.json, with the names of tokens. Special tokens come first, and the vocabulary's ranks follow."""
    for key in ("config", "vocab", "special_tokens"):
        if not isinstance(content.get(key), dict if key == "config" else list):
            raise ValueError(f"expected {key}, got {shown(content.get(key))}")
    config = content["config"]
    named = sorted((entry["rank"], entry["token_str"]) for entry in content["special_tokens"])
    if [rank for rank, _ in named] != list(range(len(named))):
        raise ValueError("the ranks of special_tokens must be 0, 1, 2, ...")
    specials = [token for _, token in named]
    count = config.get("default_num_special_tokens") or len(specials)
    size = config.get("default_vocab_size") or len(content["vocab"]) + count
    if not len(specials) <= count <= size <= count + len(content["vocab"]):
        raise ValueError(f"default_vocab_size {size} and default_num_special_tokens {count} do not fit the vocabulary")
    specials += [f"<SPECIAL_{place}>" for place in range(len(specials), count)]
    entries = content["vocab"][: size - count]
    ranks = {base64.b64decode(entry["token_bytes"], validate=True): place for place, entry in enumerate(entries)}
    backend = _byte_level_bpe(ranks, config["pattern"], specials)
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return backend, {name: token for name, token in names.items() if token in specials}


def llama_style(content: dict[str, Any], config: TokenizerConfig) -> dict[str, Any]:
    """Rebuilds tokenizer.json as LlamaTokenizer of transformers 5 does."""
    model = {"vocab": content["model"]["vocab"], "merges": content["model"]["merges"]}
    made = json_of_llama(config)
    added = content.get("added_tokens", []) if config.listed is None else []
    return content | made | {"model": made["model"] | model, "added_tokens": added}


def json_of_llama(config: TokenizerConfig) -> dict[str, Any]:
    """Returns the parts of tokenizer.json that LlamaTokenizer has for every vocabulary."""
    space = config.values.get("add_prefix_space") is not False
    scheme = ("always" if config.values.get("legacy") is True else "first") if space else "never"
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": steps + strip},
        "model": {"type": "BPE", "fuse_unk": True, "byte_fallback": True},
    }


def merges_of(ranked: Iterable[str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns the pairs that make up each token, in the order of the tokens; pairs of one token with shorter left sides first."""
    pairs = []
    for token in ranked:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                pairs.append((left, right))
    return pairs


def _byte_level_bpe(ranks: Mapping[bytes, int], pattern: str, first: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Makes tiktoken's encoding: the pair that gives the token of the lowest rank merges first. first: tokens before rank 0."""
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"the vocabulary has no token for the byte {missing[0]}")
    char_of = {byte: char for char, byte in bytes_of_char().items()}
    text_of = {token: "".join(char_of[byte] for byte in token) for token in ranks}
    vocab = {text_of[token]: rank for token, rank in ranks.items()}
    order = sorted(vocab, key=vocab.__getitem__)
    merges = merges_of(order, vocab)
    shifted = {token: place for place, token in enumerate(first)}
    shifted.update((token, len(first) + rank) for token, rank in vocab.items())
    backend = tokenizers.Tokenizer(models.BPE(shifted, merges, ignore_merges=True))
    _set_byte_level(backend, pattern, False)
    return backend


def _set_byte_level(backend: tokenizers.Tokenizer, pattern: str | None, add_prefix_space: bool) -> None:
    """Sets the pattern that cuts words (None: GPT-2's, the library's own), and the mapping of bytes to GPT-2's alphabet."""
    words: pre_tokenizers.PreTokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=add_prefix_space, use_regex=pattern is None
    )
    if pattern is not None:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated", invert=False)
        words = pre_tokenizers.Sequence([split, words])
    backend.pre_tokenizer = words
    backend.decoder = decoders.ByteLevel()
