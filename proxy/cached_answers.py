"""Answers from the cache, those that others are just fetching or that were asked for in other words
among them, and what is kept there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from proxy import cache, similar
from proxy.admission import Gate
from proxy.asgi import Receive
from proxy.attempts import whole
from proxy.auth import Caller
from proxy.cache import Answer
from proxy.flight import Admitted, Flight
from proxy.settings import Settings
from proxy.tokens import Worker
from proxy.wishes import Wishes


class CachedAnswers:
    """Finds answers and keeps them. Used from the event loop only."""

    def __init__(
        self,
        settings: Settings,
        gate: Gate,
        worker: Worker,
        watch: Callable[[Flight, Receive], asyncio.Future[None] | None],
    ) -> None:
        """``worker`` reads prompts that are to be compared; ``watch`` ends a request when its
        client goes."""
        self.settings = settings
        self.gate = gate
        self.worker = worker
        self.watch = watch
        self.similar = similar.SimilarPrompts()

    async def find(
        self,
        flight: Flight,
        caller: Caller,
        admitted: Admitted,
        wishes: Wishes,
        receive: Receive,
    ) -> Answer | None:
        """The answer from the cache, also when another request is just fetching it."""
        stored = admitted.admission.cached
        if stored is None and not admitted.admission.leads:
            watching = self.watch(flight, receive)  # whoever waits may also leave
            try:
                stored = await self.gate.wait(admitted, self.gate.claim_s)
            finally:
                if watching is not None:
                    watching.cancel()
        oldest_s = 0.0
        if wishes.max_age_s is not None and not wishes.no_cache:
            oldest_s = flight.start_wall_s - wishes.max_age_s
            stored = await self.gate.look(admitted, admitted.cache_key)
        if stored is None and flight.question is not None and not wishes.no_cache:
            stored = await self._alike(flight, caller, admitted)
        answer = cache.unpack(stored) if stored is not None else None
        if answer is None or answer.made_s < oldest_s:
            flight.cache = "miss" if flight.cache == "similar" else flight.cache
            return None
        return answer

    async def _alike(self, flight: Flight, caller: Caller, admitted: Admitted) -> bytes | None:
        """The answer to a prompt that asks the same in other words, where the team wants that."""
        question, threshold = flight.question, caller.similar_answers
        assert question is not None
        assert threshold is not None
        prompt = await self.worker.submit(question.prompt)
        other = self.similar.find(question.scope, prompt, threshold)
        if other is None or other == admitted.cache_key:
            return None
        stored = await self.gate.look(admitted, other)
        if stored is None:
            self.similar.drop(question.scope, prompt, other)
        else:
            flight.cache = "similar"
        return stored

    async def keep(
        self,
        flight: Flight,
        admitted: Admitted | None,
        response: aiohttp.ClientResponse,
        body: bytes,
    ) -> None:
        if (
            admitted is None
            or admitted.cache_key is None
            or len(body) > self.settings.cache.max_answer_bytes
            or flight.engine is None
            or flight.engine.group != flight.cache_group  # a fallback's answer, or a thriftier one
            or not cache.keepable(response.headers, body)
            or flight.budget is not None  # the next one may ask for a whole answer
        ):
            return
        usage, estimate = flight.usage, whole(flight)
        answer = Answer(
            content_type=response.headers.get("content-type", "application/json").encode(),
            body=body,
            backend=flight.engine.name,
            prompt_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            energy_j=estimate.energy_j.mid if estimate and estimate.energy_j else None,
            evidence=str(estimate.evidence) if estimate else "unknown",
            made_s=flight.start_wall_s,
        )
        await self.gate.keep(admitted, cache.pack(answer), self.settings.cache.ttl_s)
        flight.kept = True
        if flight.question is not None:
            prompt = await self.worker.submit(flight.question.prompt)
            self.similar.add(flight.question.scope, prompt, admitted.cache_key)


def can_keep(admitted: Admitted | None) -> bool:
    """Whether the answer may go into the cache."""
    return admitted is not None and admitted.cache_key is not None
