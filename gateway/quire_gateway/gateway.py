"""The parts put together: one gateway from its first connection to its last."""

import asyncio
import contextlib

import msgspec

from quire_api.connection import Connection
from quire_api.errors import UserError
from quire_api.tracing import make_tracing
from quire_api.wire import HEADER_REQUEST_ID
from quire_gateway.access_log import AccessLog, Exchange
from quire_gateway.config import BadConfig, GatewayConfig
from quire_gateway.discovery import Discovery, FileDiscovery
from quire_gateway.errors import JSON, Refusal
from quire_gateway.explain import Explainer, asked
from quire_gateway.fleet import Bounds, Fleet
from quire_gateway.follow import Follower
from quire_gateway.keep import keep_going
from quire_gateway.life import ForwardRules
from quire_gateway.metrics import Metrics
from quire_gateway.models import ModelStore
from quire_gateway.outliers import OutlierRules
from quire_gateway.pages import Pages
from quire_gateway.peer_follow import Peers
from quire_gateway.proxy import Proxy, parse_body
from quire_gateway.reply import Reply
from quire_gateway.request import Request, new_request_id, session_of
from quire_gateway.routes import Route, find_route
from quire_gateway.server import Limits, Server
from quire_gateway.siblings import OWN, Siblings
from quire_gateway.tls import BadCertificate, Certificate
from quire_gateway.warm import WarmRules
from quire_gateway.workers import Worker

_PROXIED = frozenset({Route.GENERATE, Route.FORWARD})
_OF_THE_WHOLE = frozenset({Route.METRICS, Route.LOAD, Route.REPLICAS})
_LAST_BYTES_S = 2.0


class NoDiscovery(UserError):
    """The gateway was not told where its replicas are."""


class Gateway:
    """`start`, then `drain` or `close`."""

    def __init__(self, config: GatewayConfig, discovery: Discovery | None = None, worker: Worker | None = None) -> None:
        """worker: this process's part, where several are one gateway.

        Raises:
            NoDiscovery: there is neither `discovery` nor a routing table in `config`.
            NoCluster: the table is in a cluster to which there is no way.
            BadConfig: a peer's name cannot be understood.
            BadCertificate: TLS is asked for with files that make no certificate.
        """
        if discovery is None:
            discovery = _discovery_of(config)
        self._config = config
        self._metrics = Metrics() if worker is None else Metrics(worker.restarts)
        self._access_log = AccessLog(config.access_log)
        self._models = ModelStore(config.tokenizer_threads)
        bounds = Bounds(
            config.max_in_flight_per_replica,
            config.max_held,
            config.hold_timeout_s,
            config.saturation,
            config.retry_ratio,
        )
        self.fleet = Fleet(bounds)
        rules = OutlierRules(
            base_ejection_time_s=config.outlier_base_ejection_s,
            max_ejection_percent=config.outlier_max_ejection_percent,
        )
        outlier = self._metrics.ejected
        self._follower = Follower(
            discovery,
            self.fleet,
            self._models,
            config.probe_timeout_s,
            rules,
            outlier,
            WarmRules(config.warm_timeout_s, config.warm_tokens),
            self._metrics.warmed,
        )
        self._tracing = make_tracing(config.otlp_traces_endpoint, "quire-gateway")
        self._proxy = Proxy(
            self.fleet,
            self._models,
            self._metrics,
            bounds,
            ForwardRules(config.max_attempts, config.max_moves, config.upstream_silence_s, config.hedge_after_s),
            self._follower.watch,
            self._tracing,
        )
        self._pages = Pages(self.fleet, self._follower, self._metrics, config.internal_key, lambda: self._is_draining)
        self._explainer = Explainer(self.fleet, self._models)
        self._worker = worker
        others = [] if worker is None else [each for each in worker.inner if each != worker.inner[worker.number]]
        self.peers = Peers(self.fleet, others or _peer_names(config), config.internal_key)
        self._siblings = Siblings(others, config.internal_key)
        limits = Limits(config.max_header_bytes, config.max_body_bytes, config.max_buffered_bytes)
        self._server = Server(self._handle, limits, self._unread)
        self._metrics.watch_bodies(lambda: self._server.bodies.used)
        self._certificate = _certificate_of(config)
        self._renewal: asyncio.Task[None] | None = None
        self._in_flight = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_draining = False
        self._turns_away = False
        self.port = 0
        self.tls_port = 0

    @property
    def url(self) -> str:
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"http://{host}:{self.port}"

    @property
    def _number(self) -> int:
        return 0 if self._worker is None else self._worker.number

    async def start(self) -> None:
        """Listen and begin to follow discovery.

        Raises:
            OSError: the address cannot be bound.
        """
        worker, tls = self._worker, None if self._certificate is None else self._certificate.context
        if worker is not None:
            self.port = await self._server.adopt(worker.door)
            await self._server.adopt(worker.inner_door)
            if worker.tls_door is not None:
                self.tls_port = await self._server.adopt(worker.tls_door, tls)
        else:
            self.port = await self._server.start(self._config.host, self._config.port)
            if tls is not None:
                self.tls_port = await self._server.start(self._config.host, self._config.tls_port, tls)
        if self._certificate is not None:
            self._renewal = asyncio.create_task(keep_going("following the certificate", self._certificate.follow))
        self._follower.start()
        self.peers.start()

    async def drain(self) -> None:
        """Say not ready, finish what is in flight (up to the configured time), then close.

        The address stays open meanwhile, so that probes see why. Each connection closes behind its next answer: clients
        are to find another gateway before the grace time is over and requests for models are turned away with 503. What
        is open then closes too, so that nobody sends one more request where a long stream has just ended.
        """
        self._is_draining = True
        self._server.leave()
        await asyncio.sleep(self._config.drain_grace_s)
        self._turns_away = True
        self._server.close_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), self._config.shutdown_timeout_s)
        self.peers.stop_telling()
        self._server.close_when_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), _LAST_BYTES_S)
        await self.close()

    async def close(self) -> None:
        """Stop at once; requests in flight are cut."""
        self._server.close_when_idle()
        self._server.abort()
        if self._renewal is not None:
            self._renewal.cancel()
        await self.peers.close()
        await self._follower.close()
        self._models.close()
        self._access_log.flush()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _handle(self, request: Request, reply: Reply) -> None:
        exchange = Exchange(request.request_id(), request.method, request.path, request.peer)
        try:
            route = find_route(request.method, request.path)
            if route in _PROXIED:
                await self._forward(route, request, reply, exchange)
            elif route is Route.PEERS:
                self._pages.check_internal(request)
                await self.peers.tell(reply)
            else:
                if route is Route.EXPLAIN:
                    status, kind, body = 200, JSON, await self._explain(request)
                elif len(self._siblings) and route in _OF_THE_WHOLE and request.query != OWN:
                    status, kind, body = await self._pages.answer_for_all(route, request, self._siblings, self._number)
                else:
                    status, kind, body = self._pages.answer(route, request)
                reply.send(status, [(b"content-type", kind)], body)
        except Refusal as refusal:
            self._metrics.refused((exchange.namespace, exchange.deployment), refusal.code, exchange.key)
            exchange.outcome, exchange.detail = "refused", refusal.code
            headers = [
                (b"content-type", JSON),
                (HEADER_REQUEST_ID.encode(), exchange.request_id.encode()),
                *refusal.headers(),
            ]
            reply.send(refusal.status, headers, refusal.body())
            self._record(request, reply, exchange)

    async def _explain(self, request: Request) -> bytes:
        self._pages.check_internal(request)
        is_post = request.method == "POST"
        if not self._config.internal_key:
            self.fleet.check_token(request.bearer_token())
        body, size = (parse_body(request.body), len(request.body)) if is_post else asked(request)
        # Who holds the internal key may look at every model, and with a client's key beside it sees what that one gets.
        token = request.bearer_token() or (None if self._config.internal_key else "")
        return msgspec.json.encode(await self._explainer.explain(body, size, token, session_of(request)))

    async def _forward(self, route: Route, request: Request, reply: Reply, exchange: Exchange) -> None:
        if self._turns_away:
            reply.keeps_alive = False
            raise Refusal(503, "draining", "This gateway is shutting down. Send the request again.", retry_after_s=1)
        self._in_flight += 1
        self._is_idle.clear()
        try:
            await self._proxy.serve(route, request, reply, exchange)
        except Refusal:
            raise
        except BaseException as error:
            exchange.ended_by(error)
            self._record(request, reply, exchange)
            raise
        else:
            self._record(request, reply, exchange)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._is_idle.set()

    def _unread(self, refusal: Refusal, peer: str, method: str, path: str) -> None:
        """A request was not HTTP, or did not arrive whole; whose it would have been is not known."""
        self._metrics.refused(("", ""), refusal.code, "")
        self._metrics.answered(("", ""), refusal.status)
        exchange = Exchange(new_request_id(), method, path, peer, status=refusal.status)
        exchange.outcome, exchange.detail = "refused", refusal.code
        self._access_log.write(exchange)

    def _record(self, request: Request, reply: Reply, exchange: Exchange) -> None:
        took = asyncio.get_running_loop().time() - request.arrived_at
        exchange.duration_ms = round(took * 1000, 3)
        exchange.status = reply.status
        exchange.bytes_sent = reply.bytes_sent
        who = exchange.namespace, exchange.deployment
        self._metrics.answered(who, reply.status)
        if exchange.deployment:
            self._metrics.of(who).duration.observe(took)
        self._access_log.write(exchange)


