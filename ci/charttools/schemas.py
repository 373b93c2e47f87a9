"""Strict JSON schemas of what the chart renders: unknown keys, missing keys and wrong types are all faults.

Core kinds come from Kubernetes' own OpenAPI document, custom ones from their CRDs, both out of pinned Go modules. The
published schemas leave objects open; here every object with known properties is closed, as `kubectl --validate=strict`
and the API server's field validation treat it.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import yaml
from localcluster.shell import write_atomically

from charttools.tools import ChartTools

Schema = dict[str, Any]

CRDS = {
    "addons": ("manifests/base/crds/kubeflow.org_pytorchjobs.yaml",),
    "prometheus-operator": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


class Schemas:
    """The schemas of all kinds, derived once and kept in the cache."""

    def __init__(self, tools: ChartTools | None = None) -> None:
        self.tools = tools or ChartTools.default()

    def faults(self, manifest: Schema) -> list[str]:
        """What is wrong with one object, each as `path: reason`; [] if nothing is.

        Raises KeyError when its kind is in neither Kubernetes nor a CRD listed above.
        """
        name = f"{manifest['apiVersion']}/{manifest['kind']}"
        if name not in self._document["kinds"]:
            raise KeyError(f"no schema for {name}: it is neither a core kind nor in CRDS")
        schema = {
            "$ref": f"#/definitions/{self._document['kinds'][name]}",
            "definitions": self._document["definitions"],
        }
        validator = jsonschema.Draft7Validator(schema)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]

    @cached_property
    def _document(self) -> Schema:
        """{kinds: {apiVersion/kind: definition}, definitions: {name: schema}}"""
        folders = {name: self.tools.module(name) for name in ("kubernetes", *CRDS)}
        key = hashlib.sha256(Path(__file__).read_bytes() + repr(sorted(folders.items())).encode()).hexdigest()[:16]
        path = self.tools.cache / "schemas" / f"{key}.json"
        if not path.exists():
            write_atomically(path, json.dumps(derive(folders)))
        document: Schema = json.loads(path.read_text())
        return document


def derive(folders: dict[str, Path]) -> Schema:
    """The document of `Schemas`, from the modules' folders."""
    openapi = json.loads((folders["kubernetes"] / "api/openapi-spec/swagger.json").read_text())
    definitions = {name: strict(schema) for name, schema in openapi["definitions"].items()}
    definitions[_INT_OR_STRING] = {"type": ["integer", "string"]}
    definitions[_QUANTITY] = {"type": ["number", "string"]}
    kinds = {}
    for name, schema in openapi["definitions"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            version = f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]
            kinds[f"{version}/{kind['kind']}"] = name
    for module, files in CRDS.items():
        for file in files:
            crd = yaml.load((folders[module] / file).read_text(), Loader=yaml.CSafeLoader)["spec"]
            for version in crd["versions"]:
                kind, api_version = crd["names"]["kind"], f"{crd['group']}/{version['name']}"
                name = f"{crd['group']}.{version['name']}.{kind}"
                schema = strict(version["schema"]["openAPIV3Schema"])
                # A CRD says no more of metadata than that it is an object; the API server knows what is in it.
                schema["properties"]["metadata"] = {
                    "$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
                }
                kinds[f"{api_version}/{kind}"], definitions[name] = name, schema
    return {"kinds": kinds, "definitions": definitions}


def strict(schema: Any) -> Any:
    """An OpenAPI schema as a closed JSON schema."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            closed[key] = {name: strict(child) for name, child in value.items()}
        elif key in ("description", "default", "example", "title", "format"):
            continue
        elif key == "pattern" and "(?i)" in value:
            continue  # Python does not know Go's flags in the middle of a pattern
        elif not key.startswith("x-"):
            closed[key] = strict(value) if isinstance(value, dict | list) else value
    if schema.get("x-kubernetes-int-or-string"):
        closed = {"type": ["integer", "string"]} | {key: closed[key] for key in ("pattern",) if key in closed}
    if "properties" in closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("nullable") and isinstance(closed.get("type"), str):
        closed["type"] = [closed["type"], "null"]
    return closed
