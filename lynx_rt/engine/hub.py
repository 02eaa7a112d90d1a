"""Finds models of the Hugging Face Hub in its cache, or downloads them into it if `huggingface_hub` is installed.

The cache is the one that `hf download`, transformers and vLLM share. A complete snapshot in it is used as it is, without asking the
Hub for a newer one: `hf download NAME` does that.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from lynx_rt.engine import weight_formats
from lynx_rt.errors import LynxError, ModelNotFoundError, UnsupportedModelError
from lynx_rt.interrupts import comes_from_signal_handler

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Files that an engine reads: weights, configs, tokenizers of all formats, chat templates.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
# Files that hold the same weights once more, in other formats and layouts.
_UNWANTED = ["consolidated*", "original/*", "metal/*", "onnx/*", "openvino/*", ".*"]


def is_id(text: str) -> bool:
    """Whether this could be the name of a model on the Hub: "org/name"."""
    return len(text) <= 96 and _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def cache_folder() -> Path:
    """Returns the folder of downloaded models, from HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME like huggingface_hub."""
    env = os.environ
    cache = env.get("XDG_CACHE_HOME") or "~/.cache"
    home = env.get("HF_HOME") or os.path.join(cache, "huggingface")
    folder = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(folder)).expanduser()


def missing_files(folder: Path) -> list[str]:
    """Returns which of config.json and the weights a model in safetensors lacks."""
    names = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return names if (folder / "model.safetensors").is_file() else [*names, "model.safetensors"]
    try:
        shards = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return names  # the loader describes the fault of a damaged index
    return names + [name for name in shards if not (folder / name).is_file()]


def find_or_download(name: str, revision: str | None = None) -> Path:
    """Returns the folder of a model on the Hub ("org/name"), at a branch, tag or commit (None = "main").

    Raises ModelNotFoundError that says what to do if the model is not in the cache and cannot be downloaded,
    UnsupportedModelError for a model without safetensors, LynxError if the disk is full.
    """
    found = _cached(name, revision or "main")
    missing = missing_files(found) if found is not None else []
    if found is not None and not missing:
        return found
    place = f"in the Hugging Face cache ({cache_folder()})"
    what = f"{name!r} is not a folder here, and not {place}"
    if missing:
        what = f"{name!r} is not a folder here, and only a part of it is {place}: {missing[0]} is missing"
    if revision is not None:
        what += f" at revision {revision!r}"
    yourself = f"`hf download {name}{f' --revision {revision}' if revision else ''}`"
    if _is_true(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""):
        raise ModelNotFoundError(f"{what}; HF_HUB_OFFLINE forbids to download it", "model")
    try:
        import huggingface_hub
    except ImportError:
        raise ModelNotFoundError(
            f"{what}. `pip install 'lynx_rt[hub]'` lets lynx_rt download it; or download it with {yourself} and try again",
            "model",
        ) from None
    return _download(huggingface_hub, name, revision, what)


def _cached(name: str, revision: str) -> Path | None:
    """Returns the snapshot in the cache, complete or not."""
    folder = cache_folder() / f"models--{name.replace('/', '--')}"
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):  # ValueError: not ASCII, or a revision with a null character
            return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _download(hub: Any, name: str, revision: str | None, what: str) -> Path:
    from huggingface_hub import errors

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        info = hub.HfApi().model_info(name, revision=revision, timeout=30)
        _check_format(name, [file.rfilename for file in info.siblings or ()])
        if sys.stderr is not None:
            print(f"downloading {name} to {cache_folder()}", file=sys.stderr, flush=True)
        folder = hub.snapshot_download(name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except LynxError:
        raise
    except errors.GatedRepoError:
        raise ModelNotFoundError(
            f"{name} is gated: accept its terms at {endpoint}/{name}, then `hf auth login`, or set HF_TOKEN", "model"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFoundError(f"{name} has no revision {revision!r} on {endpoint}", "revision") from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFoundError(
            f"{what}, and not on {endpoint}; if it is private, `hf auth login`, or set HF_TOKEN", "model"
        ) from None
    except Exception as error:  # a fault of the network, the disk or the server
        if comes_from_signal_handler(error):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"no space for {name} in {cache_folder()}; HF_HOME names another folder"
            raise LynxError(f"{text}. What is there is kept, and the next try goes on from it", "model") from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ModelNotFoundError(
                f"{endpoint} refuses {name} ({status}): `hf auth login`, or set HF_TOKEN, with access to it", "model"
            ) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(f"{what}, and cannot be downloaded from {endpoint}: {reason}", "model") from None
    return Path(folder)


def _check_format(name: str, files: list[str]) -> None:
    """Raises UnsupportedModelError for a model without safetensors, before gigabytes are fetched in vain."""
    if any(re.fullmatch(r"model[^/]*\.safetensors(\.index\.json)?", file) for file in files):
        return
    if known := weight_formats.what_it_is(name, files):
        raise UnsupportedModelError(known, "model")
    raise UnsupportedModelError(
        f"{name} has no model.safetensors or model.safetensors.index.json; other formats of weights are not supported",
        "model",
    )


def _is_true(text: str) -> bool:
    return text.upper() in ("1", "ON", "YES", "TRUE")
