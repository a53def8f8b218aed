"""What a panel is here, and what it is to Grafana."""

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
"""Whom all of them ask: the one that is chosen above."""

Kind = TypeVar("Kind", timeseries.Panel, stat.Panel, table.Panel)


class Query(NamedTuple):
    """What a panel asks Prometheus.

    Attributes:
        expr: the question.
        legend: what a series of the answer is called, with labels in double braces.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: what it shows.
        description: how to read it.
        unit: one of Grafana's, or a suffix.
        queries: what it asks; of a table one.
        kind: how it shows the answers.
        width: of 24.
        steps: values from which on it is orange, then red; or, falling, up to which.
        stacked: whether series are drawn on top of each other.
        dashed: whose lines are dashed, a regular expression; of bounds.
        top: where the axis ends.
        columns: of a table, the labels that it shows.
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
    """Panels that belong together; those of a closed row are asked for only when it is opened."""

    title: str
    panels: Sequence[Panel]
    closed: bool = False


def quantiles(metric: str, labels: str, by: str, legend: str, *quantiles: float) -> list[Query]:
    """Quantiles of a histogram, those of each combination of the labels `by`."""
    grouping = f"le, {by}" if by else "le"
    return [
        Query(
            f"histogram_quantile({quantile}, sum by ({grouping}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            f"{legend} p{quantile * 100:g}".strip(),
        )
        for quantile in quantiles
    ]


def mean(metric: str, labels: str, by: str) -> str:
    """The mean of a histogram or summary."""
    total, count = (f"sum by ({by}) (rate({metric}_{part}{{{labels}}}[$__rate_interval]))" for part in ("sum", "count"))
    return f"{total} / ({count} > 0)"


def draw(panel: Panel, number: int) -> Builder[dashboard.Panel]:
    """Grafana's panel, of that number."""
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
    """What all kinds of panels have."""
    made.id(number).title(panel.title).description(panel.description).unit(panel.unit).span(panel.width).datasource(SOURCE)
    for place, query in enumerate(panel.queries):
        asked = prometheus.Dataquery().ref_id(chr(ord("A") + place)).datasource(SOURCE).expr(query.expr)
        if panel.kind == "table":
            asked.instant().format(PromQueryFormat.TABLE)
        else:
            asked.range().legend_format(query.legend)
        made.with_target(asked)
    return made


def _thresholds(steps: tuple[float, float]) -> builders.ThresholdsConfig:
    """Green, orange from the first step on, red from the second; where the second is lower, the other way round."""
    first, second = steps
    if first < second:
        levels = [(None, "green"), (first, "orange"), (second, "red")]
    else:
        levels = [(None, "red"), (second, "orange"), (first, "green")]
    made = [dashboard.Threshold(value=value, color=colour) for value, colour in levels]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


_KINDS = {"timeseries": _timeseries, "stat": _stat, "table": _table}
