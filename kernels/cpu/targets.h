// Which instruction sets kernels/cpu is built for: those with fma only (ruling 6). Include it
// before any Highway header.
#ifndef KVERN_KERNELS_CPU_TARGETS_H_
#define KVERN_KERNELS_CPU_TARGETS_H_

// Avx2 is the baseline of the build and avx3 the one alternative; on Arm, neon alone. The scalable
// vector sets have no compile-time width, and avx3_dl adds nothing that these kernels use.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#endif  // KVERN_KERNELS_CPU_TARGETS_H_
