"""How byte-level tokenizers cut text into words, by the names that GGUF files have for them ("tokenizer.ggml.pre").

The patterns are parts of the models' definitions, in their tokenizer.json; llama.cpp's src/llama-vocab.cpp says which name means which.
"""

from __future__ import annotations

from dataclasses import dataclass

from lynx_rt.text.tokenizer_formats import CL100K, KIMI, QWEN


@dataclass(frozen=True)
class Words:
    """patterns: text is cut at each, one after the other; () = GPT-2's, the library's own.  nfc: text is normalised first.
    ignore_merges: a word that is a token needs no merges.  add_bos: where the file does not say.
    """

    patterns: tuple[str, ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST}"
)
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
)
_CJK_TO_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters with an upper and a lower case, as the tokenizer.json of DeepSeek-V2 lists them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK = (
    "[\\r\\n]",
    f"\\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "\\s+$",
    _CJK_TO_HANGUL,
    r"\p{N}+",
)

_GPT2_WORDS = Words()
_DIGITS = Words((r"\p{N}", _GPT2))
_LLAMA3 = Words((CL100K,), ignore_merges=True, add_bos=True)
WORDS = {
    "gpt-2": _GPT2_WORDS,
    "phi-2": _GPT2_WORDS,
    "olmo": _GPT2_WORDS,
    "mpt": _GPT2_WORDS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "smollm": _DIGITS,
    "command-r": _DIGITS,
    "exaone": _DIGITS,
    "qwen2": Words((QWEN,), nfc=True),
    "qwen35": Words((_QWEN35,), nfc=True),
    "deepseek-r1-qwen": Words((QWEN,)),
    "hunyuan": Words((QWEN,)),
    "stablelm2": Words((QWEN,)),
    "grok-2": Words((QWEN,)),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "dbrx": Words((CL100K,)),
    "smaug-bpe": Words((CL100K,)),
    "glm4": Words((CL100K,)),
    "chatglm-bpe": Words((CL100K,)),
    "gpt-4o": Words((_O200K,)),
    "llama4": Words((_O200K,)),
    "minimax-m2": Words((_O200K,)),
    "tekken": Words((_TEKKEN,), ignore_merges=True, add_bos=True),
    "kimi-k2": Words((KIMI,)),
    "deepseek-v3": Words(_DEEPSEEK3),
    "deepseek-llm": Words(_DEEPSEEK),
    "deepseek-coder": Words(("[\\r\\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_TO_HANGUL, r"\p{N}")),
}
