"""Writes a StructuredOutputs as a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.structured.spec import FIELD, StructuredOutputs

# Without this option, the tokens of text that the grammar leaves no choice about are the tokenizer's own, not any that spell it.
# That would call Python in the middle of a step.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# White space between JSON's tokens where nothing else is asked for: compact and indented JSON. Without a limit, models have been
# seen to write white space until max_tokens.
_WHITESPACE = r" |\n{1,2}[ \t]{0,32}"
_FREE_TEXT = r"(.|\n)*"


def lark_of(spec: StructuredOutputs, special_tokens: Mapping[str, int]) -> str:
    """Returns the grammar of `spec`, without its start_after. special_tokens: text -> id; a grammar's strings do not match these.

    Raises ValidationError for a structural_tag of another shape, and whatever llguidance raises for a GBNF grammar.
    """
    return _rules(spec, special_tokens) + _OPTIONS


def _rules(spec: StructuredOutputs, special_tokens: Mapping[str, int]) -> str:
    if spec.json is not None:
        return f"start: {_json_rule(spec.json, _whitespace(spec))}"
    if spec.json_object:
        return f"start: {_json_rule({'type': 'object'}, _whitespace(spec))}"
    if spec.regex is not None:
        return f"start: /{_slashed(spec.regex)}/"
    if spec.choice is not None:
        return "start: " + " | ".join(json.dumps(item) for item in spec.choice)
    if spec.grammar is not None:
        from llguidance.gbnf_to_lark import any_to_lark

        return str(any_to_lark(spec.grammar))
    assert isinstance(spec.structural_tag, dict)
    return _structural_tag(spec.structural_tag, special_tokens)


def _json_rule(schema: Any, whitespace: Mapping[str, Any] = MappingProxyType({})) -> str:
    given = schema.get("x-guidance")  # llguidance's own options in a schema
    options = {"whitespace_pattern": _WHITESPACE, **(given if isinstance(given, dict) else {}), **whitespace}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def _whitespace(spec: StructuredOutputs) -> dict[str, Any]:
    if spec.disable_any_whitespace:
        return {"whitespace_flexible": False, "whitespace_pattern": None}
    return {} if spec.whitespace_pattern is None else {"whitespace_pattern": spec.whitespace_pattern}


def _slashed(regex: str) -> str:
    """Returns the regex as Lark writes it between slashes."""
    from llguidance import regex_to_lark

    return str(regex_to_lark(regex, "")).replace("\n", "\\n")


def _structural_tag(tag: Mapping[str, Any], special_tokens: Mapping[str, int]) -> str:
    if "format" in tag:
        raise _fault('"format" is not supported; expected "structures" and "triggers"')
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not isinstance(structures, list) or not structures:
        raise _fault(f'"structures" must be a list that is not empty, got {shown(structures)}')
    if not isinstance(triggers, list) or not all(isinstance(item, str) and item for item in triggers):
        raise _fault(f'"triggers" must be a list of texts, got {shown(triggers)}')
    literal = _literals(special_tokens)
    rules = [
        "start: (" + " | ".join(f"tag_{place}" for place in range(len(structures))) + ")* free_text",
        "free_text: FREE_TEXT",
        f"FREE_TEXT: /{_FREE_TEXT}/",
    ]
    for place, structure in enumerate(structures):
        name = f"structures[{place}]"
        if not isinstance(structure, dict) or not isinstance(structure.get("schema"), dict):
            raise _fault(f'{name} must have "begin", "schema" and "end", got {shown(structure)}')
        begin, end = structure.get("begin"), structure.get("end", "")
        if not isinstance(begin, str) or not isinstance(end, str):
            raise _fault(f'the "begin" and "end" of {name} must be texts, got {shown(begin)} and {shown(end)}')
        trigger = next((item for item in triggers if begin.startswith(item)), None)
        if trigger is None:
            raise _fault(f"the begin of {name} must start with a trigger, got {shown(begin)}")
        first, *others = literal(trigger)
        rest = " ".join([*others, *literal(begin[len(trigger) :]), _json_rule(structure["schema"]), *literal(end)])
        if first.startswith("<"):
            rules.append(f"tag_{place}: FREE_TEXT {first} {rest}")
        else:
            rules += [f"head_{place}[lazy]: FREE_TEXT {first}", f"tag_{place}: head_{place} {rest}"]
    return "\n".join(rules)


def _literals(special_tokens: Mapping[str, int]) -> Callable[[str], list[str]]:
    """Returns a function that writes a text as Lark's terms: strings, and the special tokens in it."""
    longest_first = sorted(special_tokens, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None

    def terms(text: str) -> list[str]:
        parts = pattern.split(text) if pattern is not None else [text]
        return [f"<[{special_tokens[part]}]>" if part in special_tokens else json.dumps(part) for part in parts if part]

    return terms


def _fault(text: str) -> ValidationError:
    return ValidationError(f"{FIELD}: structural_tag: {text}", FIELD)
