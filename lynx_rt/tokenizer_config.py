"""The files beside tokenizer.json: names of tokens, tokens that it lacks, and chat templates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from lynx_rt.errors import CheckpointError
from lynx_rt.library_errors import Guard, shown

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_DEPTH = 100  # of JSON; printing, copying and comparing what is deeper ends in RecursionError
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises CheckpointError for anything else."""
    if not os.path.exists(path):
        return {}
    text = read_text(path)
    with Guard(f"{path} is not valid JSON", str(path)):  # Python's parser raises RecursionError where it is deep
        value = json.loads(text)
        if _is_deeper(value, _MAX_DEPTH):
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, got {type(value).__name__}", str(path))
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    inside = [value]
    for _ in range(levels + 1):
        containers = [
            item.values() if isinstance(item, dict) else item for item in inside if isinstance(item, dict | list)
        ]
        inside = [child for container in containers for child in container]
    return bool(inside)


def read_tokenizer_config(folder: Path) -> tuple[dict[str, Any], dict[str, tokenizers.AddedToken]]:
    """tokenizer_config.json, checked, and the tokens that have a name.

    As in transformers, special_tokens_map.json counts (and comes first) only where the config lists no added tokens.
    """
    file = folder / "tokenizer_config.json"
    config = read_json(file)
    for key, kind in (("added_tokens_decoder", dict), ("add_bos_token", bool), ("split_special_tokens", bool)):
        if not isinstance(config.get(key), kind | None):
            expected = "an object" if kind is dict else "true or false"
            raise CheckpointError(f"{file}: {key} must be {expected}, got {shown(config[key])}", key)
    special = _named_tokens(config, file)
    extra = _extra_tokens(config, file)
    if config.get("added_tokens_decoder") is None:
        file = folder / "special_tokens_map.json"
        legacy = read_json(file)
        special |= _named_tokens(legacy, file)
        extra += [token for token in _extra_tokens(legacy, file) if token not in extra]
    config["extra_special_tokens"] = extra
    return config, {name: special[name] for name in (*_SPECIAL_NAMES, *special) if name in special}


def _named_tokens(config: Mapping[str, Any], file: Path) -> dict[str, tokenizers.AddedToken]:
    """The standard names, and those that a model gives to tokens of its own ("image_token", ...)."""
    named = {name: config[name] for name in _SPECIAL_NAMES if config.get(name) is not None}
    named |= {
        name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, (str, dict))
    }
    if isinstance(extra := config.get("extra_special_tokens"), dict):
        named |= extra
    return {name: _added_token(value, name, file) for name, value in named.items()}


def _added_token(value: Any, name: str, file: Path) -> tokenizers.AddedToken:
    """A token given by its text, or with flags: {"content": "<s>", "lstrip": false, ...}."""
    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {flag: value[flag] for flag in _TOKEN_FLAGS if flag in value}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return tokenizers.AddedToken(value["content"], **flags)
    raise CheckpointError(
        f"{file}: {name} must be a token (a text, or an object with 'content'), got {shown(value)}", name
    )


def _extra_tokens(config: Mapping[str, Any], file: Path) -> list[tokenizers.AddedToken]:
    """Special tokens without a name, under the key of transformers 5 or an older one."""
    extra: list[tokenizers.AddedToken] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        if isinstance(value, list):
            extra = [_added_token(token, key, file) for token in value] or extra
        elif not isinstance(value, dict):
            raise CheckpointError(f"{file}: {key} must be a list of tokens, got {shown(value)}", key)
    return extra


def add_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, tokenizers.AddedToken], file: Path
) -> None:
    """Adds what the config knows and tokenizer.json does not, in the order of transformers (which decides the ids).

    A token with a name becomes special, even if it is listed as an ordinary one.
    """
    listed = config.get("added_tokens_decoder")
    if listed is None:
        by_id = backend.get_added_tokens_decoder()
    else:
        if bad := [key for key in listed if not (key.isdecimal() and len(key) < 10)]:
            key = f"added_tokens_decoder[{bad[0]}]"
            raise CheckpointError(f"{file}: added_tokens_decoder must map ids to tokens, got the id {bad[0]!r}", key)
        by_id = {int(key): _added_token(value, f"added_tokens_decoder[{key}]", file) for key, value in listed.items()}
    tokens = [token for _, token in sorted(by_id.items())]
    named = {token.content for token in special.values()}
    for token in tokens:
        token.special = token.special or token.content in named
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    present.update(token.content for token in tokens)
    for token in (*special.values(), *config["extra_special_tokens"]):
        if token.content not in present:
            present.add(token.content)
            token.special = True
            tokens.append(token)
    with Guard(f"{file}: its tokens cannot be added", str(file)):
        backend.add_tokens(tokens)


def read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """A template text, {name: text} where there are several, or None. Separate files win, as in transformers."""
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (main := folder / "chat_template.jinja").is_file():
        files = {"default": main} | files
    if files:
        named = {name: read_text(file) for name, file in files.items()}
        return named["default"] if list(named) == ["default"] else named
    file, template = folder / "tokenizer_config.json", config.get("chat_template")
    if (older := read_json(folder / "chat_template.json").get("chat_template")) is not None:
        file, template = folder / "chat_template.json", older
    if isinstance(template, list) and all(
        isinstance(item, dict) and {"name", "template"} <= item.keys() for item in template
    ):
        template = {item["name"]: item["template"] for item in template}
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise CheckpointError(
            f"{file}: chat_template must be a text or a list of {{'name', 'template'}}, got {shown(template)}",
            "chat_template",
        )
    return template


def read_text(file: Path) -> str:
    """The file's text. Raises CheckpointError for bytes that are not UTF-8 and where the system cannot read it."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: {error}", str(file)) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", str(file)) from None
