"""What is wrong with a set of manifests although each of them fits its schema.

A rule goes through a set, as one overlay renders it, and says what it finds. mutations.py has the mistakes that they find.
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
    """Everything that is wrong with a set."""
    misread = [*pods.settings(manifests)]
    if misread:  # the other rules take the settings for what they should be
        return misread
    return [finding for rule in RULES for finding in rule(manifests)]
