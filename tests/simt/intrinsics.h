// Arithmetic of device code under its CUDA names: bits, casts, single roundings, minima. The build
// has -ffp-contract=off, so each operator rounds once.
#ifndef KVERN_TESTS_SIMT_INTRINSICS_H_
#define KVERN_TESTS_SIMT_INTRINSICS_H_

#include <math.h>

#include <cmath>
#include <cstdint>

#include "simt/hooks.h"

// NOLINTBEGIN(runtime/int): the types are CUDA's
SIMT_SHIM int __popc(unsigned x) { return __builtin_popcount(x); }
SIMT_SHIM int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
SIMT_SHIM int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
SIMT_SHIM int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
SIMT_SHIM int __ffs(int x) { return __builtin_ffs(x); }
SIMT_SHIM int __ffsll(long long x) { return __builtin_ffsll(x); }
SIMT_SHIM unsigned __brev(unsigned x) {
  x = (x >> 16) | (x << 16);
  x = ((x >> 8) & 0x00FF00FFu) | ((x & 0x00FF00FFu) << 8);
  x = ((x >> 4) & 0x0F0F0F0Fu) | ((x & 0x0F0F0F0Fu) << 4);
  x = ((x >> 2) & 0x33333333u) | ((x & 0x33333333u) << 2);
  return ((x >> 1) & 0x55555555u) | ((x & 0x55555555u) << 1);
}
SIMT_SHIM unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
SIMT_SHIM int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
SIMT_SHIM unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
SIMT_SHIM unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((((uint64_t{high} << 32) | low) << (shift & 31)) >> 32);
}
SIMT_SHIM unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32) | low) >> (shift & 31));
}

#define SIMT_CAST(name, To, From)              \
  SIMT_SHIM To name(From x) {                  \
    static_assert(sizeof(To) == sizeof(From)); \
    To bits;                                   \
    __builtin_memcpy(&bits, &x, sizeof(bits)); \
    return bits;                               \
  }
SIMT_CAST(__float_as_uint, unsigned, float)
SIMT_CAST(__float_as_int, int, float)
SIMT_CAST(__uint_as_float, float, unsigned)
SIMT_CAST(__int_as_float, float, int)
SIMT_CAST(__double_as_longlong, long long, double)
SIMT_CAST(__longlong_as_double, double, long long)
#undef SIMT_CAST

SIMT_SHIM float __fadd_rn(float a, float b) { return a + b; }
SIMT_SHIM float __fsub_rn(float a, float b) { return a - b; }
SIMT_SHIM float __fmul_rn(float a, float b) { return a * b; }
SIMT_SHIM float __fdiv_rn(float a, float b) { return a / b; }
SIMT_SHIM float __frcp_rn(float a) { return 1.0f / a; }
SIMT_SHIM float __fsqrt_rn(float a) { return std::sqrt(a); }
SIMT_SHIM float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
SIMT_SHIM double __dadd_rn(double a, double b) { return a + b; }
SIMT_SHIM double __dsub_rn(double a, double b) { return a - b; }
SIMT_SHIM double __dmul_rn(double a, double b) { return a * b; }
SIMT_SHIM double __ddiv_rn(double a, double b) { return a / b; }
SIMT_SHIM double __dsqrt_rn(double a) { return std::sqrt(a); }
SIMT_SHIM double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
SIMT_SHIM float __double2float_rn(double a) { return static_cast<float>(a); }
SIMT_SHIM int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
SIMT_SHIM int __float2int_rz(float a) { return static_cast<int>(a); }
SIMT_SHIM float __int2float_rn(int a) { return static_cast<float>(a); }
SIMT_SHIM float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
// Not the bits of a GPU, whose result is within two units of the last place.
SIMT_SHIM float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

#define SIMT_MIN_MAX(T)                               \
  SIMT_SHIM T min(T a, T b) { return b < a ? b : a; } \
  SIMT_SHIM T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
// As CUDA's: a number rather than NaN.
SIMT_SHIM float min(float a, float b) { return std::fmin(a, b); }
SIMT_SHIM float max(float a, float b) { return std::fmax(a, b); }
SIMT_SHIM double min(double a, double b) { return std::fmin(a, b); }
SIMT_SHIM double max(double a, double b) { return std::fmax(a, b); }
// NOLINTEND(runtime/int)

#endif  // KVERN_TESTS_SIMT_INTRINSICS_H_
