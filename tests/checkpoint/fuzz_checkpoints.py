"""Loads and runs mutated checkpoints: each must end in a LynxError or in finite logits, within two seconds of CPU time and one gigabyte.

Mutations fit the value. Sizes are multiplied, halved, off by one, 0, negative, huge or another key's, alone or with all equal values.
Values get another type. Keys are deleted, doubled, or added from those that the sources read. Lists grow and nest. One process runs
all cases and writes a case's number to disk before it runs, so that a crash names it:

    python tests/checkpoint/fuzz_checkpoints.py FOLDER_OF_BASES COUNT [FIRST]     (COUNT 1: that case, with its files left in place)
"""

from __future__ import annotations

import collections
import copy
import faulthandler
import json
import math
import os
import random
import re
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = [3, 1, 40, 7, 5]
MAX_SECONDS, MAX_BYTES = 2.0, 1 << 30
ROOT = Path(__file__).parents[2]
NAN = float("nan")


def known_keys() -> list[str]:
    """Returns the keys that the sources read."""
    files = [*ROOT.glob("csrc/model/**/*.cc"), ROOT / "csrc/checkpoint/quantization_config.cc"]
    return sorted({key for file in files for key in re.findall(r'"([a-z][a-z0-9_]{3,})"', file.read_text())})


KEYS = known_keys()
WORDS = ["", "auto", "float32", "bfloat16", "float16", "torch.float64", "int8", "silu", "gelu", "default", "linear", "dynamic", "yarn",
         "longrope", "llama3", "mrope", "full_attention", "sliding_attention", "chunked_attention", "sigmoid", "softmax", "noaux_tc",
         "greedy", "group_limited_greedy", "gptq", "gptq_v2", "awq", "fp8", "mxfp4", "compressed-tensors", "pack-quantized",
         "int-quantized", "float-quantized", "channel", "group", "tensor", "block", "qwen3", "qwen3_moe", "deepseek_v3", "llama4",
         "llama4_text", "gpt_oss", "kimi_k2", "\ud800", "x" * 1000, "../x", "0"]  # fmt: skip


