"""Recognises weight formats that are not supported, in a folder or on the Hub, and says what to do with such a model."""

from __future__ import annotations

from collections.abc import Iterable

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER = "adapter_config.json"


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
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        return f"{model} holds GGUF files: give the path of one as the model ({gguf[0]}), after `hf download` where it is on the Hub"
    if pickled := [name for name in names if name.lower().endswith(PICKLED)]:
        return f"{model} holds weights in PyTorch's format only ({pickled[0]}). {how_to_convert(model)}"
    return None


def how_to_convert(model: str) -> str:
    """Says what to do with weights in PyTorch's own format."""
    return (
        "It is not supported, since it can run code; convert it to safetensors with transformers: "
        f"m = AutoModelForCausalLM.from_pretrained({model!r}, dtype='auto'); m.save_pretrained('NEW'), and copy "
        "the tokenizer's files"
    )
