"""Texts that tell tokenizers apart."""

from __future__ import annotations

import random

_BY_HAND = [
    *(
        "",
        " ",
        "  ",
        "   x",
        "a",
        " a",
        "a ",
        "  two  spaces ",
        "\n\tx\n",
        "\r\n\r\n a",
        "tab\ttab",
        "x \n y",
        "\n\n\n",
    ),
    *(
        "The quick brown fox",
        "what's it's I'LL you've THEY'D",
        "café naïve",
        "e\u0301 o\u0308",
        "日本語のテキスト",
        "привет, мир",
    ),
    *(
        "👩‍👩‍👧 🇩🇪 👍🏽",
        "12345678901 3.14 1,000",
        "x" * 300,
        "a b " * 200,
        "def f(x):\n    return x+1\n\n\n",
        "<s>a</s> b <s> </s>",
    ),
    *(
        "<|user|>hello<|user|> there",
        "▁ ▁x ▁▁",
        "<0x41> <0xE6>",
        "\u2028 \u00a0 \u3000x",
        "\x00\x01",
        "ﬁ ① Ⅳ \uff46\uff55",
        "\ufeffx",
    ),
    *(
        "<unk> <pad>",
        "http://a.b/c?d=e&f=g#h",
        "\U0001f600" * 5,
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "한국어 텍스트",
        "\u200b\u200dz",
    ),
]
_PARTS = [
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\u3000",
        "\u00a0",
        "▁",
        ".",
        ",",
        "'s",
        "'LL",
        "!?",
        "_",
        "$",
        "the",
        "The",
        "QUICK",
        "fox",
        "dog",
    ),
    *(
        "def",
        "return",
        "(",
        ")",
        "=",
        "123",
        "7",
        "é",
        "e\u0301",
        "ß",
        "日",
        "本語",
        "мир",
        "👩",
        "👩‍👧",
        "🇩🇪",
        "\U00010348",
    ),
    *("<s>", "</s>", "<|user|>", "<|ctl|>", "<0x0A>", "weather", "Paris", "x", "q", "Grüße", "Köln"),
]


def texts(count: int = 200) -> list[str]:
    """Makes `count` texts: unicode, spaces, code, numbers, emoji, combining marks, special tokens, empty, long."""
    rng = random.Random(20)
    made = ["".join(rng.choices(_PARTS, k=rng.randrange(1, 24))) for _ in range(count - len(_BY_HAND))]
    return _BY_HAND + made
