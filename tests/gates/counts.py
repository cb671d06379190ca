#!/usr/bin/env python3
"""Holds allocations in steady state and wire bytes of pooled calls to the committed counts.

    tests/gates/counts.py build/cpu/gate_counts            compare with counts.json; exit 1 for what differs
    tests/gates/counts.py build/cpu/gate_counts --update   write counts.json from what is there

Bytes are exact. Allocations may only fall, and a fall is written down: those of ops and of the engine
are exact, a call's (client and server in one process) are a median, whose last few are gRPC's.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

COUNTS = Path(__file__).with_name("counts.json")
CALL_SLACK = 8


def compare(want, got):
    """What is not as it should be, and what has become better."""
    faults, better = [], []
    for kind in sorted(want.keys() | got.keys()):
        for name in sorted(want.get(kind, {}).keys() | got.get(kind, {}).keys()):
            old, new = want.get(kind, {}).get(name), got.get(kind, {}).get(name)
            line = f"{kind}, {name}: got {new}, want {old}"
            slack = CALL_SLACK if kind == "call_allocations" else 0
            if old is None or new is None:
                faults.append(f"{line}: run --update")
            elif kind == "wire_bytes":
                faults += [f"{line}: if it is meant, --update"] if new != old else []
            elif new > old + slack:
                faults.append(f"{line} or fewer")
            elif new < old - slack:
                better.append(f"{line} or fewer: write it down with --update")
    return faults, better


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("program", help="gate_counts, built")
    parser.add_argument("--update", action="store_true")
    flags = parser.parse_args()
    ran = subprocess.run([flags.program], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        sys.exit(f"{flags.program}: exit code {ran.returncode}\n{ran.stderr}")
    got = json.loads(ran.stdout)
    if flags.update:
        COUNTS.write_text(json.dumps(got, indent=1) + "\n")
        print(f"wrote {COUNTS}")
        return 0
    faults, better = compare(json.loads(COUNTS.read_text()), got)
    print("\n".join(faults + better) or "all counts are those committed")
    return 1 if faults or better else 0


if __name__ == "__main__":
    sys.exit(main())
