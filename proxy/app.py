"""Builds the proxy and wires everything: the one place that knows all the parts.

`build(settings)` gives an ASGI application. Its lifespan starts the upstream client, the journal,
the ledger's drain, meters and the books; stopping goes the other way round.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import generate_latest
from sqlalchemy.exc import SQLAlchemyError

from estimators.hardware import GPUS
from estimators.types import Backend, Estimate, Features, Load
from meters.drain import Drain
from meters.intake import WindowIntake
from meters.journal import Journal
from meters.ledger import Ledger
from meters.migrations import LedgerTooNew
from meters.receipts import Receipt
from meters.types import UsageRecord, Window
from proxy import auth, backends, books, errors, feedback, policy_book, policy_versions, request_log
from proxy.accounts import Accounts
from proxy.admin import Admin
from proxy.admission import Gate
from proxy.aftermath import Aftermath
from proxy.alerts import Alerts
from proxy.asgi import Receive, Scope, Send
from proxy.audit_log import note
from proxy.auth import Caller
from proxy.batches.files import Files
from proxy.batches.routes import BatchRoutes
from proxy.batches.runner import Runner
from proxy.batches.store import Batches
from proxy.batches.tables import database_of
from proxy.carbon_metrics import CarbonMetrics
from proxy.config_file import ConfigError
from proxy.corrections import Corrections
from proxy.dashboard.configured import budgets_of, sites_of, snapshots_of
from proxy.dashboard.feasible import Studies
from proxy.dashboard.pages import Dashboard, router
from proxy.dashboard.replays import TeamReplay
from proxy.dashboard.snapshot import Snapshots
from proxy.flight import Flight, TimeWatch, arrived_s
from proxy.front import Front
from proxy.grid import Grid
from proxy.health import HealthChecks, note_load
from proxy.judging import Judging
from proxy.key_watch import KeyWatch
from proxy.leftovers import Leftovers
from proxy.measuring import Learning, Measuring, divide, wanted
from proxy.meter_metrics import MeterMetrics
from proxy.otlp import Otlp
from proxy.outcomes import CALLER, Outcomes
from proxy.own_book import OwnBook
from proxy.people import People
from proxy.predicting import Predictors
from proxy.providers import litellm_sdk
from proxy.pseudonyms import Pseudonyms
from proxy.receipts import of_record
from proxy.replicas import canaries_of, lessons_of, replica_name, siblings_of, store_of
from proxy.responses import ResponseRoutes
from proxy.routes import Routes, handle_errors
from proxy.routing import Router
from proxy.savings import Validated, validated
from proxy.settings import Settings, Team
from proxy.sign_in import NotSignedIn, SignIn, secret_of, to_sign_in
from proxy.spending import seed_from
from proxy.steps import Steps
from proxy.store_fallback import FallbackStore
from proxy.teams import Directory, TeamStore, configured
from proxy.telemetry import Telemetry
from proxy.tokens import TokenCounter
from proxy.upstream import Upstream
from proxy.worker_metrics import WorkerMetrics, metrics_folder

log = logging.getLogger("joulegate")


PROMISES = "promises.json"  # in the state folder

# Settings that are read once, at start.
NEEDS_RESTART = (
    "server",
    "redis",
    "ledger",
    "state_dir",
    "meters",
    "otlp",
    "sign_in",
    "estimator",
    "quality_model",
)


def changed(name: str, old: Settings, new: Settings) -> bool:
    return bool(getattr(old, name) != getattr(new, name))


def agents(settings: Settings) -> dict[str, set[str]]:
    """Each agent's token with the nodes it may speak for."""
    nodes: dict[str, set[str]] = {}
    for node, token in settings.meters.tokens.items():
        nodes.setdefault(token, set()).add(node)
    return nodes


def simulated_nodes(engines: Iterable[backends.Engine]) -> set[str]:
    """The nodes on which every engine is simulated."""
    real = {engine.node for engine in engines if not engine.facts.simulated}
    return {engine.node for engine in engines if engine.node} - real


SOON_S = 2.0  # how long a request that another replica served is waited for ...
LATELY_S = 3600.0  # ... where it arrived no longer ago
REMEMBERED_S = 3600.0  # of windows before a start that are known again


