"""The operator's dashboard as Python. `make dashboards` writes digits.json from it.

    selectors       label selectors and objectives that the queries share
    panels          a row, a panel and a query, and how Grafana draws them
    mail_rows       rows about the mail: what is read, how well, and how it changes
    service_rows    rows about the service: requests, queues, saturation, versions
    dashboard       all rows in order, and the dashboard's variables

provisioning/ makes the Grafana of deploy/docker/compose.yaml find the dashboard and Prometheus.
"""
