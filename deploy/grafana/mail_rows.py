"""Rows about the mail: what is read, how well, how the images change, and what people report."""

from deploy.grafana.panels import Panel, Query, Row, mean, quantiles
from deploy.grafana.selectors import AVAILABILITY, HERE, IN_TIME, JOB, MODEL, MOVED, MUCH_MOVED

# PromQL has no matcher for two labels that differ, so this asks once for each digit, and once for no digit.
_CONFUSED = " or ".join(
    f'increase(digits_confusion_total{{{MODEL},true="{true}",predicted!="{true}"}}[1d])' for true in (*range(10), "no_digit")
)

GLANCE = Row(
    "At a glance",
    [
        Panel(
            "Read rate",
            "Share of digits and of fields that were accepted in the last five minutes. People key the rest.",
            "percentunit",
            [Query(f"digits:read:ratio_rate5m{{{HERE}}}", "{{unit}}s")],
            kind="stat",
            width=4,
        ),
        Panel(
            "Audited error, upper bound",
            "Errors among accepted answers, by the audits of the last day: the upper end of the 95 % interval, of the worst "
            "version.",
            "percentunit",
            [Query(f'max by (unit) (digits:accepted_error:ratio_increase1d{{{MODEL},bound="upper"}})', "{{unit}}s")],
            kind="stat",
            width=4,
        ),
        Panel(
            "Availability",
            "Share of valid requests of the last three days that the service did not fail. The objective is 99.9 %.",
            "percentunit",
            [Query(f"1 - digits:requests_failed:ratio_rate3d{{{HERE}}}", "{{namespace}}")],
            kind="stat",
            width=4,
            steps=(AVAILABILITY, AVAILABILITY - 0.001),
        ),
        Panel(
            "Within 50 ms",
            "Share of single images of the last three days that were answered within 50 ms. The objective is 99 %.",
            "percentunit",
            [Query(f"1 - digits:recognize_slow:ratio_rate3d{{{HERE}}}", "{{namespace}}")],
            kind="stat",
            width=4,
            steps=(IN_TIME, IN_TIME - 0.01),
        ),
        Panel(
            "Images a second",
            "Images that the models read, over all methods.",
            "suffix: /s",
            [Query(f"sum(digits:images:rate5m{{{MODEL}}})", "images")],
            kind="stat",
            width=2,
        ),
        Panel(
            "Replicas",
            "Replicas that answer scrapes, and replicas that Prometheus knows.",
            "none",
            [Query(f"sum(up{{{JOB}}})", "up"), Query(f"count(up{{{JOB}}})", "of")],
            kind="stat",
            width=3,
        ),
        Panel(
            "Alerts",
            "Firing alerts of this service. deploy/RUNBOOK.md has an entry for each alert.",
            "none",
            [Query(f'count(ALERTS{{alertname=~"Digits.+",alertstate="firing",{HERE}}}) or vector(0)', "firing")],
            kind="stat",
            width=3,
            steps=(1, 3),
        ),
    ],
)

READING = Row(
    "Reading",
    [
        Panel(
            "Read rate",
            "Share of all digits and fields that were accepted. Fields past their deadline count as not read. An alert "
            "pages below half the usual rate.",
            "percentunit",
            [Query(f"digits:read:ratio_rate5m{{{HERE}}}", "{{namespace}} {{unit}}s")],
            top=1,
        ),
        Panel(
            "Rejects by reason",
            "Share of all answers. low_confidence: hard to read, or unlike the images that the model was certified on. "
            "invalid_image: no ink, or a broken file. no_digit: something else than one whole digit. not_certified: no "
            "version is certified for so low an error rate. not_in_lexicon: no such postcode.",
            "percentunit",
            [
                Query(
                    f'sum by (unit, decision) (digits:answers:rate5m{{{MODEL},decision!="accept"}})'
                    f" / on (unit) group_left () (sum by (unit) (digits:answers:rate5m{{{MODEL}}}) > 0)",
                    "{{unit}}s: {{decision}}",
                )
            ],
        ),
        Panel(
            "Audited error among the accepted",
            "By the audits of the last day, with the 95 % interval dashed, and the tolerated error. An alert pages when the "
            "lower end exceeds the tolerated error.",
            "percentunit",
            [
                Query(f"digits:accepted_error:ratio_increase1d{{{MODEL}}}", "{{version}} {{unit}}s {{bound}}"),
                Query("digits:accepted_error:target", "tolerated, {{unit}}s"),
            ],
            dashed="/(lower|upper)$/",
        ),
        Panel(
            "Accuracy by version",
            "Of answers whose truth was reported in the last day, by source. keying: rejected answers, which are hard. "
            "audit: a sample of accepted answers. replay: images whose truth was known before.",
            "percentunit",
            [Query(f"digits:accuracy:ratio_increase1d{{{MODEL}}}", "{{version}} {{unit}}s by {{source}}")],
            top=1,
        ),
        Panel(
            "Confidence",
            "Of single digits: the median and the lowest tenth. Confidence falls before any truth is reported.",
            "percentunit",
            quantiles("digits_confidence", MODEL, "version", "{{version}}", 0.5, 0.1),
            top=1,
        ),
        Panel(
            "No digit",
            "Share of all answers that were rejected because an image does not show one whole digit. An alert asks for a "
            "look above 20 %, and above three times the last day's share.",
            "percentunit",
            [Query(f"digits:no_digit:ratio_rate5m{{{HERE}}}", "{{namespace}} {{unit}}s")],
        ),
        Panel(
            "No digit by truth",
            "Answers of the last day whose truth is no digit. accepted: an error. refused: rejected as no digit. rejected: "
            "for another reason. And digit_refused: rejected as no digit although the truth is a digit, an error.",
            "suffix: answers",
            [
                Query(
                    f"sum by (unit, source, outcome) (digits:no_digit_truth:increase1d{{{MODEL}}})",
                    "{{unit}}s by {{source}}: {{outcome}}",
                )
            ],
        ),
        Panel(
            "Confusions",
            "The ten most frequent confusions of the last day, among digits with reported truth. no_digit: not one whole "
            "digit.",
            "short",
            [Query(f"topk(10, sum by (true, predicted) ({_CONFUSED}))", "")],
            kind="table",
            columns=("true", "predicted"),
        ),
    ],
)

