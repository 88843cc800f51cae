"""From a config, or none, to a listening server."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop
from threadpoolctl import threadpool_limits

from estimators.types import Backend
from meters import simulated_engine
from proxy import app, checking, config_file, discovery, loading, sample_traffic
from proxy.commands import CommandError
from proxy.config_file import ConfigError, Document, Problem
from proxy.connection import Connection
from proxy.contradictions import contradictions
from proxy.settings import BackendSettings, MeterSource, Settings, SignInSettings
from proxy.worker_metrics import metrics_folder

log = logging.getLogger("joulegate")

SIMULATED_WARNING = """
  ==================================================================================
   No engine, no provider key and no config.yaml was found.
   Serving two SIMULATED engines: their answers, timings and joules are made up.
   Write a config with `joulegate init`, or name one with `--config`.
  ==================================================================================
"""

SIMULATED_DEMO = """
  ==================================================================================
   Demonstration: two SIMULATED engines and sample traffic. Nothing here is measured.
   Keys to call it with: demo-search, demo-support, demo-research, demo-admin.
  ==================================================================================
"""

DESCRIPTORS = 1_048_576
FEW_DESCRIPTORS = 1_024
ACCEPTED_AT_ONCE = 16  # new connections in one turn of the event loop

Beside = Callable[[str], Callable[[], None]]


class Prepared(msgspec.Struct):
    """Settings ready to be served, and what was started for them."""

    settings: Settings
    facts: dict[str, Backend]
    started: list[Any]  # simulated engines, to be closed at the end

    def close(self) -> None:
        for engine in self.started:
            engine.close()


def prepare(
    config: str | None,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    environment: Mapping[str, str] | None = None,
    simulated: bool = False,
) -> Prepared:
    """The settings to serve. Raises ConfigError or CommandError."""
    environment = os.environ if environment is None else environment
    path = found_config(config, simulated=simulated)
    document = None
    started: list[Any] = []
    if path is not None:
        document = config_file.read(path, environment)
        problems: list[Problem] = []
        loaded = loading.interpret(document, problems)
        settings, document = loaded.settings, loaded.document
        if problems:
            checking.understood(settings, document, problems)  # raises, with those it finds itself
    elif simulated:
        settings = sample_traffic.settings()
    else:
        settings = Settings(backends=discovery.discovered(environment))
    server = settings.server
    server = msgspec.structs.replace(
        server,
        host=host or server.host,
        port=server.port if port is None else port,
        workers=workers or server.workers,
    )
    settings = msgspec.structs.replace(settings, server=server)
    if simulated and not server.loopback:
        settings = msgspec.structs.replace(settings, sign_in=SignInSettings())
    refuse_open_network(settings)
    if workers is not None:
        nowhere = Document("", None, {}, [])
        if told := list(contradictions(settings, document or nowhere)):
            raise ConfigError(path or "--workers", told)
    if not settings.backends:
        if path is not None:
            raise CommandError(f"{path} has no backends. Add one, or run `joulegate init`.")
        print(SIMULATED_DEMO if simulated else SIMULATED_WARNING, file=sys.stderr, flush=True)
        backends, started = simulated_pair()
        settings = msgspec.structs.replace(settings, backends=backends)
    known, _, unwise = checking.understood(settings, document)
    doubts = [*checking.addresses(settings), *checking.precisions(settings)]
    doubts += checking.hardware(settings, known)
    for warning in [*unwise, *doubts, *checking.zones(settings)]:
        log.warning("%s", warning)
    return Prepared(settings, known, started)


def found_config(config: str | None, *, simulated: bool = False) -> str | None:
    """The config file to use: the one named, else config.yaml where there is one."""
    if config is None and not simulated and Path("config.yaml").exists():
        return "config.yaml"
    return config


def simulated_pair() -> tuple[list[BackendSettings], list[Any]]:
    """Two simulated engines of one model, started, and their settings."""
    started, backends = [], []
    for name, config in simulated_engine.demonstration_pair().items():
        engine = simulated_engine.start(config)
        started.append(engine)
        group, _, precision = name.partition("@")
        backends.append(
            BackendSettings(
                model=group,
                name=name,
                url=f"{engine.url}/v1",
                upstream_model=config.model,
                engine="vllm",
                precision=precision,
                gpu="H100-SXM",
                params_b=8.03,
                layers=32,
                hidden_size=4096,
                kv_heads=8,
                head_dim=128,
                context_tokens=config.max_model_len,
                max_num_seqs=config.max_num_seqs,
                quality={"bf16": 0.62, "int4": 0.58}.get(precision),
                meter=MeterSource(kind="simulated", url=engine.url),
                simulated=True,
            )
        )
    return backends, started


def refuse_open_network(settings: Settings) -> None:
    """Without keys only this machine may call, and see what guests see. Raises CommandError."""
    if settings.server.loopback:
        return
    host = settings.server.host
    if settings.sign_in.guests:
        raise CommandError(
            "sign_in.guests shows the dashboard to anyone, so Joulegate does not listen on "
            f"{host}. Take it out, or listen on 127.0.0.1."
        )
    if settings.keys_configured:
        return
    raise CommandError(
        f"No keys are configured, so Joulegate does not listen on {host}: anyone who reaches it "
        "could use your backends. Add keys under 'teams', or listen on 127.0.0.1."
    )


def require_state(settings: Settings) -> None:
    """Nothing can be kept without a state folder. Raises CommandError where it takes no file."""
    folder = Path(settings.state_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(
            f"state_dir {folder} cannot be written ({error.strerror}). Name another, or let this "
            "user write there."
        ) from None


def serve(
    *,
    config: str | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    simulated: bool = False,
    beside: Beside | None = None,
) -> int:
    """Serve until told to stop; the exit status. ``beside`` is started with the server's URL."""
    try:
        prepared = prepare(config, host=host, port=port, workers=workers, simulated=simulated)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    settings = prepared.settings
    log_to_stderr(settings)
    allow_connections()
    origin = Origin(found_config(config, simulated=simulated), host, port, workers)
    require_state(settings)
    listening = listen(settings.server.host, settings.server.port)
    end = beside(url_of(listening)) if beside is not None else lambda: None
    try:
        if settings.server.workers == 1:
            run_worker(prepared, origin, listening, 0)
            return 0
        return run_workers(prepared, origin, listening)
    finally:
        end()
        prepared.close()
        listening.close()


