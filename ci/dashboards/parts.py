"""What the dashboards have in common: variables, links, and short ways to say a panel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRID_WIDTH = 24
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
Query = tuple[str, str]
"""PromQL, and the legend."""
Steps = Sequence[tuple[float | None, str]]
"""From this value on, this colour; the first value is None."""


@dataclass(frozen=True, slots=True)
class Marker:
    """An annotation at each value of a query that gives Unix seconds."""

    name: str
    expr: str
    colour: str
    text: str


class Board:
    """A dashboard in the making: `row`, `number`, `lines`, `rows_of`; then `text`."""

    def __init__(self, uid: str, title: str, description: str, *, all_runs: bool) -> None:
        self._all_runs = all_runs
        self._markers: list[Marker] = []
        self._builder = (
            dashboard.Dashboard(title).uid(uid).description(description).tags(["giblet"]).readonly()
            .time("now-3h", "now").refresh("30s").tooltip(models.DashboardCursorSync.CROSSHAIR).timezone("browser")
        )  # fmt: skip
        self._variables()
        others = dashboard.DashboardLink("giblet").type(models.DashboardLinkType.DASHBOARDS).tags(["giblet"])
        self._builder.link(others.as_dropdown(False).include_vars(True).keep_time(True))

    def _variables(self) -> None:
        self._builder.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        families = '__name__=~"giblet_train_step|giblet_verify_verdict"'
        for name, label, query in (
            ("namespace", "Namespace", f"label_values({{{families}}}, namespace)"),
            ("run", "Run", f'label_values({{{families},namespace=~"$namespace"}}, run)'),
        ):
            variable = (
                dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
                .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
            )  # fmt: skip
            if self._all_runs:
                variable.multi(True).include_all(True).all_value(".*")
                variable.current(models.VariableOption(selected=True, text="All", value="$__all"))
            self._builder.with_variable(variable)

    def row(self, title: str) -> None:
        """What follows stands under this heading."""
        self._builder.with_row(dashboard.Row(title))

    def mark(self, marker: Marker) -> None:
        """Draw an annotation over every panel."""
        self._markers.append(marker)

    def number(
        self,
        title: str,
        expr: str,
        help_text: str,
        *,
        unit: str = "none",
        steps: Steps = ((None, BLUE),),
        names: Mapping[str, tuple[str, str]] | None = None,
        decimals: int | None = None,
        width: int = 4,
    ) -> None:
        """One number, and a thread of its past. `names`: value → (text, colour)."""
        panel = (
            stat.Panel().title(title).description(help_text).datasource(SOURCE).unit(unit).span(width).height(4)
            .thresholds(_thresholds(steps)).graph_mode(common_models.BigValueGraphMode.AREA)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .no_value("–").with_target(_target(expr, title, 0))
        )  # fmt: skip
        if decimals is not None:
            panel.decimals(decimals)
        if names:
            panel.mappings([_names(names)])
        self._builder.with_panel(panel)

    def lines(
        self,
        title: str,
        queries: Sequence[Query],
        help_text: str,
        *,
        unit: str = "none",
        log: bool = False,
        stacked: bool = False,
        smallest: float | None = None,
        steps: Steps | None = None,
        exemplars: bool = False,
        width: int = 8,
    ) -> None:
        """Curves over time."""
        legend = common.VizLegendOptions().display_mode(common_models.LegendDisplayMode.LIST).show_legend(True)
        panel = (
            timeseries.Panel().title(title).description(help_text).datasource(SOURCE).unit(unit).span(width).height(8)
            .fill_opacity(8).line_width(1).show_points(common_models.VisibilityMode.AUTO)
            .legend(legend.placement(common_models.LegendPlacement.BOTTOM).calcs(["lastNotNull"]))
            .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
        )  # fmt: skip
        if smallest is not None:
            panel.min(smallest)
        if log:
            panel.scale_distribution(common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10))
        if stacked:
            panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        if steps is not None:
            dashed = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
            panel.thresholds(_thresholds(steps)).thresholds_style(dashed)
        for index, (expr, name) in enumerate(queries):
            panel.with_target(_target(expr, name, index, exemplars=exemplars))
        self._builder.with_panel(panel)

    def rows_of(
        self,
        title: str,
        columns: Mapping[str, tuple[str, str]],
        help_text: str,
        *,
        key: Sequence[str],
        height: int = 10,
    ) -> None:
        """A table with a row for each combination of the labels in `key`; `columns`: name → (PromQL, unit)."""
        panel = (
            table.Panel().title(title).description(help_text).datasource(SOURCE).span(GRID_WIDTH).height(height)
            .filterable(True)
        )  # fmt: skip
        for index, (name, (expr, unit)) in enumerate(columns.items()):
            target = _target(expr, name, index).instant()
            panel.with_target(target.format(prometheus_format("table")))
            panel.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
        values = [f"Value #{_letter(index)}" for index in range(len(columns))] if len(columns) > 1 else ["Value"]
        shown = {label: index for index, label in enumerate([*key, *values])}
        options: dict[str, Any] = {
            "excludeByName": {"Time": True, "__name__": True},
            "indexByName": shown,
            "renameByName": dict(zip(values, columns, strict=True)),
        }
        panel.transformations(
            [
                models.DataTransformerConfig(id_val="merge", options={}),
                models.DataTransformerConfig(id_val="organize", options=options),
            ]
        )
        self._builder.with_panel(panel)

    def text(self) -> str:
        """The dashboard's JSON."""
        for marker in self._markers:
            self._builder.annotation(
                dashboard.AnnotationQuery().name(marker.name).datasource(SOURCE).enable(True)
                .icon_color(marker.colour).expr(marker.expr)
            )  # fmt: skip
        tree = json.loads(json.dumps(self._builder.build(), cls=JSONEncoder))
        # Options of the Prometheus data source that the SDK's annotation lacks: the value is when it happened.
        for found, marker in zip(tree["annotations"].get("list", ()), self._markers, strict=True):
            found |= {"useValueForTime": True, "titleFormat": marker.name, "textFormat": marker.text, "step": "15s"}
        return json.dumps(tree, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def prometheus_format(name: str) -> Any:
    """A query's format, by its name."""
    from grafana_foundation_sdk.models import prometheus as prometheus_models

    return prometheus_models.PromQueryFormat(name)


def _target(expr: str, name: str, index: int, *, exemplars: bool = False) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(" ".join(expr.split())).legend_format(name).ref_id(_letter(index))
    return target.datasource(SOURCE).exemplar(True) if exemplars else target.datasource(SOURCE)


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=colour) for value, colour in steps])
    )  # fmt: skip


def _names(names: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        options={value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in names.items()}
    )
