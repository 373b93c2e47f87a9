"""Files generated from the schema: the chart's `values.schema.json` and `configs/README.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from giblet.config.resume import may_change
from giblet.config.schema import GibletConfig
from giblet.config.values import Values

NOTICE = "Generated from giblet/config (schema.py, values*.py) by `make generated`; do not edit."


def values_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a values file, for Helm and for editors."""
    schema = Values.model_json_schema(by_alias=True, mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": NOTICE,
        **schema,
        "title": "Values of the giblet chart",
    }


def values_schema_text() -> str:
    """`values.schema.json`."""
    return json.dumps(values_schema(), indent=2, ensure_ascii=False) + "\n"


def never_null_text() -> str:
    """The keys of the chart that a null leaves without a value that works, one a line, for its templates."""
    return "".join(f"{key}\n" for key in _never_null(Values, ""))


def _never_null(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        key, default = f"{prefix}{field.alias or name}", field.get_default()
        if isinstance(default, BaseModel):
            yield key
            if not isinstance(default, GibletConfig):
                yield from _never_null(type(default), f"{key}.")
        elif default not in (None, "", {}, []):
            yield key


def reference_text() -> str:
    """`configs/README.md`."""
    lines = [
        "# Configuration reference",
        "",
        f"<!-- {NOTICE} -->",
        "",
        "One YAML file serves Helm and the trainer: Helm's keys stand at the top, the trainer's under `config:`. "
        "`giblet config check FILE [OVERLAY …]` reads it as both would; `giblet train --config FILE --set key=value` "
        "overrides a key as Helm's `--set config.key=value` does.",
        "",
        "A key marked ↻ may change between a save and its resume; any other change needs a new `run.name`.",
        "",
        "## The trainer's keys, under `config:`",
    ]
    lines += list(_tables(GibletConfig, ""))
    lines += ["", "## Helm's keys", *_tables(Values, "", skip=("config",), level="### ")]
    return "\n".join(lines).rstrip() + "\n"


def _tables(model: type[BaseModel], prefix: str, *, skip: tuple[str, ...] = (), level: str = "### ") -> Iterator[str]:
    rows, sections = [], []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if name in skip:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((f"{prefix}{key}", field.annotation))
        else:
            rows.append(_row(f"{prefix}{key}", field, model))
    if rows:
        title = f"`{prefix[:-1]}`" if prefix else "top level"
        summary = (model.__doc__ or "").strip().splitlines()[0]
        yield from (
            "",
            f"{level}{title}",
            "",
            summary,
            "",
            "| key | default | allowed | meaning |",
            "|---|---|---|---|",
        )
        yield from rows
    for path, section in sections:
        yield from _tables(section, f"{path}.", level=level)


def _row(key: str, field: FieldInfo, model: type[BaseModel]) -> str:
    name = key.rpartition(".")[2]
    schema = model.model_json_schema(by_alias=True)["properties"][name]
    default = json.dumps(schema.get("default"), ensure_ascii=False)
    meaning = (field.description or _refusal(schema)).replace("|", "\\|")
    return f"| `{key}`{' ↻' if may_change(key) else ''} | `{default}` | {_allowed(schema)} | {meaning} |"


def _refusal(schema: dict[str, Any]) -> str:
    """Why a key is there only to be refused; empty for any other."""
    allowed = schema.get("enum", [])
    return allowed[1] if len(allowed) == 2 and allowed[0] is None else ""


def _allowed(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_allowed(option) for option in schema["anyOf"])
    if _refusal(schema):
        return "nothing"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " ".join(f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema)
    kind = {"array": "list", "object": "mapping", "null": "null"}.get(schema.get("type", ""), schema.get("type", "any"))
    return f"{kind} {limits}".strip()
