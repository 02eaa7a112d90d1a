"""Reads the files beside tokenizer.json: names of tokens, tokens that it lacks, and chat templates."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from lynx_rt.errors import CheckpointError, shown
from lynx_rt.library_errors import Guard

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_DEPTH = 100  # of JSON; deeper values raise RecursionError when printed, copied or compared
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} where there is no file. Raises CheckpointError for anything else."""
    if not os.path.exists(path):
        return {}
    text = read_text(path)
    with Guard(f"{path} is not valid JSON", str(path)):  # Python's parser raises RecursionError for deep JSON
        value = json.loads(text)
        check_depth(value)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, got {type(value).__name__}", str(path))
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError for JSON whose printing or copying could end in RecursionError."""
    inside = [value]
    for _ in range(_MAX_DEPTH + 1):
        containers = [
            item.values() if isinstance(item, dict) else item for item in inside if isinstance(item, dict | list)
        ]
        inside = [child for container in containers for child in container]
    if inside:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")


@dataclass
class TokenizerConfig:
    """Checked contents of tokenizer_config.json, and of the files that older versions of transformers kept beside it."""

    file: Path
    values: dict[str, Any]  # as written
    named: dict[str, tokenizers.AddedToken]  # "bos_token", ... -> the token
    extra: list[tokenizers.AddedToken]  # special tokens without a name
    listed: dict[int, tokenizers.AddedToken] | None  # added_tokens_decoder, where there is one
    older: dict[int, tokenizers.AddedToken]  # added_tokens.json, which counts where `listed` is None

    def set_default_names(self, names: Mapping[str, str]) -> None:
        """Names tokens that the files do not mention."""
        new = {
            name: tokenizers.AddedToken(token, special=True) for name, token in names.items() if name not in self.values
        }
        self.named = _in_order(new | self.named)


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Reads a folder's files. As in transformers, special_tokens_map.json counts (and comes first) only where the config lists
    no added tokens.
    """
    file = folder / "tokenizer_config.json"
    values = read_json(file)
    for key, kind in (
        ("added_tokens_decoder", dict),
        ("add_bos_token", bool),
        ("add_eos_token", bool),
        ("add_prefix_space", bool),
        ("split_special_tokens", bool),
        ("tokenizer_class", str),
    ):
        if not isinstance(values.get(key), kind | None):
            expected = {dict: "an object", bool: "true or false", str: "a text"}[kind]
            raise CheckpointError(f"{file}: {key} must be {expected}, got {shown(values[key])}", key)
    named, extra = _named_tokens(values, file), _extra_tokens(values, file)
    listed, older = _listed_tokens(values, file), {}
    if listed is None:
        legacy_file = folder / "special_tokens_map.json"
        legacy = read_json(legacy_file)
        named |= _named_tokens(legacy, legacy_file)
        extra += [token for token in _extra_tokens(legacy, legacy_file) if token not in extra]
        older = _older_tokens(folder / "added_tokens.json", {token.content for token in (*named.values(), *extra)})
    return TokenizerConfig(file, values, _in_order(named), extra, listed, older)


def _in_order(named: dict[str, tokenizers.AddedToken]) -> dict[str, tokenizers.AddedToken]:
    """Puts the standard names first, in the order of transformers, which decides the ids of new tokens."""
    return {name: named[name] for name in (*_SPECIAL_NAMES, *named) if name in named}


def _listed_tokens(values: Mapping[str, Any], file: Path) -> dict[int, tokenizers.AddedToken] | None:
    listed = values.get("added_tokens_decoder")
    if listed is None:
        return None
    if bad := [key for key in listed if not (key.isdecimal() and len(key) < 10)]:
        key = f"added_tokens_decoder[{bad[0][:20]}]"
        raise CheckpointError(f"{file}: added_tokens_decoder must map ids to tokens, got the id {shown(bad[0])}", key)
    return {int(key): _added_token(value, f"added_tokens_decoder[{key}]", file) for key, value in listed.items()}


