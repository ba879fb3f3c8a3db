"""One admitted request until its answer has ended: tokenise, pick, forward, retry, continue elsewhere."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from quire_api import wire
from quire_api.replay import HEADER_REPLAY, MalformedReplay, Resume
from quire_api.tracing import Span, without_context
from quire_gateway.access_log import Exchange
from quire_gateway.admission import hold, rate_limit_headers, take_tokens
from quire_gateway.choose import Choice
from quire_gateway.errors import Refusal
from quire_gateway.fleet import Bounds, DeploymentState, Excluded, ReplicaState
from quire_gateway.health import internal_headers
from quire_gateway.hedge import Attempt, Result, race
from quire_gateway.keys import Caller
from quire_gateway.limits import Permit
from quire_gateway.load import Pace
from quire_gateway.metrics import Metrics
from quire_gateway.models import ModelStore, Prompt
from quire_gateway.relay import End, Outcome, Relay
from quire_gateway.replay import Record, new_terms, resumed_body
from quire_gateway.reply import Reply
from quire_gateway.request import Headers, Request, forwardable, session_of
from quire_gateway.routes import Route
from quire_gateway.upstream import UpstreamFailure, request_bytes
from quire_gateway.wait import Wait

log = logging.getLogger(__name__)

_REPLICA = wire.HEADER_REPLICA.encode()
_REASON = wire.HEADER_REASON.encode()
_CACHED_TOKENS = wire.HEADER_CACHED_TOKENS.encode()
_INDEX_MODE = wire.HEADER_INDEX_MODE.encode()
_MISS = wire.HEADER_MISS.encode()
_ATTEMPTS = wire.HEADER_ATTEMPTS.encode()
_REQUEST_ID = wire.HEADER_REQUEST_ID.encode()
_NOT_LOST = frozenset({"resume_refused", "request_failed"})
"""Failures of one request, which say little of the replica."""


@dataclass(frozen=True, slots=True)
class ForwardRules:
    """How often and how long a request is tried. max_moves: times that a broken stream is continued elsewhere."""

    max_attempts: int = 3
    max_moves: int = 8
    silence_s: float = 600.0
    hedge_after_s: float = 0.0
    """A stream that has not begun is asked of a second replica then; 0: never."""


@dataclass(frozen=True, slots=True)
class Means:
    """What requests are carried with; on_ejected hears of a replica that gets no more."""

    models: ModelStore
    metrics: Metrics
    bounds: Bounds
    rules: ForwardRules
    on_ejected: Callable[[ReplicaState], None]


class Life:
    """One admitted request until its answer has ended."""

    def __init__(
        self,
        means: Means,
        route: Route,
        request: Request,
        reply: Reply,
        exchange: Exchange,
        deployment: DeploymentState,
        body: dict[str, Any],
        caller: Caller,
        permit: Permit,
        span: Span | None,
    ) -> None:
        self._span = span
        self._means = means
        self._caller = caller
        self._permit = permit
        self._route = route
        self._request = request
        self._reply = reply
        self._exchange = exchange
        self._deployment = deployment
        self._body = body
        self._loop = asyncio.get_running_loop()
        self._excluded: Excluded = set()
        self._wait = Wait(request.arrived_at + means.bounds.hold_timeout_s)
        self._chosen_at = request.arrived_at
        key = deployment.table.internal_key
        # With an internal key the engine trusts the gateway, and the client's own key is none of its business.
        self._headers = [
            *forwardable(request.headers, keep_authorization=not key),
            *internal_headers(key),
            (_REQUEST_ID, exchange.request_id.encode()),
        ]
        may_move = route is Route.GENERATE and body.get("stream") is True and means.rules.max_moves > 0
        self._terms = new_terms() if may_move else None
        self._so_far: Resume | None = None
        self._relay: Relay | None = None
        self._began_with: tuple[str, str, str] | None = None
        self._is_woken = False
        self._racing: list[Attempt] = []
        """Those of which the first to begin goes on."""
        self._begun: asyncio.Future[None] | None = None
        self._barren = 0
        """Replicas in a row that have failed on the stream without an event."""
        self._salt = caller.salt(body)
        if caller.salt_seed is not None:
            self._headers.append((wire.HEADER_CACHE_SALT.encode(), self._salt.encode()))
        if not deployment.callers.is_open and key:
            # Else a client could go before other keys' requests by a `priority` of its own.
            self._headers.append((wire.HEADER_PRIORITY.encode(), str(caller.key.priority).encode()))

    async def run(self) -> None:
        """
        Raises:
            Refusal: no replica answered, and the client has seen nothing.
        """
        try:
            await self._run()
        except Refusal as refusal:
            if self._relay is None or not self._reply.is_started:
                raise
            self._break_off(self._relay, refusal.code, refusal.message)

    async def _run(self) -> None:
        choice: Choice | None = None
        while True:
            replicas = await self._replicas()
            if choice is None:
                choice = Choice(self._deployment, await self._prompt(replicas), session=session_of(self._request))
                await self._turn()
                replicas = await self._replicas()
            if not self._exchange.attempts:
                self._chosen_at = self._loop.time()
            attempt = self._begin(choice, replicas)
            try:
                if await self._attempt(attempt, choice):
                    return
            finally:
                attempt.end()

    def _begin(self, choice: Choice, replicas: list[ReplicaState]) -> Attempt:
        """Pick one of `replicas` and count the request there."""
        pick = choice.pick(replicas)
        replica = self._deployment.replicas[pick.replica]
        miss = choice.miss(pick)
        self._exchange.attempts += 1
        self._means.metrics.picked(self._deployment.key, pick.reason)
        if miss:
            self._means.metrics.missed(self._deployment.key, miss)
        made = 0 if self._so_far is None else self._so_far.output_tokens
        ticket = self._deployment.take(replica, pick.uncached_tokens + made)

        def expect() -> None:
            if not ticket.is_released:
                ticket.expectation = choice.expect(replica)

        # Of a prompt of 8,192 tokens it takes a millisecond to compute and note all blocks.
        self._deployment.put_off(expect)
        attempt = Attempt(replica, ticket, pick, miss, self._exchange.attempts)
        self._note(attempt)
        return attempt

    async def _turn(self) -> None:
        if self._route is Route.FORWARD:
            self._had_turn()
            return
        deployment, rank = self._deployment, self._body.get("priority")
        rank = rank if isinstance(rank, int) else 0
        await deployment.turns.wait(self._caller, self._exchange.prompt_tokens, rank, self._wait, deployment.table.name)
        self._had_turn()
        self._exchange.queue_ms = round(self._wait.seconds * 1000, 3)
        self._means.metrics.of(deployment.key).queued.observe(self._wait.seconds)

    def _had_turn(self) -> None:
        if self._is_woken:
            self._is_woken = False
            self._deployment.woken -= 1

    def settle(self) -> None:
        """The request is over: count what it used."""
        self._relay = None  # which holds this Life: a circle would wait for Python's collector
        self._racing.clear()
        self._had_turn()
        was_served = self._exchange.attempts > 0
        self._permit.end(self._loop.time(), was_served=was_served)
        if was_served:
            exchange = self._exchange
            exchange.output_tokens = self._permit.written
            self._means.metrics.served(
                self._deployment.key, exchange.key, exchange.prompt_tokens, exchange.output_tokens
            )

    async def _replicas(self) -> list[ReplicaState]:
        while not (replicas := self._candidates()):
            await hold(
                self._deployment,
                self._excluded,
                self._means.bounds,
                self._wait,
                has_begun=self._so_far is not None,
            )
            if not self._is_woken and not self._exchange.attempts:
                self._is_woken = True
                self._deployment.woken += 1
            self._exchange.queue_ms = round(self._wait.seconds * 1000, 3)
        return replicas

    def _candidates(self) -> list[ReplicaState]:
        replicas = self._deployment.candidates(self._excluded)
        if self._so_far is None:
            return replicas
        # Another model, or another template, would go on with another text.
        fit = [replica for replica in replicas if _facts(replica) == self._began_with]
        self._excluded.update((each, each.health.generation) for each in replicas if each not in fit)
        return fit

    async def _prompt(self, replicas: list[ReplicaState]) -> Prompt:
        if self._route is Route.FORWARD:
            return Prompt([], 0)
        info = next((replica.info for replica in replicas if replica.info is not None), None)
        request = self._request
        prompt = await self._means.models.prompt(request.path, self._body, len(request.body), info)
        take_tokens(
            self._permit, self._caller, self._deployment.table.name, prompt.count, self._body, self._loop.time()
        )
        self._exchange.prompt_tokens = prompt.count
        self._means.metrics.of(self._deployment.key).prompt_tokens.inc(prompt.count)
        return Prompt(prompt.tokens, prompt.count, self._salt)

    def _note(self, attempt: Attempt) -> None:
        exchange, pick = self._exchange, attempt.pick
        exchange.replica = pick.replica
        exchange.reason = pick.reason
        exchange.cached_tokens = pick.cached_tokens
        exchange.index_mode = attempt.index_mode
        exchange.miss = attempt.miss

    async def _attempt(self, attempt: Attempt, choice: Choice) -> bool:
        """Whether the request is over; otherwise it may be sent to another replica.

        Raises:
            Refusal: the last attempt failed.
        """
        after_s = self._means.rules.hedge_after_s
        if after_s and attempt.number == 1 and self._terms is not None:
            attempt, (relay, outcome) = await self._hedge(attempt, choice, after_s)
        else:
            relay, outcome = await self._ask(attempt)
        replica, ticket, generation = attempt.replica, attempt.ticket, attempt.generation
        if relay is not None and outcome.end is End.TURNED_AWAY:
            self._blame(replica, generation, f"answered {relay.status}", is_lost=False)
            if self._deployment.candidates(self._excluded) and self._may_retry(is_free=False):
                relay.drop()
                self._means.metrics.retried(self._deployment.key, f"status_{relay.status}")
                return False
            relay.accept()
            outcome = await self._settled(relay)
        if outcome.failure is None:
            if relay is not None and relay.status < 500:
                replica.health.answered()
                now = self._loop.time()
                self._deployment.load.service.add(now - ticket.sent_at, now)
            return True
        is_lost = outcome.failure.cause not in _NOT_LOST
        self._blame(replica, generation, str(outcome.failure), is_lost=is_lost)
        cause = outcome.failure.cause
        if outcome.end is End.BROKEN or self._so_far is not None:
            self._relay = relay or self._relay
            return not self._move(replica, outcome)
        if not self._may_retry(is_free=self._exchange.attempts == 1):
            message = (
                f"The model's replicas failed on this request {self._exchange.attempts} times "
                f"(last: {outcome.failure}). Try again."
            )
            raise Refusal(502, "replica_failed", message)
        self._means.metrics.retried(self._deployment.key, cause)
        return False

    async def _hedge(self, first: Attempt, choice: Choice, after_s: float) -> tuple[Attempt, Result]:
        """The attempt that decides, the first or one beside it, and what came of it."""

        def find_second() -> Attempt | None:
            bounds, others = self._means.bounds, self._deployment.others_at
            free = [
                each
                for each in self._candidates()
                if each is not first.replica and each.in_flight + others(each.id)[0] < each.slots(bounds)
            ]
            if not free or not self._may_retry(is_free=False):
                return None
            self._racing.append(second := self._begin(choice, free))
            return second

        def failed(attempt: Attempt, result: Result) -> None:
            relay, outcome = result
            why = str(outcome.failure) if relay is None or outcome.failure else f"answered {relay.status}"
            self._blame(attempt.replica, attempt.generation, why, is_lost=outcome.end is End.FAILED)
            attempt.give_up()

        self._racing.append(first)
        begun = self._begun = self._loop.create_future()
        attempt, result, winner = await race(first, self._ask, find_second, begun, after_s, failed)
        self._racing = []
        self._note(attempt)
        if winner is not None:
            self._means.metrics.hedged(self._deployment.key, winner)
        return attempt, result

    def _move(self, replica: ReplicaState, outcome: Outcome) -> bool:
        """Whether the stream that broke goes on with another replica; otherwise the client has been told."""
        relay, failure = self._relay, outcome.failure
        assert relay is not None
        assert failure is not None
        self._barren += 1
        if outcome.end is End.BROKEN:
            if not relay.is_recorded or relay.record is None:
                return self._break_off(relay, failure.cause, str(failure))
            try:
                so_far = relay.record.read()
            except MalformedReplay as error:
                return self._break_off(relay, "malformed_replay", f"{failure}; and its stream cannot go on: {error}")
            if self._so_far is None:
                self._began_with = _facts(replica)
            self._so_far = so_far
            self._barren = 0
        # Replicas that give nothing, one after the other, may fail because of this very request.
        is_free = self._barren <= 1 and failure.cause not in _NOT_LOST
        moves = self._exchange.moves
        if moves >= self._means.rules.max_moves or not (is_free or self._deployment.retries.take()):
            return self._break_off(relay, failure.cause, f"{failure}, and it had been moved {moves} times")
        self._exchange.moves += 1
        self._wait = Wait(self._loop.time() + self._means.bounds.hold_timeout_s)
        self._means.metrics.moved(self._deployment.key, failure.cause)
        log.info("stream %s leaves replica %s: %s", self._exchange.request_id, replica.id, failure)
        return True

    def _break_off(self, relay: Relay, cause: str, why: str) -> bool:
        self._exchange.outcome = "broken"
        self._exchange.detail = why
        self._means.metrics.broke(self._deployment.key, cause)
        relay.break_off(f"The replica failed while it was answering ({why}). Send the request again.")
        return False

    async def _ask(self, attempt: Attempt) -> Result:
        record = None if self._terms is None else Record(self._so_far)
        try:
            relay, outcome = await self._send(attempt, record)
        except UpstreamFailure as failure:
            return None, Outcome(End.FAILED, failure)
        if outcome.failure is None:
            attempt.replica.observed.answered(relay.status, self._loop.time())
        return relay, outcome

    async def _send(self, attempt: Attempt, record: Record | None) -> tuple[Relay, Outcome]:
        replica = attempt.replica
        body, headers, terms = self._request.body, self._headers, self._terms
        if terms is not None:
            if self._so_far is not None:
                body = resumed_body(body, self._so_far)
                terms = msgspec.structs.replace(terms, resumes=True)
            headers = [*headers, (HEADER_REPLAY.encode(), msgspec.json.encode(terms))]
        span = None if self._span is None else self._span.child(f"replica {replica.id}", "client")
        if span is not None:
            headers = [*without_context(headers), *span.headers()]
        try:
            relay, outcome = await self._exchange_with(attempt, record, body, headers)
        except BaseException as error:
            if span is not None:
                span.end(str(error) or type(error).__name__, quire__replica=replica.id)
            raise
        if span is not None:
            why = "" if outcome.failure is None else str(outcome.failure)
            span.end(why, quire__replica=replica.id, http__response__status_code=relay.status)
        return relay, outcome

    async def _exchange_with(
        self, attempt: Attempt, record: Record | None, body: bytes, headers: Headers
    ) -> tuple[Relay, Outcome]:
        replica = attempt.replica
        data = request_bytes(self._request.method, self._request.path, replica.pool.authority, headers, body)
        is_fresh = False
        while True:
            connection = await replica.pool.acquire(is_fresh=is_fresh)
            relay = Relay(
                self._reply,
                connection,
                extra_headers=self._answer_headers(attempt),
                on_first_byte=lambda: self._first_byte(attempt),
                pace=Pace(lambda itl_s: self._paced(replica, itl_s)),
                on_written=self._wrote,
                silence_s=self._means.rules.silence_s,
                pulse=replica.pulse,
                record=record,
                goes_on=self._so_far is not None,
            )
            attempt.relay = relay
            attempt.ticket.sent_at = self._loop.time()
            connection.ask(data, relay)
            replica.answers.add(relay)
            try:
                outcome = await self._settled(relay)
            finally:
                replica.answers.discard(relay)
            # A server may close an idle connection just when we use it; that says nothing of its health.
            is_stale = connection.is_reused and not connection.has_spoken
            was_closed = outcome.failure is not None and outcome.failure.cause == "reset"
            if outcome.end is not End.FAILED or not (is_stale and was_closed) or is_fresh:
                return relay, outcome
            is_fresh = True

    async def _settled(self, relay: Relay) -> Outcome:
        try:
            return await relay.settled
        except asyncio.CancelledError:
            relay.drop()
            raise

    def _first_byte(self, attempt: Attempt) -> None:
        ticket = attempt.ticket
        ticket.first_byte()
        if self._racing:
            self._won(attempt)
        if self._body.get("stream") is True:
            now = self._loop.time()
            ticket.replica.observed.first_token(now - ticket.sent_at, ticket.work_tokens, now)
        if self._exchange.first_byte_ms is not None:
            return
        now = self._loop.time()
        waited = now - self._request.arrived_at
        # Only a stream's first byte is its first token; other answers come whole.
        if self._body.get("stream") is True:
            self._deployment.load.ttft.add(now - self._chosen_at, now)
        ticket.replica.saved_tokens.add(self._exchange.cached_tokens, now)
        self._exchange.first_byte_ms = round(waited * 1000, 3)
        children = self._means.metrics.of(self._deployment.key)
        children.first_byte.observe(waited)
        if self._exchange.cached_tokens:
            children.cached_tokens.inc(self._exchange.cached_tokens)

    def _won(self, attempt: Attempt) -> None:
        """Of those that race `attempt` is the first to begin."""
        racing, self._racing = self._racing, []
        if self._begun is not None:
            self._begun.set_result(None)
        self._note(attempt)
        now = self._loop.time()
        for rival in racing:
            if rival is attempt or rival.ticket.is_released:
                continue
            if rival.relay is not None:
                # It would have taken longer, but that is known only of those that are waited for.
                rival.replica.observed.first_token(now - rival.ticket.sent_at, rival.ticket.work_tokens, now)
            rival.give_up()

    def _paced(self, replica: ReplicaState, itl_s: float) -> None:
        now = self._loop.time()
        self._deployment.load.itl.add(itl_s, now)
        replica.observed.paced(itl_s, now)

    def _wrote(self, tokens: int) -> None:
        self._permit.wrote(tokens, self._loop.time())
        self._deployment.turns.wrote(self._caller, tokens)

    def _answer_headers(self, attempt: Attempt) -> Headers:
        pick = attempt.pick
        return [
            (_REPLICA, pick.replica.encode()),
            (_REASON, pick.reason.encode()),
            (_CACHED_TOKENS, b"%d" % pick.cached_tokens),
            (_INDEX_MODE, attempt.index_mode.encode()),
            *([(_MISS, attempt.miss.encode())] if attempt.miss else []),
            (_ATTEMPTS, b"%d" % attempt.number),
            (_REQUEST_ID, self._exchange.request_id.encode()),
            *self._wait.headers(),
            *rate_limit_headers(self._caller, self._loop.time()),
        ]

    def _blame(self, replica: ReplicaState, generation: int, why: str, *, is_lost: bool) -> None:
        self._excluded.add((replica, generation))
        health = replica.health
        # What fails late, on a connection to an engine that has restarted since, is no word on the new one.
        if health.generation == generation and health.request_failed(self._loop.time(), why, is_lost=is_lost):
            log.warning("replica %s of %s is ejected: %s", replica.id, self._deployment.table.name, why)
            self._means.on_ejected(replica)

    def _may_retry(self, is_free: bool) -> bool:
        if self._exchange.attempts >= self._means.rules.max_attempts:
            return False
        return is_free or self._deployment.retries.take()


def _facts(replica: ReplicaState) -> tuple[str, str, str] | None:
    """What two replicas must have in common for one to go on with the other's stream."""
    info = replica.info
    return None if info is None else (info.model_revision, info.adapter, info.tokenizer_digest)
