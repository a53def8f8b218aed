"""The operator's dashboard, from top to bottom: what becomes of the mail first, then why.

`make dashboards` writes digits.json. Panels go by the recording rules of deploy/prometheus/rules.yaml where there are any,
so that they show what the alerts see.
"""

from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from deploy.grafana.panels import SOURCE, Panel, Query, Row, draw, mean, quantiles

JSON = Path(__file__).with_name("digits.json")

_HERE = 'namespace=~"$namespace"'
_MODEL = f'{_HERE},model=~"$model"'
_JOB = f'job="digits",{_HERE}'

# Objectives, and what is much of drift, for lines and colours; test_dashboard.py holds them to the rules.
AVAILABILITY, IN_TIME, MOVED, MUCH_MOVED = 0.999, 0.99, 0.1, 0.2

# PromQL can't ask for two labels to differ, but for each digit.
_CONFUSED = " or ".join(
    f'increase(digits_confusion_total{{{_MODEL},true="{digit}",predicted!="{digit}"}}[1d])' for digit in range(10)
)

ROWS = [
    Row(
        "At a glance",
        [
            Panel(
                "Read rate",
                "Share of digits and of fields that were accepted, in five minutes. What is rejected is keyed by people.",
                "percentunit",
                [Query(f"digits:read:ratio_rate5m{{{_HERE}}}", "{{unit}}s")],
                kind="stat",
                width=4,
            ),
            Panel(
                "Audited error, at most",
                "Of the accepted, by the audits of the last day: the upper end of the 95 % interval, of the worst version.",
                "percentunit",
                [Query(f'max by (unit) (digits:accepted_error:ratio_increase1d{{{_MODEL},bound="upper"}})', "{{unit}}s")],
                kind="stat",
                width=4,
            ),
            Panel(
                "Availability",
                "Share of valid requests of the last three days that did not fail by our fault; 99.9 % is the objective.",
                "percentunit",
                [Query(f"1 - digits:requests_failed:ratio_rate3d{{{_HERE}}}", "{{namespace}}")],
                kind="stat",
                width=4,
                steps=(AVAILABILITY, AVAILABILITY - 0.001),
            ),
            Panel(
                "Within 50 ms",
                "Share of single images of the last three days that were answered in time; 99 % is the objective.",
                "percentunit",
                [Query(f"1 - digits:recognize_slow:ratio_rate3d{{{_HERE}}}", "{{namespace}}")],
                kind="stat",
                width=4,
                steps=(IN_TIME, IN_TIME - 0.01),
            ),
            Panel(
                "Images a second",
                "What the models read, of all methods.",
                "suffix: /s",
                [Query(f"sum(digits:images:rate5m{{{_MODEL}}})", "images")],
                kind="stat",
                width=2,
            ),
            Panel(
                "Replicas",
                "Those that answer scrapes, and those that should.",
                "none",
                [Query(f"sum(up{{{_JOB}}})", "up"), Query(f"count(up{{{_JOB}}})", "of")],
                kind="stat",
                width=3,
            ),
            Panel(
                "Alerts",
                "Alerts of this service that are firing; deploy/RUNBOOK.md has an entry for each.",
                "none",
                [Query(f'count(ALERTS{{alertname=~"Digits.+",alertstate="firing",{_HERE}}}) or vector(0)', "firing")],
                kind="stat",
                width=3,
                steps=(1, 3),
            ),
        ],
    ),
    Row(
        "Reading",
        [
            Panel(
                "Read rate",
                "Accepted, of all that came; fields that came too late count as not read. Half of what is usual pages.",
                "percentunit",
                [Query(f"digits:read:ratio_rate5m{{{_HERE}}}", "{{namespace}} {{unit}}s")],
                top=1,
            ),
            Panel(
                "Rejects by reason",
                "Share of all answers. low_confidence: hard to read, or no longer like what the model was certified on; "
                "invalid_image: no ink, or a broken file; not_certified: nobody certified so low an error rate; "
                "not_in_lexicon: no such postcode.",
                "percentunit",
                [
                    Query(
                        f'sum by (unit, decision) (digits:answers:rate5m{{{_MODEL},decision!="accept"}})'
                        f" / on (unit) group_left () (sum by (unit) (digits:answers:rate5m{{{_MODEL}}}) > 0)",
                        "{{unit}}s: {{decision}}",
                    )
                ],
            ),
            Panel(
                "Audited error among the accepted",
                "By the audits of the last day, with the 95 % interval dashed, and what is borne. An alert pages when the "
                "lower end is above it.",
                "percentunit",
                [
                    Query(f"digits:accepted_error:ratio_increase1d{{{_MODEL}}}", "{{version}} {{unit}}s {{bound}}"),
                    Query("digits:accepted_error:target", "borne, {{unit}}s"),
                ],
                dashed="/(lower|upper)$/",
            ),
            Panel(
                "Accuracy by version",
                "Of the answers whose truth was reported in the last day, by its source. What is keyed was rejected, and is "
                "hard; audits are of what was accepted; replays of images whose truth was known.",
                "percentunit",
                [Query(f"digits:accuracy:ratio_increase1d{{{_MODEL}}}", "{{version}} {{unit}}s by {{source}}")],
                top=1,
            ),
            Panel(
                "Confidence",
                "Of single digits, median and the lowest tenth. It falls before truth says why.",
                "percentunit",
                quantiles("digits_confidence", _MODEL, "version", "{{version}}", 0.5, 0.1),
                top=1,
            ),
            Panel(
                "What is taken for what",
                "The ten most frequent confusions of the last day, of digits whose truth was reported.",
                "short",
                [Query(f"topk(10, sum by (true, predicted) ({_CONFUSED}))", "")],
                kind="table",
                columns=("true", "predicted"),
            ),
        ],
    ),
    Row(
        "Requests",
        [
            Panel(
                "Requests by method",
                "All that ended, well or not; of a stream, each of its requests.",
                "reqps",
                [Query(f"sum by (method) (rate(digits_requests_total{{{_HERE}}}[$__rate_interval]))", "{{method}}")],
                stacked=True,
            ),
            Panel(
                "Errors by code",
                "Requests that ended otherwise than OK, by gRPC status code. Not all of them are the service's fault.",
                "reqps",
                [
                    Query(
                        f'sum by (code) (rate(digits_requests_total{{{_HERE},code!="OK"}}[$__rate_interval]))',
                        "{{code}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Not answered, by reason",
                "The same by the service's own words. queue_full, too_busy: more replicas are needed; rate_limited: a "
                "client is above its limit; deadline: too late.",
                "reqps",
                [
                    Query(
                        f"sum by (reason) (rate(digits_rejected_requests_total{{{_HERE}}}[$__rate_interval]))",
                        "{{reason}}",
                    )
                ],
                stacked=True,
            ),
            *(
                Panel(
                    f"p{quantile * 100:g} by method",
                    f"{quantile:.1%} of the requests were answered within this time, from arrival to answer.",
                    "s",
                    [
                        Query(query.expr, "{{method}}")
                        for query in quantiles("digits_request_seconds", _HERE, "method", "", quantile)
                    ],
                )
                for quantile in (0.5, 0.99, 0.999)
            ),
            Panel(
                "Failed by our own fault",
                "Of valid requests, over five minutes, an hour and a day; above 0.1 % the month's budget does not last.",
                "percentunit",
                [
                    Query(f"digits:requests_failed:ratio_rate{window}{{{_HERE}}}", f"{{{{namespace}}}} {window}")
                    for window in ("5m", "1h", "1d")
                ],
                width=12,
                steps=(1 - AVAILABILITY, 14.4 * (1 - AVAILABILITY)),
            ),
            Panel(
                "Single images later than 50 ms",
                "Over five minutes, an hour and a day; above 1 % the month's budget does not last.",
                "percentunit",
                [
                    Query(f"digits:recognize_slow:ratio_rate{window}{{{_HERE}}}", f"{{{{namespace}}}} {window}")
                    for window in ("5m", "1h", "1d")
                ],
                width=12,
                steps=(1 - IN_TIME, 14.4 * (1 - IN_TIME)),
            ),
        ],
    ),
    Row(
        "Queue and batches",
        [
            Panel(
                "Images that wait",
                "In all replicas, on average of five minutes, and how many are read in a second. More waiting than that is "
                "more than a second of waiting.",
                "suffix: images",
                [
                    Query(f"digits:queue_length:avg5m{{{_MODEL}}}", "{{model}} waiting"),
                    Query(f"digits:images:rate5m{{{_MODEL}}}", "{{model}} read in a second"),
                ],
                dashed="/second$/",
            ),
            Panel(
                "Time in the queue",
                "From a request's arrival to the run that has its first image.",
                "s",
                quantiles("digits_queue_seconds", _MODEL, "model", "{{model}}", 0.5, 0.99),
            ),
            Panel(
                "Batch size",
                "Images in a run, mean and 99th percentile. It grows with the load, up to --max-batch-size.",
                "suffix: images",
                [
                    Query(mean("digits_batch_size_images", _MODEL, "model"), "{{model}} mean"),
                    *quantiles("digits_batch_size_images", _MODEL, "model", "{{model}}", 0.99),
                ],
            ),
            Panel(
                "Time of a run",
                "What the model itself takes, for whatever is in the batch.",
                "s",
                quantiles("digits_inference_seconds", _MODEL, "model, version", "{{version}}", 0.5, 0.99),
            ),
            Panel(
                "Crops that wait",
                "PNG and JPEG files that wait to be decoded and framed.",
                "suffix: crops",
                [Query(f"sum by (pod) (digits_crops_waiting{{{_HERE}}})", "{{pod}}")],
            ),
            Panel(
                "Time to frame a crop",
                "Decoding and framing, which is most of what a crop costs.",
                "s",
                quantiles("digits_framing_seconds", _HERE, "", "", 0.5, 0.99),
            ),
        ],
    ),
    Row(
        "Saturation",
        [
            Panel(
                "Requests in flight",
                "Being answered now, by replica: what the autoscaler goes by.",
                "suffix: requests",
                [Query(f"sum by (pod) (digits_in_flight_requests{{{_HERE}}})", "{{pod}}")],
            ),
            Panel(
                "Runs at the same time",
                "How many runs of models go on in a replica, on average; --workers times --instances is the most.",
                "suffix: runs",
                [Query(f"digits:runs:avg5m{{{_HERE}}}", "{{pod}}")],
            ),
            Panel(
                "CPU",
                "Cores in use, by replica, all its processes together. At the limit the kernel stops it, and p99 shows it.",
                "suffix: cores",
                [Query(f"sum by (pod) (rate(process_cpu_seconds_total{{{_JOB}}}[$__rate_interval]))", "{{pod}}")],
            ),
            Panel(
                "Memory",
                "Resident, by replica, all its processes together; what they share is counted for each.",
                "bytes",
                [Query(f"sum by (pod) (process_resident_memory_bytes{{{_JOB}}})", "{{pod}}")],
            ),
            Panel(
                "Open streams",
                "By replica; each worker takes --max-streams.",
                "suffix: streams",
                [Query(f"sum by (pod) (digits_open_streams{{{_HERE}}})", "{{pod}}")],
            ),
            Panel(
                "File descriptors in use",
                "Share of those that the processes may have; a connection takes one.",
                "percentunit",
                [
                    Query(
                        f"sum by (pod) (process_open_fds{{{_JOB}}}) / sum by (pod) (process_max_fds{{{_JOB}}})",
                        "{{pod}}",
                    )
                ],
            ),
            Panel(
                "Workers",
                "Processes that answer calls, by replica; a replica with one process has no such count.",
                "suffix: workers",
                [Query(f"sum by (pod) (digits_workers{{{_HERE}}})", "{{pod}}")],
                width=12,
            ),
            Panel(
                "Worker restarts",
                "Processes that died and were replaced, within an hour.",
                "suffix: restarts",
                [Query(f"sum by (pod) (increase(digits_worker_restarts_total{{{_HERE}}}[1h]))", "{{pod}}")],
                width=12,
                steps=(1, 3),
            ),
        ],
    ),
    Row(
        "Versions",
        [
            Panel(
                "Versions by pod",
                "What answers where. Two stable versions of a model for long are a rollout that is stuck.",
                "none",
                [Query(f"max by (pod, model, version, role) (digits_model_role{{{_MODEL}}}) == 1", "")],
                kind="table",
                columns=("pod", "model", "version", "role"),
            ),
            Panel(
                "Requests by version",
                "Answered, a second.",
                "reqps",
                [
                    Query(
                        "sum by (model, version)"
                        f' (rate(digits_model_request_seconds_count{{{_MODEL},outcome="answered"}}[$__rate_interval]))',
                        "{{model}} {{version}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Time of a request by version",
                "Mean, from its arrival at the queue to its answer.",
                "s",
                [
                    Query(
                        mean("digits_model_request_seconds", f'{_MODEL},outcome="answered"', "model, version"),
                        "{{model}} {{version}}",
                    )
                ],
            ),
            Panel(
                "Read rate by role",
                "Accepted, over an hour: the canary should accept no less than stable.",
                "percentunit",
                [Query(f"digits:role_read:ratio_rate1h{{{_MODEL}}}", "{{model}} {{role}}, {{unit}}s")],
            ),
            Panel(
                "Failed by role",
                "Requests that a version had and did not answer, over an hour; those that callers gave up are among them.",
                "percentunit",
                [Query(f"digits:role_failed:ratio_rate1h{{{_MODEL}}}", "{{model}} {{role}}")],
            ),
            Panel(
                "Audited error by role",
                "Of the last day, with the 95 % interval dashed. As long as the intervals meet, nothing is shown.",
                "percentunit",
                [
                    Query(
                        f"digits:role_accepted_error:ratio_increase1d{{{_MODEL}}}", "{{model}} {{role}}, {{unit}}s {{bound}}"
                    )
                ],
                dashed="/(lower|upper)$/",
            ),
            Panel(
                "Shadow",
                "Images that stable has answered, by what the shadow made of them. Skipped is what it had no time for.",
                "suffix: images/s",
                [Query(f"sum by (version, outcome) (digits:shadow_images:rate1h{{{_MODEL}}})", "{{version}} {{outcome}}")],
                width=12,
                stacked=True,
            ),
            Panel(
                "Versions that can't be served",
                "Replicas that refuse a version, or a routing.toml; 0 is as it should be.",
                "suffix: replicas",
                [
                    Query(
                        f"sum by (model, version, reason) (digits_model_refused{{{_MODEL}}})",
                        "{{model}} {{version}} {{reason}}",
                    )
                ],
                width=12,
                steps=(1, 1000),
            ),
        ],
    ),
    Row(
        "Drift",
        [
            Panel(
                "Stability index",
                "How far the images are from those that the version was certified on: below 0.1 nothing has moved, above "
                "0.2 much has. Postcodes have a digit mix of their own; what counts is a change.",
                "none",
                [Query(f"digits:drift_psi:avg{{{_MODEL}}}", "{{version}} {{feature}}")],
                steps=(MOVED, MUCH_MOVED),
            ),
            Panel(
                "Estimated accuracy",
                "Mean confidence over the last 2,000 images: the accuracy, as it seems without truth.",
                "percentunit",
                [Query(f"digits:estimated_accuracy:avg{{{_MODEL}}}", "{{version}}")],
            ),
            Panel(
                "Digits read",
                "The mix of digits. A change is another kind of mail, or a digit that is read as another.",
                "suffix: /s",
                [Query(f"sum by (digit) (rate(digits_predictions_total{{{_MODEL}}}[$__rate_interval]))", "{{digit}}")],
                stacked=True,
            ),
            Panel(
                "Ink",
                "Mean share of an image that is ink: another pen, another threshold of the camera.",
                "percentunit",
                [Query(mean("digits_ink_ratio", _MODEL, "version"), "{{version}}")],
                width=12,
            ),
            Panel(
                "Centre of mass",
                "Mean, by row and column; framed as MNIST it is at 14, give or take a half.",
                "suffix: px",
                [Query(mean("digits_mass_centre_pixels", _MODEL, "version, axis"), "{{version}} {{axis}}")],
                width=12,
            ),
        ],
        closed=True,
    ),
    Row(
        "Truth, capture, credentials",
        [
            Panel(
                "Audits marked and reported",
                "In a day. The audited error is right only if all that is marked is reported.",
                "suffix: answers",
                [
                    Query(f"digits:audits:increase1d{{{_MODEL}}}", "{{model}} {{unit}}s marked"),
                    Query(f"digits:audits_reported:increase1d{{{_MODEL}}}", "{{model}} {{unit}}s reported"),
                ],
            ),
            Panel(
                "Truth by source",
                "Truths of the last day.",
                "suffix: truths",
                [Query(f"sum by (source, outcome) (digits:truth:increase1d{{{_MODEL}}})", "{{source}} {{outcome}}")],
                stacked=True,
            ),
            Panel(
                "Capture",
                "Images and truths that are kept to learn from, by what became of them.",
                "suffix: /s",
                [
                    Query(
                        f"sum by (record, outcome) (rate(digits_captured_total{{{_HERE}}}[$__rate_interval]))",
                        "{{record}}s {{outcome}}",
                    )
                ],
            ),
            Panel(
                "Certificate expires in",
                "By replica: one that is stuck on an old certificate shows. Without TLS there is none.",
                "s",
                [
                    Query(
                        f"min by (pod) (digits_tls_certificate_expiry_timestamp_seconds{{{_HERE}}} > 0) - time()",
                        "{{pod}}",
                    )
                ],
                width=12,
            ),
            Panel(
                "Credentials that can't be reloaded",
                "Looks at changed files of tokens or certificates that found them of no use, in an hour; the old go on.",
                "suffix: looks",
                [
                    Query(
                        f"sum by (pod, kind) (increase(digits_credentials_reload_failures_total{{{_HERE}}}[1h]))",
                        "{{pod}} {{kind}}",
                    )
                ],
                width=12,
            ),
        ],
        closed=True,
    ),
]


def build() -> str:
    """The dashboard as Grafana takes it, JSON."""
    whole = (
        builders.Dashboard("Postal digits")
        .uid("postal-digits")
        .description("Handwritten digits for postal sorting: what becomes of the mail, and why.")
        .tags(["postal-digits", "generated"])
        .readonly()
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("namespace", 'label_values(up{job="digits"}, namespace)'))
        .with_variable(_variable("model", 'label_values(digits_model_role{namespace=~"$namespace"}, model)'))
    )
    number = 0
    for row in ROWS:
        number += 1
        heading = builders.Row(row.title).id(number)
        if not row.closed:
            whole.with_row(heading)
        for panel in row.panels:
            number += 1
            (heading if row.closed else whole).with_panel(draw(panel, number))
        if row.closed:
            whole.with_row(heading)
    return JSONEncoder(sort_keys=True, indent=2).encode(whole.build()) + "\n"


def _variable(name: str, query: str) -> builders.QueryVariable:
    """A choice of some, or of all, also of those that lack the label."""
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .include_all(True)
        .all_value(".*")
    )