def _older_tokens(file: Path, special: Container[str]) -> dict[int, tokenizers.AddedToken]:
    """Reads added_tokens.json, {token: id}."""
    tokens = {}
    for text, token_id in read_json(file).items():
        if type(token_id) is not int or not 0 <= token_id < 10**9:
            raise CheckpointError(f"{file}: must map tokens to ids, got {shown(token_id)} for {shown(text)}", str(file))
        is_special = text in special
        with Guard(f"{file}: {shown(text)} is not a token", str(file)):
            tokens[token_id] = tokenizers.AddedToken(text, normalized=not is_special, special=is_special)
    return tokens


def _named_tokens(config: Mapping[str, Any], file: Path) -> dict[str, tokenizers.AddedToken]:
    """Reads the tokens with standard names, and with names that a model gives to its own ("image_token", ...)."""
    named = {name: config[name] for name in _SPECIAL_NAMES if config.get(name) is not None}
    named |= {
        name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, (str, dict))
    }
    if isinstance(extra := config.get("extra_special_tokens"), dict):
        named |= extra
    return {name: _added_token(value, name, file) for name, value in named.items()}


def _added_token(value: Any, name: str, file: Path) -> tokenizers.AddedToken:
    """Reads a token that is given by its text, or with flags: {"content": "<s>", "lstrip": false, ...}."""
    if isinstance(value, str):
        return _token(value, name, file, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {flag: value[flag] for flag in _TOKEN_FLAGS if flag in value}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return _token(value["content"], name, file, **flags)
    raise CheckpointError(
        f"{file}: {name} must be a token (a text, or an object with 'content'), got {shown(value)}", name
    )


def _token(text: str, name: str, file: Path, **flags: bool) -> tokenizers.AddedToken:
    with Guard(f"{file}: {name} is not a token", name):  # half of a surrogate pair is not a valid text
        return tokenizers.AddedToken(text, **flags)


def _extra_tokens(config: Mapping[str, Any], file: Path) -> list[tokenizers.AddedToken]:
    """Reads special tokens without a name, under the key of transformers 5 or an older one."""
    extra: list[tokenizers.AddedToken] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        if isinstance(value, list):
            extra = [_added_token(token, key, file) for token in value] or extra
        elif not isinstance(value, dict):
            raise CheckpointError(f"{file}: {key} must be a list of tokens, got {shown(value)}", key)
    return extra


def add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Adds the tokens of the config that the tokenizer lacks, in the order of transformers, which decides the ids.

    A token with a name becomes special, even if it is listed as an ordinary one.
    """
    by_id = config.listed
    if by_id is None:
        by_id = config.older | backend.get_added_tokens_decoder()
    tokens = [token for _, token in sorted(by_id.items())]
    named = {token.content for token in config.named.values()}
    for token in tokens:
        token.special = token.special or token.content in named
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    present.update(token.content for token in tokens)
    for token in (*config.named.values(), *config.extra):
        if token.content not in present:
            present.add(token.content)
            token.special = True
            tokens.append(token)
    with Guard(f"{config.file}: its tokens cannot be added", str(config.file)):
        backend.add_tokens(tokens)


def read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Returns a template text, {name: text} where there are several, or None.

    As in transformers, .jinja files come before tokenizer_config.json. chat_template.json is a processor's file, which
    transformers does not read for a tokenizer; it counts where there is nothing else.
    """
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (main := folder / "chat_template.jinja").is_file():
        files = {"default": main} | files
    if files:
        named = {name: read_text(file) for name, file in files.items()}
        return named["default"] if list(named) == ["default"] else named
    file, template = folder / "tokenizer_config.json", config.get("chat_template")
    if template is None:
        file = folder / "chat_template.json"
        template = read_json(file).get("chat_template")
    if isinstance(template, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and "template" in item for item in template
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
    """Returns the file's text. Raises CheckpointError for bytes that are not UTF-8, and where the system cannot read it."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: {error}", str(file)) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", str(file)) from None
