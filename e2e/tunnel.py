"""An HTTP proxy on this machine's loopback that asks from the visitors' pod."""

import subprocess

from client import VISITOR, VISITORS, Client

PORT = 8393


class Tunnel:
    """Open once constructed, until `stop`.

    Raises:
        AssertionError: the proxy did not start.
    """

    url = f"http://127.0.0.1:{PORT}"

    def __init__(self, cluster: Client) -> None:
        self._cluster = cluster
        self._proxy = self._start(cluster.script("forward_proxy.py", str(PORT)))
        self._forward: subprocess.Popen[str] | None = None
        self.keep()

    def keep(self) -> None:
        """Forward again where kubectl has ended: it does at a connection that fails."""
        if self._forward is None or self._forward.poll() is not None:
            pod = (f"--namespace={VISITORS}", f"pod/{VISITOR}")
            self._forward = self._start(["kubectl", "port-forward", *pod, f"{PORT}:{PORT}"])

    def stop(self) -> None:
        for process in (self._forward, self._proxy):
            if process:
                process.terminate()
                process.communicate()

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        """Once it returns the process listens: it has said a line."""
        process = subprocess.Popen(
            [*self._cluster.inside, *command],
            env=self._cluster.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline(), f"{command[:4]} has ended"
        return process
