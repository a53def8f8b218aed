"""Everything an operator deploys, and the generators of the files here that are made from other files.

- `generate.py`: writes the PrometheusRule and the Grafana dashboard, for `make dashboards`.
- `grafana/`: the dashboard as Python, in rows of panels.
- `capacity/`: the simulations behind CAPACITY.md, and the page's tables and picture.
- `quantity.py`: parses quantities of Kubernetes, such as 2500m and 512Mi.

The rest is configuration in docker/, kubernetes/ and prometheus/. README.md describes it.
"""
