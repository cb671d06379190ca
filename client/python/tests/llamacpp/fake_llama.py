"""A stand-in for llama.cpp's server: slots are bytes, saved to and restored from files."""

from __future__ import annotations

import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeLlama:
    """slots: what each holds. refuse: which restores are refused, in order. calls: what was asked.

    modes: of the files that were restored. answers: code and body of other paths.
    """

    def __init__(self, directory: Path, slot: bytes) -> None:
        self.directory = directory
        self.slots = {0: slot}
        self.refuse: list[bool] = []
        self.calls: list[str] = []
        self.modes: list[int] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*fake.answers.get(self.path, (404, b"no such path")))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path in fake.answers:
                    self._answer(*fake.answers[self.path])
                    return
                slot, action = self.path.removeprefix("/slots/").split("?action=")
                self._answer(*fake.act(int(slot), action, body["filename"]))

            def _answer(self, code: int, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def act(self, slot: int, action: str, name: str) -> tuple[int, bytes]:
        self.calls.append(action)
        path = self.directory / name
        if action == "save":
            path.write_bytes(self.slots[slot])
            path.chmod(0o640)
            return 200, json.dumps({"n_saved": tokens(self.slots[slot])}).encode()
        self.modes.append(path.stat().st_mode & 0o777)
        if self.refuse and self.refuse.pop(0):
            self.slots[slot] = b""
            said = {"error": {"code": 400, "message": "Unable to restore slot"}}
            return 400, json.dumps(said).encode()
        self.slots[slot] = path.read_bytes()
        return 200, json.dumps({"n_restored": tokens(self.slots[slot])}).encode()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def tokens(data: bytes) -> int:
    """How many a file has, by its marked list."""
    return int(struct.unpack_from("<i", data, 20)[0]) if len(data) >= 24 else 0
