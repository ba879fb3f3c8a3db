"""Which of the two worlds a command is about: `quire up` on this machine, or a cluster."""

from dataclasses import dataclass
from pathlib import Path

from quire.cluster.api import TIMEOUT_S, Api
from quire.up.state import NoState, read_status
from quire_api.connection import Connection, NoCluster


@dataclass(frozen=True)
class Where:
    """As the flags say; nothing named leaves the choice to what is there."""

    state_dir: Path | None = None
    namespace: str = ""
    is_everywhere: bool = False
    kubeconfig: Path | None = None
    context: str = ""

    @property
    def is_cluster_named(self) -> bool:
        return bool(self.namespace or self.is_everywhere or self.kubeconfig or self.context)

    def cluster(self, timeout_s: float = TIMEOUT_S) -> Api | None:
        """The cluster that is meant; None: `quire up` is.

        A running `quire up` comes before a cluster that nobody named, and that before a `quire up` that has ended.

        Raises:
            NoCluster: a cluster is named and there is no way to it.
            NoState: neither is there.
        """
        if self.is_cluster_named:
            return Api.find(self.kubeconfig, self.context, timeout_s)
        try:
            _, is_alive = read_status(self.state_dir)
        except NoState as nothing:
            if self.state_dir is not None:
                raise
            return self._found(nothing, timeout_s)
        if is_alive or self.state_dir is not None:
            return None
        try:
            return Api.find(None, "", timeout_s)
        except NoCluster:
            return None

    def _found(self, nothing: NoState, timeout_s: float) -> Api:
        try:
            return Api(Connection.find(), timeout_s)
        except NoCluster as error:
            raise NoState(f"{nothing}. Nor is there a cluster to ask: {error}") from None

    def namespace_of(self, api: Api) -> str:
        """Where to look; empty: everywhere."""
        return "" if self.is_everywhere else self.namespace or api.connection.namespace
