"""Lets Kvern and each peer take turns, and prints how long either took. Started by run.sh.

Two programs at a time, both waiting on their input: a pair is a stream read, one run of each (who
is first changes: A B, B A, ...), and a read. Before the timed run of a turn comes an untimed one
where it is short, so that both find their caches as they left them. A ratio belongs to one pair;
what is printed is the median over pairs with a 95 % interval by bootstrap. One thread is compared
in CPU time, which does not see what other processes take; two threads in wall time."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import cases
import inputs
import table

HERE = pathlib.Path(__file__).resolve().parent
PEERS = ("numpy", "torch", "kvpress", "faiss", "ggml", "lmcache")
# Seconds for the pairs of one case, and pairs at most and at least.
FULL, QUICK = (5.5, 43, 9), (1.0, 13, 6)
DROPPED_PAIRS = 2  # the first of either: allocators grow, and it shows which runs are short
SHORT_NS = 60e6
RESAMPLES = 4000
# glibc keeps what is freed, so that large temporaries do not fault in page by page at every call;
# idle threads sleep while the other program has its turn.
WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20), "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0"}


class Failed(Exception):
    """A program answered with an error."""


class Program:
    """A child that does one thing per line."""

    def __init__(self, command, environment, log):
        self.name = pathlib.Path(command[2] if command[1] == "-B" else command[0]).name
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=log, text=True, env={**os.environ, **environment})

    def ask(self, *words):
        try:
            self.child.stdin.write(" ".join(map(str, words)) + "\n")
            self.child.stdin.flush()
            answer = self.child.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise Failed(f"{self.name} ended")
        if answer.startswith("error"):
            raise Failed(f"{self.name}: {answer}")
        return answer

    def timed(self, *words):
        """(wall, cpu) nanoseconds."""
        return tuple(int(n) for n in self.ask(*words).split())

    def turn(self, name, short):
        if short:
            self.ask("run", name)
        return self.timed("run", name)

    def close(self):
        self.child.stdin.close()
        self.child.wait()


def interval(values):
    """Median and its 95 % interval."""
    values = np.asarray(values)
    picks = np.random.default_rng(1).integers(0, values.size, (RESAMPLES, values.size))
    low, high = np.quantile(np.median(values[picks], 1), (0.025, 0.975))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def measure(kvern, peer, case, effort):
    """Pairs of (read, ours, theirs), each (wall, cpu)."""
    seconds, most, least = effort
    short = [False, False]
    pairs, begin = [], time.monotonic()
    while len(pairs) < least or (len(pairs) < most and time.monotonic() - begin < seconds):
        before = kvern.timed("read")
        turns = [lambda: kvern.turn(case.op, short[0]), lambda: peer.turn(case.work, short[1])]
        if len(pairs) % 2 == 0:
            ours, theirs = turns[0](), turns[1]()
        else:
            theirs, ours = turns[1](), turns[0]()
        after = kvern.timed("read")
        pairs.append(([(b + a) / 2 for b, a in zip(before, after)], ours, theirs))
        short = [turn[0] < SHORT_NS for turn in (ours, theirs)]
    return pairs[DROPPED_PAIRS:]


def summary(pairs, clock):
    read, ours, theirs = (np.array([p[i][clock] for p in pairs], float) for i in range(3))
    return {"ratio": interval(theirs / ours), "ours": interval(ours / read),
            "theirs": interval(theirs / read), "ours_ms": float(np.median(ours) / 1e6),
            "theirs_ms": float(np.median(theirs) / 1e6)}


def checked(kvern, peer, case):
    """What the check found, and bits per value of both where they pack."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/kvern", f"{folder}/peer"]
        packed = [int(program.ask("check", name, file).split()[1])
                  for program, name, file in zip((kvern, peer), (case.op, case.work), files)]
        values = inputs.KV_HEADS * inputs.TOKENS * inputs.HEAD_DIM
        return case.agree(*files), [n * 8 / values for n in packed] if packed[0] else None


def run_case(kvern, peer, case, threads, effort):
    row = {"title": case.title, "op": case.op, "peer": case.peer, "work": case.work,
           "threads": threads, "wanted": case.wanted, "wanted_reads": case.wanted_reads}
    try:
        row["check"], row["bits"] = checked(kvern, peer, case)
        pairs = measure(kvern, peer, case, effort)
    except (cases.Disagreement, Failed) as reason:
        return {**row, "excluded": str(reason)}
    row.update(pairs=len(pairs), wall=summary(pairs, 0), cpu=summary(pairs, 1))
    read_ns = statistics.median(pair[0][0] for pair in pairs)
    row["read_gbps"] = inputs.KV_HEADS * inputs.TOKENS * inputs.HEAD_DIM * 2 / read_ns
    return row


def run(args, folder):
    log = open(args.out.with_suffix(".log"), "w")
    report = {"about": {}, "absent": {}, "rows": [], "load": [os.getloadavg()[0]]}
    wanted = [case for case in cases.all_cases() if args.only in case.title]
    for threads in args.threads or ([1] if args.effort is QUICK else [1, 2]):
        common = ["--inputs", str(folder), "--threads", str(threads)]
        environment = {**WARM, "OMP_NUM_THREADS": str(threads),
                       "OPENBLAS_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(args.venvs / "inductor")}
        kvern = Program([str(args.kvern), *common], {}, log)
        for name in args.peers:
            mine = [case for case in wanted if case.peer == name]
            if not mine:
                continue
            python = str(args.venvs / name / "bin" / "python")
            try:
                driver = str(HERE / f"{name}_peer.py")
                peer = Program([python, "-B", driver, *common], environment, log)
                report["about"][name] = peer.ask("about")
            except (OSError, Failed) as failure:  # not installed, or a library that does not load
                report["absent"][name] = f"{failure}; see {log.name}"
                continue
            for case in mine:
                report["rows"].append(run_case(kvern, peer, case, threads, args.effort))
                print(table.progress(report["rows"][-1]), file=sys.stderr, flush=True)
            peer.close()
        kvern.close()
    report["load"].append(os.getloadavg()[0])
    return report


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, meaning in (("--kvern", "the program kvern_rounds"),
                          ("--venvs", "folder of a venv per peer"), ("--out", "JSON: every figure")):
        parser.add_argument(name, type=pathlib.Path, required=True, help=meaning)
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")],
                        help="1,2; with --quick 1")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS))
    parser.add_argument("--only", default="", help="cases whose title has this in it")
    parser.add_argument("--quick", dest="effort", action="store_const", const=QUICK, default=FULL,
                        help="fewer pairs, one thread: under three minutes")
    return parser.parse_args()


def main():
    args = arguments()
    folder = args.venvs / "inputs"
    inputs.make(folder)
    cases.inputs_folder = folder
    report = run(args, folder)
    args.out.write_text(json.dumps(report, indent=1))
    print(table.markdown(report))
    return 1 if report["absent"] or any("excluded" in row for row in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
