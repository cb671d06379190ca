#!/usr/bin/env python3
"""Holds every CUDA kernel to its budget: registers, spills, local and shared memory, occupancy,
instructions that have no place in an inner loop, and the width of its global loads.

    tests/gates/kernels.py            compare with budget.json; exit 1 and say what is over
    tests/gates/kernels.py --update   write budget.json from what is there (review the difference)
    tests/gates/kernels.py --table    print all figures as a table

Where nvcc is absent nothing can be said: the last line says that the gates did not run, and the
exit code is 77 (a skipped test to ctest). What is never allowed, budget or not: spills, local
memory, 64-bit division. Double arithmetic needs a reason per source file in notes.json, which also
says how much dynamic shared memory a launch at 128 dims and 4 query heads takes.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cubin as machine_code

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("budget.json")
NOTES = json.loads(Path(__file__).with_name("notes.json").read_text())
KERNELS = ROOT / "kernels" / "cuda"
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Werror", "all-warnings",
         "-lineinfo", f"-I{ROOT}"]
# Per multiprocessor: shared memory in KiB, of which each block reserves one (CUDA programming
# guide, technical specifications per compute capability); the rest is the same on all three.
SHARED_KIB = {"sm_80": 164, "sm_90a": 228, "sm_100": 228}
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
SKIPPED = 77


def nvcc() -> str | None:
    for folder in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if folder and (Path(folder) / "bin" / "nvcc").exists():
            return str(Path(folder) / "bin" / "nvcc")
    return shutil.which("nvcc")


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                          check=True).stdout
    short = []
    for line in text.splitlines():
        line = re.sub(r"^void ", "", line)
        line = re.sub(r"\(anonymous namespace\)::", "", line)
        line = re.sub(r"\([^()]*\)$", "", line)  # parameters
        line = re.sub(r"kvern::cuda::|kvern::", "", line)
        short.append(re.sub(r"\((\w+)\)", r"\1:", line))  # (RowAccess)1 -> RowAccess:1
    return dict(zip(names, short))


def occupancy(architecture, registers, shared, threads):
    """Share of a multiprocessor's warps that blocks of this kernel can fill."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // per_warp // warps
    by_shared = SHARED_KIB[architecture] * 1024 // (shared + 1024)
    return min(by_registers, by_shared, WARPS // warps, BLOCKS) * warps / WARPS


def ptx_counts(ptx: str):
    """{kernel: (counts of patterns, threads of its launch bounds)}"""
    found = {}
    for name, head, body in re.findall(r"\.entry (\w+)\((.*?)\n\{(.*?)\n\}", ptx, re.S):
        threads = re.search(r"\.maxntid (\d+)", head)
        found[name] = {
            "threads": int(threads.group(1)) if threads else 0,
            "div64": len(re.findall(r"\b(?:div|rem)\.[su]64", body)),
            "div32": len(re.findall(r"\b(?:div|rem)\.[su]32", body)),
            "f64": len(re.findall(r"^\s+(?:@%p\d+ )?(?:add|sub|mul|fma|div|sqrt)\.(?:rn\.)?f64", body,
                                  re.M)),
            "local": len(re.findall(r"\b(?:ld|st)\.local", body)),
        }
    return found


def compile_one(compiler, source, architecture, folder):
    """Figures of every kernel of one file on one architecture, by mangled name."""
    stem = folder / f"{source.stem}_{architecture}"
    ptx, binary = stem.with_suffix(".ptx"), stem.with_suffix(".cubin")
    subprocess.run([compiler, *FLAGS, f"-arch={architecture.replace('sm_', 'compute_')}", "-ptx",
                    "-o", ptx, source], check=True)
    run = subprocess.run([str(Path(compiler).with_name("ptxas")), "-v", "-O3", "--warn-on-spills",
                          "--warn-on-local-memory-usage", f"-arch={architecture}", "-o", binary, ptx],
                         check=True, capture_output=True, text=True)
    figures, name = {}, None
    counts, code = ptx_counts(ptx.read_text()), machine_code.instructions(binary.read_bytes())
    for line in run.stderr.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry.group(1)
            figures[name] = dict(counts.get(name, {}), code=code.get(name, {}))
        elif stack := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line):
            figures[name].update(stack=int(stack.group(1)),
                                 spills=int(stack.group(2)) + int(stack.group(3)))
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            figures[name].update(registers=int(used.group(1)),
                                 shared=int(shared.group(1)) if shared else 0)
    return figures


