"""A null in a values file takes a key away, as Helm's users expect; where nothing works without it, it is refused.

Helm does so itself for keys that the chart's values.yaml has. Inside maps that are Kubernetes' own it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
import yaml
from pydantic.fields import FieldInfo

from giblet.config.check import check_files
from giblet.config.generate import never_null_text
from giblet.config.refused import Refused
from giblet.config.schema import GibletConfig
from giblet.config.values import Values
from giblet.config.values_sections import HelmSection
from giblet.errors import ConfigError
from tests.support.chart import CHART, MINIMAL, MONITORING_APIS, Object, merged, refusal, render, schema_faults
from tests.support.chart_values import ELASTIC

NEVER = set(never_null_text().split())
BASE = merged(ELASTIC, {"data": {"existingClaim": "bids"}, "test": {"gpus": 1}})


def keys_of(section: type[HelmSection], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the chart, sections first."""
    for name, field in section.model_fields.items():
        key, default = f"{prefix}{field.alias or name}", field.get_default()
        yield key, field
        if isinstance(default, HelmSection):
            yield from keys_of(type(default), f"{key}.")


DEFAULTS = {key: field.get_default() for key, field in keys_of(Values)}
REFUSED = {key for key, field in keys_of(Values) if any(isinstance(mark, Refused) for mark in field.metadata)}
MAPS = sorted(key for key, default in DEFAULTS.items() if isinstance(default, dict))


def at(key: str, value: object) -> Object:
    """Values with one key, written a.b.c."""
    return reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)  # type: ignore[arg-type, return-value]


def together(values: list[Object]) -> Object:
    return merged(*values)


def test_every_map_takes_nulls_as_keys_that_are_not_there() -> None:
    assert len(MAPS) > 15
    alone = together([BASE, *(at(key, {"example.org/kept": "1"}) for key in MAPS if key != "global")])
    nulls = together([at(key, {"example.org/taken": None, "deeper": None}) for key in MAPS])
    plain, chart = (render(values, apis=MONITORING_APIS) for values in (alone, merged(alone, nulls)))
    assert "example.org/kept" in chart.text
    assert chart.text == plain.text


def test_a_map_of_nothing_but_nulls_is_an_empty_one() -> None:
    values = together([BASE, *(at(key, {"example.org/taken": None}) for key in MAPS)])
    chart = render(values, apis=MONITORING_APIS)
    assert schema_faults(chart) == {}, "it takes no null for a map, a list or a text"
    assert chart.config == render(BASE).config


def test_limits_lose_what_a_null_takes_away() -> None:
    chart = render({"resources": {"limits": {"cpu": None, "memory": "8Gi"}, "requests": None}})
    resources = chart.pod("PyTorchJob/")["containers"][0]["resources"]
    assert resources == {"limits": {"memory": "8Gi", "nvidia.com/gpu": "8"}}
    assert schema_faults(chart) == {}


def test_a_null_takes_a_default_of_the_security_context_away() -> None:
    """As OpenShift wants it: it gives each namespace its own uids."""
    chart = render({"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}})
    context = chart.pod("PyTorchJob/")["securityContext"]
    assert context["runAsNonRoot"] is True
    assert set(context) == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}


def test_all_that_may_be_null_may_be_null_at_once(tmp_path: Path) -> None:
    """Whole maps, lists and empty texts: the same as leaving them out."""
    kept = {
        "image.repository",
        "image.tag",
        "data.existingClaim",
        "verify.resources",
        "test.resources",
        "rendezvous.resources",
    }
    free = [key for key in DEFAULTS if key not in NEVER | {"global"}]
    values = together([BASE, *(at(key, None) for key in free if key not in kept)])
    assert render(values, apis=MONITORING_APIS).text == render(BASE, apis=MONITORING_APIS).text
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(merged(MINIMAL, values)))
    check_files([file])
    assert (
        schema_faults(render(together([BASE, *(at(key, None) for key in kept - {"image.repository", "image.tag"})])))
        == {}
    )


def test_what_cannot_be_null_is_refused_by_name_and_all_of_it_at_once(tmp_path: Path) -> None:
    leaves = [key for key in NEVER if not isinstance(DEFAULTS.get(key), HelmSection | GibletConfig)]
    said = refusal(together([MINIMAL, *(at(key, None) for key in leaves)]))
    assert {key for key in leaves if f"{key} is null, which takes its default away" in said} == set(leaves)
    for key in sorted(NEVER - set(leaves)):
        file = tmp_path / f"{key}.yaml"
        file.write_text(yaml.safe_dump(merged(MINIMAL, at(key, None))))
        if key != "config":
            with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
                check_files([file])


def test_a_section_that_is_null_is_refused_before_a_template_stumbles_over_it() -> None:
    sections = sorted(key for key in NEVER if isinstance(DEFAULTS.get(key), HelmSection) and "." not in key)
    said = refusal(merged(MINIMAL, dict.fromkeys([*sections, "config"])))
    assert all(f"{key} is null" in said for key in [*sections, "config"]), said


def test_values_yaml_has_every_key_without_which_helm_would_keep_a_null() -> None:
    written = yaml.safe_load((CHART / "values.yaml").read_text())
    for key in DEFAULTS.keys() - REFUSED - {"global"}:
        node = written
        for part in key.split("."):
            assert part in node, key
            node = node[part]
