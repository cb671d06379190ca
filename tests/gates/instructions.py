#!/usr/bin/env python3
"""Holds every op of `kvern bench` to the instructions per token that it took when it was last
reviewed: a count that neighbours on the machine cannot move, as they move times.

    tests/gates/instructions.py --kvern build/cpu/kvern --built "GNU 12.2.0 Release"
                     compare with instructions.json; exit 1 and say what left its 2 percent
    ... --update     write instructions.json from what is there (review the difference)
    ... --table      print all counts

One run of valgrind's callgrind over all ops. Valgrind knows no AVX-512, so the kernels run `avx2`:
one source makes both instruction sets, which differ in lanes. What is counted is the second run of
each op, without its inputs and without stream reads. Counts belong to one compiler: with another
one, on another architecture or without valgrind nothing can be said; the last line says that the
gate did not run, and the exit code is 77 (a skipped test to ctest).
"""
import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COUNTS = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.02
TOKENS = 512
SHAPE = ["--tokens", str(TOKENS), "--kv-heads", "2", "--q-heads", "8", "--head-dim", "128",
         "--dtype", "bf16"]
ROUNDS = 1
RUN = "kvern::bench::RunOnce"
READ = "kvern::bench::StreamRead::Run"  # follows each run
SKIPPED = 77


def skip(reason):
    print(f"gates/instructions did not run: {reason}")
    sys.exit(SKIPPED)


def dumps(folder):
    """(what ended it, instructions), in order: callgrind writes counts.1, counts.2, ..."""
    for number in range(1, len(list(folder.glob("counts.*"))) + 1):
        text = (folder / f"counts.{number}").read_text()
        yield (re.search(r"^desc: Trigger: --dump-before=(\S+?)\(", text, re.M)[1],
               int(re.search(r"^totals: (\d+)", text, re.M)[1]))


def measure(kvern):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/counts",
                   f"--dump-before={RUN}*", f"--dump-before={READ}*", kvern, "bench", "--op", "all",
                   *SHAPE, "--rounds", str(ROUNDS), "--instruction-set", "avx2", "--json"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            sys.exit(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stderr}")
        ops = [op["op"] for op in json.loads(ran.stdout)["ops"]]
        # Up to a run: its inputs. Up to a read: the run.
        ends = list(dumps(folder))
    runs = [count for end, count in ends if end == READ]
    if [end for end, _ in ends] != [RUN, READ] * (len(ops) * (ROUNDS + 1)):
        sys.exit(f"callgrind: got {len(ends)} counts, want two for each of {ROUNDS + 1} runs of "
                 f"{len(ops)} ops: are {RUN} and {READ} still functions of their own?")
    return {op: round(runs[(ROUNDS + 1) * at + ROUNDS] / TOKENS, 1) for at, op in enumerate(ops)}


def compare(want, got):
    faults = [f"{op}: got no count, want one: run --update" for op in got if op not in want]
    faults += [f"{op}: got a count, want the op: run --update" for op in want if op not in got]
    for op in want:
        change = got[op] / want[op] - 1 if op in got else 0
        if abs(change) > TOLERANCE:
            faults.append(f"{op}: got {got[op]:.1f} instructions per token, want {want[op]:.1f} "
                          f"+-{TOLERANCE:.0%} ({change:+.1%}); if it is meant: --update")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kvern", required=True, help="the program, built")
    parser.add_argument("--built", required=True, help="compiler, version and kind of its build")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args()
    committed = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    if platform.machine() != "x86_64":
        skip(f"counts are of x86_64, this is {platform.machine()}")
    if shutil.which("valgrind") is None:
        skip("no valgrind")
    if not flags.update and flags.built != committed["built"]:
        skip(f"counts are of {committed['built']}, this build is of {flags.built}")
    got = measure(flags.kvern)
    if flags.table:
        for op, count in got.items():
            print(f"{op:26}{count:12.1f}")
    if flags.update:
        COUNTS.write_text(json.dumps({"built": flags.built, "shape": " ".join(SHAPE),
                                      "instructions_per_token": got}, indent=1) + "\n")
        print(f"wrote {COUNTS}")
        return 0
    faults = compare(committed["instructions_per_token"], got)
    print("\n".join(faults) if faults else f"{len(got)} ops keep to their instructions")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
