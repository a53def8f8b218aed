"""Measures the capacity of one replica, for `make capacity`.

- `measurement`: every workload at several rates, in rounds; the start of the service; its memory.
- `sender`: sends calls at random times at a given rate, and scrapes the service meanwhile.

deploy/capacity simulates many replicas from the result. To commit a new measurement, run
`python -m tests.benchmarks.capacity --save deploy/capacity.json`, then `python -m deploy.capacity`.
"""
