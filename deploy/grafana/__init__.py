"""The operator's dashboard as Python. `make dashboards` writes digits.json from it.

- `selectors`: label selectors and objectives that the queries share.
- `panels`: rows, panels and queries, and their translation for Grafana.
- `mail_rows`: rows about the mail: read rate, accuracy, and how the images change.
- `service_rows`: rows about the service: requests, queues, saturation, versions.
- `dashboard`: all rows in order, and the dashboard's variables.

provisioning/ makes the Grafana of deploy/docker/compose.yaml find the dashboard and Prometheus.
"""
