"""What deploy/ has that is made of something else: `make dashboards` writes it anew, and tests hold it to that."""

import textwrap
from collections.abc import Callable
from pathlib import Path

from deploy.grafana import dashboard
from tests.deploy.manifests import DEPLOY, KUBERNETES

RULES = DEPLOY / "prometheus" / "rules.yaml"
PROMETHEUS_RULE = KUBERNETES / "components" / "monitoring" / "prometheusrule.yaml"

_HEAD = """\
# Made of deploy/prometheus/rules.yaml by `make dashboards`: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: digits
  labels:
    app.kubernetes.io/component: server
spec:
  groups:
"""


def prometheus_rule() -> str:
    """The rules as the Prometheus operator takes them: the same text, comments and all."""
    _, groups = RULES.read_text().split("\ngroups:\n")
    return _HEAD + textwrap.indent(groups, "  ")


FILES: dict[Path, Callable[[], str]] = {PROMETHEUS_RULE: prometheus_rule, dashboard.JSON: dashboard.build}


if __name__ == "__main__":
    for file, make in FILES.items():
        file.write_text(make())