@contextmanager
def beside(config: str) -> Iterator[str]:
    """Serve a config in a process of its own on a free port of this machine; gives its address.
    Raises CommandError when it does not start."""
    command = [sys.executable, "-m", "proxy", "serve", "--config", config, "--port", "0"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line.strip())
            found = re.search(r"serves (http://127\.0\.0\.1:\d+)/v1", line)
            if found:
                rest = threading.Thread(target=process.stderr.read, daemon=True)
                rest.start()  # or it would stop once the pipe is full
                yield found[1]
                return
        raise CommandError(f"{config} cannot be served: {' '.join(said[-3:])}")
    finally:
        process.terminate()
        process.wait()


class Origin(msgspec.Struct, frozen=True):
    """Where settings came from, to read them again."""

    config: str | None  # the file; None: there was none
    host: str | None = None
    port: int | None = None
    workers: int | None = None

    def prepare(self) -> Prepared:
        return prepare(self.config, host=self.host, port=self.port, workers=self.workers)


async def reload(proxy: app.Proxy, origin: Origin) -> bool:
    """Read the config again; True when it is in use. A config with mistakes changes nothing."""
    if origin.config is None:
        log.warning("there is no config file to read again; start with --config")
        return False
    before = proxy.settings
    try:
        prepared = await asyncio.to_thread(origin.prepare)
        await asyncio.to_thread(proxy.estimator.prepare, list(prepared.facts.values()))
        fixed = proxy.reload(prepared.settings, prepared.facts)
    except (ConfigError, CommandError) as error:
        log.error("the old settings stay in use: %s", error)
        return False
    except Exception:
        log.exception("%s could not be read again", origin.config)
        return False
    log.setLevel(prepared.settings.log.level.upper())
    log.warning("%s was read again", origin.config)
    await asyncio.to_thread(proxy.note_reload, origin.config, before)
    if fixed:
        log.warning("a restart is needed for what changed under: %s", ", ".join(fixed))
    return True


def run_worker(prepared: Prepared, origin: Origin, listening: socket.socket, number: int) -> None:
    """Serve in this process until told to stop. Worker 0 reads the meters for all."""
    settings = prepared.settings
    # What is worked out here is small: more threads would only wait for each other, and take the
    # processor from the event loop while they do.
    threadpool_limits(1)
    proxy = app.build(settings, prepared.facts, worker=number)

    def ready() -> None:
        loop = asyncio.get_running_loop()
        spare_the_collector()
        again: set[asyncio.Task[bool]] = set()  # a task that nobody holds may be dropped

        def hung_up() -> None:
            task = loop.create_task(reload(proxy, origin))
            again.add(task)
            task.add_done_callback(again.discard)

        loop.add_signal_handler(signal.SIGHUP, hung_up)
        if number == 0:
            say_ready(settings, listening)

    proxy.on_ready = ready
    # uvicorn raises the signal that stopped it once more when all is closed: it has been obeyed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Threads that hold the interpreter for 5 ms at a time would stall streams.
    sys.setswitchinterval(0.001)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server(proxy, settings).serve(sockets=handles(listening)))


