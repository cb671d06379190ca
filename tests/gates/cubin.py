"""Reads machine code out of a cubin: an ELF file with one .text.<kernel> section per kernel.

From sm_80 to sm_100 an instruction has 16 bytes; the low 9 bits of the first word say what it is,
bits 73 to 75 how wide a memory access is. Neither is documented, so `self_test` compiles kernels
whose accesses are known and the caller skips this part when they are not found as expected.
"""
import struct
import subprocess
from pathlib import Path

KINDS = {0x181: "LDG", 0x186: "STG", 0x184: "LDS", 0x188: "STS", 0x183: "LDL", 0x187: "STL"}
WIDTHS = {0: 8, 1: 8, 2: 16, 3: 16, 4: 32, 5: 64, 6: 128}
INSTRUCTION = 16

PROBE = """
__global__ void Wide(const uint4* in, uint4* out) { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void Half(const uint2* in, uint2* out) { out[threadIdx.x] = in[threadIdx.x]; }
__global__ void Word(const unsigned* in, unsigned* out) { out[threadIdx.x] = in[threadIdx.x]; }
"""
PROBE_WANT = {"Wide": 128, "Half": 64, "Word": 32}


def sections(cubin: bytes):
    """(name, bytes) of every section of a little-endian ELF64 file."""
    offset, = struct.unpack_from("<Q", cubin, 40)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    names = cubin[headers[names_at][4]:][:headers[names_at][5]]
    for header in headers:
        name = names[header[0]:names.index(b"\0", header[0])].decode()
        yield name, b"" if header[1] == 8 else cubin[header[4]:header[4] + header[5]]


def instructions(cubin: bytes):
    """{kernel: {"LDG.128": n, ..., "all": n}} by mangled name."""
    found = {}
    for name, code in sections(cubin):
        if not name.startswith(".text."):
            continue
        counts = {"all": len(code) // INSTRUCTION}
        for at in range(0, len(code) - INSTRUCTION + 1, INSTRUCTION):
            low, high = struct.unpack_from("<QQ", code, at)
            kind = KINDS.get(low & 0x1FF)
            if kind is not None:
                key = f"{kind}.{WIDTHS.get((high >> 9) & 7, 0)}"
                counts[key] = counts.get(key, 0) + 1
        found[name[len(".text."):]] = counts
    return found


def self_test(nvcc: str, architecture: str, folder: Path) -> bool:
    """True when known accesses are found with their widths on this architecture."""
    source = folder / "probe.cu"
    source.write_text(PROBE)
    target = folder / f"probe_{architecture}.cubin"
    subprocess.run([nvcc, f"-arch={architecture}", "-cubin", "-o", target, source], check=True)
    found = instructions(target.read_bytes())
    for kernel, width in PROBE_WANT.items():
        counts = next((c for name, c in found.items() if kernel in name), {})
        if counts.get(f"LDG.{width}") != 1 or counts.get(f"STG.{width}") != 1:
            return False
    return True
