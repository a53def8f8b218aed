"""Simulates pods under load and writes the tables and the picture of deploy/CAPACITY.md.

    ../capacity.json ──> measured      one replica at several rates, and interpolated between them
                            │
    hpa, fleet ───────> simulation     pods, senders, Prometheus and the autoscaler, second by second
                            │
                        scenarios      loads: a step, a ramp, a day, a lost zone
                            │
                    page, picture      the tables of ../CAPACITY.md, and ../capacity.png

`python -m deploy.capacity` writes the page and the picture from capacity.json. It needs no service and gives the same
result each time. `make capacity` (tests/benchmarks/capacity) measures a replica and writes such a file with `--save`.
"""
