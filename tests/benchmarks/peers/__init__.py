"""Other model servers, to measure beside ours: the same ONNX file, each served by that server's documented way.

peer.py          the servers: what they are called, how they are started, and their settings, in words for the report
environment.py   a virtual environment for each, made once and kept
running.py       one of them running: started, asked until it answers rightly, and ended with all its processes
leash.py         the process above a server's own, which nothing that the server starts gets away from
targets.py       how the load test calls those that speak HTTP; those that speak gRPC it calls as it calls us
servers/         what runs in their environments: a script or a model repository each, and network.py, which they share
requirements/    the version of each
__main__.py      `python -m tests.benchmarks.peers [NAME ...]`: starts each in turn, and asks it for a few digits
"""
