"""Model repository: follows the versions and the routing on disk while requests are served.

A poll lists the directories. What has changed, and is unchanged since the poll before, is loaded and gets its role.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field

from serving.errors import LoadFailed, UnknownModel
from serving.inference.model import open_model
from serving.repository.catalog import Catalog, Loaded, RoutingRole, ServedModel
from serving.repository.loader import Loader, OpenModel
from serving.repository.routing import Routing, RoutingError
from serving.repository.versions import ModelDirectory, ModelMissing, ModelVersion, RepositoryError, scan
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass
class _Followed:
    """Directory of one model, as far as it was followed.

    Attributes:
        directory: directory as of the last poll.
        routing_source: text of routing.toml, and the error of reading it, that were applied last.
        routing_error: reason why the current routing.toml can't be applied; empty if it is.
        missing: versions that the routing names, and that are not on disk.
    """

    directory: ModelDirectory = field(default_factory=ModelDirectory)
    routing_source: tuple[str, str] | None = None
    routing_error: str = ""
    missing: set[int] = field(default_factory=set)


class Repository:
    """Keeps a catalog in line with a model repository on disk. Only file reading and model loading leave the event loop.

    Attributes:
        catalog: loaded models.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_ready_change: Callable[[], object] = lambda: None,
        open_model: OpenModel = open_model,
    ):
        """Reads nothing yet.

        Args:
            settings: path of the repository, polling interval, default model, and all that the Loader needs.
            metrics: counts roles, refusals, and everything that the versions do.
            on_ready_change: called when the default model starts or stops answering.
            open_model: opens and checks one file; raises ModelError.
        """
        self.catalog = Catalog(settings.default_model)
        self._loader = Loader(settings, metrics, open_model)
        self._settings = settings
        self._metrics = metrics
        self._on_ready_change = on_ready_change
        self._followed: dict[str, _Followed] = {}
        self._lock = asyncio.Lock()  # one change at a time
        self._requested: set[asyncio.Task[None]] = set()
        self._logged_error = ""  # reason why the repository can't be read, once logged

    async def start(self, unloaded: Collection[str] = ()) -> None:
        """Loads every model, except those named in `unloaded`.

        Raises:
            RepositoryError: no version of the default model can be served; the message has the reasons.
        """
        default = self.catalog.default
        directory = self._settings.models / default
        async with self._lock:
            for name, found in (await asyncio.to_thread(scan, self._settings.models)).items():
                self.catalog.models[name] = ServedModel(name, unloaded=name in unloaded)
                await self._reconcile(name, found, settled=True)
        model = self.catalog.models.get(default)
        if model is None:
            raise ModelMissing(self._settings.models, default)
        if routing_error := self._followed[default].routing_error:
            raise RepositoryError(f"{directory / 'routing.toml'}: {routing_error}")
        if not model.stable and not model.unloaded:
            reasons = [f"{refusal.source.path} {refusal.reason}" for refusal in model.refused.values()]
            raise RepositoryError(
                "; ".join(reasons) or f"{directory}: the stable version that routing.toml names doesn't exist"
            )

    async def watch(self) -> None:
        """Polls the repository until cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self.refresh()
            except Exception:  # an unexpected error must not end the watch
                log_event(log, logging.ERROR, "watch_failed", "polling the model repository failed", exc_info=True)

    async def refresh(self) -> None:
        """Polls once: applies the changes on disk that are unchanged since the poll before."""
        async with self._lock:
            try:
                found = await asyncio.to_thread(scan, self._settings.models)
            except RepositoryError as error:
                if self._logged_error != str(error):
                    message = f"{error}; loaded models keep serving"
                    log_event(log, logging.ERROR, "repository_unreadable", message, path=str(self._settings.models))
                self._logged_error = str(error)
                return
            self._logged_error = ""
            for name in {*found, *self.catalog.models}:
                await self._reconcile(name, found.get(name, ModelDirectory()), settled=False)

    async def load(self, name: str) -> None:
        """Applies the current directory of a model at once, ends an unload, and tries refused versions again.

        Raises:
            UnknownModel: there is no model of that name.
            LoadFailed: the stable version, or another with a role, can't be served. The version before keeps serving.
        """
        await self._complete(self._load(name))

    async def unload(self, name: str) -> None:
        """Stops serving a model until it is loaded again; requests in its queue are still answered.

        Raises:
            UnknownModel: there is no model of that name.
        """
        await self._complete(self._unload(name))

    async def close(self, grace_seconds: float) -> int:
        """Drains every queue; after the grace period, waiting requests end as Stopping.

        Returns:
            Number of runs that have not ended. A run can't be cancelled: its thread lives on.
        """
        versions = {loaded for model in self.catalog.models.values() for loaded in model.roles.values()}
        return await self._loader.close(versions, grace_seconds)

    async def _complete(self, change: Coroutine[None, None, None]) -> None:
        """Runs a change to its end, even if the caller who asked for it gives up."""
        task = asyncio.create_task(change)
        self._requested.add(task)
        task.add_done_callback(self._requested.discard)
        await asyncio.shield(task)

    async def _load(self, name: str) -> None:
        async with self._lock:
            try:
                found = await asyncio.to_thread(scan, self._settings.models)
            except RepositoryError as error:
                log_event(log, logging.ERROR, "repository_unreadable", str(error), path=str(self._settings.models))
                raise LoadFailed("the model repository can't be read; the server's log has the reason") from error
            if name not in found and name not in self.catalog.models:
                raise UnknownModel(f"there is no model {name!r}")
            model = self.catalog.models.setdefault(name, ServedModel(name))
            model.unloaded = False
            for number in [*model.refused]:
                self._loader.forget_refusal(model, number)
            await self._reconcile(name, found.get(name, ModelDirectory()), settled=True)
            reasons = [f"version {number} {refusal.reason}" for number, refusal in model.refused.items()]
            if routing_error := self._followed[name].routing_error:
                reasons.insert(0, f"routing.toml: {routing_error}")
            if reasons or not model.stable:
                still = f"; version {model.stable.version} keeps serving" if model.stable else ""
                raise LoadFailed(
                    f"model {name!r}: {'; '.join(reasons) or 'its stable version is not in the repository'}{still}"
                )

    async def _unload(self, name: str) -> None:
        async with self._lock:
            model = self.catalog.find(name)
            model.unloaded = True
            retiring = self._assign(model, {})
        await asyncio.gather(*retiring)

    async def _reconcile(self, name: str, found: ModelDirectory, *, settled: bool) -> None:
        """Brings one model in line with its directory.

        Args:
            name: name of the model.
            found: directory as it is now.
            settled: False leaves a file that has changed since the last poll to the next poll: it may still be written.
        """
        model = self.catalog.models.setdefault(name, ServedModel(name))
        followed = self._followed.setdefault(name, _Followed())
        previous, followed.directory = followed.directory, found
        model.versions = found.versions
        source = (found.routing, found.routing_error)
        if source != followed.routing_source and (settled or source == (previous.routing, previous.routing_error)):
            followed.routing_source = source
            self._apply_routing(model, followed)
        routing = model.routing
        if routing is None or model.unloaded or not (found.versions or model.stable):
            return
        settled_versions = {
            number: version
            for number, version in found.versions.items()
            if settled or previous.versions.get(number) == version
        }
        for number, refusal in [*model.refused.items()]:
            if refusal.source != found.versions.get(number):
                self._loader.forget_refusal(model, number)
        self._report_missing(model, followed, routing.named() - set(found.versions))
        wanted: dict[RoutingRole, Loaded | None] = {"stable": await self._choose_stable(model, routing, settled_versions)}
        if routing.canary:
            wanted["canary"] = await self._obtain(model, routing.canary.version, settled_versions)
        if routing.shadow:
            wanted["shadow"] = await self._obtain(model, routing.shadow.version, settled_versions)
        self._assign(model, {role: loaded for role, loaded in wanted.items() if loaded})

    def _apply_routing(self, model: ServedModel, followed: _Followed) -> None:
        error = followed.directory.routing_error
        try:
            routing = Routing.parse(followed.directory.routing)
        except RoutingError as refusal:
            error = str(refusal)
        followed.routing_error = error
        self._metrics.model_refused.labels(model.name, "", "routing").set(bool(error))
        if error:
            effect = "the previous routing stays" if model.routing else "the model is not loaded"
            message = f"{model.name}/routing.toml is not valid, {effect}: {error}"
            log_event(log, logging.ERROR, "routing_refused", message, model=model.name, reason=error)
            return
        if routing != (model.routing or Routing()):
            roles = routing.model_dump(exclude_none=True)
            message = f"{model.name}: routing {roles or 'by the highest version'}"
            log_event(log, logging.INFO, "routing_changed", message, model=model.name, routing=roles)
        model.routing = routing

    def _report_missing(self, model: ServedModel, followed: _Followed, missing: set[int]) -> None:
        for number in missing - followed.missing:
            message = f"{model.name}: routing names version {number}, which is not in the repository"
            log_event(log, logging.ERROR, "model_missing", message, model=model.name, version=str(number))
        for number in missing ^ followed.missing:
            self._metrics.model_refused.labels(model.name, str(number), "missing").set(number in missing)
        followed.missing = missing

    async def _choose_stable(self, model: ServedModel, routing: Routing, settled: dict[int, ModelVersion]) -> Loaded | None:
        """Returns the most preferred version that can be served, at worst the current stable version."""
        current = model.stable
        for number in routing.stable_candidates(model.versions):
            loaded = await self._obtain(model, number, settled)
            if loaded:
                return loaded
            if current and number == int(current.version):
                break
        return current

    async def _obtain(self, model: ServedModel, number: int, settled: dict[int, ModelVersion]) -> Loaded | None:
        """Returns a version, loaded now or before; None if it was refused, or its file is not there or not settled yet."""
        running = next((loaded for loaded in model.roles.values() if loaded.version == str(number)), None)
        source = settled.get(number)
        if source is None or (running and running.source == source) or number in model.refused:
            return running
        return await self._loader.load(model, source) or running

    def _assign(self, model: ServedModel, roles: dict[RoutingRole, Loaded]) -> list[asyncio.Task[int]]:
        """Switches all roles of a model at once, and retires the versions that have none any more.

        Returns:
            A task for each retired version, which ends once the requests in its queue are answered.
        """
        before, model.roles = model.roles, roles
        if model.name == self.catalog.default and ("stable" in roles) != ("stable" in before):
            self._on_ready_change()
        for loaded in {*before.values(), *roles.values()}:
            self._loader.set_shadow(loaded, roles.get("shadow") if loaded is model.stable else None)
        for role, loaded in before.items():
            if roles.get(role) is not loaded:
                self._metrics.model_role.labels(model.name, loaded.version, role).set(0)
        for role, loaded in roles.items():
            if before.get(role) is not loaded:
                self._metrics.model_role.labels(model.name, loaded.version, role).set(1)
                message = f"{model.name} version {loaded.version} is {role}"
                log_event(log, logging.INFO, "model_role", message, model=model.name, version=loaded.version, role=role)
        retiring = [self._loader.retire(loaded) for loaded in {*before.values()} - {*roles.values()}]
        for loaded in roles.values():  # last: it may have replaced a retired file of the same version number
            self._loader.set_info(loaded, serving=True)
        return retiring
