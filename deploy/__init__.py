"""Everything an operator deploys, and the generators of the files here that are made from something else.

    generate.py     make dashboards: writes the PrometheusRule and the Grafana dashboard
    grafana/        the dashboard as Python: rows of panels and their queries
    capacity/       the simulations behind CAPACITY.md, and the page's tables and picture
    quantity.py     parses quantities of Kubernetes, such as 2500m and 512Mi

The rest is configuration: docker/, kubernetes/, prometheus/. README.md describes it.
"""
