"""The processes of the service: settings in, a running server out, from the first log line to the exit status.

    run.py              serves in one process until a signal stops it.
    supervisor.py       serves with several workers on one port: starts, restarts and stops them.
    worker_process.py   one worker as its supervisor sees it.
    worker.py           the main program of a worker.
    listening_sockets.py  frees the ports of a worker whose supervisor has ended.
    message_channel.py  JSON messages between a supervisor and a worker.
    supervisor_link.py  the worker's end of the messages.
    model_changes.py    the supervisor's end of loading and unloading models.
    server.py           wires one server together, starts and stops it.
    shutdown.py         signals, and the stop requests that they cause.
    startup_log.py      the log events `started` and `stopped`.
    heartbeat.py        detects an event loop that hangs.

run.py or supervisor.py is the entry. A supervisor imports neither gRPC nor ONNX Runtime nor NumPy.
"""
