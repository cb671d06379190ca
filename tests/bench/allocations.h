// How often a program that links this asks for memory.
#ifndef KVERN_TESTS_BENCH_ALLOCATIONS_H_
#define KVERN_TESTS_BENCH_ALLOCATIONS_H_

#include <cstdint>

namespace kvern::bench {

// Calls of malloc, calloc, realloc and aligned forms by the whole process so far.
int64_t Allocations();

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_ALLOCATIONS_H_