def check(config: GatewayConfig) -> None:
    """
    Raises:
        UserError: a gateway of this configuration would not start.
    """
    _discovery_of(config)
    _peer_names(config)
    _certificate_of(config)


def _certificate_of(config: GatewayConfig) -> Certificate | None:
    if config.tls_certificate is None and config.tls_key is None:
        return None
    if config.tls_certificate is None or config.tls_key is None:
        raise BadCertificate("TLS needs both --tls-certificate FILE and --tls-key FILE.")
    return Certificate(config.tls_certificate, config.tls_key)


def _peer_names(config: GatewayConfig) -> list[str]:
    names = [name.strip() for name in config.peers.split(",") if name.strip()]
    for name in names:
        host, _, port = name.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise BadConfig(f"--peers: {name!r} must have the form HOST:PORT, for example quire-gateway-peers:8000.")
    if names and config.workers > 1:
        message = (
            "other gateways would hear one of its workers, and take that for all. Start gateways of one worker each"
        )
        raise BadConfig(f"--peers with --workers {config.workers}: {message}; in a cluster that is `gateway.replicas`.")
    return names


def _discovery_of(config: GatewayConfig) -> Discovery:
    if config.kubernetes_table:
        from quire_gateway.discovery_kubernetes import KubernetesDiscovery

        namespace, _, name = config.kubernetes_table.rpartition("/")
        connection = Connection.find(config.kubeconfig)
        return KubernetesDiscovery(connection, namespace or connection.namespace, name, config.namespaces.split(","))
    if config.routing_table is None:
        message = "The gateway does not know where replicas are. Give it --routing-table FILE, or in a cluster"
        raise NoDiscovery(f"{message} --kubernetes-table NAMESPACE/SECRET.")
    if config.routing_table.is_dir():
        raise NoDiscovery(f"--routing-table {config.routing_table} is a directory. Name the file in it.")
    return FileDiscovery(config.routing_table)
