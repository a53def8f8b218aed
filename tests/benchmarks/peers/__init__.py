"""Other model servers, to measure beside ours: the same ONNX file, each served by that server's documented way.

peer.py          the servers: names, commands, and settings in words for the report.
environment.py   a virtual environment for each server, made once and kept.
running.py       a running server: started, polled until it answers rightly, stopped with all its processes.
leash.py         the parent process of a server: it kills every process that the server leaves behind.
targets.py       calls to the servers that speak HTTP; gRPC servers get the same calls as ours.
servers/         a script or a model repository for each environment, and network.py, which they share.
requirements/    the version of each server.
__main__.py      `python -m tests.benchmarks.peers [NAME ...]`: starts each server in turn, and checks a few digits.
"""
