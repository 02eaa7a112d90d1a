"""Recognises weight formats that are not supported, in a folder or on the Hub, and says what to do with such a model."""

from __future__ import annotations

from collections.abc import Iterable

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER = "adapter_config.json"
_GGUF = (
    "GGUF is not supported; take the model in safetensors, as its authors publish it: bf16, FP8, GPTQ, AWQ, MXFP4 or "
    "compressed-tensors (quantization='int4' makes it small)"
)


def what_it_is(model: str, files: Iterable[str], base: str | None = None) -> str | None:
    """Returns a sentence that explains, by its files' names, a model without safetensors; None if the names do not tell.

    model: its folder or its name on the Hub.  base: the model that it is an adapter of, if known.
    """
    names = list(files)
    if ADAPTER in names:
        of = f" of {base}" if base else ""
        return (
            f"{model} is an adapter (LoRA){of}, not a model: merge it into its base model with peft: "
            f"AutoPeftModelForCausalLM.from_pretrained({model!r}).merge_and_unload().save_pretrained('NEW')"
        )
    if any(name.lower().endswith(".gguf") for name in names):
        return f"{model} holds GGUF files only. {_GGUF}"
    if pickled := [name for name in names if name.lower().endswith(PICKLED)]:
        return f"{model} holds weights in PyTorch's format only ({pickled[0]}). {how_to_convert(model)}"
    return None


def gguf_file(path: str) -> str:
    """Says what to do if one GGUF file was given as the model."""
    return f"{path} is a GGUF file. {_GGUF}"


def how_to_convert(model: str) -> str:
    """Says what to do with weights in PyTorch's own format."""
    return (
        "It is not supported, since it can run code; convert it to safetensors with transformers: "
        f"m = AutoModelForCausalLM.from_pretrained({model!r}, dtype='auto'); m.save_pretrained('NEW'), and copy "
        "the tokenizer's files"
    )
