#!/usr/bin/env python3
"""Fails when a file includes what its layer may not see (the table of CONTRIBUTING.md)."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ["kernels/base", "kernels/backend.h", "kernels/op_args.h", "kernels/device_memory.h"]
HOST = KERNELS + ["kernels/host_backend.h"]
BELOW_ENGINE = KERNELS + ["kernels/backends.h", "formats", "server/memory", "server/pipeline"]
# Folder: what it may include besides itself. The longest matching folder decides.
LAYERS = {
    "kernels/base": [],
    "kernels/backend.h": KERNELS,
    "kernels/op_args.h": ["kernels/base"],
    "kernels/device_memory.h": ["kernels/base"],
    "kernels/host_backend.h": KERNELS,
    "kernels/host_backend.cc": HOST,
    "kernels/ref": HOST,
    "kernels/cpu": HOST,
    "kernels/cuda": KERNELS,
    "kernels": KERNELS + ["kernels/ref", "kernels/cpu", "kernels/cuda", "kernels/backends.h"],
    "formats": ["kernels/base"],
    "server/memory": KERNELS,
    "server/pipeline": KERNELS,
    "server/engine": BELOW_ENGINE,
    "server/rpc": BELOW_ENGINE + ["server/engine", "kvern/v1", "google/rpc"],
    "server/telemetry": BELOW_ENGINE + ["server/engine"],
    "server/main": BELOW_ENGINE + ["server/engine", "server/rpc", "server/telemetry"],
    "client/cpp": ["kernels/base", "formats", "kvern/v1", "google/rpc"],
    "client/cli": ["kernels/base", "formats", "client/cpp", "kvern/v1", "google/rpc",
                   "server/main/in_process.h", "server/main/unpack_file.h",
                   "server/main/version.h"],
    # The verb `bench` measures what lies below the services.
    "client/cli/bench.cc": ["client/cli", "kernels/base", "kernels/backends.h"],
    "client/cli/bench": KERNELS + ["kernels/cpu/runner.h", "server/pipeline"],
}
# Third-party headers by prefix: the only folders that may see them.
THIRD_PARTY = {
    "grpc": ["server/rpc", "server/main", "client"],
    "google/protobuf": ["server/rpc", "client"],
    "prometheus": ["server/telemetry"],
    "hwy": ["kernels/cpu"],
    "CLI": ["server/main", "client/cli"],
    "spdlog": ["server/telemetry"],
    "yaml-cpp": ["server/main"],
    "Eigen": ["server/pipeline"],
    "cuda": ["kernels/cuda"],
}
# One file each: gRPC's own log lines go to ours, and the reader of a JSON header is shared.
EXCEPTIONS = {("server/telemetry/call_log.cc", "grpc/support/log.h")}
OURS = ("kernels/", "formats/", "server/", "client/", "tests/", "kvern/", "google/rpc/")
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.M)


def layer_of(path: str) -> str:
    folders = [folder for folder in LAYERS if path == folder or path.startswith(folder + "/")]
    return max(folders, key=len)


def within(path: str, places) -> bool:
    return any(path == place or path.startswith(place + "/") for place in places)


def faults_of(path: str):
    layer = layer_of(path)
    for included in INCLUDE.findall((ROOT / path).read_text()):
        if (path, included) in EXCEPTIONS:
            continue
        if included.startswith(OURS):
            if not within(included, [layer] + LAYERS[layer]):
                yield f"{path}: {layer} may not include {included}"
            continue
        for prefix, places in THIRD_PARTY.items():
            if (included == prefix or included.startswith((prefix + "/", prefix + "pp/"))) and \
                    not within(path, places):
                yield f"{path}: only {', '.join(places)} may include {included}"


def main() -> int:
    sources = [str(path.relative_to(ROOT))
               for top in ("kernels", "formats", "server", "client")
               for path in sorted((ROOT / top).rglob("*"))
               if path.suffix in (".h", ".cc", ".cu", ".cuh")]
    faults = [fault for path in sources for fault in faults_of(path)]
    print("\n".join(faults) if faults else f"{len(sources)} files keep to their layers")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
