"""One HTTP request, as JSON on standard input; prints the body of the answer, whatever its status.

{"url", "headers", "body", "timeout_s"}; with "address" the connection goes there instead of to the host that the URL
names, and with "authority" (PEM) the server must have its certificate from that one. Exits with 1 where no answer came.
"""

import http.client
import json
import socket
import ssl
import sys
from typing import Any
from urllib.parse import urlsplit


def connect(asked: dict[str, Any]) -> http.client.HTTPConnection:
    url = urlsplit(asked["url"])
    assert url.hostname
    if url.scheme == "http":
        return http.client.HTTPConnection(asked["address"] or url.hostname, url.port, timeout=asked["timeout_s"])
    context = ssl.create_default_context(cadata=asked["authority"] or None)
    connection = http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=asked["timeout_s"])
    reached = socket.create_connection((asked["address"] or url.hostname, connection.port), asked["timeout_s"])
    connection.sock = context.wrap_socket(reached, server_hostname=url.hostname)
    return connection


def main() -> None:
    asked = json.load(sys.stdin)
    url = urlsplit(asked["url"])
    try:
        connection = connect(asked)
        path = url._replace(scheme="", netloc="").geturl()
        connection.request("POST" if asked["body"] else "GET", path, asked["body"] or None, asked["headers"])
        sys.stdout.write(connection.getresponse().read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"{asked['url']}: {error!r}")


main()
