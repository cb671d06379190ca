"""Client of Kvern, a KV-cache compression service.

with kvern.Client("unix:/run/kvern/kvern.sock") as client:
    result = client.compress(k, v, policy="balanced", model=spec)
    result.k, result.v, result.kept_indices, result.bytes_after
"""

from kvern import aio
from kvern.cache_file import CacheFile, Safetensors
from kvern.channel import Tls
from kvern.client import Client
from kvern.errors import KvernError
from kvern.memory import SealedMemory
from kvern.models import Calibration, Model, ModelSpec, Rope, inverse_frequencies
from kvern.policy import Policy
from kvern.pool import Pool, PoolLayer, PoolSpec, View
from kvern.registry import Models
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
from kvern.sequences import PagedSequence, StoreSequence
from kvern.server import Device, Preset, ServerInfo, Stage, StageParam, Stages
from kvern.session import Limits
from kvern.store import FetchedSequence, StoredSequence

__version__ = "0.1.0"

__all__ = [
    "CacheFile",
    "Calibration",
    "Chain",
    "Client",
    "CompressResult",
    "Device",
    "FetchedSequence",
    "Inputs",
    "KvernError",
    "Limits",
    "Model",
    "ModelSpec",
    "Models",
    "PackedCache",
    "PagedSequence",
    "Plan",
    "Policy",
    "Pool",
    "PoolLayer",
    "PoolSpec",
    "Preset",
    "Quality",
    "Rope",
    "Safetensors",
    "SealedMemory",
    "SequenceResult",
    "ServerInfo",
    "Stage",
    "StageParam",
    "Stages",
    "StoreSequence",
    "StoredSequence",
    "Timings",
    "Tls",
    "View",
    "aio",
    "inverse_frequencies",
]
