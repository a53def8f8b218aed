"""What a PromQL expression asks for: series, labels, values; and what is left of it without its thresholds."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser
from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    LabelModifierType,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)

Labels = frozenset[str]

_SETS = {"and", "or", "unless"}
_COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
_NONE: Labels = frozenset()


def parse(expr: str) -> Expr:
    """The expression. Raises ValueError if it is none."""
    return promql_parser.parse(expr)


def filled(expr: str) -> str:
    """A dashboard's query with its variables filled in: all namespaces, all models, five minutes."""
    return re.sub(r"\$(namespace|model)", ".*", expr).replace("$__rate_interval", "5m")


def selectors(expr: Expr) -> Iterator[VectorSelector]:
    """Whatever is looked for in the database."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(expr, visit)
    return iter(found)


def unknown_values(expr: Expr, values: Mapping[tuple[str, str], set[str]]) -> Iterator[str]:
    """What a selector looks for in a label that can't be there, as far as `values` know, by series or "", and label."""
    for selector in selectors(expr):
        for matcher in selector.matchers.matchers:
            known = values.get((selector.name or "", matcher.name), values.get(("", matcher.name)))
            if known and matcher.value != ".*":
                yield from (f"{selector.name}: {matcher}" for value in matcher.value.split("|") if value not in known)


def labels(expr: Expr, known: Mapping[str, Labels]) -> Labels:
    """The labels of an answer.

    Args:
        expr: the question.
        known: the labels of all series, by name.

    Raises:
        ValueError: it asks for a series or a label that there is not, or for two sides that can't match.
    """
    match expr:
        case VectorSelector():
            return _selected(expr, known)
        case MatrixSelector():
            return _selected(expr.vector_selector, known)
        case AggregateExpr():
            return _aggregated(expr, known)
        case BinaryExpr():
            return _combined(expr, known)
        case Call():
            return _called(expr, known)
        case ParenExpr() | UnaryExpr() | SubqueryExpr():
            return labels(expr.expr, known)
        case NumberLiteral() | StringLiteral():
            return _NONE
    raise ValueError(f"{expr.prettify()} is not understood here")


def vectors(expr: Expr) -> list[str]:
    """What has to be answered also when all is well: the sides of all that is compared or put together, each by itself.

    Of `a > 1 and b unless absent(c) == 1` these are a, b and c: an alert that is silent must have something to look at.
    """
    match expr:
        case ParenExpr():
            return vectors(expr.expr)
        case BinaryExpr() if str(expr.op) in _SETS | _COMPARISONS:
            return [*vectors(expr.lhs), *vectors(expr.rhs)]
        case Call() if expr.func.name == "absent":
            return vectors(expr.args[0])
        case NumberLiteral():
            return []
    return [] if not any(selectors(expr)) else [expr.prettify()]


def _selected(selector: VectorSelector, known: Mapping[str, Labels]) -> Labels:
    has = known.get(selector.name or "")
    if has is None:
        raise ValueError(f"there is no {selector.name}")
    _require({matcher.name for matcher in selector.matchers.matchers}, has, selector)
    return has


def _aggregated(expr: AggregateExpr, known: Mapping[str, Labels]) -> Labels:
    inner = labels(expr.expr, known)
    if str(expr.op) in ("topk", "bottomk"):
        return inner
    if expr.modifier is None:
        return _NONE
    named = frozenset(expr.modifier.labels)
    _require(named, inner, expr)
    return named if expr.modifier.type == AggModifierType.By else inner - named


def _called(expr: Call, known: Mapping[str, Labels]) -> Labels:
    given = [labels(argument, known) for argument in expr.args]
    if expr.func.name == "absent":
        selector: Any = expr.args[0]
        return frozenset(matcher.name for matcher in selector.matchers.matchers)
    if expr.func.name == "histogram_quantile":
        _require({"le"}, given[1], expr)
        return given[1] - {"le"}
    return max(given, key=len, default=_NONE)  # the others are numbers


def _combined(expr: BinaryExpr, known: Mapping[str, Labels]) -> Labels:
    left, right = labels(expr.lhs, known), labels(expr.rhs, known)
    scalars = [not any(selectors(side)) for side in (expr.lhs, expr.rhs)]
    if any(scalars):
        return right if scalars[0] else left
    matching = expr.modifier.matching if expr.modifier else None
    shared = left, right
    if matching and matching.type == LabelModifierType.Include:
        named = frozenset(matching.labels)
        _require(named, left & right, expr)
        shared = named, named
    elif matching:
        shared = left - {*matching.labels}, right - {*matching.labels}
    if shared[0] != shared[1]:
        raise ValueError(f"one side has {sorted(left)}, the other {sorted(right)}: {expr.prettify()}")
    if str(expr.op) in _SETS or str(expr.modifier.card if expr.modifier else "") == "VectorMatchCardinality.ManyToOne":
        return left
    return shared[0]


def _require(names: set[str] | Labels, has: Labels, where: Expr) -> None:
    if missing := set(names) - has:
        raise ValueError(f"no label {', '.join(sorted(missing))} there, only {sorted(has)}: {where.prettify()}")
