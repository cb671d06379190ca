// What make bench measures: each file registers its own, --benchmark_filter chooses.
#ifndef KVERN_TESTS_BENCH_BENCHMARKS_H_
#define KVERN_TESTS_BENCH_BENCHMARKS_H_

namespace kvern::bench {

void RegisterOpBenchmarks();
void RegisterRpcBenchmarks();

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_BENCHMARKS_H_
