"""Writes held-out questions about pictures as task sets for `lynx-rt eval` and `lynx-rt study`.

    python tools/training/picture_tasks.py --out pictures --count 250
    lynx-rt eval models/lynx-nano-vision --tasks pictures

A family is a file OUT/FAMILY.jsonl, whose questions name pictures OUT/images/*.png. Pictures have odd seeds, which training never draws.
Each picture has one question, so that no picture occurs twice in a run. --other shows another picture of the family instead: what is
right then needs no picture.
"""

import argparse
import json
from pathlib import Path

from pictures import FAMILIES, METRICS, picture

FIRST = 1_000_000  # seeds are 2 * (FIRST + place) + 1
PROMPT = "<|vision_start|><|image_pad|><|vision_end|>Q: {}\nA:"


def write(out: Path, family: str, count: int, other: bool = False) -> None:
    """Writes a family's task file and its pictures."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    with open(out / f"{family}.jsonl", "w", encoding="utf-8") as file:
        for place in range(count):
            image, items = picture(family, 2 * (FIRST + place) + 1)
            image.save(out / "images" / f"{family}-{place:04}.png")
            item = items[place % len(items)]
            shown = (place + 1) % count if other else place
            line = {
                "task": family,
                "prompt": PROMPT.format(item.question),
                "answer": item.answer,
                "metric": METRICS[family],
            }
            file.write(json.dumps(line | {"image": f"images/{family}-{shown:04}.png"}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=250, help="questions, and pictures, of a family")
    parser.add_argument("--other", action="store_true", help="show another picture of the family")
    options = parser.parse_args()
    for name in FAMILIES:
        write(options.out, name, options.count, options.other)
