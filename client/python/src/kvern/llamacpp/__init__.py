"""Kvern for llama.cpp's HTTP server: a slot's cache made smaller between two requests.

import kvern.llamacpp as kl

server = kl.LlamaServer("http://127.0.0.1:8080", "/run/llama/slots")  # its --slot-save-path
made = kl.compact_slot(server, 0, client, "evict50")
server.request("/completion", {"prompt": made.prompt(rest), "id_slot": 0, "cache_prompt": True})
"""

from kvern.llamacpp.compaction import SlotCompaction, compact_slot
from kvern.llamacpp.gguf import ROPE_LAYOUTS, model_spec
from kvern.llamacpp.llama_server import LlamaServer

__all__ = ["ROPE_LAYOUTS", "LlamaServer", "SlotCompaction", "compact_slot", "model_spec"]
