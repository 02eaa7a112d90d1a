"""Draws pictures with questions whose answers can be checked exactly: charts, tables, forms, receipts, shapes.

    python tools/training/pictures.py --seed 1 --count 60 --out pictures     # PNG files and items.jsonl, to look at

Each family stands for a public task set, whose metric it is scored with: bars and lines for ChartQA (relaxed accuracy), tables, forms
and receipts for DocVQA (ANLS), shapes for VQA (accuracy). A picture depends on its seed alone. Sides are multiples of 16 pixels, so that
the image processor does not resize.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (205, 50, 45),
    "green": (45, 150, 65),
    "blue": (45, 90, 200),
    "yellow": (225, 190, 40),
    "black": (25, 25, 25),
    "purple": (140, 65, 165),
}
SHAPES = ("circle", "square", "triangle")
WORDS = ("oak", "elm", "ash", "fig", "pea", "rye", "oat", "cod", "hen", "bee", "fox", "owl", "cat", "dog", "cow", "ant")
NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Jana",
    "Kai",
    "Lea",
    "Max",
    "Nora",
    "Otto",
    "Pia",
)
TOWNS = ("Bern", "Cork", "Graz", "Lund", "Metz", "Nice", "Oslo", "Pisa", "Riga", "Turku", "Ulm", "Wels")
METRICS = {
    "bars": "relaxed",
    "lines": "relaxed",
    "table": "anls",
    "form": "anls",
    "receipt": "anls",
    "shapes": "vqa",
}


@dataclasses.dataclass(frozen=True)
class Item:
    """A question about a picture. answer: the exact text."""

    family: str
    question: str
    answer: str


# A picture, the questions about it, and what is on it in reading order, which questions of training ask for too: READ.
Draw = Callable[[random.Random], tuple[Image.Image, list[Item], str]]
READ = "What do you see?"


def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the font that comes with Pillow."""
    made = ImageFont.load_default(size)
    assert isinstance(made, ImageFont.FreeTypeFont)
    return made


def canvas(r: random.Random, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    shade = r.randint(244, 255)
    image = Image.new("RGB", (width, height), (shade, shade, r.randint(240, 255)))
    return image, ImageDraw.Draw(image)


def bars(r: random.Random) -> tuple[Image.Image, list[Item]]:
    names = r.sample(WORDS, r.randint(3, 5))
    values = r.sample(range(2, 40), len(names))
    image, draw = canvas(r, 128, 112)
    colours = r.sample(list(COLOURS.values()), len(names))
    step, base = 120 // len(names), 96
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        left = 6 + place * step
        top = base - value * 2
        draw.rectangle((left, top, left + step - 8, base), fill=colours[place])
        middle = left + (step - 8) / 2
        draw.text((middle, top - 1), str(value), fill=(0, 0, 0), font=font(11), anchor="mb")
        draw.text((middle, base + 2), name, fill=(0, 0, 0), font=font(11), anchor="ma")
    draw.line((3, base, 125, base), fill=(0, 0, 0))
    one, two = r.sample(range(len(names)), 2)
    ordered = sorted(zip(values, names, strict=True))
    seen = " ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    items = [
        Item("bars", f"What is the value of {names[one]}?", str(values[one])),
        Item("bars", "Which bar is the highest?", ordered[-1][1]),
        Item("bars", "Which bar is the lowest?", ordered[0][1]),
        Item(
            "bars",
            f"What is the difference between {names[one]} and {names[two]}?",
            str(abs(values[one] - values[two])),
        ),
    ]
    return image, items, seen


def lines(r: random.Random) -> tuple[Image.Image, list[Item]]:
    start, count = r.randint(1, 5), r.randint(4, 5)
    values = r.sample(range(2, 38), count)
    image, draw = canvas(r, 128, 112)
    step, base = 112 // (count - 1), 94
    points = [(8 + place * step, base - value * 2) for place, value in enumerate(values)]
    draw.line((3, base, 125, base), fill=(0, 0, 0))
    draw.line(points, fill=r.choice(list(COLOURS.values())), width=2)
    for place, (x, y) in enumerate(points):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(0, 0, 0))
        draw.text((x, y - 3), str(values[place]), fill=(0, 0, 0), font=font(11), anchor="mb")
        draw.text((x, base + 3), str(start + place), fill=(0, 0, 0), font=font(11), anchor="ma")
    one = r.randrange(count)
    two = r.randrange(count - 1)
    items = [
        Item("lines", f"What is the value at {start + one}?", str(values[one])),
        Item("lines", "Where is the line highest?", str(start + values.index(max(values)))),
        Item(
            "lines",
            f"Does it rise from {start + two} to {start + two + 1}?",
            "yes" if values[two + 1] > values[two] else "no",
        ),
    ]
    return image, items, " ".join(f"{start + place} {value}" for place, value in enumerate(values))


