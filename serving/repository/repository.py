"""The model versions that serve: found on disk, loaded, routed and retired while calls go on.

A version is loaded, checked and warmed up beside the one that answers, and takes its place only then. What can't be served
is refused, with its reason, and what answered goes on; so it does when its files are gone.
"""

import asyncio
import contextlib
import ctypes
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serving.errors import LoadFailed, ModelNotReady, UnknownModel
from serving.inference.batcher import Batcher
from serving.inference.metadata import REFUSALS, ModelError
from serving.inference.model import Model
from serving.repository.routing import Routing, RoutingError
from serving.repository.shadow import Shadow
from serving.repository.versions import ModelVersion, OnDisk, RepositoryError, absent, scan
from serving.settings import Provider, Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics

log = logging.getLogger(__name__)

# Shorter runs are done on the event loop, but for a GPU's, which run while the interpreter does other things: to wake a
# thread, and the loop again, takes about as long as the run of an image or two.
_BRIEF_SECONDS = 0.001

State = Literal["READY", "LOADING", "UNAVAILABLE"]
OpenModel = Callable[[Path, str, Provider], Model]


@dataclass(frozen=True)
class IndexEntry:
    """What there is to say of one version."""

    name: str
    version: str
    state: State
    reason: str


@dataclass(eq=False)
class Loaded:
    """One version, loaded and running.

    Attributes:
        name: of the model.
        version: of the model, a decimal string.
        source: where it was loaded from.
        shadow: what is to read, later, what this version has read.
    """

    name: str
    version: str
    source: ModelVersion
    model: Model
    batcher: Batcher
    metrics: VersionMetrics
    shadow: Shadow | None = None


@dataclass
class _Served:
    """One model: what is on disk of it, what serves, and what was refused."""

    name: str
    versions: dict[int, ModelVersion] = field(default_factory=dict)  # on disk
    routing: Routing | None = None  # None as long as there was none that can be followed
    mistake: str = ""  # why routing.toml, as it is now, can't be followed
    seen: OnDisk | None = None  # at the last look
    followed: tuple[str, str] | None = None  # text and trouble of the routing.toml that was looked into last
    stable: Loaded | None = None
    canary: Loaded | None = None
    shadow: Loaded | None = None
    refused: dict[int, tuple[ModelVersion, str]] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)  # routed, and not on disk
    loading: int | None = None
    unloaded: bool = False

    def roles(self) -> dict[str, Loaded]:
        """What runs, by role."""
        named = {"stable": self.stable, "canary": self.canary, "shadow": self.shadow}
        return {role: loaded for role, loaded in named.items() if loaded}


