from pathlib import Path
from typing import Any

import pytest

from serving.errors import ModelNotReady, UnknownModel
from serving.repository.catalog import Catalog, IndexEntry, Loaded, Refusal, RoutingRole, ServedModel
from serving.repository.routing import Routing
from serving.repository.versions import ModelVersion


def on_disk(number: int) -> ModelVersion:
    return ModelVersion(number, Path(f"{number}/model.onnx"), (number,))


def loaded(number: int, name: str = "digits") -> Loaded:
    """A loaded version, without the model and the queue that the catalog only passes on."""
    unused: Any = None
    return Loaded(name, str(number), on_disk(number), unused, unused, unused)


def catalog(**roles: int) -> Catalog:
    """A catalog of one model `digits`, with versions 1 to 3 on disk, and a version for each role."""
    built = Catalog("digits")
    named: dict[RoutingRole, Loaded] = {role: loaded(number) for role, number in roles.items()}  # type: ignore[misc]
    built.models["digits"] = ServedModel("digits", {number: on_disk(number) for number in (1, 2, 3)}, Routing(), named)
    return built


def test_a_request_without_names_goes_to_the_stable_default_version() -> None:
    assert catalog(stable=2).route().version == "2"
    assert catalog(stable=2).route("digits", "2").version == "2"


def test_a_named_version_is_routed_to_stable_or_canary_never_shadow() -> None:
    served = catalog(stable=2, canary=3, shadow=1)
    assert [served.route(version=version).version for version in ("2", "3")] == ["2", "3"]
    for version in ("1", "4", "02", "newest"):
        with pytest.raises(UnknownModel, match=f"version '{version}' of model 'digits' doesn't answer here"):
            served.route(version=version)


@pytest.mark.parametrize(("percent", "version"), [(0, "2"), (100, "3")])
def test_a_canary_gets_its_percentage_with_and_without_keys(percent: float, version: str) -> None:
    served = catalog(stable=2, canary=3)
    served.models["digits"].routing = Routing.parse(f"stable = 2\n[canary]\nversion = 3\npercent = {percent}")
    assert {served.route(key=key).version for key in ("", *map(str, range(100)))} == {version}


def test_a_model_without_a_stable_version_is_not_ready() -> None:
    with pytest.raises(ModelNotReady, match="model 'digits' is not loaded"):
        catalog(shadow=1).route()
    assert catalog(shadow=1).answering() == []


def test_an_unknown_model_is_refused_by_name() -> None:
    for ask in (catalog(stable=1).route, catalog(stable=1).answering, catalog(stable=1).find):
        with pytest.raises(UnknownModel, match="there is no model 'letters'"):
            ask("letters")


def test_stable_and_canary_answer_and_stable_comes_first() -> None:
    assert [version.version for version in catalog(stable=2, canary=1, shadow=3).answering("digits")] == ["2", "1"]


def test_the_default_model_is_named_first_and_the_others_by_name() -> None:
    served = catalog(stable=1)
    served.models |= {name: ServedModel(name) for name in ("post", "alphabet")}
    assert served.names() == ["digits", "alphabet", "post"]


def test_a_version_is_known_if_it_is_on_disk_or_loaded() -> None:
    served = catalog(stable=2)
    served.models["digits"].roles["canary"] = loaded(9)
    assert [served.knows("digits", version) for version in ("1", "2", "9", "4", "01")] == [True, True, True, False, False]
    assert not served.knows("letters", "1")


def test_the_index_has_state_and_reason_of_each_version_newest_first() -> None:
    served = catalog(stable=2, shadow=1)
    model = served.models["digits"]
    model.loading = [3]
    assert served.index() == [
        IndexEntry("digits", "3", "LOADING", ""),
        IndexEntry("digits", "2", "READY", "stable"),
        IndexEntry("digits", "1", "UNAVAILABLE", "shadow"),
    ]
    model.loading = []
    model.refused = {number: Refusal(on_disk(number), "is damaged", "unreadable") for number in (3, 2)}
    del model.versions[1]
    assert served.index() == [
        IndexEntry("digits", "3", "UNAVAILABLE", "is damaged"),
        IndexEntry("digits", "2", "READY", "stable; the file as it is now is damaged"),
        IndexEntry("digits", "1", "UNAVAILABLE", "shadow; its file is gone from the repository"),
    ]
    model.roles, model.refused, model.unloaded = {}, {}, True
    assert [(entry.version, entry.reason) for entry in served.index()] == [("3", "unloaded"), ("2", "unloaded")]
    model.unloaded = False
    assert {entry.reason for entry in served.index()} == {"it has no role"}
