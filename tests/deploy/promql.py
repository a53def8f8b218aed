"""Analyses PromQL expressions: their series, labels and values, and their parts without thresholds."""

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
    """Parses an expression. Raises ValueError if it is invalid."""
    return promql_parser.parse(expr)


def filled(expr: str) -> str:
    """Fills in the variables of a dashboard's query: all namespaces, all models, five minutes."""
    return re.sub(r"\$(namespace|model)", ".*", expr).replace("$__rate_interval", "5m")


def selectors(expr: Expr) -> Iterator[VectorSelector]:
    """Returns all selectors of series in an expression."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(expr, visit)
    return iter(found)


def unknown_values(expr: Expr, values: Mapping[tuple[str, str], set[str]]) -> Iterator[str]:
    """Yields matchers for label values that can't occur, according to `values`, by series (or "") and label."""
    for selector in selectors(expr):
        for matcher in selector.matchers.matchers:
            known = values.get((selector.name or "", matcher.name), values.get(("", matcher.name)))
            if known and matcher.value != ".*":
                yield from (f"{selector.name}: {matcher}" for value in matcher.value.split("|") if value not in known)


def labels(expr: Expr, known: Mapping[str, Labels]) -> Labels:
    """Returns the labels of an expression's result.

    Args:
        expr: the expression.
        known: the labels of all series, by name.

    Raises:
        ValueError: the expression has an unknown series or label, or two sides that can't match.
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
    raise ValueError(f"{expr.prettify()} is not supported here")


def vectors(expr: Expr) -> list[str]:
    """Returns the parts that need data even when no alert fires: the sides of all comparisons and set operations.

    For `a > 1 and b unless absent(c) == 1` these are a, b and c. A silent alert without data could never fire.
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
        raise ValueError(f"unknown series {selector.name}")
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
    return max(given, key=len, default=_NONE)  # the other arguments are numbers


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
        raise ValueError(f"unknown label {', '.join(sorted(missing))}, expected one of {sorted(has)}: {where.prettify()}")
