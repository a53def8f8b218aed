import pytest

from tests.deploy import promql

KNOWN = {
    "up": frozenset({"job", "pod"}),
    "reads_total": frozenset({"pod", "version", "outcome"}),
    "seconds_bucket": frozenset({"pod", "le"}),
    "role": frozenset({"pod", "version", "role"}),
}


@pytest.mark.parametrize(
    ("expr", "labels"),
    [
        ("up", {"job", "pod"}),
        ("sum by (pod) (rate(reads_total[5m]))", {"pod"}),
        ("sum without (pod) (reads_total)", {"version", "outcome"}),
        ("sum(up) or vector(0)", set()),
        ("topk(3, sum by (version) (reads_total))", {"version"}),
        ("histogram_quantile(0.99, sum by (le) (rate(seconds_bucket[5m])))", set()),
        ('absent(up{job="x"})', {"job"}),
        ("reads_total / on (pod) group_left () sum by (pod) (up)", {"pod", "version", "outcome"}),
        ("sum by (pod) (up) / on (pod) sum by (pod) (reads_total)", {"pod"}),
        ('reads_total and on (pod, version) role{role="stable"} == 1', {"pod", "version", "outcome"}),
        ('role{role="a"} > ignoring (role) role{role="b"} + 0.1', {"pod", "version"}),
        ("up * 2 > 1", {"job", "pod"}),
    ],
)
def test_the_labels_of_a_result_are_derived(expr: str, labels: set[str]) -> None:
    assert promql.labels(promql.parse(expr), KNOWN) == labels


@pytest.mark.parametrize(
    "expr",
    [
        "down",
        'up{version="1"}',
        "sum by (version) (up)",
        "sum by (version) (sum by (pod) (reads_total))",
        "histogram_quantile(0.99, sum by (pod) (rate(seconds_bucket[5m])))",
        "reads_total / on (job) group_left () up",
        "sum by (pod) (up) / reads_total",
        "up unless reads_total",
    ],
)
def test_an_expression_without_a_possible_result_is_found(expr: str) -> None:
    with pytest.raises(ValueError, match=r"unknown series|unknown label|one side has"):
        promql.labels(promql.parse(expr), KNOWN)


def test_values_that_a_label_never_has_are_found() -> None:
    values = {("reads_total", "outcome"): {"right", "wrong"}, ("", "pod"): {"a"}}
    found = promql.unknown_values(promql.parse('rate(reads_total{outcome=~"right|left",pod="a"}[5m]) / up{pod="b"}'), values)
    assert list(found) == ['reads_total: outcome=~"right|left"', 'up: pod="b"']


def test_an_alert_is_split_into_its_parts_without_thresholds() -> None:
    expr = '(sum by (pod) (up) > 14.4 * 0.001 or min(reads_total) < 2) and absent(role{pod="a"}) unless sum(up) == 0'
    assert promql.vectors(promql.parse(expr)) == ["sum by (pod) (up)", "min(reads_total)", 'role{pod="a"}', "sum(up)"]
