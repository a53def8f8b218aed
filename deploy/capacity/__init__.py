"""Simulates pods under load, and writes the tables and the picture of deploy/CAPACITY.md.

    ../capacity.json -> measured -> fleet, hpa -> simulation -> scenarios -> page, picture

- `measured`: one replica at several rates, and a curve between them.
- `hpa`: the autoscaler of Kubernetes.
- `fleet`: pods, senders, and the metrics that the autoscaler sees.
- `simulation`: a load on a fleet, step by step.
- `scenarios`: a step, a ramp, a day, a lost zone.
- `page`: the tables of ../CAPACITY.md.
- `picture`: ../capacity.png.

`python -m deploy.capacity` writes page and picture from capacity.json. It needs no service, and is
deterministic.
`make capacity` (tests/benchmarks/capacity) measures a replica, and writes such a file with `--save`.
"""
