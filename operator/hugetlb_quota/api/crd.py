"""The CustomResourceDefinitions, generated from the models.

``python -m hugetlb_quota.api.crd DIRECTORY`` writes the definitions; a test fails if ``crds/``
differs. This module also has the CEL rules, by which the API server refuses a quota that is
wrong whatever other quotas exist.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml

from hugetlb_quota.api import GROUP, VERSION, node, quota
from hugetlb_quota.api.model import Model
from hugetlb_quota.page_size import RESOURCE_PREFIX, PageSize

_Json = dict[str, Any]

#: A Kubernetes quantity: 0 or "4Gi". maxLength bounds the cost of the CEL rules.
_QUANTITY: Final[_Json] = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "maxLength": 32,
}
_NAMES: Final = [size.resource for size in PageSize.all()]
_KNOWN: Final = f"name in {_NAMES}"
_IS_AMOUNT: Final = "isQuantity(string(self[name])) && quantity(string(self[name])).isInteger()"
_AMOUNT: Final = "quantity(string(self[name])).asInteger()"
_SIZE: Final = f"name.substring({len(RESOURCE_PREFIX)})"
_LIMIT: Final = "'the limit of ' + name + ' is ' + string(self[name]) + '"
#: Pairs of CEL expressions: the first is true for a wrong entry of hard, with the key
#: ``name``; the second is the error message.
_WRONG: Final = (
    (
        f"!({_KNOWN})",
        f"name + ' is not a huge page size; the known sizes are {', '.join(_NAMES)}.'",
    ),
    (
        f"!({_IS_AMOUNT})",
        f"{_LIMIT}, not a whole number of bytes below 2^63; write for example 64Mi or 8Gi.'",
    ),
    (f"{_IS_AMOUNT} && {_AMOUNT} < 0", f"{_LIMIT}; it must not be negative.'"),
    (
        f"{_KNOWN} && {_IS_AMOUNT} && {_AMOUNT} % quantity({_SIZE}).asInteger() != 0",
        f"{_LIMIT}, which is not a multiple of ' + {_SIZE} + '.'",
    ),
)
_HARD_RULES: Final[list[_Json]] = [
    {
        "rule": f"!self.exists(name, {wrong})",
        "messageExpression": f"self.filter(name, {wrong}).map(name, {sentence})[0]",
    }
    for wrong, sentence in _WRONG
]


def quota_crd() -> _Json:
    """The definition of HugeTLBQuota."""
    schema = _structural(quota.HugeTLBQuota)
    schema["properties"]["spec"]["properties"]["hard"] |= {
        "additionalProperties": _QUANTITY,
        "maxProperties": len(PageSize.all()),
        "x-kubernetes-validations": _HARD_RULES,
    }
    # Programs write the status as a whole, by compare-and-swap. An owner for each field makes a
    # PUT a quarter dearer for the API server; a list of type map makes a PUT far dearer.
    status = schema["properties"]["status"]
    status["x-kubernetes-map-type"] = "atomic"
    status["properties"]["reservations"]["x-kubernetes-list-type"] = "atomic"
    _as_map(schema, "conditions", key="type")
    return _definition(
        kind=quota.KIND,
        plural=quota.PLURAL,
        short="htq",
        scope="Namespaced",
        schema=schema,
        required=["spec"],
        columns=[
            ("Used/Hard", "string", ".status.summary", 0),
            ("Parent Namespace", "string", ".spec.parentRef.namespace", 0),
            ("Parent", "string", ".spec.parentRef.name", 0),
            ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
            ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1),
            (
                *("Within Limits", "string"),
                '.status.conditions[?(@.type=="WithinLimits")].status',
                1,
            ),
            (
                *("Nodes Reporting", "string"),
                '.status.conditions[?(@.type=="NodesReporting")].status',
                1,
            ),
            ("Charged To", "string", ".status.attachedTo", 1),
            ("Files", "string", ".spec.retained.policy", 1),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ],
    )


def node_crd() -> _Json:
    """The definition of HugeTLBNode."""
    schema = _structural(node.HugeTLBNode)
    # A list of type map makes a PUT of hundreds of entries slow.
    schema["properties"]["status"]["properties"]["pods"]["x-kubernetes-list-type"] = "atomic"
    _as_map(schema, "conditions", key="type")
    return _definition(
        kind=node.KIND,
        plural=node.PLURAL,
        short="htn",
        scope="Cluster",
        schema=schema,
        required=[],
        columns=[
            ("Free", "string", ".status.summary", 0),
            ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
            ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1),
            (
                *("Charge List", "string"),
                '.status.conditions[?(@.type=="ChargeListReadable")].status',
                0,
            ),
            (
                *("Mounts Have Room", "string"),
                '.status.conditions[?(@.type=="MountsHaveRoom")].status',
                1,
            ),
            ("Reported", "date", ".status.reportedAt", 0),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ],
    )


def file_name(definition: _Json) -> str:
    """The name of the definition's file, ``hugetlb.dev_hugetlbquotas.yaml``."""
    return f"{GROUP}_{definition['spec']['names']['plural']}.yaml"


def render(definition: _Json) -> str:
    """The definition as YAML."""
    return yaml.dump(definition, Dumper=_WithoutAliases, sort_keys=False, width=110)


def _definition(
    *,
    kind: str,
    plural: str,
    short: str,
    scope: str,
    schema: _Json,
    required: list[str],
    columns: list[tuple[str, str, str, int]],
) -> _Json:
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = required
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": type_, "jsonPath": path, "priority": priority}
                        for name, type_, path, priority in columns
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _structural(model: type[Model]) -> _Json:
    """The model's JSON schema in the structural form that CRDs require.

    The schema has no references, no null alternatives (an optional field is not required) and
    no titles. The API server prunes unknown fields, and kubectl refuses them.
    """
    schema = model.model_json_schema(by_alias=True, mode="serialization")
    definitions = schema.pop("$defs", {})

    def convert(part: Any) -> Any:
        if isinstance(part, list):
            return [convert(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            target = definitions[part["$ref"].rpartition("/")[2]]
            return convert({**target, **{k: v for k, v in part.items() if k != "$ref"}})
        if "anyOf" in part:
            (only,) = (each for each in part["anyOf"] if each != {"type": "null"})
            return convert({**only, **{k: v for k, v in part.items() if k != "anyOf"}})
        converted = {
            key: {name: convert(field) for name, field in value.items()}
            if key == "properties"
            else convert(value)
            for key, value in part.items()
            if key not in ("title", "default") and (key, value) != ("additionalProperties", False)
        }
        if converted.get("type") == "integer":
            converted["format"] = "int64"
        return converted

    converted: _Json = convert(schema)
    return converted


def _as_map(schema: _Json, field: str, *, key: str) -> None:
    """Declare the status list ``field`` a map by ``key``, for server-side apply and clients."""
    schema["properties"]["status"]["properties"][field] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    }


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def main() -> None:
    """Write every definition into the directory of the first argument."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for definition in (quota_crd(), node_crd()):
        header = "# Generated from the models: python -m hugetlb_quota.api.crd crds\n"
        (directory / file_name(definition)).write_text(header + render(definition))


if __name__ == "__main__":
    main()