class Mutator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.void = True  # no meaningful value was changed
        self.reinterprets = False  # values may be anything

    def number(self, numbers: list[int]) -> Any:
        r = self.random
        huge = 1 << r.randrange(8, 64)
        return r.choice(
            [
                0,
                1,
                -1,
                2,
                3,
                huge,
                huge - 1,
                huge + 1,
                -huge,
                r.randrange(1 << 20, 1 << 24),
                r.choice(numbers or [7]),
                10**30,
            ]
        )

    def other(self, value: Any, numbers: list[int]) -> Any:
        """Returns a replacement for a value, most often of its own kind."""
        r = self.random
        if r.random() < 0.2:
            return r.choice([None, True, False, [], {}, "", "5", NAN, math.inf, 1e300, [value], {"a": value}, [[[value]]], str(value)[:50],
                             [value] * 3, self.number(numbers)])  # fmt: skip
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return r.choice([value * 2, value * 3, value // 2, value + 1, value - 1, value * 16, -value, value << r.randrange(4, 60),
                             float(value), value + 0.5, self.number(numbers), self.number(numbers)])  # fmt: skip
        if isinstance(value, float):
            return r.choice(
                [0.0, -value, value * 2, value / 2, value * 1e6, value * 1e-6, 1e300, 1e-300, 1.0, self.number(numbers)]
            )
        if isinstance(value, str):
            return r.choice(WORDS)
        if isinstance(value, list):
            long = value * r.choice([2, 3, 10, 1000]) if len(value) < 1000 else value
            item = [self.other(value[0], numbers), *value[1:]] if value else [self.number(numbers)]
            return r.choice([[], value[:-1], value[1:], [*value, *value[:1]], long, item, [value], value[::-1]])
        if isinstance(value, dict):
            return r.choice([{}, None, dict(list(value.items())[1:]), [value]])
        return self.number(numbers)

    def tree(self, root: dict[str, Any], adds: bool = True) -> None:
        """Changes one value somewhere."""
        r = self.random
        objects: list[Any] = []

        def walk(node: Any) -> None:
            if isinstance(node, dict):
                objects.append(node)
                for v in list(node.values()):
                    walk(v)

        walk(root)
        numbers = [v for o in objects for v in o.values() if type(v) is int]
        node = root if r.random() < 0.6 else r.choice(objects)
        kind = r.random()
        if adds and (kind < 0.12 or not node):
            key = r.choice(KEYS)
            node[key] = r.choice(
                [self.number(numbers), self.number(numbers), r.choice(WORDS), r.random(), True, [1, 2], {}]
            )
            self.log.append(f"add {key} = {node[key]!r:.80}")
            self.void = False
            return
        if not node:
            return
        key = r.choice(list(node))
        if kind < 0.2:
            self.log.append(f"delete {key}")
            del node[key]
        elif kind < 0.26 and type(node[key]) is int:  # keys that must agree, such as the heads of MLA
            value = self.number(numbers)
            same = [k for k in node if node[k] == node[key] and type(node[k]) is int]
            self.log.append(f"{same}: {node[key]} -> {value}")
            node.update(dict.fromkeys(same, value))
        elif kind < 0.32 and numbers:
            other = r.choice([k for k, v in node.items() if type(v) is type(node[key])])
            self.log.append(f"swap {key} {other}")
            node[key], node[other] = node[other], node[key]
        else:
            before = node[key]
            node[key] = self.other(copy.deepcopy(before), numbers)
            self.log.append(f"{key}: {before!r:.60} -> {node[key]!r:.80}")
        self.void = False

    def harmless(self, config: dict[str, Any]) -> dict[str, Any]:
        """Reorders the keys and adds some that nobody reads."""
        r = self.random
        items = list(config.items())
        r.shuffle(items)
        extra = {
            f"unknown_{i}": r.choice([None, 1 << 62, "x" * 100, [[[]]], {"a": {"b": 1e300}}])
            for i in range(r.randrange(3))
        }
        self.log.append(f"shuffle, add {sorted(extra)}")
        return dict(items) | extra

    def text(self, tree: Any) -> bytes:
        """Returns the value as JSON, sometimes spoilt."""
        text = json.dumps(tree).encode("utf-8", "replace")
        kind = self.random.random()
        if kind > 0.04:
            return text
        self.void = False
        at = self.random.randrange(len(text))
        self.log.append(f"spoil at {at} by {kind:.3f}")
        if kind < 0.01:
            return text[:at]
        if kind < 0.02:
            return text[:at] + bytes([self.random.randrange(256)]) + text[at + 1 :]
        if kind < 0.03:
            return text[:1] + text[1:-1] + b"," + text[1:]  # every key twice
        return text.replace(b": ", b": " + self.random.choice([b"[" * 70, b"1e999", b"-", b"0"]), 1)

    def header(self, header: dict[str, Any]) -> None:
        """Changes the entries of one tensor or two."""
        r = self.random
        names = [n for n in header if n != "__metadata__"]
        a, b = r.choice(names), r.choice(names)
        kind = r.randrange(9)
        self.void = False
        self.log.append(f"header {kind} {a} {b}")
        entry = header[a]
        if kind == 0:
            self.tree(entry, adds=False)
        elif kind == 1:
            header[a], header[b] = header[b], header[a]
        elif kind == 2:
            del header[a]
        elif kind == 3:
            header[a + r.choice([".weight", "_scale", "2", "\u00e4", "_packed"])] = entry
        elif kind == 4:
            header[
                r.choice(
                    ["lm_head.weight", "norm.weight", b.replace("model.", ""), f"model.layers.{r.randrange(1 << 20)}.x"]
                )
            ] = header.pop(a)
        elif kind == 5:
            entry["dtype"] = r.choice(["F64", "F32", "BF16", "F16", "I32", "I64", "U8", "I8", "F8_E4M3", "F4", "BOOL"])
        elif kind == 6 and entry["shape"]:
            i = r.randrange(len(entry["shape"]))
            entry["shape"][i] = self.other(entry["shape"][i], [48, 12])
        elif kind == 7:
            entry["shape"] = r.choice(
                [entry["shape"][::-1], [*entry["shape"], 1], [math.prod(entry["shape"])], [1, *entry["shape"]], []]
            )
        else:
            i = r.randrange(2)
            entry["data_offsets"][i] = self.other(entry["data_offsets"][i], [8])
        # Values that the mutation reinterprets may be infinite.
        self.reinterprets = True


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


