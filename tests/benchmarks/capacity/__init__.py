"""How many pods for how much mail: `python -m tests.benchmarks.capacity` measures a replica and simulates many.

    measurement ──> measured     what a replica does at several rates, as JSON; and at any rate in between
      (sender)          │
                        ▼
      hpa, fleet ──> scenarios   pods, who sends to them, and the autoscaler, second by second
                        │
                        ▼
                       page      the tables of deploy/CAPACITY.md; picture draws some

deploy/capacity.json is what was measured last: all that comes after it needs no service, and says the same each time.
To take a new measurement into the repository: `--save deploy/capacity.json --page deploy/CAPACITY.md --png
deploy/capacity.png`.
"""
