"""Loads and runs mutated GGUF files: each must end in a LynxError or in finite logits, within the limits of fuzz_checkpoints.py.

Numbers become others of their type, values another type, keys and names are deleted, doubled and exchanged, sizes, types and offsets of
tensors change, bytes of the header flip. One process runs all cases and writes a case's number to disk before it runs:

    python tests/checkpoint/fuzz_gguf.py FOLDER COUNT [FIRST]     (COUNT 1: that case, with its file left in place)
"""

from __future__ import annotations

import collections
import faulthandler
import json
import os
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import gguf_bytes as gb
from fuzz_checkpoints import MAX_BYTES, MAX_SECONDS, answer, peak_bytes

NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    64,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 62,
    1 << 63,
]
LIMITS = {"B": 8, "b": 7, "H": 16, "h": 15, "I": 32, "i": 31, "Q": 64, "q": 63}


class Mutator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.log: list[str] = []

    def number(self, value: int) -> int:
        r = self.random
        return r.choice([*NUMBERS, value * 2, value // 2, value + 1, abs(value - 1), value * 16, (1 << 64) - 1])

    def value(self, kind: int, value: Any) -> tuple[int, Any]:
        """Returns a type and a value of it, most often of the same type."""
        r = self.random
        if r.random() < 0.15:
            return r.choice([(gb.STRING, r.choice(["", "yarn", "linear", "llama", "x" * 999])), (gb.BOOL, True), (gb.FLOAT32, 0.25),
                             (gb.UINT32, 5), (gb.ARRAY, (kind, [value])), (gb.ARRAY, (kind, [value] * 2)), (gb.ARRAY, (4, []))])  # fmt: skip
        if kind in gb.FORMATS and gb.FORMATS[kind] in LIMITS:
            return kind, self.number(value) % (1 << LIMITS[gb.FORMATS[kind]])
        if kind in (6, 12):
            return kind, r.choice([0.0, -value, value * 1e6, value * 1e-6, float("nan"), float("inf"), 1.0, 3e38])
        if kind == gb.BOOL:
            return kind, not value
        if kind == gb.STRING:
            return kind, r.choice(
                ["", "yarn", "none", "longrope", "qwen2moe", "gpt-oss", "deepseek2", "olmoe", value * 2]
            )
        of, items = value
        return kind, (of, r.choice([items[:-1], items * 2, []]))

    def change(self, file: gb.File) -> None:
        r = self.random
        what = r.randrange(11)
        self.log.append(str(what))
        if what < 5:
            i = r.randrange(len(file.metadata))
            key, kind, value = file.metadata[i]
            new = self.value(kind, value)
            self.log.append(f"{key}: {value!r:.40} -> {new!r:.60}")
            file.metadata[i] = (key, *new)
        elif what == 5:
            i, j = r.randrange(len(file.metadata)), r.randrange(len(file.metadata))
            key, kind, value = file.metadata[i]
            if r.random() < 0.3:
                del file.metadata[i]
            elif r.random() < 0.5:
                file.metadata[j] = (file.metadata[j][0], kind, value)
            else:
                file.metadata.append(
                    (r.choice([key, "llama.rope.scaling.factor", "qwen3moe.expert_weights_scale"]), kind, value)
                )
        elif what == 6:
            t = r.choice(file.tensors)
            t.name = r.choice(["blk.0.x", "rope_freqs.weight", "rope_factors_long.weight", str(t.name).replace("blk.0", "blk.1"), "",
                               r.choice(file.tensors).name, "blk.1.ffn_gate_up_exps.weight", "blk.4000000000.attn_q.weight"])  # fmt: skip
        elif what == 7:
            t = r.choice(file.tensors)
            if t.dims:
                i = r.randrange(len(t.dims))
                t.dims[i] = self.number(t.dims[i]) % (1 << 64)
            t.dims = r.choice([t.dims, t.dims, t.dims[::-1], [*t.dims, 1], t.dims[1:], []])[:4]
        elif what == 8:
            r.choice(file.tensors).kind = r.choice([0, 1, 2, 8, 12, 14, 20, 30, 39, 4, 99])
        elif what == 9:
            t = r.choice(file.tensors)
            t.offset = r.choice([r.choice(file.tensors).offset, t.offset + 32, self.number(t.offset) % (1 << 64)])
        elif r.random() < 0.5:
            del file.tensors[r.randrange(len(file.tensors))]
        else:
            file.num_tensors = self.number(len(file.tensors)) % (1 << 64)

    def encoded(self, file: gb.File) -> bytes:
        r = self.random
        if r.random() < 0.8:
            for _ in range(r.choice([1, 1, 1, 2, 3])):
                self.change(file)
            return file.encode()
        data = bytearray(file.encode())
        header = len(data) - len(file.data)
        for _ in range(r.choice([1, 2, 8])):
            data[r.randrange(header)] = r.randrange(256)
        self.log.append("bytes")
        return bytes(data[: r.randrange(len(data))]) if r.random() < 0.2 else bytes(data)


def run(folder: Path, count: int, first: int = 0) -> dict[str, Any]:
    """Runs cases first, first + 1, ..; returns the number of outcomes by kind."""
    import lynx_rt

    warnings.simplefilter("ignore")
    bases = [path.read_bytes() for path in sorted(folder.glob("*.gguf"))]
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, largest = 0.0, 0
    work = folder / "work"
    work.mkdir(exist_ok=True)
    current = os.open(folder / "current", os.O_CREAT | os.O_RDWR)
    for case in range(first, first + count):
        os.pwrite(current, f"{case:12}".encode(), 0)
        faulthandler.dump_traceback_later(300, exit=True)
        m = Mutator(case)
        path = work / "m.gguf"
        path.write_bytes(m.encoded(gb.decode(m.random.choice(bases))))
        start = time.process_time()
        problem = None
        try:
            logits = answer(path, case % 16 == 0)
            outcomes["answer"] += 1
            # Data that are read at another place or as another type may be any numbers.
            if not np.isfinite(logits).all() and not any(kind in m.log for kind in ("6", "7", "8", "9", "bytes")):
                problem = f"logits that are not finite: {logits.ravel()[:5]}"
        except lynx_rt.LynxError as e:
            outcomes[type(e).__name__] += 1
            if not str(e) or isinstance(e, lynx_rt.InternalError) or not str(e).isprintable():
                problem = repr(e)
        except Exception as e:
            problem = repr(e)
        seconds, peak = time.process_time() - start, peak_bytes()
        slowest, largest = max(slowest, seconds), max(largest, peak)
        if seconds > MAX_SECONDS or peak > MAX_BYTES:
            problem = f"{seconds:.1f} s, {peak >> 20} MiB at most"
        if problem:
            print(f"case {case}: {'; '.join(m.log)}: {problem}", flush=True)
            outcomes["problems"] += 1
        if peak > MAX_BYTES or outcomes["problems"] >= 30:
            break
    faulthandler.cancel_dump_traceback_later()
    os.close(current)
    return dict(outcomes) | {"slowest_s": round(slowest, 2), "peak_mib": largest >> 20}


if __name__ == "__main__":
    faulthandler.enable()
    arguments = [int(a) for a in sys.argv[2:]]
    result = run(Path(sys.argv[1]), *arguments)
    print(json.dumps(result))
    sys.exit(1 if result.get("problems") else 0)