DRIFT = Row(
    "Drift",
    [
        Panel(
            "Stability index",
            "Distance between recent images and the images that the version was certified on. Below 0.1 is stable, above "
            "0.2 is a large shift. Postcodes have a digit mix of their own, so look for changes.",
            "none",
            [Query(f"digits:drift_psi:avg{{{MODEL}}}", "{{version}} {{feature}}")],
            steps=(MOVED, MUCH_MOVED),
        ),
        Panel(
            "Estimated accuracy",
            "Mean confidence of the last 2,000 images: an estimate of the accuracy without any truth.",
            "percentunit",
            [Query(f"digits:estimated_accuracy:avg{{{MODEL}}}", "{{version}}")],
        ),
        Panel(
            "Digit mix",
            "Recognized digits by value. A change means other mail, or a digit that is misread as another.",
            "suffix: /s",
            [Query(f"sum by (digit) (rate(digits_predictions_total{{{MODEL}}}[$__rate_interval]))", "{{digit}}")],
            stacked=True,
        ),
        Panel(
            "Ink",
            "Mean share of an image that is ink. A change means another pen, or another threshold in the camera.",
            "percentunit",
            [Query(mean("digits_ink_ratio", MODEL, "version"), "{{version}}")],
            width=12,
        ),
        Panel(
            "Centre of mass",
            "Mean row and column. Images framed as in MNIST have it at 14, plus or minus 0.5.",
            "suffix: px",
            [Query(mean("digits_mass_centre_pixels", MODEL, "version, axis"), "{{version}} {{axis}}")],
            width=12,
        ),
    ],
    closed=True,
)

TRUTH = Row(
    "Truth, capture, credentials",
    [
        Panel(
            "Audits marked and reported",
            "In one day. The audited error is right only if every marked answer is reported.",
            "suffix: answers",
            [
                Query(f"digits:audits:increase1d{{{MODEL}}}", "{{model}} {{unit}}s marked"),
                Query(f"digits:audits_reported:increase1d{{{MODEL}}}", "{{model}} {{unit}}s reported"),
            ],
        ),
        Panel(
            "Truth by source",
            "Truths reported in the last day.",
            "suffix: truths",
            [Query(f"sum by (source, outcome) (digits:truth:increase1d{{{MODEL}}})", "{{source}} {{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Capture",
            "Images and truths that were captured for training, by outcome.",
            "suffix: /s",
            [
                Query(
                    f"sum by (record, outcome) (rate(digits_captured_total{{{HERE}}}[$__rate_interval]))",
                    "{{record}}s {{outcome}}",
                )
            ],
        ),
        Panel(
            "Certificate expires in",
            "By replica, so that a replica with an old certificate shows. Empty without TLS.",
            "s",
            [
                Query(
                    f"min by (pod) (digits_tls_certificate_expiry_timestamp_seconds{{{HERE}}} > 0) - time()",
                    "{{pod}}",
                )
            ],
            width=12,
        ),
        Panel(
            "Failed credential reloads",
            "Polls in one hour that found changed token or certificate files unusable. The old ones stay in use.",
            "suffix: polls",
            [
                Query(
                    f"sum by (pod, kind) (increase(digits_credentials_reload_failures_total{{{HERE}}}[1h]))",
                    "{{pod}} {{kind}}",
                )
            ],
            width=12,
        ),
    ],
    closed=True,
)
