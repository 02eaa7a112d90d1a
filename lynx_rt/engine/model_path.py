"""Finds the folder, or the GGUF file, of a model that a user names, or raises an error that says what to do."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path

from lynx_rt.engine import hub, weight_formats
from lynx_rt.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError, ValidationError

_LFS_HEAD = b"version https://git-lfs"
_LFS_MAX_BYTES = 1024
_NEEDS = "a model folder holds config.json, *.safetensors and the tokenizer's files, or one model as *.gguf"
_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")  # of a split model


def resolve(model: str | os.PathLike[str], load_format: str = "auto", revision: str | None = None) -> Path:
    """Returns the folder of a model, or its file in GGUF: of a split model the first part.

    model: a folder, a GGUF file, or the name of a model on the Hugging Face Hub ("org/name"; hub.py says how it is found); a folder of
    that name comes first.
    load_format: "dummy" needs no weights.  revision: branch, tag or commit on the Hub; None = "main".
    Raises ModelNotFoundError, UnsupportedModelError, CheckpointError, ValidationError.
    """
    try:
        text = os.fspath(model)
        path = Path(text)
        exists = path.exists()
    except (TypeError, ValueError):  # ValueError: a null character
        raise ValidationError(
            f"model must be the path of a model folder or a name on the Hub, got {model!r}", "model"
        ) from None
    except OSError as error:
        raise ModelNotFoundError(f"{model}: {error.strerror}", "model") from None
    if exists:
        if revision is not None:
            raise ValidationError(f"revision is for models by their name on the Hub, and {text} is a path", "revision")
    elif isinstance(model, str) and hub.is_id(model):
        path = hub.find_or_download(model, revision)
    else:
        raise ModelNotFoundError(_describe_missing(path), "model")
    if path.is_file() and is_gguf(path):
        return _as_gguf(path, load_format)
    if path.is_file():
        _refuse_file(path)
    if found := _gguf_in(path):
        return _as_gguf(found, load_format)
    _check_folder(path, weights=load_format != "dummy")
    return path


def _describe_missing(path: Path) -> str:
    if not str(path).strip(" ."):
        return f"the model's name is empty; {_NEEDS}"
    text = f"no model folder {str(path)!r}"
    above = path.parent
    if not above.is_dir():
        while not above.is_dir() and above != above.parent:
            above = above.parent
        return f"{text}: {above / path.relative_to(above).parts[0]} does not exist"
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in above.iterdir() if entry.is_dir()], 1)
    except OSError:
        near = []
    return f"{text}: it does not exist" + (f"; did you mean {str(above / near[0])!r}?" if near else "")


def _refuse_file(path: Path) -> None:
    suffix = path.suffix.lower()
    folder = f"expected the folder of a model, got the file {path}"
    if _begins_with(path, b"GGUF"):
        raise ValidationError(f"{path} is a GGUF file whose name does not end in .gguf: rename it", "model")
    if suffix in weight_formats.PICKLED:
        advice = weight_formats.how_to_convert(str(path.parent))
        raise UnsupportedModelError(f"{folder}, in PyTorch's format. {advice}", "model")
    if (path.parent / "config.json").is_file():
        raise ValidationError(f"{folder}; give {str(path.parent)!r} instead", "model")
    raise ValidationError(f"{folder}; {_NEEDS}", "model")


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf"


def _as_gguf(path: Path, load_format: str) -> Path:
    if load_format == "safetensors":
        raise ValidationError(f"load_format is 'safetensors', and {path} is a GGUF file", "load_format")
    return path


def _gguf_in(folder: Path) -> Path | None:
    """Returns the one model in GGUF of a folder without other weights; None if there is none.

    Raises ValidationError for several models, such as several quantisations of one.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    if any(map(_is_weights, names)):
        return None
    # A projector of images lies beside the model whose images it reads.
    models = [name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")]
    models = [name for name in models if not (part := _PART.search(name)) or part[1] == "00001"]
    if len(models) > 1:
        raise ValidationError(f"{folder} holds several models in GGUF; give one of them: {', '.join(models)}", "model")
    return folder / models[0] if models else None


def _check_folder(path: Path, weights: bool) -> None:
    """Raises if a folder has no model that can be loaded, and says what it has instead."""
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise ModelNotFoundError(f"{path}: {error.strerror}", "model") from None
    has_config, has_weights = "config.json" in names, any(map(_is_weights, names))
    if has_config and (has_weights or not weights):
        if weights:
            _check_lfs(path, names)
        return
    if not has_weights:
        base = _base_of(path) if weight_formats.ADAPTER in names else None
        if known := weight_formats.what_it_is(str(path), names, base):
            raise UnsupportedModelError(known, "model")
    if inner := _model_below(path):
        raise ModelNotFoundError(f"{path} is not a model folder, but {str(inner)!r} is one: give that", "model")
    if not has_config:
        raise ModelNotFoundError(f"{path} has no config.json; {_NEEDS}", "model")
    other = [name for name in names if name.endswith(".safetensors")]
    found = f", only {', '.join(other[:3])}" if other else ""
    raise ModelNotFoundError(
        f"{path} has no weights: neither model.safetensors nor model.safetensors.index.json{found}", "model"
    )


def _is_weights(name: str) -> bool:
    return name in ("model.safetensors", "model.safetensors.index.json")


def _check_lfs(path: Path, names: list[str]) -> None:
    """Raises for a clone without git-lfs, which has small text files in place of the large ones."""
    for name in names:
        if name.endswith((".safetensors", ".json", ".model", ".tiktoken")):
            file = path / name
            if file.is_file() and file.stat().st_size < _LFS_MAX_BYTES and _begins_with(file, _LFS_HEAD):
                raise CheckpointError(
                    f"{file} is a pointer of git-lfs, not the file itself: run `git lfs install && git lfs pull` in "
                    f"{path}, or download the model with `hf download`",
                    str(file),
                )


def _model_below(path: Path) -> Path | None:
    """Returns the model one folder down, or in a folder of the Hub's cache, if there is exactly one."""
    found = [file.parent for pattern in ("*", "snapshots/*") for file in path.glob(f"{pattern}/config.json")]
    found = [folder for folder in found if not hub.missing_files(folder)]
    return found[0] if len(found) == 1 else None


def _base_of(folder: Path) -> str | None:
    """Returns the model that an adapter is for."""
    try:
        base = json.loads((folder / weight_formats.ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return str(base) if base else None


def _begins_with(file: Path, head: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(head)) == head
    except OSError:
        return False