class Base:
    """A sound checkpoint in a folder of its own, in which a case is laid out and taken back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".json", ".safetensors")}
        self.config = json.loads(self.files["config.json"])
        self.shards = [name for name in self.files if name.endswith(".safetensors")]
        self.index = next((name for name in self.files if name.endswith(".index.json")), None)
        self.expected: np.ndarray | None = None

    def lay_out(self, m: Mutator) -> list[str]:
        """Writes the case's files; returns those that were changed."""
        r = m.random
        changed = {}
        kind = r.random()
        if kind < 0.75:
            config = copy.deepcopy(self.config)
            for _ in range(r.choice([1, 1, 1, 2, 3])):
                nested = config.get("quantization_config")
                m.tree(nested if isinstance(nested, dict) and r.random() < 0.4 else config)
            changed["config.json"] = m.text(config)
        elif kind < 0.8:
            changed["config.json"] = m.text(m.harmless(self.config))
        if 0.7 < kind < 0.75 or kind >= 0.8:
            if self.index and r.random() < 0.4:
                index = json.loads(self.files[self.index])
                m.tree(index["weight_map"] if r.random() < 0.8 else index, adds=False)
                changed[self.index] = m.text(index)
            else:
                shard = r.choice(self.shards)
                header, data = split(self.files[shard])
                m.header(header)
                text = m.text(header)
                length = len(text) if r.random() < 0.95 else int(m.number([len(text)])) % (1 << 64)
                changed[shard] = struct.pack("<Q", length) + text + data
        for name, content in changed.items():
            (self.folder / name).write_bytes(content)
        return list(changed)

    def restore(self, changed: list[str]) -> None:
        for name in changed:
            (self.folder / name).write_bytes(self.files[name])


def peak_bytes() -> int:
    """Returns the peak memory of this process. getrusage() would include the peak before exec()."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def answer(folder: Path, default_memory: bool) -> np.ndarray:
    from lynx_rt import _C

    _C.inspect(str(folder))
    memory = {} if default_memory else {"kv_cache_memory_bytes": 1 << 20}
    e = _C.Engine(str(folder), num_threads=1, max_num_seqs=2, max_num_batched_tokens=8, **memory)
    logits = e.forward(TOKENS)
    e.close()
    return logits


def run(folder: Path, count: int, first: int = 0) -> dict[str, Any]:
    """Runs cases first, first + 1, ..; raises for a case that breaks a rule. Returns the number of outcomes by kind."""
    import warnings

    import lynx_rt

    warnings.simplefilter("ignore")
    bases = [Base(p) for p in sorted(folder.iterdir()) if (p / "config.json").exists()]
    for base in bases:
        base.expected = answer(base.folder, False)
        assert np.isfinite(base.expected).all(), base.folder
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, largest = 0.0, 0
    current = os.open(folder / "current", os.O_CREAT | os.O_RDWR)
    for case in range(first, first + count):
        os.pwrite(current, f"{case:12}".encode(), 0)
        faulthandler.dump_traceback_later(300, exit=True)
        m = Mutator(case)
        base = m.random.choice(bases)
        changed = base.lay_out(m)
        start = time.process_time()
        problem = None
        try:
            logits = answer(base.folder, case % 16 == 0)
            outcomes["answer"] += 1
            if m.void and not np.array_equal(logits, base.expected):
                problem = "other logits than before"
            elif not m.reinterprets and not np.isfinite(logits).all():
                problem = f"logits that are not finite: {logits.ravel()[:5]}"
        except lynx_rt.LynxError as e:
            outcomes[type(e).__name__] += 1
            if not str(e) or isinstance(e, lynx_rt.InternalError):
                problem = repr(e)
        except Exception as e:
            problem = repr(e)
        seconds, peak = time.process_time() - start, peak_bytes()
        slowest, largest = max(slowest, seconds), max(largest, peak)
        if seconds > MAX_SECONDS or peak > MAX_BYTES:
            problem = f"{seconds:.1f} s, {peak >> 20} MiB at most"
        if problem:
            print(f"case {case} on {base.folder.name}: {'; '.join(m.log)}: {problem}", flush=True)
            outcomes["problems"] += 1
        if count > 1:
            base.restore(changed)
        if peak > MAX_BYTES or outcomes["problems"] >= 30:
            break
    faulthandler.cancel_dump_traceback_later()
    os.close(current)
    return dict(outcomes) | {"slowest_s": round(slowest, 2), "peak_mib": largest >> 20}


if __name__ == "__main__":
    faulthandler.enable()
    source, arguments = Path(sys.argv[1]), [int(a) for a in sys.argv[2:]]
    work = source.parent / f"{source.name}_{arguments[1] if len(arguments) > 1 else 0}"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)
    result = run(work, *arguments)
    print(json.dumps(result))
    sys.exit(1 if result.get("problems") else 0)
