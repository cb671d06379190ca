"""The peer's side of taking turns: one line of standard input, one timed run of one work.

  run NAME           -> "WALL CPU", nanoseconds of the whole work (CPU: of all threads)
  check NAME FILE    -> the answer to FILE, "ok BYTES": bytes of the packed form or 0
  about              -> one line: the versions at work
What fails answers "error: ..."."""
import argparse
import gc
import os
import sys
import time


class Work:
    """`run` is what is timed; `answer` turns its result into the array to compare.

    Work that is a plain loop and takes seconds gives one part of `parts` to time, times that many."""

    def __init__(self, run, answer=lambda result: result, packed_bytes=0, part=None, parts=1):
        self.run, self.answer, self.packed_bytes = run, answer, packed_bytes
        self.part, self.parts = part or run, parts


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def timed(run):
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    run()
    return time.perf_counter_ns() - wall, time.process_time_ns() - cpu


def fastest(candidates):
    """Of named runs, the one whose best of three is least: (name, run). For forms of one work."""
    best = {}
    for name, run in candidates.items():
        run()
        best[name] = min(timed(run)[0] for _ in range(3))
    name = min(best, key=best.get)
    return name, candidates[name]


def serve(about, makers):
    """Until the input ends. `makers`: name -> function that makes its Work, when first asked for."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    works = {}

    def answer(verb, name="", path=""):
        if verb == "about":
            return about
        if name not in works:
            works[name] = makers[name]()
            gc.collect()
            gc.freeze()
        work = works[name]
        if verb == "run":
            return "%d %d" % tuple(n * work.parts for n in timed(work.part))
        if verb == "check":
            work.answer(work.run()).tofile(path)
            return f"ok {work.packed_bytes}"
        raise ValueError(f"want about, run or check, got {verb!r}")

    for line in sys.stdin:
        try:
            text = answer(*line.split())
        except Exception as error:  # the driver decides what a peer's failure means
            text = "error: " + repr(error).replace("\n", " ")[:300]
        print(text, file=lines, flush=True)
