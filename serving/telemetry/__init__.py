"""Metrics, logs and traces of the running service.

The packages above report counts, durations, events and the times of each call. Operators read the results: the /metrics
page, log lines on stderr, and spans in an OpenTelemetry collector.

    metrics                every metric of a serving process: name, help text, labels.
    version_metrics        the metrics of one model version, with their labels already looked up.
    histograms             a histogram and a summary that take an array at once; bucket edges for ink and centre of mass.
    model_statistics       totals of each model version, read back from the metrics.
    series_files           the files in which a worker counts, and the series in them.
    retired_series         ends the series of versions that no longer serve.
    multiprocess_metrics   the metrics of several worker processes as one page.
    logs                   the log format, `log_event`, and the trace id in the lines of a traced call.
    log_queue              writes the log from a thread, and drops lines that nobody takes.
    native_lines           takes what libraries in C write to stderr into the log.
    log_text               escapes and shortens text for logs and errors.
    loop_watchdog          names what held the event loop.
    tracing                reads OpenTelemetry's environment variables; imports `spans` only if tracing is on.
    spans                  the span of a call, with child spans for framing, queue and inference.
"""