def measure(compiler, folder):
    """{kernel: {architecture: figures}} with readable names, and whether machine code was read."""
    sources = sorted(KERNELS.glob("*.cu"))
    readable = all(machine_code.self_test(compiler, a, folder) for a in ARCHITECTURES)
    jobs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    kernels = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda job: (job, compile_one(compiler, *job, folder)), jobs)
        for (source, architecture), figures in done:
            for mangled, name in demangled(list(figures)).items():
                kernels.setdefault(f"{source.stem}: {name}", {})[architecture] = figures[mangled]
    return kernels, readable


def source_of(name):
    return name.split(":")[0]


def wide_loads(figures):
    code = figures["code"]
    return code.get("LDG.128", 0), sum(n for key, n in code.items() if key.startswith("LDG."))


def occupancy_of(name, architecture, figures):
    dynamic = NOTES["dynamic_shared"].get(source_of(name), 0)
    return occupancy(architecture, figures["registers"], figures["shared"] + dynamic,
                     figures["threads"])


def budget_of(name, by_architecture):
    """What --update writes: today's figures."""
    entry = {"registers": {a: f["registers"] for a, f in by_architecture.items()}}
    entry["shared"] = max(f["shared"] for f in by_architecture.values())
    entry["occupancy"] = min(occupancy_of(name, a, f) for a, f in by_architecture.items())
    entry["loads_128"] = min(wide_loads(f)[0] for f in by_architecture.values())
    entry["instructions"] = max(f["code"].get("all", 0) for f in by_architecture.values())
    entry["double_operations"] = max(f["f64"] for f in by_architecture.values())
    return entry


def faults(name, architecture, figures, budget, readable):
    def over(what, got, want):
        return f"{name} on {architecture}: {what}: got {got}, want {want}"
    for what in ("spills", "stack", "local", "div64"):
        if figures[what] > 0:
            yield over(what, figures[what], 0)
    if figures["threads"] == 0:
        yield over("launch bounds", "none", "__launch_bounds__")
        return
    if not budget:
        yield f"{name}: no budget: run tests/gates/kernels.py --update and review budget.json"
        return
    if figures["f64"] > 0 and source_of(name) not in NOTES["double"]:
        yield over("double arithmetic", f"{figures['f64']} instructions", "none, or a reason in notes.json")
    if figures["f64"] > budget["double_operations"]:
        yield over("double arithmetic", figures["f64"], f"at most {budget['double_operations']}")
    if figures["registers"] > budget["registers"][architecture]:
        yield over("registers", figures["registers"], f"at most {budget['registers'][architecture]}")
    if figures["shared"] > budget["shared"]:
        yield over("static shared memory", figures["shared"], f"at most {budget['shared']}")
    now = occupancy_of(name, architecture, figures)
    if now < budget["occupancy"]:
        yield over("occupancy", now, f"at least {budget['occupancy']}")
    if readable and wide_loads(figures)[0] < budget["loads_128"]:
        yield over("16-byte loads", wide_loads(figures)[0], f"at least {budget['loads_128']}")
    if readable and any(key.startswith(("LDL", "STL")) for key in figures["code"]):
        yield over("local memory instructions", "some", "none")


def print_table(kernels):
    print(f"{'kernel':70} {'arch':7} {'regs':>4} {'smem':>6} {'occ':>5} {'LDG.128':>7} {'LDG':>4} "
          f"{'f64':>4} {'instr':>6}")
    for name, by_architecture in sorted(kernels.items()):
        for architecture, f in by_architecture.items():
            wide, loads = wide_loads(f)
            print(f"{name[:70]:70} {architecture:7} {f['registers']:4} {f['shared']:6} "
                  f"{occupancy_of(name, architecture, f) if f['threads'] else 0:5.2f} "
                  f"{wide:7} {loads:4} {f['f64']:4} {f['code'].get('all', 0):6}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write budget.json")
    parser.add_argument("--table", action="store_true", help="print all figures")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gates", help="scratch folder")
    args = parser.parse_args()
    compiler = nvcc()
    if compiler is None:
        print("nvcc was not found: the gates of the CUDA kernels did NOT run")
        return SKIPPED
    args.work.mkdir(parents=True, exist_ok=True)
    kernels, readable = measure(compiler, args.work)
    if args.table:
        print_table(kernels)
    old = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if args.update:
        new = {name: budget_of(name, by) for name, by in sorted(kernels.items())}
        BUDGET.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")
        old = new
    found = [fault for name, by_architecture in sorted(kernels.items())
             for architecture, figures in by_architecture.items()
             for fault in faults(name, architecture, figures, old.get(name), readable)]
    found += [f"{name}: in budget.json, but there is no such kernel" for name in sorted(old)
              if name not in kernels]
    print("\n".join(found))
    machine = "" if readable else "; machine code is not as expected here: load widths did not run"
    print(f"{len(kernels)} kernels, {len(ARCHITECTURES)} architectures, {len(found)} over{machine}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
