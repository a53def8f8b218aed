"""Rows, panels and queries of the dashboard, and their translation for Grafana."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The Prometheus that the dashboard's variable selects."""

Kind = TypeVar("Kind", timeseries.Panel, stat.Panel, table.Panel)


class Query(NamedTuple):
    """A query of a panel.

    Attributes:
        expr: PromQL.
        legend: name of a series, with labels in double braces.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: heading.
        description: help text on how to read the panel.
        unit: a unit of Grafana, or "suffix: " and a text.
        queries: at least one; a table has exactly one.
        kind: "timeseries", "stat" or "table".
        width: 1 to 24 columns.
        steps: thresholds for orange and red. If the second is lower, low values are bad.
        stacked: True stacks the series.
        dashed: regular expression of the names of series with dashed lines.
        top: end of the axis; None for automatic.
        columns: labels that a table shows.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    steps: tuple[float, float] | None = None
    stacked: bool = False
    dashed: str = ""
    top: float | None = None
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """A row of panels. Grafana runs the queries of a closed row only once the row is opened."""

    title: str
    panels: Sequence[Panel]
    closed: bool = False


def quantiles(metric: str, labels: str, by: str, legend: str, *quantiles: float) -> list[Query]:
    """Returns one query for each quantile of a histogram, grouped by the labels `by`."""
    grouping = f"le, {by}" if by else "le"
    return [
        Query(
            f"histogram_quantile({quantile}, sum by ({grouping}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            f"{legend} p{quantile * 100:g}".strip(),
        )
        for quantile in quantiles
    ]


def mean(metric: str, labels: str, by: str) -> str:
    """Returns PromQL for the mean of a histogram or summary, grouped by the labels `by`."""
    total, count = (f"sum by ({by}) (rate({metric}_{part}{{{labels}}}[$__rate_interval]))" for part in ("sum", "count"))
    return f"{total} / ({count} > 0)"


def draw(panel: Panel, number: int) -> Builder[dashboard.Panel]:
    """Translates a panel for Grafana, with a number that is unique in the dashboard."""
    return _KINDS[panel.kind](panel, number)


def _timeseries(panel: Panel, number: int) -> timeseries.Panel:
    legend = (
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made = (
        _common(timeseries.Panel(), panel, number)
        .height(8)
        .min(0)
        .legend(legend)
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .fill_opacity(30 if panel.stacked else 0)
        .line_width(1)
        .show_points(common.VisibilityMode.NEVER)
    )
    if panel.top is not None:
        made.max(panel.top)
    if panel.stacked:
        made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    if panel.steps:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        made.thresholds(_thresholds(panel.steps)).thresholds_style(style)
    if panel.dashed:
        dashes = dashboard.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [6, 6]})
        made.override_by_regexp(panel.dashed, [dashes])
    return made


def _stat(panel: Panel, number: int) -> stat.Panel:
    made = (
        _common(stat.Panel(), panel, number)
        .height(4)
        .no_value("none")
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return made.thresholds(_thresholds(panel.steps)) if panel.steps else made


def _table(panel: Panel, number: int) -> table.Panel:
    shown = dashboard.DataTransformerConfig(
        id_val="filterFieldsByName",
        options={"include": {"names": [*panel.columns, *([] if panel.unit == "none" else ["Value"])]}},
    )
    return _common(table.Panel(), panel, number).height(8).with_transformation(shown)


def _common(made: Kind, panel: Panel, number: int) -> Kind:
    """Sets the options that all kinds of panels share."""
    made.id(number).title(panel.title).description(panel.description).unit(panel.unit).span(panel.width).datasource(SOURCE)
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + index)).datasource(SOURCE).expr(query.expr)
        if panel.kind == "table":
            target.instant().format(PromQueryFormat.TABLE)
        else:
            target.range().legend_format(query.legend)
        made.with_target(target)
    return made


def _thresholds(steps: tuple[float, float]) -> builders.ThresholdsConfig:
    """Colours values green, orange from the first step, red from the second. A lower second step reverses the order."""
    first, second = steps
    if first < second:
        levels = [(None, "green"), (first, "orange"), (second, "red")]
    else:
        levels = [(None, "red"), (second, "orange"), (first, "green")]
    made = [dashboard.Threshold(value=value, color=colour) for value, colour in levels]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


_KINDS = {"timeseries": _timeseries, "stat": _stat, "table": _table}
