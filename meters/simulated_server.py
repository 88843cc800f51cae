"""The simulated engine over HTTP: vLLM's API, as a raw ASGI application.

One task drives the physics at the pace of the clock and wakes the requests whose tokens are there.
A client that goes away cancels its request. Everything says that it is simulated: the text, the
model list, the metrics page and the header ``x-joulegate-simulated``.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from meters.clock import Clock, MonotonicClock
from meters.simulated_metrics import Metrics
from meters.simulated_physics import Engine, EngineConfig, Job
from meters.simulated_requests import (
    Answer,
    Asked,
    Refused,
    chat,
    completion,
    decoded,
    embedding,
    tokenized,
)
from meters.simulated_shapes import Choice, Shape
from meters.simulated_text import block_keys

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MARK = (b"x-joulegate-simulated", b"true")
JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
EMBEDDING_SIZE = 64


class _Request:
    """One HTTP request for tokens: its choices, and a bell that rings when there is news."""

    __slots__ = ("bell", "choices", "gone")

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.bell = asyncio.Event()
        self.gone = False


class SimulatedServer:
    """An ASGI application around one engine."""

    def __init__(self, config: EngineConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or MonotonicClock()
        self.engine = Engine(config)
        self.metrics = Metrics()
        self.asleep = False
        self.on_startup: Callable[[], None] = lambda: None
        self._started_s = self.clock.now_s()
        self._in_flight = 0
        self._work: asyncio.Event | None = None
        self._driver: asyncio.Task[None] | None = None
        self._requests: dict[str, _Request] = {}
        self._numbers = itertools.count()
        # The meter may read from another thread; it must never see a step half booked.
        self._booking = threading.Lock()
        self._shown_j = 0.0  # what the counter said last
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=64)  # start, end, joules

    # -- energy ----------------------------------------------------------------------------

    def energy_j(self) -> float:
        """The cumulative counter: idle and active joules since the engine started.

        Updated every ``counter_period_s``, like a GPU's, so it lags by up to that much.
        """
        now_s = self.clock.now_s()
        period_s = self.config.counter_period_s
        at_s = now_s - (now_s - self._started_s) % period_s if period_s > 0 else now_s
        idle_j = self.config.physics.idle_power_w * (at_s - self._started_s)
        with self._booking:
            # Sums of different steps round differently: the last bit must not go back.
            self._shown_j = max(self._shown_j, self._active_j(at_s) + idle_j)
            return self._shown_j

    def _active_j(self, at_s: float) -> float:
        total_j = self.engine.energy_at(at_s)
        for start_s, end_s, joules in reversed(self._steps):
            if at_s >= end_s:
                break
            part = (at_s - start_s) / (end_s - start_s) if at_s > start_s else 0.0
            total_j -= joules * (1.0 - part)
        return total_j

    # -- the step loop ---------------------------------------------------------------------

    async def _drive(self, work: asyncio.Event) -> None:
        engine, clock = self.engine, self.clock
        at_s = clock.now_s()
        while True:
            if engine.begin(at_s) is None:
                work.clear()
                await work.wait()
                at_s = clock.now_s()
                continue
            step = engine.step
            assert step is not None
            await clock.sleep(step.end_s - clock.now_s())
            with self._booking:
                ended = engine.finish()
                engine.dropped.clear()
                self._steps.append((step.start_s, step.end_s, step.energy_j))
            self.metrics.stepped(step)
            for request_id in itertools.chain(
                engine.decoding, (seq.job.request_id for seq in ended)
            ):
                request = self._requests.get(request_id)
                if request is not None:
                    request.bell.set()
            # The next step follows at once, also when this process was late; but an engine that
            # fell a second behind slows down instead of hurrying after.
            now_s = clock.now_s()
            at_s = step.end_s if now_s - step.end_s < 1.0 else now_s

    def _submit(self, request: _Request, request_id: str, asked: Asked, answer: Answer) -> None:
        if self._driver is None or self._work is None:
            self._work = asyncio.Event()
            self._driver = asyncio.get_running_loop().create_task(self._drive(self._work))
        job = Job(
            request_id=request_id,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=max(1, len(answer.parts)),
            arrival_s=self.clock.now_s(),
            blocks=block_keys(asked.prompt) if self.config.prefix_cache else (),
        )
        request.choices.append(Choice(len(request.choices), answer, self.engine.submit(job)))
        self._requests[request_id] = request
        self._work.set()

    def _close(self, request: _Request) -> None:
        """Forget a request, and cancel what still runs of it."""
        for choice in request.choices:
            seq = choice.running
            if self._requests.pop(seq.job.request_id, None) is None:
                continue
            if seq.end_s is None:
                self.engine.cancel(seq, self.clock.now_s())
                reason = "abort"
            else:
                reason = "length" if choice.answer.finish_reason == "length" else "stop"
            self.metrics.ended(seq, reason)

    # -- HTTP ------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                await self._route(scope["method"], scope["path"], receive, send)
            except Refused as refused:
                await _reply(send, refused.body, status=refused.status)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
                self.on_startup()
            elif message["type"] == "lifespan.shutdown":
                if self._driver is not None:
                    self._driver.cancel()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _route(self, method: str, path: str, receive: Receive, send: Send) -> None:
        if method == "GET" and path in _PAGES:
            kind, page = _PAGES[path]
            await _reply(send, page(self), kind)
        elif method == "POST" and path in _ACTIONS:
            await _ACTIONS[path](self, await _read_body(receive), receive, send)
        elif path in _PAGES or path in _ACTIONS:
            raise Refused("Method Not Allowed", 405, "MethodNotAllowed")
        else:
            raise Refused("Not Found", 404, "NotFoundError")

    async def chat(self, body: bytes, receive: Receive, send: Send) -> None:
        """``POST /v1/chat/completions``."""
        await self._answer([chat(decoded(body), self.config)], True, receive, send)

    async def complete(self, body: bytes, receive: Receive, send: Send) -> None:
        """``POST /v1/completions``."""
        await self._answer(completion(decoded(body), self.config), False, receive, send)

    async def embed(self, body: bytes, receive: Receive, send: Send) -> None:
        """``POST /v1/embeddings``."""
        wanted = decoded(body)
        texts = embedding(wanted, self.config)
        self._refuse_asleep()
        request_id = f"embd-{next(self._numbers):016x}"
        request = _Request()
        watcher = asyncio.ensure_future(_watch(receive, request))
        try:
            for i, (text, tokens) in enumerate(texts):
                self._submit(
                    request, f"{request_id}-{i}", Asked(text, tokens, []), Answer([""], "stop")
                )
            if not await _ended(request):
                return
        finally:
            watcher.cancel()
            self._close(request)
        tokens = sum(count for _, count in texts)
        form = wanted.get("encoding_format")
        answer = {
            "id": request_id,
            "object": "list",
            "created": int(time.time()),
            "model": self.config.model,
            "data": [
                {"index": i, "object": "embedding", "embedding": _vector(text, form)}
                for i, (text, _) in enumerate(texts)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }
        await _reply(send, orjson.dumps(answer))

    async def tokenize(self, body: bytes, receive: Receive, send: Send) -> None:
        """``POST /tokenize``."""
        await _reply(send, orjson.dumps(tokenized(decoded(body), self.config)))

    async def sleep(self, body: bytes, receive: Receive, send: Send) -> None:
        """``POST /sleep``: refuse requests until woken; idle power stays, as on real engines."""
        self.asleep = True
        await _reply(send, b"")

    async def wake_up(self, body: bytes, receive: Receive, send: Send) -> None:
        """``POST /wake_up``."""
        self.asleep = False
        await _reply(send, b"")

    def _refuse_asleep(self) -> None:
        if self.asleep:
            raise Refused("The engine is asleep. Wake it with /wake_up.", 503, "ServiceUnavailable")

    async def _answer(
        self, asked: list[Asked], is_chat: bool, receive: Receive, send: Send
    ) -> None:
        self._refuse_asleep()
        prefix = "chatcmpl" if is_chat else "cmpl"
        request_id = f"{prefix}-{self.config.seed & 0xFFFF:04x}{next(self._numbers):012x}"
        request = _Request()
        for one in asked:
            for answer in one.answers:
                self._submit(request, f"{request_id}-{len(request.choices)}", one, answer)
        shape = Shape(
            request_id, int(time.time()), self.config, asked, request.choices, is_chat=is_chat
        )
        watcher = asyncio.ensure_future(_watch(receive, request))
        self._in_flight += 1
        try:
            if asked[0].stream:
                await self._stream(shape, request, send)
            elif await _ended(request):
                # Closed before the reply, so that whoever has the answer finds it counted.
                self._close(request)
                await _reply(send, shape.whole())
        finally:
            self._in_flight -= 1
            watcher.cancel()
            self._close(request)

    async def _stream(self, shape: Shape, request: _Request, send: Send) -> None:
        headers = [(b"content-type", EVENTS), MARK]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        out = list(shape.opening())
        left = list(request.choices)
        while left:
            await request.bell.wait()
            request.bell.clear()
            if request.gone:
                return
            for choice in left:
                out.extend(shape.news(choice, self.engine.produced(choice.running)))
            left = [choice for choice in left if choice.running.end_s is None]
            if out:
                await _send_body(send, b"".join(out), more=True)
                out = []
        self._close(request)
        await _send_body(send, b"".join(shape.closing()), more=False)

    # -- pages -----------------------------------------------------------------------------

    def models_page(self) -> bytes:
        """``GET /v1/models``."""
        return orjson.dumps(
            {
                "object": "list",
                "data": [
                    {
                        "id": self.config.model,
                        "object": "model",
                        "created": int(time.time()),
                        "owned_by": "joulegate-simulated",
                        "root": self.config.model,
                        "parent": None,
                        "max_model_len": self.config.max_model_len,
                        "permission": [],
                    }
                ],
            }
        )

    def metrics_page(self) -> bytes:
        """``GET /metrics``."""
        return self.metrics.page(self.engine, self.asleep).encode()

    def energy_page(self) -> bytes:
        """``GET /simulated/energy``: the cumulative counter, for SimulatedMeter."""
        return orjson.dumps(
            {
                "device": "gpu0",
                "energy_j": self.energy_j(),
                "idle_power_w": self.config.physics.idle_power_w,
                "counter_period_s": self.config.counter_period_s,
                "evidence": "simulated",
            }
        )

    def load_page(self) -> bytes:
        """``GET /load``."""
        return orjson.dumps({"server_load": self._in_flight})

    def version_page(self) -> bytes:
        """``GET /version``."""
        return orjson.dumps({"version": self.config.version})

    def sleeping_page(self) -> bytes:
        """``GET /is_sleeping``."""
        return orjson.dumps({"is_sleeping": self.asleep})

    def health_page(self) -> bytes:
        """``GET /health``."""
        return b""


_PAGES: dict[str, tuple[bytes, Callable[[SimulatedServer], bytes]]] = {
    "/v1/models": (JSON, SimulatedServer.models_page),
    "/metrics": (TEXT, SimulatedServer.metrics_page),
    "/simulated/energy": (JSON, SimulatedServer.energy_page),
    "/load": (JSON, SimulatedServer.load_page),
    "/version": (JSON, SimulatedServer.version_page),
    "/is_sleeping": (JSON, SimulatedServer.sleeping_page),
    "/health": (TEXT, SimulatedServer.health_page),
    "/ping": (TEXT, SimulatedServer.health_page),
}
_ACTIONS: dict[str, Callable[[SimulatedServer, bytes, Receive, Send], Awaitable[None]]] = {
    "/v1/chat/completions": SimulatedServer.chat,
    "/v1/completions": SimulatedServer.complete,
    "/v1/embeddings": SimulatedServer.embed,
    "/tokenize": SimulatedServer.tokenize,
    "/sleep": SimulatedServer.sleep,
    "/wake_up": SimulatedServer.wake_up,
}


async def _ended(request: _Request) -> bool:
    """Wait until every choice has ended; False when the client went away first."""
    while not request.gone:
        if all(choice.running.end_s is not None for choice in request.choices):
            return True
        await request.bell.wait()
        request.bell.clear()
    return False


async def _watch(receive: Receive, request: _Request) -> None:
    """Note that the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    request.gone = True
    request.bell.set()


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _reply(send: Send, body: bytes, kind: bytes = JSON, status: int = 200) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), MARK]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await _send_body(send, body, more=False)


def _vector(text: str, form: Any) -> list[float] | str:
    """A unit vector that depends on the text alone; base64 of float32 when asked for."""
    state = zlib.crc32(text.encode())
    values = []
    for _ in range(EMBEDDING_SIZE):
        state = (1_103_515_245 * state + 12_345) % 2**31  # the C standard's example generator
        values.append(state / 2**30 - 1.0)
    length = _length(values)
    values = [value / length for value in values]
    if form == "base64":
        return base64.b64encode(struct.pack(f"<{EMBEDDING_SIZE}f", *values)).decode()
    return values


def _length(values: Iterable[float]) -> float:
    return sum(value * value for value in values) ** 0.5 or 1.0