def handles(listening: socket.socket) -> list[socket.socket]:
    """A listening socket, and what else refers to it, for a server to close.

    libuv accepts one connection of each in a turn of the event loop. Under load a turn takes as
    long as all requests that came meanwhile: of 64 new clients at once the last waited a second.
    """
    listening.setblocking(
        False
    )  # a worker's does not know that it is, and dup would undo it for all
    return [listening, *(listening.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]


def spare_the_collector() -> None:
    """Leave what the start made out of garbage collections, and have fewer of them.

    Libraries and settings are some hundred thousand objects that never die: going over them
    again and again costs every request, and stalls every stream while it lasts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def server(proxy: app.Proxy, settings: Settings) -> uvicorn.Server:
    """The HTTP server that a worker runs."""
    return uvicorn.Server(
        uvicorn.Config(
            proxy,
            http=Connection,
            ws="none",
            loop="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks where a request came from
            log_config=None,
            timeout_graceful_shutdown=round(settings.server.stop_deadline_s),
            timeout_keep_alive=75,
        )
    )


def run_workers(prepared: Prepared, origin: Origin, listening: socket.socket) -> int:
    """Serve in several processes that share one listening socket and one set of books."""
    context = multiprocessing.get_context("spawn")

    def start(number: int) -> multiprocessing.process.BaseProcess:
        process = context.Process(
            target=_worker,
            args=(Prepared(prepared.settings, prepared.facts, []), origin, listening, number),
            name=f"joulegate-worker-{number}",
        )
        process.start()
        return process

    counted = metrics_folder(prepared.settings)
    shutil.rmtree(counted, ignore_errors=True)  # of another that had this number
    running = {number: start(number) for number in range(prepared.settings.server.workers)}
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        for process in running.values():
            process.terminate()

    def again(*_: object) -> None:
        for process in running.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGHUP)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, again)
    signal.signal(signal.SIGINT, stop)
    while not stopping.wait(0.5):
        for number, process in list(running.items()):
            if not process.is_alive() and not stopping.is_set():
                log.warning("worker %d ended (%s); starting another", number, process.exitcode)
                running[number] = start(number)
    for process in running.values():
        process.terminate()  # one that was just being started has not been told
    for process in running.values():
        process.join(prepared.settings.server.stop_deadline_s + 10)
        if process.is_alive():
            log.warning("%s does not end; it is killed", process.name)
            process.kill()
    shutil.rmtree(counted, ignore_errors=True)
    return 0


def _worker(prepared: Prepared, origin: Origin, listening: socket.socket, number: int) -> None:
    log_to_stderr(prepared.settings)
    threading.Thread(target=_outlive_nobody, name="parent", daemon=True).start()
    run_worker(prepared, origin, listening, number)


def _outlive_nobody() -> None:
    """End this worker when the process that started it was killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def allow_connections() -> None:
    """Let as many be open as the system allows this user: shells and services begin with 1,024
    file descriptors, and a stream takes two. Of fewer than that the log is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:
            log.debug("the limit of file descriptors stays (%s)", error)
    if soft != resource.RLIM_INFINITY and soft < FEW_DESCRIPTORS:
        log.warning(
            "Only %d file descriptors may be open: enough for some %d streams at once. Beyond "
            "those, connections are closed unanswered. Raise the limit (ulimit -n, LimitNOFILE).",
            soft,
            max(0, soft - 100) // 2,
        )


def log_to_stderr(settings: Settings) -> None:
    """Log as the settings say; libraries, also those nobody thought of, only from warnings on:
    what they say below that is theirs to choose, and may be an address with a key in it."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    log.setLevel(settings.log.level.upper())
    for name in ("uvicorn", "asyncio", "aiohttp", "LiteLLM"):
        logging.getLogger(name).setLevel(logging.WARNING)


def say_ready(settings: Settings, listening: socket.socket) -> None:
    """Say where to point a client."""
    url = url_of(listening)
    names = ", ".join(b.full_name for b in settings.backends)
    made_up = " SIMULATED" if any(b.simulated for b in settings.backends) else ""
    print(
        f"Joulegate serves {url}/v1 ({names}){made_up}; dashboard at {url}/dashboard",
        file=sys.stderr,
        flush=True,
    )


def url_of(listening: socket.socket) -> str:
    """Where it is reached, without a path."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CommandError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise CommandError(
            f"Cannot listen on {host}:{port} ({error.strerror}). Give another --port, or stop "
            "what is listening there."
        ) from None
    listening.listen(4096)
    listening.setblocking(False)
    return listening
