"""Label selectors and objectives that the queries of the dashboard share."""

HERE = 'namespace=~"$namespace"'
MODEL = f'{HERE},model=~"$model"'
JOB = f'job="digits",{HERE}'

# Objectives and drift thresholds, for lines and colours. test_dashboard.py compares them with the rules.
AVAILABILITY, IN_TIME, MOVED, MUCH_MOVED = 0.999, 0.99, 0.1, 0.2
