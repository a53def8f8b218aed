"""Model repository: follows the versions and the routing on disk while requests are served.

A poll lists the directories. What has changed, and is unchanged since the poll before, begins to load. Nothing waits for
it: the end of a load brings its model in line with the directory once more, and then the version gets its role.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine

from serving.disk_thread import on_disk_thread
from serving.errors import LoadFailed, UnknownModel
from serving.repository.catalog import Catalog, Loaded, RoutingRole, ServedModel
from serving.repository.followed import Followed
from serving.repository.loader import Loader
from serving.repository.quarantine.quarantine import OpenVersion, Quarantine
from serving.repository.routing import Routing
from serving.repository.versions import ModelDirectory, ModelMissing, ModelVersion, RepositoryError, scan
from serving.settings import Settings
from serving.telemetry.logs import log_event
from serving.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5  # between two looks at versions that load, when somebody waits for them


class Repository:
    """Keeps a catalog in line with a model repository on disk. Reading files and loading models leave the event loop.

    Attributes:
        catalog: loaded models.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_ready_change: Callable[[], object] = lambda: None,
        open_version: OpenVersion | None = None,
    ):
        """Reads nothing yet.

        Args:
            settings: path of the repository, polling interval, default model, and all that the Loader needs.
            metrics: counts roles, refusals, and everything that the versions do.
            on_ready_change: called when the default model starts or stops answering.
            open_version: opens and checks one version, raises ModelError; by default a Quarantine.
        """
        self.catalog = Catalog(settings.default_model)
        self._loader = Loader(settings, metrics, open_version or Quarantine(settings).open, self._follow)
        self._settings = settings
        self._metrics = metrics
        self._on_ready_change = on_ready_change
        self._followed: dict[str, Followed] = {}
        self._lock = asyncio.Lock()  # one listing of the directories at a time, so that an older one is never applied last
        self._requested: set[asyncio.Task[None]] = set()
        self._logged_error = ""  # reason why the repository can't be read, once logged

    async def start(self, unloaded: Collection[str] = ()) -> None:
        """Loads every model, except those named in `unloaded`.

        Raises:
            RepositoryError: no version of the default model can be served; the message has the reasons.
        """
        default = self.catalog.default
        directory = self._settings.models / default
        found = await on_disk_thread(scan, self._settings.models)
        for name in found:
            self.catalog.models[name] = ServedModel(name, unloaded=name in unloaded)
            self._reconcile(name, found[name], settled=True)
        for name in found:
            await self._loaded(name, self._can_start)
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
                found = await on_disk_thread(scan, self._settings.models)
            except RepositoryError as error:
                if self._logged_error != str(error):
                    message = f"{error}; loaded models keep serving"
                    log_event(log, logging.ERROR, "repository_unreadable", message, path=str(self._settings.models))
                self._logged_error = str(error)
                return
            self._logged_error = ""
            for name in {*found, *self.catalog.models}:
                self._reconcile(name, found.get(name, ModelDirectory()), settled=False)

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
                found = await on_disk_thread(scan, self._settings.models)
            except RepositoryError as error:
                log_event(log, logging.ERROR, "repository_unreadable", str(error), path=str(self._settings.models))
                raise LoadFailed("the model repository can't be read; the server's log has the reason") from error
            if name not in found and name not in self.catalog.models:
                raise UnknownModel(f"there is no model {name!r}")
            model = self.catalog.models.setdefault(name, ServedModel(name))
            model.unloaded, model.asked = False, time.time()
            self._loader.drop_all_but(model, ())
            for number in [*model.refused]:
                self._loader.forget_refusal(model, number)
            self._reconcile(name, found.get(name, ModelDirectory()), settled=True)
        await self._loaded(name, lambda _: False)
        reasons = [f"version {number} {refusal.reason}" for number, refusal in model.refused.items()]
        if routing_error := self._followed[name].routing_error:
            reasons.insert(0, f"routing.toml: {routing_error}")
        if reasons or not model.stable:
            still = f"; version {model.stable.version} keeps serving" if model.stable else ""
            raise LoadFailed(f"model {name!r}: {'; '.join(reasons) or 'its stable version is not in the repository'}{still}")

    async def _unload(self, name: str) -> None:
        model = self.catalog.find(name)
        model.unloaded = True
        self._loader.drop_all_but(model, ())
        await asyncio.gather(*self._assign(model, {}))

    async def _loaded(self, name: str, is_enough: Callable[[str], bool]) -> None:
        """Waits until no version of a model is loading, or it `is_enough`."""
        while (loading := self._loader.loading(name)) and not is_enough(name):
            await asyncio.wait(loading, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            self._follow(name)

    def _can_start(self, name: str) -> bool:
        """Returns True if a model need not be waited for at the start: what still loads takes its role later."""
        needed = name == self.catalog.default and not self.catalog.models[name].stable
        return not needed and not self._loader.loading_soon(name)

    def _follow(self, name: str) -> None:
        """Brings a model in line with its directory as it was last listed: a version is loaded or refused."""
        followed = self._followed[name]
        self._give_roles(self.catalog.models[name], followed)

    def _reconcile(self, name: str, found: ModelDirectory, *, settled: bool) -> None:
        """Brings one model in line with its directory.

        Args:
            name: name of the model.
            found: directory as it is now.
            settled: False leaves a file that has changed since the last poll to the next poll: it may still be written.
        """
        model = self.catalog.models.setdefault(name, ServedModel(name))
        followed = self._followed.setdefault(name, Followed())
        previous, followed.directory = followed.directory, found
        model.versions = found.versions
        source = (found.routing, found.routing_error)
        if source != followed.routing_source and (settled or source == (previous.routing, previous.routing_error)):
            followed.routing_source = source
            followed.apply_routing(model, self._metrics)
        followed.settled = {
            number: version
            for number, version in found.versions.items()
            if settled or previous.versions.get(number) == version
        }
        self._give_roles(model, followed)

    def _give_roles(self, model: ServedModel, followed: Followed) -> None:
        """Gives every role to the best version that is loaded, and begins to load those that should have one."""
        routing, found = model.routing, followed.directory.versions
        for number, refusal in [*model.refused.items()]:
            if refusal.source != found.get(number):
                self._loader.forget_refusal(model, number)
        if routing is None or model.unloaded:
            self._loader.drop_all_but(model, ())
            return
        followed.report_missing(model, routing, self._metrics)
        if not (found or model.stable):
            self._loader.drop_all_but(model, ())
            return
        wanted: set[ModelVersion] = set()
        roles: dict[RoutingRole, Loaded | None] = {"stable": self._choose_stable(model, routing, followed.settled, wanted)}
        if routing.canary:
            roles["canary"] = self._obtain(model, routing.canary.version, followed.settled, wanted)
        if routing.shadow:
            roles["shadow"] = self._obtain(model, routing.shadow.version, followed.settled, wanted)
        self._loader.drop_all_but(model, wanted)
        self._assign(model, {role: loaded for role, loaded in roles.items() if loaded})

    def _choose_stable(
        self, model: ServedModel, routing: Routing, settled: dict[int, ModelVersion], wanted: set[ModelVersion]
    ) -> Loaded | None:
        """Returns the most preferred version that can be served, at worst the current stable version."""
        current = model.stable
        for number in routing.stable_candidates(model.versions):
            loaded = self._obtain(model, number, settled, wanted)
            if loaded:
                return loaded
            if current and number == int(current.version):
                break
            if number in settled and self._loader.waits_for(model, settled[number]):
                break
        return current

    def _obtain(
        self, model: ServedModel, number: int, settled: dict[int, ModelVersion], wanted: set[ModelVersion]
    ) -> Loaded | None:
        """Returns a version that is loaded; None if it is refused or still loading, or its file is not there or not settled.

        Adds the file to `wanted` if it is not loaded.
        """
        running = next((loaded for loaded in model.roles.values() if loaded.version == str(number)), None)
        source = settled.get(number)
        if source is None or (running and running.source == source):
            return running
        wanted.add(source)
        return self._loader.obtain(model, source) or running

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
