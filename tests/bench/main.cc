// make bench: google-benchmark's flags; the JSON goes to report.py.
#include "benchmark/benchmark.h"
#include "kernels/backends.h"
#include "tests/bench/benchmarks.h"

int main(int argc, char** argv) {
  kvern::bench::RegisterOpBenchmarks();
  kvern::bench::RegisterRpcBenchmarks();
  benchmark::AddCustomContext("instruction_set", kvern::InstructionSets().back());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
