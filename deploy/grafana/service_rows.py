"""Rows about the service: requests, queues and batches, saturation, builds and model versions."""

from deploy.grafana.panels import Panel, Query, Row, mean, quantiles
from deploy.grafana.selectors import AVAILABILITY, HERE, IN_TIME, JOB, MODEL

REQUESTS = Row(
    "Requests",
    [
        Panel(
            "Requests by method",
            "Finished requests, successful or not. Each request of a stream counts.",
            "reqps",
            [Query(f"sum by (method) (rate(digits_requests_total{{{HERE}}}[$__rate_interval]))", "{{method}}")],
            stacked=True,
        ),
        Panel(
            "Errors by code",
            "Requests with a gRPC status other than OK. Some are the client's fault.",
            "reqps",
            [
                Query(
                    f'sum by (code) (rate(digits_requests_total{{{HERE},code!="OK"}}[$__rate_interval]))',
                    "{{code}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Rejected requests by reason",
            "The service's own reason for each error. queue_full and too_busy: more replicas are needed. "
            "batch_queue_full: a client of priority batch must slow down. rate_limited: a client exceeds its limit. "
            "deadline: the answer would be late.",
            "reqps",
            [
                Query(
                    f"sum by (reason) (rate(digits_rejected_requests_total{{{HERE}}}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            stacked=True,
        ),
        *(
            Panel(
                f"p{quantile * 100:g} by method",
                f"{quantile:.1%} of requests were answered within this time, from arrival to answer.",
                "s",
                [
                    Query(query.expr, "{{method}}")
                    for query in quantiles("digits_request_seconds", HERE, "method", "", quantile)
                ],
            )
            for quantile in (0.5, 0.99, 0.999)
        ),
        Panel(
            "Failed requests",
            "Share of valid requests that the service failed, over five minutes, an hour and a day. Above 0.1 % the month's "
            "error budget does not last.",
            "percentunit",
            [
                Query(f"digits:requests_failed:ratio_rate{window}{{{HERE}}}", f"{{{{namespace}}}} {window}")
                for window in ("5m", "1h", "1d")
            ],
            width=12,
            steps=(1 - AVAILABILITY, 14.4 * (1 - AVAILABILITY)),
        ),
        Panel(
            "Single images over 50 ms",
            "Over five minutes, an hour and a day. Above 1 % the month's error budget does not last.",
            "percentunit",
            [
                Query(f"digits:recognize_slow:ratio_rate{window}{{{HERE}}}", f"{{{{namespace}}}} {window}")
                for window in ("5m", "1h", "1d")
            ],
            width=12,
            steps=(1 - IN_TIME, 14.4 * (1 - IN_TIME)),
        ),
    ],
)

QUEUE = Row(
    "Queue and batches",
    [
        Panel(
            "Queue length",
            "Waiting images in all replicas, as a mean over five minutes, beside the images read in a second. If more wait "
            "than are read in a second, the wait exceeds a second.",
            "suffix: images",
            [
                Query(f"digits:queue_length:avg5m{{{MODEL}}}", "{{model}} waiting"),
                Query(f"digits:images:rate5m{{{MODEL}}}", "{{model}} read in a second"),
            ],
            dashed="/second$/",
        ),
        Panel(
            "Time in the queue",
            "From the arrival of a request to the run with its first image.",
            "s",
            quantiles("digits_queue_seconds", MODEL, "model", "{{model}}", 0.5, 0.99),
        ),
        Panel(
            "Batch size",
            "Images in a run: mean and 99th percentile. Batches grow with the load, up to --max-batch-size.",
            "suffix: images",
            [
                Query(mean("digits_batch_size_images", MODEL, "model"), "{{model}} mean"),
                *quantiles("digits_batch_size_images", MODEL, "model", "{{model}}", 0.99),
            ],
        ),
        Panel(
            "Inference time",
            "Time of one run of the model, for a batch of any size.",
            "s",
            quantiles("digits_inference_seconds", MODEL, "model, version", "{{version}}", 0.5, 0.99),
        ),
        Panel(
            "Crops waiting",
            "PNG and JPEG files that wait for decoding and framing.",
            "suffix: crops",
            [Query(f"sum by (pod) (digits_crops_waiting{{{HERE}}})", "{{pod}}")],
        ),
        Panel(
            "Framing time",
            "Decoding and framing of one crop, which is most of a crop's cost.",
            "s",
            quantiles("digits_framing_seconds", HERE, "", "", 0.5, 0.99),
        ),
        Panel(
            "Priority batch",
            "Images of priority batch that wait, and those that come in a second. They are read in the room that live "
            "images leave. A queue that stays full refuses more of them as batch_queue_full.",
            "suffix: images",
            [
                Query(f"sum by (model) (digits_batch_queue_length_images{{{MODEL}}})", "{{model}} waiting"),
                Query(
                    f"sum by (model) (rate(digits_batch_images_total{{{MODEL}}}[$__rate_interval]))", "{{model}} in a second"
                ),
            ],
            width=24,
            dashed="/second$/",
        ),
    ],
)

SATURATION = Row(
    "Saturation",
    [
        Panel(
            "Requests in flight",
            "Requests in work now, by replica. The autoscaler scales by their mean.",
            "suffix: requests",
            [Query(f"sum by (pod) (digits_in_flight_requests{{{HERE}}})", "{{pod}}")],
        ),
        Panel(
            "Concurrent runs",
            "Mean number of concurrent runs of models in a replica. The maximum is --workers times --instances.",
            "suffix: runs",
            [Query(f"digits:runs:avg5m{{{HERE}}}", "{{pod}}")],
        ),
        Panel(
            "CPU",
            "Cores in use by all processes of a replica. At the limit the kernel throttles the replica, and p99 rises.",
            "suffix: cores",
            [Query(f"sum by (pod) (rate(process_cpu_seconds_total{{{JOB}}}[$__rate_interval]))", "{{pod}}")],
        ),
        Panel(
            "Memory",
            "Resident memory of all processes of a replica. Memory that processes share counts once for each.",
            "bytes",
            [Query(f"sum by (pod) (process_resident_memory_bytes{{{JOB}}})", "{{pod}}")],
        ),
        Panel(
            "Open streams",
            "By replica. Each worker accepts up to --max-streams.",
            "suffix: streams",
            [Query(f"sum by (pod) (digits_open_streams{{{HERE}}})", "{{pod}}")],
        ),
        Panel(
            "File descriptors in use",
            "Share of the processes' limit. Each connection takes one.",
            "percentunit",
            [
                Query(
                    f"sum by (pod) (process_open_fds{{{JOB}}}) / sum by (pod) (process_max_fds{{{JOB}}})",
                    "{{pod}}",
                )
            ],
        ),
        Panel(
            "Workers",
            "Processes that answer calls, by replica. A replica with a single process has no such metric.",
            "suffix: workers",
            [Query(f"sum by (pod) (digits_workers{{{HERE}}})", "{{pod}}")],
            width=12,
        ),
        Panel(
            "Worker restarts",
            "Workers that died and were replaced in the last hour.",
            "suffix: restarts",
            [Query(f"sum by (pod) (increase(digits_worker_restarts_total{{{HERE}}}[1h]))", "{{pod}}")],
            width=12,
            steps=(1, 3),
        ),
        Panel(
            "Open connections",
            "By replica, with the front http2. Each worker accepts up to --max-connections.",
            "suffix: connections",
            [Query(f"sum by (pod) (digits_open_connections{{{HERE}}})", "{{pod}}")],
            width=12,
        ),
        Panel(
            "Limits reached by clients",
            "With the front http2. Each costs the client that reached it a call or its connection. idle_time and handshake "
            "are common. Others that last mean a broken or hostile client, or a limit that is too low for a proxy.",
            "reqps",
            [
                Query(
                    f"sum by (limit) (rate(digits_limits_reached_total{{{HERE}}}[$__rate_interval]))",
                    "{{limit}}",
                )
            ],
            width=12,
            stacked=True,
        ),
        Panel(
            "Dropped lines of the log",
            "Nobody takes the log of a replica as fast as it comes. Normal is 0.",
            "suffix: lines/s",
            [Query(f"sum by (pod) (rate(digits_log_lines_dropped_total{{{HERE}}}[$__rate_interval]))", "{{pod}}")],
            width=12,
        ),
        Panel(
            "Missing series",
            "Series that a replica has no room for in its metrics directory. Normal is 0.",
            "suffix: series",
            [Query(f"max by (pod) (digits_dropped_series{{{HERE}}})", "{{pod}}")],
            width=12,
            steps=(1, 100),
        ),
    ],
)

VERSIONS = Row(
    "Versions",
    [
        Panel(
            "Builds",
            "Replicas by version, commit and ONNX Runtime of the code that runs. More than one build is normal only during "
            "a rollout.",
            "short",
            [Query(f"count by (version, commit, onnxruntime) (digits_build_info{{{HERE}}})", "")],
            kind="table",
            width=12,
            columns=("version", "commit", "onnxruntime"),
        ),
        Panel(
            "Versions by pod",
            "Model versions by replica and role. Two stable versions of one model over a long time mean a stuck rollout.",
            "none",
            [Query(f"max by (pod, model, version, role) (digits_model_role{{{MODEL}}}) == 1", "")],
            kind="table",
            width=12,
            columns=("pod", "model", "version", "role"),
        ),
        Panel(
            "Requests by version",
            "Answered requests a second.",
            "reqps",
            [
                Query(
                    "sum by (model, version)"
                    f' (rate(digits_model_request_seconds_count{{{MODEL},outcome="answered"}}[$__rate_interval]))',
                    "{{model}} {{version}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Request time by version",
            "Mean, from the arrival in the queue to the answer.",
            "s",
            [
                Query(
                    mean("digits_model_request_seconds", f'{MODEL},outcome="answered"', "model, version"),
                    "{{model}} {{version}}",
                )
            ],
        ),
        Panel(
            "Read rate by role",
            "Accepted share over an hour. The canary should accept no less than stable.",
            "percentunit",
            [Query(f"digits:role_read:ratio_rate1h{{{MODEL}}}", "{{model}} {{role}}, {{unit}}s")],
        ),
        Panel(
            "Failed by role",
            "Share of a version's requests without an answer, over an hour. Requests that callers cancelled are included.",
            "percentunit",
            [Query(f"digits:role_failed:ratio_rate1h{{{MODEL}}}", "{{model}} {{role}}")],
        ),
        Panel(
            "Audited error by role",
            "Of the last day, with the 95 % interval dashed. A difference is significant once the intervals are apart.",
            "percentunit",
            [Query(f"digits:role_accepted_error:ratio_increase1d{{{MODEL}}}", "{{model}} {{role}}, {{unit}}s {{bound}}")],
            dashed="/(lower|upper)$/",
        ),
        Panel(
            "Shadow",
            "Images that stable answered, by the shadow's result. skipped: the shadow had no time for them.",
            "suffix: images/s",
            [Query(f"sum by (version, outcome) (digits:shadow_images:rate1h{{{MODEL}}})", "{{version}} {{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Refused versions",
            "Replicas that refuse a version or a routing.toml. Normal is 0.",
            "suffix: replicas",
            [
                Query(
                    f"sum by (model, version, reason) (digits_model_refused{{{MODEL}}})",
                    "{{model}} {{version}} {{reason}}",
                )
            ],
            width=24,
            steps=(1, 1000),
        ),
    ],
)
