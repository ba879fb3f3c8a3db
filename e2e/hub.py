"""As much of the Hugging Face Hub's API as a download needs: the files of FOLDER as org/model.

    python hub.py FOLDER PORT [--hold-weights BYTES] [--token TOKEN] [--hide-sizes]

Prints a line `METHOD PATH` for each request, and ends with its standard input. With --hold-weights the weights are said
to have so many bytes, and never arrive; with --token nothing is shown to whoever does not send it; with --hide-sizes
the model's description does not say how large its files are.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
LISTING = "/api/models/org/model"
FILES = "/org/model/resolve/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    held_bytes: int
    token: str | None
    hides_sizes: bool

    def do_GET(self) -> None:
        print(self.command, self.path, flush=True)
        if self.token is not None and self.headers.get("authorization") != f"Bearer {self.token}":
            return self._send(b"{}", {}, 401)
        path = self.path.partition("?")[0]
        if path == LISTING or path.startswith(f"{LISTING}/"):
            said = self._files() if path.startswith(f"{LISTING}/tree/") else self._listing()
            return self._send(json.dumps(said).encode(), {"Content-Type": "application/json"})
        file = self.folder / path.removeprefix(FILES).partition("/")[2]
        if path.startswith(FILES) and file.is_file():
            return self._send_file(file)
        missing = "EntryNotFound" if path.startswith(FILES) else "RepoNotFound"
        self._send(b"{}", {"X-Error-Code": missing}, 404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _listing(self) -> dict[str, object]:
        siblings = [{**file, "rfilename": file["path"], "blobId": file["oid"]} for file in self._files()]
        for file in siblings if self.hides_sizes else ():
            del file["size"]
        return {"id": "org/model", "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}

    def _files(self) -> list[dict[str, object]]:
        files = []
        for file in sorted(self.folder.iterdir()):
            size, oid = self._size(file), hashlib.sha1(file.name.encode()).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": file.name, "size": size, "oid": oid}
            if file.suffix == ".safetensors":
                sha256 = self._sha256(file)
                entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 130}
            files.append(entry)
        return files

    def _size(self, file: Path) -> int:
        return self.held_bytes if self.held_bytes and file.suffix == ".safetensors" else file.stat().st_size

    def _sha256(self, file: Path) -> str:
        if self.held_bytes:
            return "0" * 64
        return hashlib.sha256(file.read_bytes()).hexdigest()

    def _send_file(self, file: Path) -> None:
        if self.held_bytes and file.suffix == ".safetensors" and self.command == "GET":
            threading.Event().wait()
        is_large = file.suffix == ".safetensors"
        etag = self._sha256(file) if is_large else hashlib.sha1(file.name.encode()).hexdigest()
        content = b"" if self.command == "HEAD" else file.read_bytes()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if is_large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(self._size(file))}
        self._send(content, headers, length=self._size(file))

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--hold-weights", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--hide-sizes", action="store_true")
    options = parser.parse_args()
    Handler.folder, Handler.held_bytes = options.folder, options.hold_weights
    Handler.token, Handler.hides_sizes = options.token, options.hide_sizes
    threading.Thread(target=end_with_input, daemon=True).start()
    ThreadingHTTPServer(("0.0.0.0", options.port), Handler).serve_forever()


main()
