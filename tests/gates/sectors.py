#!/usr/bin/env python3
"""Holds every hot access of the CUDA kernels to coalescing: of the 32-byte sectors that a request of
a warp fetches or writes, at least 90 % must be what its bytes would fill.

    tests/gates/sectors.py PROGRAM            run, compare; exit 1 and say which lines waste sectors
    tests/gates/sectors.py PROGRAM --table    print every hot line as well

PROGRAM is gate_sectors of the emulator's check build, which counts exactly and the same in every run
(tests/simt/check/profile.cc). Hot is a source line with at least 1 % of its kernel's sectors.
notes.json has the exceptions: a file, a piece of the line's text, the floor that it is held to
instead, and why. One that no hot line needs is a fault too.
"""
import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXCEPTIONS = json.loads(Path(__file__).with_name("notes.json").read_text())["sectors"]
FLOOR = 0.90
HOT = 0.01


@dataclass
class Access:
    kernel: str
    file: str
    line: int
    write: bool
    sectors: int
    fewest: int
    share: float = 0.0  # of its kernel's sectors

    def efficiency(self):
        return self.fewest / self.sectors

    def text(self):
        return (ROOT / "kernels" / "cuda" / self.file).read_text().splitlines()[self.line - 1].strip()

    def __str__(self):
        return (f"{self.kernel}: {self.file}:{self.line} {'writes' if self.write else 'reads'} "
                f"{self.sectors} sectors where {self.fewest} would do "
                f"({self.efficiency():.0%}; {self.share:.0%} of the kernel's)")


def profile(program, work):
    """Accesses to device memory by lines of kernels/cuda, with their shares."""
    path = work / "sectors.txt"
    path.unlink(missing_ok=True)
    subprocess.run([program], check=True, env={**os.environ, "KVERN_SIMT_PROFILE": str(path)})
    accesses = []
    for row in path.read_text().splitlines():
        kernel, line, memory, direction, _, sectors, fewest = row.split("\t")
        source = re.search(r"kernels/cuda/([^/:]+):(\d+)$", line)
        if memory == "device" and source:
            short = re.sub(r"kvern::|cuda::|\(anonymous namespace\)::", "", kernel)
            accesses.append(Access(short, source.group(1), int(source.group(2)),
                                   direction == "write", int(sectors), int(fewest)))
    totals = {}
    for access in accesses:
        totals[access.kernel] = totals.get(access.kernel, 0) + access.sectors
    for access in accesses:
        access.share = access.sectors / totals[access.kernel]
    return accesses


def kernels_without_profile(accesses):
    """Launched nowhere by PROGRAM: names of __global__ functions that no access belongs to."""
    defined = set()
    for source in (ROOT / "kernels" / "cuda").glob("*.cu"):
        defined |= set(re.findall(r"__global__[^;{]*?\b(\w+Kernel)\(", source.read_text(), re.S))
    return sorted(defined - {re.sub(r"<.*", "", access.kernel) for access in accesses})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="gate_sectors")
    parser.add_argument("--table", action="store_true", help="print every hot line")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gates", help="scratch folder")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    accesses = profile(args.program, args.work)
    hot = [access for access in accesses if access.share >= HOT]
    faults, used = [], set()
    for access in hot:
        if args.table:
            print(access)
        floor = FLOOR
        if access.efficiency() < FLOOR:
            for number, exception in enumerate(EXCEPTIONS):
                if exception["file"] == access.file and exception["code"] in access.text():
                    used.add(number)
                    floor = exception["floor"]
        if access.efficiency() < floor:
            faults.append(f"{access}: want {floor:.0%}\n    {access.text()}")
    faults += [f"notes.json: no hot line needs the exception {exception['file']}: {exception['code']}"
               for number, exception in enumerate(EXCEPTIONS) if number not in used]
    faults += [f"{name}: gate_sectors does not launch it" for name in kernels_without_profile(accesses)]
    print("\n".join(faults))
    print(f"{len({access.kernel for access in accesses})} kernels, {len(hot)} hot lines, "
          f"{len(faults)} over")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
