"""Accuracy of quantised checkpoints: lynx-nano in each format, computed as it lies, against decoded weights and the 16-bit model.
usage: PYTHONPATH=. python bench/quantized_accuracy.py OUT [--limit N] [--batch B] [--formats NAME,...]

Needs what the tests need (torch, safetensors, gguf). GGUF's K and IQ types are quantised by ggml's own code, of llama-cpp-python, and left
out without it. The table goes to the output and, with the answers' marks, to OUT/quantized_accuracy.json; the models are kept in OUT."""

import argparse
import ctypes
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "checkpoint"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "python"))
import gguf_files
import nano_files
import test_gguf_models

from lynx_rt import Engine, shipped_model
from lynx_rt.research.eval import Item, PolicyResult, answer_perplexity, evaluate, load_items

# What a matrix becomes whose columns are no multiple of 256. llama.cpp takes Q5_0 for Q4_K and Q5_1 for Q5_K, which lynx_rt does not read.
FALLBACK = {Type.Q4_K: Type.Q8_0, Type.Q5_K: Type.Q8_0, Type.Q6_K: Type.Q8_0, Type.IQ4_XS: Type.IQ4_NL}
GGUF = [Type.Q8_0, Type.Q6_K, Type.Q5_K, Type.Q4_K, Type.Q4_0, Type.IQ4_NL, Type.IQ4_XS, Type.MXFP4]
BY_GGML = [*FALLBACK, Type.IQ4_NL]
NAMES = [*nano_files.FORMATS, *(f"gguf_{kind.name.lower()}" for kind in GGUF)]


def ggml_quantize() -> Callable[[np.ndarray, Type], np.ndarray] | None:
    """Returns float32 [..., K] -> bytes [..., row] by ggml, or None without it."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(str(Path(found.origin).parent / "lib" / "libggml-base.so"))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(values: np.ndarray, kind: Type) -> np.ndarray:
        if kind not in BY_GGML:
            return gguf.quants.quantize(values, kind)
        columns = values.shape[-1]
        per_block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.empty((*values.shape[:-1], columns // per_block * size), np.uint8)
        rows = values.size // columns
        written = chunk(kind.value, values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
        assert written == out.nbytes, (kind, written)
        return out

    return quantize


def write(name: str, out: Path) -> Path | None:
    """Returns the model in that format, or None where nothing can quantise to it."""
    nano = Path(shipped_model())
    if name in nano_files.FORMATS:
        if not (out / name).exists():
            nano_files.write(nano, name, out / name)
            for file in [*nano.glob("tokenizer*"), *nano.glob("special*"), *nano.glob("generation*")]:
                shutil.copy(file, out / name)
        return out / name
    kind, quantize, file = Type[name.removeprefix("gguf_").upper()], ggml_quantize(), out / f"{name}.gguf"
    if kind in BY_GGML and quantize is None:
        return None
    if not file.exists():
        options = {"quantize": quantize} if quantize else {}
        gguf_files.convert(nano, file, lambda n: FALLBACK.get(kind, kind) if "ffn_down" in n else kind,
                           metadata=test_gguf_models.metadata(), **options)  # fmt: skip
    return file


def measure(model: Path | str, items: list[Item], batch: int, threads: int | None, **options: str) -> PolicyResult:
    fixed = {"num_threads": threads, "max_num_seqs": batch, "enable_prefix_caching": False, "enable_mixed_chunk": False}
    with Engine(model, device="cpu", **fixed, **options) as engine:
        perplexity = answer_perplexity(engine, items, use_tqdm=False)
        return evaluate(engine, items, "topk", perplexity=perplexity, use_tqdm=False)


def weights(model: Path | str) -> int:
    path = Path(model)
    return (path / "model.safetensors" if path.is_dir() else path).stat().st_size


def points(change: tuple[float, float]) -> str:
    return f"{100 * change[0]:+.2f} | {100 * change[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="items per task (default: all)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--formats", default=",".join(NAMES))
    parser.add_argument("--activations", action="store_true", help="bfloat16 activations too, which are slow")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    items = load_items(Path(__file__).parent / "tasks", arguments.limit)
    plain = measure(shipped_model(), items, arguments.batch, arguments.num_threads)
    marks = {"bf16": plain.scores}
    print(
        f"{len(items)} items; bf16: {100 * plain.accuracy:.2f} +- {100 * plain.standard_error:.2f}, perplexity {plain.perplexity:.4f}\n"
    )
    print(
        "| format | bytes | in place % | decoded % | in place - decoded | +- | decoded - bf16 | +- | perplexity in place | decoded |"
    )
    print("|" + "---|" * 10)
    for name in arguments.formats.split(","):
        model = write(name, out)
        if model is None:
            print(f"| {name} | left out: no ggml |")
            continue
        ours = measure(model, items, arguments.batch, arguments.num_threads)
        decoded = measure(model, items, arguments.batch, arguments.num_threads, quantization="dequantize")
        marks |= {f"{name} in place": ours.scores, f"{name} decoded": decoded.scores}
        print(f"| {name} | {weights(model) / weights(shipped_model()):.2f} | {100 * ours.accuracy:.2f} | {100 * decoded.accuracy:.2f} "
              f"| {points(ours.difference(decoded))} | {points(decoded.difference(plain))} "
              f"| {ours.perplexity:.4f} | {decoded.perplexity:.4f} |", flush=True)  # fmt: skip
        if arguments.activations:
            exact = measure(model, items, arguments.batch, arguments.num_threads, activations="bfloat16")
            print(f"{name}: bfloat16 activations, less decoded: {points(exact.difference(decoded))}", flush=True)
        (out / "quantized_accuracy.json").write_text(json.dumps(marks))


if __name__ == "__main__":
    main()
