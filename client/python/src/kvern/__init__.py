"""Client of Kvern, a KV-cache compression service.

with kvern.Client("unix:/run/kvern/kvern.sock") as client:
    result = client.compress(k, v, policy="balanced", model=spec)
    result.k, result.v, result.kept_indices, result.bytes_after
"""

from kvern.cache_file import CacheFile, Safetensors
from kvern.channel import Tls
from kvern.client import Client
from kvern.errors import KvernError
from kvern.models import Calibration, Model, ModelSpec, Rope, inverse_frequencies
from kvern.policy import Policy
from kvern.request import Inputs
from kvern.results import (
    Chain,
    CompressResult,
    PackedCache,
    Plan,
    Quality,
    SequenceResult,
    Timings,
)
from kvern.session import Limits

__version__ = "0.1.0"

__all__ = [
    "CacheFile",
    "Calibration",
    "Chain",
    "Client",
    "CompressResult",
    "Inputs",
    "KvernError",
    "Limits",
    "Model",
    "ModelSpec",
    "PackedCache",
    "Plan",
    "Policy",
    "Quality",
    "Rope",
    "Safetensors",
    "SequenceResult",
    "Timings",
    "Tls",
    "inverse_frequencies",
]