def table(r: random.Random) -> tuple[Image.Image, list[Item]]:
    columns, rows = r.sample(WORDS, 2), r.sample(NAMES, r.randint(2, 4))
    values = [[r.randint(1, 30) for _ in columns] for _ in rows]
    image, draw = canvas(r, 128, 16 * (len(rows) + 1))
    for place, name in enumerate(columns):
        draw.text((70 + 40 * place, 8), name, fill=(0, 0, 0), font=font(12), anchor="mm")
    for line, name in enumerate(rows):
        y = 16 * (line + 1)
        draw.line((0, y, 128, y), fill=(150, 150, 150))
        draw.text((4, y + 8), name, fill=(0, 0, 0), font=font(12), anchor="lm")
        for place, value in enumerate(values[line]):
            draw.text((70 + 40 * place, y + 8), str(value), fill=(0, 0, 0), font=font(12), anchor="mm")
    line, place = r.randrange(len(rows)), r.randrange(2)
    column = [row[place] for row in values]
    seen = [*columns, *[f"{name} {row[0]} {row[1]}" for name, row in zip(rows, values, strict=True)]]
    items = [
        Item("table", f"What is {columns[place]} of {rows[line]}?", str(values[line][place])),
        Item("table", f"What is the sum of {columns[place]}?", str(sum(column))),
        Item("table", "How many rows are there?", str(len(rows))),
    ]
    return image, items, " ".join(seen)


def form(r: random.Random) -> tuple[Image.Image, list[Item]]:
    fields = {
        "Name": r.choice(NAMES),
        "Town": r.choice(TOWNS),
        "Age": str(r.randint(18, 99)),
        "No": str(r.randint(100, 9999)),
        "Date": f"{r.randint(1, 28)}.{r.randint(1, 12)}",
    }
    keys = r.sample(list(fields), r.randint(3, 5))
    image, draw = canvas(r, 112, 16 * len(keys) + 16)
    draw.rectangle((2, 2, 109, 16 * len(keys) + 13), outline=r.choice(list(COLOURS.values())))
    for line, key in enumerate(keys):
        draw.text((8, 16 * line + 16), f"{key}:", fill=(60, 60, 60), font=font(12), anchor="lm")
        draw.text((52, 16 * line + 16), fields[key], fill=(0, 0, 0), font=font(12), anchor="lm")
    key = r.choice(keys)
    seen = " ".join(f"{key} {fields[key]}" for key in keys)
    return image, [Item("form", f"What is the {key.lower()}?", fields[key])], seen


def receipt(r: random.Random) -> tuple[Image.Image, list[Item]]:
    goods = r.sample(WORDS, r.randint(2, 4))
    prices = [r.randint(1, 24) for _ in goods]
    image, draw = canvas(r, 96, 16 * (len(goods) + 2))
    draw.text((48, 8), r.choice(("SHOP", "MARKET", "KIOSK")), fill=(0, 0, 0), font=font(12), anchor="mm")
    lines_of = [*zip(goods, prices, strict=True), ("total", sum(prices))]
    for line, (name, price) in enumerate(lines_of):
        y = 16 * (line + 1) + 8
        draw.text((6, y), name, fill=(0, 0, 0), font=font(12), anchor="lm")
        draw.text((90, y), str(price), fill=(0, 0, 0), font=font(12), anchor="rm")
    y = 16 * (len(goods) + 1)
    draw.line((4, y, 92, y), fill=(0, 0, 0))
    one = r.randrange(len(goods))
    items = [
        Item("receipt", f"What does {goods[one]} cost?", str(prices[one])),
        Item("receipt", "What is the total?", str(sum(prices))),
        Item("receipt", "What costs the most?", goods[prices.index(max(prices))]),
    ]
    return image, items, " ".join(f"{name} {price}" for name, price in lines_of)


