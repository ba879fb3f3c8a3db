"""What the routes of one server share: the engine, the tokenizer, and whether requests can be taken."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from quire_api.blocks import FORMAT_VERSION
from quire_api.openai import default_sampling
from quire_api.openai_responses import unknown_model
from quire_api.wire import ModelInfo
from quire_runtime.engine.messages import EngineReady
from quire_runtime.server.client import EngineClient
from quire_runtime.server.config import ServerConfig
from quire_runtime.server.errors import ModelNotFound, NotReady
from quire_runtime.server.metrics import Exposition, Metrics
from quire_text.bundle import GENERATION_CONFIG
from quire_text.tokenizer import Tokenizer


class Service:
    """One per app. It exists before the engine does: `attach` makes it ready."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.served_names = config.served_model_name
        self.metrics = Metrics()
        self.exposition = Exposition(self.metrics, self.served_names[0] if self.served_names else "")
        self.created = int(time.time())
        self.default_sampling: dict[str, Any] = {}
        self.is_draining = False
        self.failure: str | None = None
        self.in_flight = 0
        self.is_idle = asyncio.Event()
        self.is_idle.set()
        self.warming = asyncio.Lock()
        self.is_warmed = False
        self.loading: Callable[[], str] = str
        """What the start is at, for people; "" where that is not known."""
        self._client: EngineClient | None = None
        self._tokenizer: Tokenizer | None = None

    def attach(self, client: EngineClient, tokenizer: Tokenizer, *, model_defaults: bool = True) -> None:
        """Serve with this engine, which has loaded its model.

        model_defaults: take default sampling parameters from the model's generation_config.json.
        """
        stored = tokenizer.bundle.files.get(GENERATION_CONFIG)
        if model_defaults and stored is not None:
            self.default_sampling = default_sampling(json.loads(stored))
        self._client, self._tokenizer = client, tokenizer

    @property
    def state(self) -> str:
        """loading | ready | draining | dead"""
        if self.failure is not None or (self._client is not None and not self._client.is_alive):
            return "dead"
        if self.is_draining:
            return "draining"
        return "loading" if self._client is None or self._client.info is None else "ready"

    @property
    def is_hung(self) -> bool:
        return self._client is not None and self._client.heartbeat_age_s > self.config.heartbeat_timeout

    @property
    def client(self) -> EngineClient:
        """
        Raises:
            NotReady
        """
        match self.state:
            case "ready":
                assert self._client is not None
                return self._client
            case "dead":
                raise NotReady("The engine of this server has died. Send the request again.", "engine_dead")
            case "draining":
                raise NotReady("This server is shutting down. Send the request again.", "draining")
            case _:
                raise self._still_loading()

    @property
    def info(self) -> EngineReady:
        """
        Raises:
            NotReady
        """
        info = self.client.info
        assert info is not None
        return info

    @property
    def tokenizer(self) -> Tokenizer:
        """
        Raises:
            NotReady
        """
        if self._tokenizer is None:
            raise self._still_loading()
        return self._tokenizer

    def _still_loading(self) -> NotReady:
        doing = self.loading()
        return NotReady(
            f"The model is being loaded{f' ({doing})' if doing else ''}. /ready tells when it can be asked.", "loading"
        )

    def model_name(self, asked: str | None) -> str:
        """The name to answer under.

        Raises:
            ModelNotFound
        """
        if asked is None:
            return self.served_names[0]
        if asked not in self.served_names:
            raise ModelNotFound(unknown_model(asked, self.served_names))
        return asked

    def model_info(self) -> ModelInfo:
        info = self.info
        return ModelInfo(
            served_names=self.served_names,
            model_revision=info.model_revision,
            block_size=info.block_size,
            block_format=FORMAT_VERSION,
            max_model_len=info.max_model_len,
            tokenizer_digest=self.tokenizer.bundle.digest,
            kv_capacity_tokens=info.num_blocks * info.block_size,
            max_num_seqs=info.max_num_seqs,
            engine_epoch=info.epoch,
            architecture=info.architecture,
            num_parameters=info.num_parameters,
        )

    def scrape(self) -> Exposition:
        """The exposition with what the engine says now."""
        exposition = self.exposition
        exposition.in_flight = self.in_flight
        if self._client is not None:
            exposition.stats = self._client.stats
            exposition.info = self._client.info
            exposition.heartbeat_age_s = self._client.heartbeat_age_s
        return exposition

    def enter(self) -> None:
        self.in_flight += 1
        self.is_idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self.is_idle.set()


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
