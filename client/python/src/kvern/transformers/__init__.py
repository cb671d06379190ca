"""Kvern for Hugging Face transformers: smaller caches of models that run in this process.

import kvern.transformers as kt

compaction = kt.compress(cache, model, client, kvern.Policy(keep_ratio=0.5, scorer="keydiff"))
model.generate(ids, past_key_values=compaction.cache)

Needs torch and transformers, which the rest of kvern does not.
"""

from kvern.transformers.budget_cache import Budget, KvernCache, Step, bytes_per_token
from kvern.transformers.compaction import Compaction, cache_bytes, compress
from kvern.transformers.logical_layer import LogicalLayer
from kvern.transformers.model_spec import ROPE_LAYOUTS, model_spec
from kvern.transformers.press import KvernPress

__all__ = [
    "ROPE_LAYOUTS",
    "Budget",
    "Compaction",
    "KvernCache",
    "KvernPress",
    "LogicalLayer",
    "Step",
    "bytes_per_token",
    "cache_bytes",
    "compress",
    "model_spec",
]
