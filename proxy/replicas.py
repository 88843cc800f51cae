"""What replicas share, and where it lies: in Redis where that is configured, else in the state
folder for the workers of one machine, else in this process."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

from proxy.accounts import Accounts
from proxy.canaries import Canaries
from proxy.canaries import FileBoard as FileCanaries
from proxy.canaries import KeptBoard as KeptCanaries
from proxy.canaries import RedisBoard as RedisCanaries
from proxy.health import note_elsewhere
from proxy.lessons import Lessons
from proxy.measuring import Learning
from proxy.routing import Router
from proxy.settings import Settings
from proxy.siblings import Board, FileBoard, RedisBoard, Siblings
from proxy.store import Seed, Store
from proxy.store_fallback import FallbackStore
from proxy.store_local import LocalStore
from proxy.store_redis import RedisStore, connect


def replica_name() -> str:
    """Unique among the replicas that share a ledger."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"


def store_of(settings: Settings, seed: Seed | None = None) -> Store:
    """Shared state in Redis where it is configured, else in this process."""
    local = LocalStore(
        cache_bytes=settings.cache.max_bytes, seed=seed, degraded=settings.redis.url is not None
    )
    if settings.redis.url is None:
        return local
    redis = RedisStore(settings.redis.url, timeout_s=settings.redis.timeout_s, seed=seed)
    return FallbackStore(redis, local)


def siblings_of(
    settings: Settings, replica: str, accounts: Accounts, router: Router
) -> Siblings | None:
    """How this replica's requests and conversations get known to others, and theirs here; None when
    it is alone."""
    board = _board(settings, "activities")
    if board is None:
        return None
    return Siblings(
        replica,
        board,
        accounts.published,
        partial(note_elsewhere, router.pool),
        router.conversations,
    )


def lessons_of(settings: Settings, replica: str, worker: int, learning: Learning) -> Lessons | None:
    """How replicas tell each other what windows taught them; None for one that is alone."""
    board = _board(settings, "lessons")
    if board is None:
        return None
    return Lessons(replica if settings.redis.url else f"worker-{worker}", board, learning)


def _board(settings: Settings, name: str) -> Board | None:
    """Where replicas tell each other such things; None for one that is alone."""
    if settings.redis.url is not None:
        client = connect(settings.redis.url, settings.redis.timeout_s)
        return RedisBoard(client, f"joulegate:{name}")
    if settings.server.workers > 1:
        return FileBoard(Path(settings.state_dir) / name)
    return None


def canaries_of(settings: Settings, replica: str, worker: int) -> Canaries:
    """The roll-outs of new backends, known to all replicas that share a store."""
    kept, name = FileCanaries(Path(settings.state_dir) / "canaries"), f"worker-{worker}"
    if settings.redis.url is None:
        return Canaries(name, kept)
    client = connect(settings.redis.url, settings.redis.timeout_s)
    name = kept.begun(f"{name}-") or f"{name}-{replica}"  # another machine has its own
    return Canaries(name, KeptCanaries(RedisCanaries(client), kept))
