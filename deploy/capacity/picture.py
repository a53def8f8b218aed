"""Draws the simulations: offered and answered calls, pods, and the 99th percentile of the busiest pod."""

from pathlib import Path

from deploy.capacity.hpa import Autoscaling
from deploy.capacity.measured import Measured
from deploy.capacity.page import STEP_FACTORS
from deploy.capacity.scenarios import RAMP_SECONDS, Simulations
from serving.loadtest import objectives

FILE = Path(__file__).parents[1] / "capacity.png"


def draw(measured: Measured, autoscaling: Autoscaling, file: Path) -> None:
    """Writes a PNG with one column for each scenario."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    simulations = Simulations(measured, autoscaling)
    scenarios = (
        *(simulations.step(factor) for factor in STEP_FACTORS),
        simulations.ramp(STEP_FACTORS[1], RAMP_SECONDS),
        simulations.day(),
    )
    limits = [one.limit for one in objectives.parse(measured.objectives) if one.percentile]
    figure, panels = pyplot.subplots(3, len(scenarios), figsize=(14, 7), sharex="col", sharey="row", layout="constrained")
    for scenario, (calls, pods, late) in zip(scenarios, panels.T, strict=True):
        run = simulations.run(scenario).run
        unit, name = (3600, "hours") if scenario.seconds > 7200 else (60, "minutes")
        times = [(moment.at - scenario.begins) / unit for moment in run.moments]
        calls.plot(times, [moment.offered / run.step for moment in run.moments], label="offered")
        calls.plot(times, [moment.answered / run.step for moment in run.moments], label="answered")
        pods.plot(times, [moment.pods for moment in run.moments], label="wanted")
        pods.plot(times, [moment.ready for moment in run.moments], label="ready")
        late.plot(times, [moment.p99_ms for moment in run.moments], label="p99")
        for limit in limits:
            late.axhline(limit, color="tab:red", linestyle=":", label="objective")
        calls.set(title=scenario.name)
        late.set(xlabel=name, yscale="log")
        if unit == 60:
            late.set_xlim(-2, 15)
        for axes in (calls, pods, late):
            axes.grid(visible=True, alpha=0.3)
    for axes, label in zip(panels[:, 0], ("calls a second", "pods", "milliseconds"), strict=True):
        axes.set_ylabel(label)
        axes.legend()
    panels[0, 0].autoscale(axis="y")
    panels[0, 0].set_ylim(bottom=0)
    figure.savefig(file, format="png", dpi=70)
    pyplot.close(figure)
