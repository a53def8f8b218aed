"""Finds mistakes in a set of manifests that the schemas accept.

Each rule takes the objects of one overlay and yields its findings. mutations.py has the mistakes that the rules must find.
"""

from collections.abc import Callable, Iterator

from tests.deploy import pods, relations
from tests.deploy.manifests import Manifest

RULES: tuple[Callable[[list[Manifest]], Iterator[str]], ...] = (
    relations.one_of_each,
    relations.selectors,
    relations.guards,
    relations.ports,
    relations.network_policies,
    relations.references,
    relations.autoscaling,
    relations.disruption,
    relations.envoy,
    pods.service_ports,
    pods.stopping,
    pods.resources,
    pods.probes,
    pods.images,
    pods.pod_standards,
    pods.settings,
)


def findings(manifests: list[Manifest]) -> list[str]:
    """Returns the findings of all rules."""
    wrong_settings = [*pods.settings(manifests)]
    if wrong_settings:  # the other rules rely on valid settings
        return wrong_settings
    return [finding for rule in RULES for finding in rule(manifests)]