class Repository:
    """The models of one server. Everything but reading files and loading models happens on the event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_ready: Callable[[bool], None] = lambda ready: None,
        open_model: OpenModel = Model,
    ):
        """Reads nothing yet.

        Args:
            settings: where the models are, how they are run, and which is the default.
            metrics: where roles, refusals and what the models do are counted.
            on_ready: told when the default model begins, or ceases, to answer.
            open_model: loads and checks one version; raises ModelError.
        """
        self.default = settings.default_model
        self._settings = settings
        self._metrics = metrics
        self._on_ready = on_ready
        self._open_model = open_model
        self._served: dict[str, _Served] = {}
        self._lock = asyncio.Lock()  # one change at a time
        self._retiring: set[asyncio.Task[int]] = set()
        self._changing: set[asyncio.Task[None]] = set()
        self._trouble = ""  # why the repository can't be read, once that was said

    async def start(self, unloaded: Collection[str] = ()) -> None:
        """Loads what is to serve, but for the models named as unloaded.

        Raises:
            RepositoryError: no version of the default model can be served; the message says why.
        """
        async with self._lock:
            for name, found in (await asyncio.to_thread(scan, self._settings.models)).items():
                self._served[name] = _Served(name, unloaded=name in unloaded)
                await self._follow(name, found, settled=True)
        served = self._served.get(self.default)
        if served is None:
            raise absent(self._settings.models, self.default)
        if served.mistake:
            raise RepositoryError(f"{self._settings.models / self.default / 'routing.toml'}: {served.mistake}")
        if not served.stable and not served.unloaded:
            reasons = [f"{version.path} {reason}" for version, reason in served.refused.values()]
            raise RepositoryError(
                "; ".join(reasons) or f"{self._settings.models / self.default}: nothing that routing names"
            )

    async def watch(self) -> None:
        """Follows what changes on disk, until it is cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self.refresh()
            except Exception:  # whatever it is, it must not end the watch
                log_event(log, logging.ERROR, "watch_failed", "a look at the model repository failed", exc_info=True)

    async def refresh(self) -> None:
        """Follows what has changed on disk since the last time, where it has come to rest since."""
        async with self._lock:
            try:
                found = await asyncio.to_thread(scan, self._settings.models)
            except RepositoryError as error:
                if self._trouble != str(error):
                    message = f"{error}; what is loaded goes on"
                    log_event(log, logging.ERROR, "repository_unreadable", message, path=str(self._settings.models))
                self._trouble = str(error)
                return
            self._trouble = ""
            for name in {*found, *self._served}:
                await self._follow(name, found.get(name, OnDisk()), settled=False)

    def route(self, name: str = "", version: str = "", key: str = "") -> Loaded:
        """The loaded version that is to answer a request.

        Args:
            name: of the model; the default one when empty.
            version: of the model; by its routing when empty.
            key: with the same key, the same version answers as long as the routing stays.

        Raises:
            UnknownModel: there is no such model, or the version named doesn't answer.
            ModelNotReady: no version of the model is loaded.
        """
        served = self._find(name)
        if not served.stable:
            raise ModelNotReady(f"model {served.name!r} is not loaded")
        canary = served.canary
        if version:
            for loaded in (served.stable, canary):
                if loaded and loaded.version == version:
                    return loaded
            raise UnknownModel(f"version {version!r} of model {served.name!r} doesn't answer here")
        return canary if canary and served.routing and served.routing.to_canary(served.name, key) else served.stable

    def knows(self, name: str, version: str) -> bool:
        """Whether a model has such a version, on disk or loaded."""
        served = self._served.get(name)
        if not served:
            return False
        return version in {str(number) for number in served.versions} | {one.version for one in served.roles().values()}

    def answering(self, name: str = "") -> list[Loaded]:
        """The loaded versions of a model that answer, stable first. Raises UnknownModel."""
        served = self._find(name)
        return [loaded for loaded in (served.stable, served.canary) if loaded]

    def names(self) -> list[str]:
        """Every model there is, the default one first."""
        return sorted(self._served, key=lambda name: (name != self.default, name))

    def index(self) -> list[IndexEntry]:
        """Every version there is, loaded or not."""
        entries: list[IndexEntry] = []
        for name in self.names():
            served = self._served[name]
            loaded = {int(version.version) for version in served.roles().values()}
            entries.extend(_describe(served, number) for number in sorted({*served.versions, *loaded}, reverse=True))
        return entries

    async def load(self, name: str) -> None:
        """Follows what is on disk of a model now, unloaded before or not, and tries again what was refused.

        Raises:
            UnknownModel: there is no such model.
            LoadFailed: the version that should be stable, or another with a role, can't be served. What answered goes on.
        """
        await self._in_full(self._load_now(name))

    async def unload(self, name: str) -> None:
        """Has a model answer no more until it is loaded again; what it was asked before is still answered.

        Raises:
            UnknownModel: there is no such model.
        """
        await self._in_full(self._unload_now(name))

    async def close(self, grace_seconds: float) -> int:
        """Takes no more requests and answers those that it has; what takes longer than the grace ends as Stopping.

        Returns:
            Runs of models that have not ended. They can't be cut off: their threads live on.
        """
        loaded = {version for served in self._served.values() for version in served.roles().values()}
        closing = [asyncio.create_task(self._close(version, grace_seconds)) for version in loaded]
        stuck = sum(await asyncio.gather(*closing))
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=0 if stuck else grace_seconds)
            stuck += len(late)
        return stuck

    async def _in_full(self, change: Coroutine[None, None, None]) -> None:
        """Carries out a change, also when the caller who asked for it gives up in the middle."""
        task = asyncio.create_task(change)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        await asyncio.shield(task)

    async def _load_now(self, name: str) -> None:
        async with self._lock:
            try:
                found = await asyncio.to_thread(scan, self._settings.models)
            except RepositoryError as error:
                log_event(log, logging.ERROR, "repository_unreadable", str(error), path=str(self._settings.models))
                raise LoadFailed("the model repository can't be read") from error
            if name not in found and name not in self._served:
                raise UnknownModel(f"there is no model {name!r}")
            served = self._served.setdefault(name, _Served(name))
            served.unloaded = False
            for number in [*served.refused]:
                self._forget_refusal(served, number)
            await self._follow(name, found.get(name, OnDisk()), settled=True)
            reasons = [f"version {number} {reason}" for number, (_, reason) in served.refused.items()]
            if served.mistake:
                reasons.insert(0, f"routing.toml: {served.mistake}")
            if reasons or not served.stable:
                still = f"; version {served.stable.version} goes on" if served.stable else ""
                raise LoadFailed(f"model {name!r}: {'; '.join(reasons) or 'nothing to load'}{still}")

    async def _unload_now(self, name: str) -> None:
        async with self._lock:
            served = self._find(name)
            served.unloaded = True
            retiring = self._assign(served, {})
        await asyncio.gather(*retiring)

    def _find(self, name: str) -> _Served:
        try:
            return self._served[name or self.default]
        except KeyError:
            raise UnknownModel(f"there is no model {name!r}") from None

    async def _follow(self, name: str, found: OnDisk, *, settled: bool) -> None:
        """Brings what serves of a model in line with what is on disk.

        Unless `settled`, a file that looks otherwise than at the last look is left to the next: it may still be written.
        """
        served = self._served.setdefault(name, _Served(name))
        before, served.seen = served.seen or OnDisk(), found
        served.versions = found.versions
        said = (found.routing, found.trouble)
        if said != served.followed and (settled or said == (before.routing, before.trouble)):
            served.followed = said
            self._follow_routing(served, found)
        routing = served.routing
        if routing is None or served.unloaded or not (found.versions or served.stable):
            return
        resting = {
            number: version
            for number, version in found.versions.items()
            if settled or before.versions.get(number) == version
        }
        for number in [*served.refused]:
            if served.refused[number][0] != found.versions.get(number):
                self._forget_refusal(served, number)
        self._report_missing(served, routing.named() - set(found.versions))
        roles = {"stable": await self._stable(served, routing, resting)}
        for role, wanted in (("canary", routing.canary), ("shadow", routing.shadow)):
            roles[role] = await self._load(served, wanted.version, resting) if wanted else None
        self._assign(served, {role: loaded for role, loaded in roles.items() if loaded})

    def _follow_routing(self, served: _Served, found: OnDisk) -> None:
        served.mistake = found.trouble
        try:
            routing = Routing.parse(found.routing)
        except RoutingError as error:
            served.mistake = str(error)
        self._metrics.model_refused.labels(served.name, "", "routing").set(bool(served.mistake))
        if served.mistake:
            goes_on = "the routing stays" if served.routing else "the model is not loaded"
            message = f"{served.name}/routing.toml can't be followed; {goes_on}: {served.mistake}"
            log_event(log, logging.ERROR, "routing_refused", message, model=served.name, reason=served.mistake)
            return
        if routing != (served.routing or Routing()):
            roles = routing.model_dump(exclude_none=True)
            message = f"{served.name}: routing {roles or 'by the highest version'}"
            log_event(log, logging.INFO, "routing_changed", message, model=served.name, routing=roles)
        served.routing = routing

    def _report_missing(self, served: _Served, missing: set[int]) -> None:
        for number in missing - served.missing:
            message = f"{served.name}: routing names version {number}, which is not in the repository"
            log_event(log, logging.ERROR, "model_missing", message, model=served.name, version=str(number))
        for number in missing ^ served.missing:
            self._metrics.model_refused.labels(served.name, str(number), "missing").set(number in missing)
        served.missing = missing

    async def _stable(self, served: _Served, routing: Routing, versions: dict[int, ModelVersion]) -> Loaded | None:
        """What is to be stable: the first choice that can be served, but no later one than what is stable now."""
        current = served.stable
        for number in routing.stable_candidates(served.versions):
            loaded = await self._load(served, number, versions)
            if loaded:
                return loaded
            if current and number == int(current.version):
                break
        return current

    async def _load(self, served: _Served, number: int, versions: dict[int, ModelVersion]) -> Loaded | None:
        """A version, loaded now or before; None where it can't be served, or isn't there yet."""
        running = next((loaded for loaded in served.roles().values() if loaded.version == str(number)), None)
        found = versions.get(number)
        if found is None or (running and running.source == found):
            return running
        if number in served.refused:
            return running
        served.loading = number
        try:
            model = await asyncio.to_thread(self._open, found)
        except ModelError as error:
            served.refused[number] = (found, str(error))
            self._metrics.model_refused.labels(served.name, str(number), error.reason).set(1)
            log_event(
                log,
                logging.ERROR,
                "model_refused",
                f"refused {found.path}: it {error}",
                model=served.name,
                version=str(number),
                reason=error.reason,
            )
            return running
        finally:
            served.loading = None
        metrics = VersionMetrics(self._metrics, served.name, model.version)
        batcher = Batcher(
            model,
            metrics,
            instances=self._settings.instances,
            max_batch_size=self._settings.max_batch_size,
            max_queue_size=self._settings.max_queue_size,
            max_queue_delay_seconds=self._settings.max_queue_delay_ms / 1000,
            brief_seconds=_BRIEF_SECONDS if self._settings.provider == "cpu" else 0.0,
        )
        log_event(
            log,
            logging.INFO,
            "model_loaded",
            f"loaded {served.name} version {model.version} ({model.metadata.recipe}, {model.metadata.test_accuracy:.4f})",
            model=served.name,
            version=model.version,
            recipe=model.metadata.recipe,
            test_accuracy=model.metadata.test_accuracy,
        )
        if lack := model.metadata.missing_certificate(self._settings.target_error_rate):
            message = f"{served.name} version {model.version} {lack}"
            log_event(log, logging.WARNING, "model_not_certified", message, model=served.name, version=model.version)
        return Loaded(served.name, model.version, found, model, batcher, metrics)

    def _open(self, version: ModelVersion) -> Model:
        model = self._open_model(version.path, str(version.number), self._settings.provider)
        model.warm_up(self._settings.max_batch_size)
        return model

    def _assign(self, served: _Served, roles: dict[str, Loaded]) -> list[asyncio.Task[int]]:
        """Gives the roles to `roles` at one blow, and retires what has none any more: it answers what it has."""
        before = served.roles()
        served.stable, served.canary, served.shadow = (roles.get(role) for role in ("stable", "canary", "shadow"))
        if served.name == self.default and bool(served.stable) != ("stable" in before):
            self._on_ready(bool(served.stable))
        self._set_shadow(served, {*before.values(), *roles.values()})
        for role, loaded in before.items():
            if roles.get(role) is not loaded:
                self._metrics.model_role.labels(served.name, loaded.version, role).set(0)
        for role, loaded in roles.items():
            if before.get(role) is not loaded:
                self._metrics.model_role.labels(served.name, loaded.version, role).set(1)
                message = f"{served.name} version {loaded.version} is {role}"
                log_event(log, logging.INFO, "model_role", message, model=served.name, version=loaded.version, role=role)
        retiring = []
        for loaded in {*before.values()} - {*roles.values()}:
            self._count_info(loaded, 0)
            task = asyncio.create_task(self._retire(loaded))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            retiring.append(task)
        for loaded in roles.values():  # last, as one may have taken the place of a retired one of the same version
            self._count_info(loaded, 1)
        return retiring

    def _set_shadow(self, served: _Served, versions: set[Loaded]) -> None:
        """Of `versions`, has stable alone hand its answers to what is shadow, if anything is."""
        stable, wanted = served.stable, served.shadow
        for loaded in versions:
            if loaded.shadow and not (loaded is stable and wanted and loaded.shadow.model is wanted.model):
                loaded.shadow.stop()
                loaded.shadow = None
        if stable and wanted and not stable.shadow:
            stable.shadow = Shadow(
                wanted.model,
                self._metrics,
                served.name,
                wanted.version,
                max_batch_size=self._settings.max_batch_size,
                idle=stable.batcher.idle,
            )

    async def _retire(self, loaded: Loaded) -> int:
        stuck = await self._close(loaded, self._settings.grace_seconds)
        del loaded  # and so the model, unless it has another role
        await asyncio.to_thread(_return_memory)
        return stuck

    async def _close(self, loaded: Loaded, grace_seconds: float) -> int:
        if loaded.shadow:
            loaded.shadow.stop()
        return await loaded.batcher.close(grace_seconds)

    def _count_info(self, loaded: Loaded, value: int) -> None:
        accuracy = f"{loaded.model.metadata.test_accuracy:.4f}"
        self._metrics.model_info.labels(loaded.name, loaded.version, loaded.model.metadata.recipe, accuracy).set(value)
        for feature, shares in loaded.model.metadata.drift_reference.items():
            for name, share in shares.items():
                self._metrics.drift_reference.labels(loaded.name, loaded.version, feature, name).set(share)

    def _forget_refusal(self, served: _Served, number: int) -> None:
        del served.refused[number]
        for reason in REFUSALS:
            self._metrics.model_refused.labels(served.name, str(number), reason).set(0)


def _return_memory() -> None:
    """Has the C library give the memory of a model that is gone back to the system.

    By itself glibc keeps much of it: over 35 versions, one at a time, a process grew from 166 to 330 MB, and with it to 182.
    Other C libraries don't have the function.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _describe(served: _Served, number: int) -> IndexEntry:
    version, gone = str(number), number not in served.versions
    roles = [role for role, loaded in served.roles().items() if loaded.version == version]
    state: State = "UNAVAILABLE"
    if served.loading == number:
        state, reason = "LOADING", ""
    elif roles:
        state = "UNAVAILABLE" if roles == ["shadow"] else "READY"
        reason = ", ".join(roles)
    else:
        reason = "unloaded" if served.unloaded else "it has no role"
    if number in served.refused:
        reason = f"{reason}; the file as it is now {served.refused[number][1]}" if roles else served.refused[number][1]
    elif gone:
        reason += "; its file is gone from the repository"
    return IndexEntry(served.name, version, state, reason)
