"""llama.cpp's HTTP server: what it offers of its slots."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from kvern.errors import KvernError, invalid
from kvern.llamacpp import gguf
from kvern.models import ModelSpec

_MAX_ANSWER_BYTES = 64 << 20


class LlamaServer:
    """A server that was started with ``--slot-save-path DIRECTORY``, on this machine.

    url: ``http://HOST:PORT``. directory: the server's, here: its slots are read and written there.
    model: its GGUF file, by default the one that the server names; or a ModelSpec, for a model that
    runs with another RoPE than its file says (``--rope-freq-base``, ``--rope-scaling``). api_key:
    as of the server's ``--api-key``. timeout: seconds of each request.

    Every error is a KvernError: UNAVAILABLE/UNREACHABLE, DEADLINE_EXCEEDED; FAILED_PRECONDITION for
    what the server refuses, with its words.
    """

    def __init__(
        self,
        url: str,
        directory: str | Path,
        *,
        model: ModelSpec | str | Path | None = None,
        api_key: str = "",
        timeout: float = 60.0,
    ) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise invalid("url", f"url: got '{url}', want http://HOST:PORT")
        self.url = url.rstrip("/")
        self.directory = Path(directory)
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        # A slot's file is on this machine, and so is its server: no proxy stands between.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def model_spec(self) -> ModelSpec:
        """Of the loaded model; its file is read once."""
        if not isinstance(self._model, ModelSpec):
            path = self._model or str(self.request("/props").get("model_path") or "")
            if not path:
                raise invalid("model", "model: got a server that names none, want its GGUF file")
            self._model = gguf.model_spec(path)
        return self._model

    def save(self, slot: int, name: str) -> int:
        """Writes a slot to the file `name` of the directory; how many tokens it holds."""
        return self._count(self._slot(slot, "save", name), "n_saved")

    def restore(self, slot: int, name: str) -> int:
        """Fills a slot from the file `name` of the directory; how many tokens it then holds."""
        return self._count(self._slot(slot, "restore", name), "n_restored")

    def request(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET, or POST of a body; the answer, which must be a JSON object."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                parsed = json.loads(answer.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            raise self._refused(path, error) from error
        except TimeoutError as error:
            raise KvernError(
                "DEADLINE_EXCEEDED", f"{self.url}{path}: no answer in {self._timeout:g} s"
            ) from error
        except (OSError, ValueError) as error:
            raise self._unreachable(str(error)) from error
        if not isinstance(parsed, dict):
            raise self._unreachable(f"{path} answered no JSON object")
        return parsed

    def _slot(self, slot: int, action: str, name: str) -> dict[str, Any]:
        return self.request(f"/slots/{int(slot)}?action={action}", {"filename": name})

    def _count(self, answer: dict[str, Any], key: str) -> int:
        count = answer.get(key)
        if not isinstance(count, int):
            raise self._unreachable(f"its answer has no {key}")
        return count

    def _refused(self, path: str, error: urllib.error.HTTPError) -> KvernError:
        said = error.read(4096).decode("utf-8", "replace")
        try:
            said = json.loads(said)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = said.strip() or str(error.reason)
        refused = KvernError(
            "FAILED_PRECONDITION", f"{self.url}{path}: got {error.code}: {said}, want 200"
        )
        if error.code == 501:
            refused.next_step = "start the server with --slot-save-path DIRECTORY"
        return refused

    def _unreachable(self, why: str) -> KvernError:
        error = KvernError(
            "UNAVAILABLE",
            f"url: got '{self.url}' ({why}), want a running llama.cpp server",
            reason="UNREACHABLE",
            field="url",
        )
        error.next_step = "start it: llama-server --slot-save-path DIRECTORY, or name another"
        return error