class Proxy:
    """The running proxy: an ASGI application with its parts as attributes."""

    def __init__(self, settings: Settings, facts: dict[str, Backend], worker: int = 0) -> None:
        self.settings = settings
        self.worker = worker  # number 0 reads the meters for all
        self.on_ready: Callable[[], None] = lambda: None
        self.replica = replica_name()
        # Nobody else serves what is in the ledger.
        self.alone = books.url_of(settings).startswith("sqlite") and settings.server.workers == 1
        self.keys = auth.from_settings(settings)
        self.directory = configured(settings)
        self.told: set[str] = set()  # of teams whose policy is gone, once each
        self.secret = secret_of(settings.sign_in, Path(settings.state_dir))
        self.sign_in = SignIn(
            self.keys,
            self.secret,
            settings=settings.sign_in,
            people=self.people,
            time_zone=lambda team: self.directory.teams.get(team, Team()).timezone,
        )
        self.pool = backends.of_settings(settings, facts)
        self.grid = Grid(settings, self.pool)
        self.grid.refresh(time.time())
        self.telemetry = Telemetry()
        self.keys.failed.on_failed = partial(self.telemetry.failed_keys.add, ())
        self.carbon = CarbonMetrics(
            self.telemetry.registry,
            self.grid.book,
            sites_of(settings, [engine.facts for engine in self.pool.engines]),
            self.telemetry.request,
            self.telemetry.divided,
            alone=settings.redis.url is None and settings.server.workers == 1,
        )
        otlp = settings.otlp
        self.otlp = (
            Otlp(
                otlp.url,
                self.carbon,
                self.facts_of,
                otlp.headers,
                otlp.hold_s,
                replica=self.replica,
            )
            if otlp.url
            else None
        )
        self.learning = Learning(self.pool, Path(settings.state_dir) / "steps.json")
        self.estimator = Predictors(
            model=settings.quality_model,
            learnt=self.learning.learnt,
            folder=Path(settings.state_dir),
            estimator=settings.estimator,
        )
        self.estimator.know(engine.facts for engine in self.pool.engines)
        self.learning.prior = self.estimator.physics
        self.router = Router(
            self.pool,
            self.estimator,
            policy_versions.keep(
                Path(settings.state_dir) / "policies", policy_book.book_of(settings)
            ),
            settings.default_policy,
            settings.carbon.default_counterfactual,
        )
        self.router.intensity_g_per_kwh = self.grid.common_g_per_kwh
        self.router.effects = self.estimator.effects
        self.canaries = canaries_of(settings, self.replica, worker)
        self.canaries.take(self.router.roll_outs())
        self.router.canaries = self.canaries
        self.load_promises()
        self.aftermath = Aftermath(self.router, self.canaries)
        self.watch = TimeWatch()
        self.client = Upstream(settings.time)
        state = Path(settings.state_dir)
        self.journal = Journal(
            state / "journal" / self.replica,
            sync="always" if settings.ledger.fsync else "interval",
        )
        self.ledger: Ledger | None = None
        self.drain: Drain | None = None
        self.own_book: OwnBook | None = None
        self.key_watch: KeyWatch | None = None
        self.snapshots: Snapshots | None = None
        self.accounts = Accounts(
            journal=self.journal,
            estimator=self.estimator,
            live=self.watch.flights,
            divide=self.learning.divide,
            learner=self.learning,
            observer=self.otlp or self.carbon,
            replica=self.replica,
            on_record=self.note,
            on_flight=self.aftermath.finished,
            recount=self.recount,
        )
        seed = seed_from(lambda: self.ledger, self.teams_of, self.keys_of)
        self.store = store_of(settings, seed)
        self.alerts = Alerts(
            settings.budget_alerts, self.store, lambda labels: self.telemetry.thresholds.add(labels)
        )
        self.corrections = Corrections(self.store, lambda: self.ledger)
        self.steps = Steps(
            settings=settings,
            keys=self.keys,
            router=self.router,
            client=self.client,
            counter=TokenCounter(),
            watch=self.watch,
            accounts=self.accounts,
            gate=Gate(
                settings.organisations,
                self.store,
                recount=self.recount,
                alerts=self.alerts,
                corrections=self.corrections,
            ),
            pseudonyms=Pseudonyms(self.secret),
        )
        self.judging = self.steps.judging = Judging(
            settings=settings,
            router=self.router,
            estimator=self.estimator,
            client=self.client,
            live=self.watch.flights,
            finished=self.accounts.finished,
            counted=self.telemetry.judged,
            compared=self.aftermath.compared,
        )
        self.siblings = siblings_of(settings, self.replica, self.accounts, self.router)
        self.accounts.others = self.siblings
        self.outcomes = Outcomes(
            self.estimator,
            lambda: self.ledger,
            lambda: [engine.node for engine in self.pool.engines],
            alone=self.alone,
        )
        self.lessons = lessons_of(settings, self.replica, worker, self.learning)
        self.measuring = Measuring(settings, self.pool, self.take_window)
        self.health = HealthChecks(self.pool, self.client, settings.retries)
        self.intake = WindowIntake(
            agents(settings),
            {engine.node for engine in self.pool.engines},
            time.time,
            self.take_sent_window,
            simulated_nodes(self.pool.engines),
        )
        self.carbon.fetched = lambda: {one.zone for one in self.grid.refresher.health()}
        self.telemetry.registry.register(
            MeterMetrics(
                self.intake, lambda: self.measuring.meters, alone=settings.redis.url is None
            )
        )
        self.worker_metrics = (
            WorkerMetrics(
                metrics_folder(settings),
                f"{worker}-{self.replica}",
                self.telemetry.registry,
                self.refresh_metrics,
            )
            if settings.server.workers > 1
            else None
        )
        self.api = FastAPI(
            title="Joulegate",
            redirect_slashes=False,  # proxy.paths takes them off
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
        )
        self.routes = Routes(
            keys=self.keys,
            steps=self.steps,
            routing=self.router,
            find_receipt=self.find_receipt,
            page=self.metrics_page,
            refresh=self.refresh_metrics,
            ready=self.degraded,
            feedback=self.feedback,
            judging=self.judging.shown,
            intake=self.intake,
            find_savings=self.find_savings,
        )
        self.api.include_router(self.routes.router)
        self.api.include_router(Admin(self.keys, self.team_store, self.look_for_keys).router)
        kept_responses = self.steps.relaying.kept_responses
        self.api.include_router(
            ResponseRoutes(
                keys=self.keys, kept=kept_responses, routing=self.router, client=self.client
            ).router
        )
        self.kept = database_of(settings)  # files and batches
        files, kept_batches = Files(self.kept), Batches(self.kept)
        self.batches = Runner(
            name=f"{self.replica} {os.getpid()} {time.time():.3f}",
            settings=settings,
            files=files,
            batches=kept_batches,
            steps=self.steps,
            keys=self.keys,
            grid=lambda: self.grid.common_g_per_kwh,
            counted=lambda outcome: self.telemetry.of_batches.add((outcome,)),
        )
        self.api.include_router(
            BatchRoutes(
                keys=self.keys,
                files=files,
                batches=kept_batches,
                settings=lambda: self.settings.batches,
                made=self.batches.woken.set,
                cancelled=self.batches.cancel,
            ).router
        )
        handle_errors(self.api)
        self.api.add_exception_handler(NotSignedIn, to_sign_in)
        self.front = Front(self.steps, self.api, settings.server.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.front(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await self.client.start()
        if any(e.bridged or e.settings.provider != "openai" for e in self.pool.engines):
            await asyncio.to_thread(litellm_sdk.sdk)  # seconds, which no request should wait for
        self.ledger = Ledger(books.url_of(self.settings), lazy=True)
        self.drain = Drain(self.journal, self.ledger).start()
        self.own_book = OwnBook(self.ledger, f"{self.replica} {time.time():.3f}").start()
        self.key_watch = KeyWatch(
            TeamStore(self.ledger.database, self.settings), self.keys, also=self.know
        )
        try:
            await asyncio.to_thread(self.key_watch.refresh)
        except (SQLAlchemyError, OSError) as error:
            log.warning(
                "The ledger does not answer (%s): serving goes on with the config's keys, the "
                "journal keeps what is finished until it does.",
                error if isinstance(error, LedgerTooNew) else type(error).__name__,
            )
        self.key_watch.start()
        await asyncio.to_thread(self.remember_windows, self.ledger)
        leftovers = Leftovers(
            self.ledger,
            self.journal,
            {engine.node for engine in self.pool.engines},
            divide,
            self.learning.physics,
            live=self.accounts.in_flight,
            caught_up_s=lambda: self.drain.caught_up_s if self.drain is not None else 0.0,
            divided=self.accounts.observer.divided,
        )
        self.accounts.late = leftovers.expect
        leftovers.start()
        self.show(self.ledger)
        self.watch.start(lambda _: self.look_at_the_grid())
        self.grid.refresher.start()
        self.accounts.start()
        self.alerts.start()
        self.corrections.start()
        self.outcomes.start()
        await self.canaries.start()
        if self.otlp is not None:
            self.otlp.start()
        self.health.start()
        self.judging.start()
        self.batches.start()
        if self.siblings is not None:
            self.siblings.start()
        if self.lessons is not None:
            self.lessons.start()
        if self.worker_metrics is not None:
            self.worker_metrics.start()
        if self.worker == 0:
            await asyncio.to_thread(self.measuring.start)
        self.on_ready()
        try:
            yield
        finally:
            self.steps.stopping = True
            await self._stop(leftovers)

    def remember_windows(self, ledger: Ledger) -> None:
        """Know the last hour's windows again, so that none is taken twice over a restart."""
        now_s = time.time()
        try:
            for node in sorted(self.intake.known_nodes):
                for window in ledger.windows(node, now_s - REMEMBERED_S, now_s + 60.0):
                    self.intake.remember(window)
        except (SQLAlchemyError, OSError) as error:
            log.warning("The last hour's windows cannot be read (%s).", type(error).__name__)

    async def _stop(self, leftovers: Leftovers) -> None:
        """End all parts: first what still writes into the books, then the books. One that cannot
        be ended keeps no other from it."""
        for end in (
            partial(asyncio.to_thread, self.measuring.stop),
            self.batches.stop,
            self.health.stop,
            self.judging.stop,
            self.siblings.stop if self.siblings is not None else None,
            self.lessons.stop if self.lessons is not None else None,
            leftovers.stop,
            self.accounts.stop,
            self.worker_metrics.stop if self.worker_metrics is not None else None,
            self.alerts.stop,
            self.corrections.stop,
            self.outcomes.stop,
            self.canaries.stop,
            partial(asyncio.to_thread, self.otlp.stop) if self.otlp is not None else None,
            partial(asyncio.to_thread, self.save) if self.worker == 0 else None,
            self.watch.stop,
            partial(asyncio.to_thread, self.grid.refresher.stop),
            self.client.stop,
            self.store.close,
            partial(asyncio.to_thread, self.steps.reading.close),
            self.key_watch.stop if self.key_watch is not None else None,
            partial(asyncio.to_thread, self.own_book.stop) if self.own_book is not None else None,
            partial(asyncio.to_thread, self.drain.stop) if self.drain is not None else None,
            partial(asyncio.to_thread, self.journal.close),
            partial(asyncio.to_thread, self.ledger.close) if self.ledger is not None else None,
            partial(asyncio.to_thread, self.kept.close),
        ):
            if end is None:
                continue
            try:
                await end()
            except Exception:
                log.exception("a part could not be ended; the others are")

    def save(self) -> None:
        """Keep what was learnt for the next start."""
        self.estimator.save()
        self.learning.save()
        try:
            self.router.promises.save(Path(self.settings.state_dir) / PROMISES)
        except OSError as error:
            log.warning("what promises of quality owe cannot be kept: %s", error)

    def load_promises(self) -> None:
        """Go on with what promises owed at the last stop."""
        try:
            self.router.promises.load(Path(self.settings.state_dir) / PROMISES)
        except (OSError, ValueError) as error:
            log.warning("%s is not used (%s); promises begin anew", PROMISES, error)

    def show(self, ledger: Ledger) -> None:
        """Put the dashboard over the ledger."""
        sources = self.grid.refresher.health
        self.snapshots = snapshots_of(self.settings, self.facts(), self.grid.book, ledger)
        self.snapshots.take(self.carbon.sites, budgets_of(self.directory.teams))
        replays = TeamReplay(
            ledger,
            self.facts,
            lambda: self.router.policies,
            lambda: self.settings.default_policy,
            self.estimator,
            lambda team: auth.limits_of(self.directory.teams.get(team, Team()).limits),
            lambda team: self.directory.teams.get(team, Team()).timezone,
        )
        dashboard = Dashboard(
            self.snapshots,
            teams=lambda: sorted({*ledger.teams(), *self.directory.teams}),
            health=sources,
            estimator=self.estimator,
            gpus=GPUS,
            replay=replays,
            studies=Studies(replays),
            backends=self.facts,
            user_groups=self.keeps_users,
            form_secret=self.secret,
            signs_in=not self.sign_in.open,
        )
        threading.Thread(target=dashboard.warm, name="dashboard", daemon=True).start()
        self.api.include_router(self.sign_in.router(dashboard))
        self.api.include_router(router(dashboard, self.sign_in.viewer))

    def facts_of(self, name: str) -> Backend | None:
        """What is known of one backend; None when it is not configured any more."""
        engine = self.pool.by_name.get(name)
        return engine.facts if engine else None

    def facts(self) -> list[Backend]:
        """What is known of every backend now."""
        return [engine.facts for engine in self.pool.engines]

    def reload(self, settings: Settings, facts: dict[str, Backend]) -> list[str]:
        """Use another config from now on, without dropping a request; what it says that needs a
        restart. Runs in the event loop. Raises ConfigError, and then nothing has changed."""
        book = policy_versions.keep(
            Path(settings.state_dir) / "policies", policy_book.book_of(settings)
        )
        fixed = [name for name in NEEDS_RESTART if changed(name, self.settings, settings)]
        if settings.carbon.regions != self.settings.carbon.regions:
            fixed.append("carbon.regions")
        meters_changed = wanted(settings) != wanted(self.settings)
        if told := list(policy_book.left_without(settings, book, self.directory.teams)):
            raise ConfigError("config", told)
        engines = backends.engines_of(settings, facts, self.pool.by_name)
        self.settings = settings
        self.pool.hold(engines, settings.fallbacks)
        self.estimator.know(engine.facts for engine in engines)
        self.grid.take(settings)
        self.grid.refresher.start()  # where there was no source before
        self.grid.refresh(time.time())
        self.router.take(
            book.keeping(self.router.book),
            settings.default_policy,
            settings.carbon.default_counterfactual,
        )
        self.canaries.take(self.router.roll_outs())
        self.carbon.sites = sites_of(settings, self.facts())
        if self.snapshots is not None:
            self.snapshots.take(self.carbon.sites, budgets_of(self.directory.teams))
        self.steps.take(settings)
        self.judging.settings = settings
        self.batches.take(settings)
        self.store.hold_at_most(settings.cache.max_bytes)
        self.client.limits = settings.time
        self.health.rules = settings.retries
        self.alerts.take(settings.budget_alerts)
        self.intake.known_nodes = {engine.node for engine in engines}
        self.intake.simulated_nodes = simulated_nodes(engines)
        if self.ledger is not None and self.key_watch is not None:
            self.key_watch.watch(TeamStore(self.ledger.database, settings))
        else:
            self.keys.replace(auth.callers_in(settings))
            self.know(configured(settings))
        if meters_changed and self.worker == 0:
            self.measuring.restart(settings)
        return fixed

    def note_reload(self, config: str, before: Settings) -> None:
        """Say in the audit log that another config is in use, and what changed. Blocks."""
        if self.ledger is None or self.worker != 0:
            return
        parts = [name for name in before.__struct_fields__ if changed(name, before, self.settings)]
        try:
            with self.ledger.database.write() as connection:
                actor, detail = f"SIGHUP at {self.replica}", {"changed": parts}
                note(connection, actor, "config.reload", config, detail, change=False)
        except (SQLAlchemyError, OSError) as error:
            log.warning("this is not in the audit log: %s", type(error).__name__)

    def take_sent_window(self, window: Window) -> None:
        """A closed window from an agent, which forgets it once this returns. Raises OSError while
        it cannot be kept: the agent sends it again."""
        self.take_window(window)
        if not self.journal.flush(2.0):
            raise OSError("the journal's disk takes nothing")

    def team_store(self) -> TeamStore | None:
        """Teams and keys; None before the ledger is there."""
        return None if self.ledger is None else TeamStore(self.ledger.database, self.settings)

    async def look_for_keys(self) -> None:
        """Know of a change of teams or keys at once, where it was made through this process."""
        if self.key_watch is not None:
            await self.key_watch.look()

    def people(self) -> People | None:
        """Local accounts; None before the ledger is there."""
        return None if self.ledger is None else People(self.ledger.database)

    def know(self, directory: Directory) -> None:
        """Know organisations, teams and accounts as config and ledger have them now."""
        self.directory = directory
        self.steps.gate.rules.take(directory.organisations)
        for problem in policy_book.left_without(self.settings, self.router.book, directory.teams):
            if problem.message not in self.told:
                self.told.add(problem.message)
                log.warning("%s", problem.message)
        if self.snapshots is not None:
            self.snapshots.take(self.carbon.sites, budgets_of(directory.teams))
        people = self.people()
        if people is not None:
            self.sign_in.known = people.all()

    def recount(
        self, flight: Flight, told: Features, output_tokens: int, backend: Backend | None = None
    ) -> Estimate | None:
        """A finished request's estimate with the tokens that were really counted."""
        if flight.engine is None or flight.opaque:
            return None
        facts, load = backend or flight.engine.facts, Load()
        for candidate in flight.candidates:  # where any model is served, it names the one
            if candidate.backend.name == facts.name:
                facts, load = candidate.backend, candidate.load
                break
        return self.estimator.at_lengths(told, facts, load, output_tokens)

    def note(self, record: UsageRecord) -> None:
        """A line in the log for a finished request, where the settings ask for one."""
        if self.settings.log.requests:
            request_log.write(record)

    def look_at_the_grid(self) -> None:
        """Take the hour's intensities over; cheap, and does nothing within the minute."""
        self.grid.refresh(time.time())
        self.router.intensity_g_per_kwh = self.grid.common_g_per_kwh

    def take_window(self, window: Window) -> None:
        """A closed window, from a meter's thread or an agent."""
        note_load(self.pool, window, time.monotonic())
        self.accounts.window(window)

    # -- what the routes ask for ------------------------------------------------------------------

    async def find_receipt(self, request_id: str) -> Receipt | None:
        """A request's receipt. One that another replica may just have served is waited for until
        the ledger has it."""
        at_s, until_s = arrived_s(request_id), time.monotonic() + SOON_S
        lately = at_s is not None and abs(time.time() - at_s) < LATELY_S
        while True:
            found = await asyncio.to_thread(self.receipt, request_id)
            if found or self.alone or not lately or time.monotonic() > until_s:
                return found
            await asyncio.sleep(0.2)

    def receipt(self, request_id: str) -> Receipt | None:
        """A request's receipt from the ledger, else from what this replica just served."""
        if self.ledger is not None:
            try:
                found = self.ledger.receipt(request_id)
            except SQLAlchemyError as error:
                log.warning("the ledger cannot be read (%s)", type(error).__name__)
                found = None
            if found is not None:
                return found
        record = self.accounts.recent.get(request_id)
        return of_record(record) if record is not None else None

    def find_savings(self, team: str, from_s: float, to_s: float) -> list[Validated]:
        """What a team's hold-out proves; nothing while the ledger cannot be read."""
        if self.ledger is None:
            return []
        try:
            return validated(self.ledger, from_s, to_s, team=team)
        except SQLAlchemyError as error:
            log.warning("the ledger cannot be read (%s)", type(error).__name__)
            return []

    async def count_late(self) -> None:
        """Count the energy of requests whose windows came to other replicas, or to none."""
        late, metered_j = self.carbon.late(time.time()), dict[str, float]()
        if late and self.ledger is not None:
            try:
                found = await asyncio.to_thread(self.ledger.metered, late)
            except SQLAlchemyError as error:
                log.warning("the ledger cannot be read (%s)", type(error).__name__)
                found = {}
            for (request_id, _), energy_j in found.items():
                metered_j[request_id] = metered_j.get(request_id, 0.0) + energy_j
        self.carbon.count_late(late, metered_j)

    async def metrics_page(self) -> bytes:
        """What /metrics tells, of all workers."""
        if self.worker_metrics is not None:
            return await self.worker_metrics.page()
        return generate_latest(self.telemetry.registry)

    async def refresh_metrics(self) -> None:
        """Count what is due and set the gauges, just before they are read."""
        metrics = self.telemetry
        await self.count_late()
        self.carbon.refresh(time.time())
        metrics.in_flight.set(self.steps.in_flight)
        metrics.imbalance.set(self.accounts.imbalance_j)
        metrics.simulated.set(sum(e.facts.simulated for e in self.pool.engines))
        metrics.healthy.clear()  # a backend that was taken out would be unhealthy for ever
        for engine in self.pool.engines:
            metrics.healthy.labels(engine.name).set(engine.healthy)
        if self.drain is not None:
            metrics.backlog.set(self.drain.backlog_bytes)
        degraded = self.degraded()
        for part in ("ledger", "journal", "redis", "backends"):
            metrics.degraded.labels(part).set(part in degraded)

    def teams_of(self, organisation: str) -> list[str]:
        """The teams of an organisation that have keys."""
        return sorted({c.team for c in self.keys.callers() if c.organisation == organisation})

    def keys_of(self, first: str) -> list[str]:
        """The ids of that key and of those that replaced it, one after the other."""
        chains = [(*c.earlier, c.key_id or "") for c in self.keys.callers()]
        return sorted({first}.union(*(chain for chain in chains if chain[0] == first)))

    def keeps_users(self, team: str) -> bool:
        """Whether a team wants groups of its users shown."""
        return any(c.user_groups for c in self.keys.callers() if c.team == team)

    def degraded(self) -> dict[str, str]:
        """What does not work now, and what that means."""
        gone: dict[str, str] = {}
        if self.ledger is None or (self.drain is not None and self.drain.ledger_down):
            gone["ledger"] = "the journal keeps what is finished"
        if isinstance(self.store, FallbackStore) and self.store.down:
            gone["redis"] = "limits, budgets and the cache are kept by each replica alone"
        if self.journal.failing is not None:
            gone["journal"] = self.journal.failing
        if self.pool.engines and not any(e.healthy for e in self.pool.engines):
            gone["backends"] = "no backend answers"
        return gone

    def keep_score(self, record: UsageRecord, score: float, at_s: float) -> float | None:
        """Put a score into the ledger, from which other replicas learn it; the answer's score
        before. Raises SQLAlchemyError."""
        assert self.ledger is not None  # it is there while requests are served
        return self.ledger.add_feedback(record.request_id, CALLER, score, record.team, at_s)

    async def feedback(self, caller: Caller, given: dict[str, Any]) -> dict[str, Any]:
        """Take a score of an answer in; it teaches the quality of what answered."""
        score, request_id = feedback.score_in(given)
        receipt = await self.find_receipt(request_id)
        if receipt is None or (receipt.record.team != caller.team and caller.role != "admin"):
            raise errors.not_found(f"There is no request {request_id!r} of your team.")
        record = receipt.record
        if record.outcome in ("refused", "failed"):
            raise errors.invalid_body(
                f"Request {request_id!r} had no answer that could be scored.",
                code="invalid_value",
                param="request_id",
            )
        said = {"object": "joulegate.feedback", "request_id": request_id, "score": score}
        at_s = time.time()
        try:
            before = await asyncio.to_thread(self.keep_score, record, score, at_s)
        except SQLAlchemyError as error:
            log.warning("A score is known to this replica alone (%s).", type(error).__name__)
            before = None
        if before == score:
            return said  # sent again
        if record.backend is not None:
            self.outcomes.scored(record, score, CALLER, at_s)
        self.aftermath.scored(record, score, before)
        return said


def build(settings: Settings, facts: dict[str, Backend], worker: int = 0) -> Proxy:
    """The proxy of a config. Raises OSError when the state folder cannot be written."""
    Path(settings.state_dir).mkdir(parents=True, exist_ok=True)
    return Proxy(settings, facts, worker)