def shapes(r: random.Random) -> tuple[Image.Image, list[Item]]:
    columns, rows = r.randint(2, 4), r.randint(2, 3)
    image, draw = canvas(r, 32 * columns, 32 * rows)
    kinds = r.sample(list(COLOURS), 3)
    placed: list[tuple[str, str]] = []
    for cell in range(columns * rows):
        if r.random() < 0.25:
            continue
        colour, shape = r.choice(kinds), r.choice(SHAPES)
        placed.append((colour, shape))
        x, y, size = 32 * (cell % columns) + 16, 32 * (cell // columns) + 16, r.randint(8, 12)
        x, y = x + r.randint(-3, 3), y + r.randint(-3, 3)
        box = (x - size, y - size, x + size, y + size)
        if shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        else:
            draw.polygon(((x, y - size), (x - size, y + size), (x + size, y + size)), fill=COLOURS[colour])
    colour, shape = r.choice(placed) if placed and r.random() < 0.7 else (r.choice(kinds), r.choice(SHAPES))
    items = [
        Item("shapes", f"How many {colour} {shape}s are there?", str(placed.count((colour, shape)))),
        Item("shapes", f"How many {shape}s are there?", str(sum(found == shape for _, found in placed))),
        Item("shapes", f"Is there a {colour} {shape}?", "yes" if (colour, shape) in placed else "no"),
    ]
    single = [shape for shape in SHAPES if sum(found == shape for _, found in placed) == 1]
    if single:
        shape = r.choice(single)
        items.append(Item("shapes", f"What colour is the {shape}?", next(c for c, found in placed if found == shape)))
    return image, items, " ".join(f"{colour} {shape}" for colour, shape in placed) or "nothing"


FAMILIES: dict[str, Draw] = {
    "bars": bars,
    "lines": lines,
    "table": table,
    "form": form,
    "receipt": receipt,
    "shapes": shapes,
}


def picture(family: str, seed: int) -> tuple[Image.Image, list[Item]]:
    """Returns a picture of a family and the questions about it. Equal arguments give equal pixels."""
    return FAMILIES[family](random.Random(f"{family} {seed}"))[:2]


def reading(family: str, seed: int) -> tuple[Image.Image, list[Item]]:
    """Returns the same picture, and the question that asks for everything on it."""
    image, _, seen = FAMILIES[family](random.Random(f"{family} {seed}"))
    return image, [Item(family, READ, seen)]


def lines_of_text(seed: int) -> tuple[Image.Image, list[Item]]:
    """Returns a small picture of one or two lines of text, and the question for them: what training begins with."""
    r = random.Random(f"text {seed}")
    rows, width = r.choice(((1, 64), (1, 64), (2, 64), (2, 96)))
    image, draw = canvas(r, width, 16 * rows)
    seen = []
    for row in range(rows):
        texts, at = [], r.randint(1, 8)
        while True:
            text = r.choice((r.choice(WORDS), r.choice(NAMES), r.choice(TOWNS), str(r.randint(1, 99)), str(r.randint(1, 99)),
                             str(r.randint(1000, 9999)), f"{r.randint(1, 28)}.{r.randint(1, 12)}"))  # fmt: skip
            size = r.choice((11, 11, 12))
            end = at + draw.textlength(text, font=font(size))
            if end > width:
                break
            draw.text((at, 16 * row + r.randint(0, 3)), text, fill=(r.randint(0, 60),) * 3, font=font(size))
            texts.append(text)
            at = int(end) + r.randint(6, 24)
        seen += texts
    return image, [Item("text", READ, " ".join(seen) or "nothing")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "items.jsonl", "w", encoding="utf-8") as file:
        for place in range(options.count):
            family = list(FAMILIES)[place % len(FAMILIES)]
            image, items = picture(family, options.seed * 1_000_000 + place)
            image.save(options.out / f"{place:05}.png")
            for item in items:
                file.write(json.dumps({"image": f"{place:05}.png", **dataclasses.asdict(item)}) + "\n")


if __name__ == "__main__":
    main()
