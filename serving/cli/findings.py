"""The checks of `digits check`: everything that the settings lead to, without binding a port."""

import asyncio
import time
from dataclasses import dataclass, field

from serving.answers.lexicon import LexiconError, read_lexicons
from serving.cli import load_settings
from serving.contract import OUTPUTS
from serving.feedback.capture import open_store
from serving.feedback.capture_records import CaptureError, NotStored
from serving.inference.classifier import Classifier
from serving.inference.metadata import ModelError, ModelMetadata
from serving.repository.quarantine.quarantine import Quarantine
from serving.repository.routing import Routing, RoutingError
from serving.repository.skipped import skipped
from serving.repository.versions import ModelDirectory, ModelMissing, RepositoryError, scan
from serving.security.credential_files import CredentialsError
from serving.security.signing_keys import read_signing_keys
from serving.security.tls import TLS
from serving.security.tokens import TokenAuthenticator
from serving.settings import Settings
from serving.telemetry import tracing
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import TracingError


@dataclass(frozen=True)
class Version:
    """One version of a model, a row of the table.

    Attributes:
        model: name of the model.
        number: version number.
        metadata: properties of the model file; None when the file is refused.
        role: stable, canary or shadow; empty without a role.
    """

    model: str
    number: int
    metadata: ModelMetadata | None
    role: str


@dataclass
class Findings:
    """The result of a check.

    Attributes:
        versions: every version in the repository.
        mistakes: problems that keep something from being served, a line each.
        warnings: settings that are valid but likely not intended, a line each.
    """

    versions: list[Version] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Formats the versions as a table, a line each."""
        rows = [("MODEL", "VERSION", "RECIPE", "PRECISION", "ACCURACY", "CONTRACT", "WHOLE", "ROLE", "STATE")]
        for found in self.versions:
            state = "loads" if found.metadata else "refused"
            rows.append((found.model, str(found.number), *_described(found.metadata), found.role or "-", state))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def _described(metadata: ModelMetadata | None) -> tuple[str, str, str, str, str]:
    """Returns recipe, precision, accuracy, contract and `whole_threshold` of a version, "-" for what is not known."""
    if metadata is None:
        return ("-",) * 5
    whole = f"{metadata.whole_threshold:g}" if "whole" in OUTPUTS[metadata.contract] else "-"
    accuracy = f"{metadata.test_accuracy:.4f}"
    return metadata.recipe or "-", metadata.precision or "-", accuracy, metadata.contract, whole


def check(settings: Settings) -> Findings:
    """Checks models, lexicons, capture, credentials and tracing; returns all findings at once."""
    findings = Findings()
    findings.warnings += [f"no such setting: {name}" for name in load_settings.unknown_variables()]
    _check_models(settings, findings)
    _check_lexicons(settings, findings)
    _check_capture(settings, findings)
    _check_credentials(settings, findings)
    _check_traces(findings)
    return findings


def _check_models(settings: Settings, findings: Findings) -> None:
    try:
        found = scan(settings.models)
    except RepositoryError as error:
        findings.mistakes.append(str(error))
        return
    if settings.default_model not in found:
        findings.mistakes.append(str(ModelMissing(settings.models, settings.default_model)))
    findings.warnings += [f"{path} {reason}" for path, reason in skipped(settings.models).items()]
    quarantine = Quarantine(settings)
    for name, model in found.items():
        _check_model(settings, name, model, quarantine, findings)


def _check_model(settings: Settings, name: str, found: ModelDirectory, quarantine: Quarantine, findings: Findings) -> None:
    file, versions = settings.models / name / "routing.toml", found.versions
    routing = Routing()
    try:
        routing = Routing.parse(found.routing)
        mistake = found.routing_error
    except RoutingError as error:
        mistake = str(error)
    if mistake:
        findings.mistakes.append(f"{file}: {mistake}")
    for number in sorted(routing.named() - set(versions)):
        findings.mistakes.append(f"{file}: version {number} is not in the repository")
    loaded: dict[int, Classifier] = {}
    for number, version in sorted(versions.items(), reverse=True):
        try:
            loaded[number] = asyncio.run(quarantine.open(version, since=time.time()))
        except ModelError as error:
            findings.mistakes.append(f"{version.path} {error}")
    stable = next((number for number in routing.stable_candidates(versions) if number in loaded), None)
    if stable is None:
        findings.mistakes.append(f"{settings.models / name}: no version can be stable, so the model could not answer")
    roles = {} if stable is None else {stable: "stable"}
    roles |= {role.version: kind for kind, role in (("canary", routing.canary), ("shadow", routing.shadow)) if role}
    for number in sorted(roles, reverse=True):
        if number in loaded and (lack := loaded[number].metadata.missing_certificate(settings.target_error_rate)):
            findings.warnings.append(f"{name} version {number} {lack}")
    for number in sorted(versions, reverse=True):
        metadata = loaded[number].metadata if number in loaded else None
        role = roles.get(number, "") if metadata else ""
        findings.versions.append(Version(name, number, metadata, role))


def _check_lexicons(settings: Settings, findings: Findings) -> None:
    if settings.lexicons:
        try:
            read_lexicons(settings.lexicons)
        except LexiconError as error:
            findings.mistakes.append(str(error))


def _check_capture(settings: Settings, findings: Findings) -> None:
    if settings.capture:
        try:
            store = open_store(settings)
            try:
                store.reach()
            except NotStored as error:
                findings.mistakes.append(f"--capture: cannot store images in {store}: {error}")
            store.close()
        except CaptureError as error:
            findings.mistakes.append(str(error))


def _check_credentials(settings: Settings, findings: Findings) -> None:
    metrics = Metrics()  # TLS and TokenAuthenticator need one; no one scrapes it
    if settings.tls_certificate and settings.tls_key:
        try:
            TLS(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, metrics)
        except CredentialsError as error:
            findings.mistakes.append(str(error))
    if settings.audit_rate and not settings.recognition_key:
        findings.warnings.append(
            "answers are marked for audit, but without --recognition-key any caller can report their truth"
        )
    if settings.capture and not settings.recognition_key:
        findings.warnings.append("images are captured, but without --recognition-key any caller can report their truth")
    if settings.recognition_key:
        try:
            read_signing_keys(settings.recognition_key)
        except CredentialsError as error:
            findings.mistakes.append(str(error))
    if settings.tokens:
        try:
            TokenAuthenticator(settings.tokens, metrics).close()
        except CredentialsError as error:
            findings.mistakes.append(str(error))


def _check_traces(findings: Findings) -> None:
    try:
        traces = tracing.start()
    except TracingError as error:
        findings.mistakes.append(str(error))
    else:
        if traces:
            traces.stop(1.0)  # returns at once, as there is nothing to send
