// An engine on the emulated device, and requests that together use every op and every way of
// placing an answer.
#ifndef KVERN_TESTS_DEVICE_DEVICE_FIXTURE_H_
#define KVERN_TESTS_DEVICE_DEVICE_FIXTURE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/simt/runtime/faults.h"
#include "tests/support/host_kv.h"
#include "tests/unit/server/engine/engine_fixture.h"

namespace kvern::engine {

struct CanonicalJob {
  std::string name;
  CompressJob job;
};

class DeviceTest : public EngineTest {
 protected:
  DeviceTest() {
    simt::Faults::Clear();
    Restart();
  }
  ~DeviceTest() override {
    engine_.reset();
    simt::Faults::Clear();
  }

  // A new engine on a device as good as new. An emulated device on a busy machine is slow: what
  // must not be found hung wants some patience.
  void Restart(double hang_seconds = 10) {
    engine_.reset();
    simt::Faults::Clear();
    make_backend_ = [hang_seconds] {
      return MakeBackend(
                 {.name = "cuda", .scratch_bytes = int64_t{48} << 20, .hang_seconds = hang_seconds})
          .value();
    };
    Start(Limits());
  }

  // 18 tokens of a sequence with everything beside it that a scorer may ask for.
  static SequenceJob WithSides(const std::string& id) {
    SequenceJob sequence = Paged(id);
    const int64_t rows = kLayers * kKvHeads * 18;
    sequence.side_layers = kLayers;
    sequence.side.window = 4;
    sequence.side.q_window = support::RandomFloats(kLayers * 4 * 4 * kHeadDim, /*seed=*/3);
    sequence.side.attention_mass = support::RandomFloats(rows, /*seed=*/4);
    for (float& mass : sequence.side.attention_mass) mass = std::fabs(mass);
    sequence.side.external_scores = support::RandomFloats(rows, /*seed=*/5);
    return sequence;
  }

  static pipeline::Policy With(std::vector<pipeline::StageSpec> scorers,
                               pipeline::Placement placement) {
    pipeline::Policy policy = KeyNorm(7, placement);
    policy.scorers = std::move(scorers);
    return policy;
  }

 public:
  // Twenty requests of one sequence each.
  static std::vector<CanonicalJob> CanonicalJobs();
};

inline std::vector<CanonicalJob> DeviceTest::CanonicalJobs() {
  using pipeline::Placement;
  const std::vector<std::pair<std::string, std::vector<pipeline::StageSpec>>> scorers = {
      {"key_norm", {{"key_norm", {}}}},
      {"keydiff", {{"keydiff", {{"unrotate", "true"}}}}},
      {"snapkv", {{"snapkv", {{"window", "4"}}}}},
      {"attention_mass", {{"attention_mass", {{"value_norm", "true"}}}}},
      {"blend", {{"keydiff", {}}, {"value_norm", {}}}},
  };
  std::vector<CanonicalJob> jobs;
  const auto add = [&](const std::string& name, const pipeline::Policy& policy) {
    jobs.push_back({name, Job(policy, {WithSides("s")})});
  };
  for (const auto& [name, specs] : scorers) {
    add(name + " COPY_TO", With(specs, Placement::kCopyTo));
    add(name + " COMPACT", With(specs, Placement::kCompact));
  }
  for (const auto& [k, v] : {std::pair{"i8t+rm", "lm4"}, {"lm4+rm", "i8t"}, {"i8t", "raw16"}}) {
    pipeline::Policy policy = With({{"key_norm", {}}}, Placement::kToStore);
    policy.k_codec = k;
    policy.v_codec = v;
    add(absl::StrCat(k, " ", v, " TO_STORE"), policy);
    policy.positions = pipeline::PositionMode::kRenumber;
    add(absl::StrCat(k, " ", v, " RENUMBER"), policy);
  }
  pipeline::Policy diverse = With({{"keydiff", {}}}, Placement::kCopyTo);
  diverse.selector = {"diverse", {}};
  add("diverse COPY_TO", diverse);
  pipeline::Policy shared = With({{"external", {}}}, Placement::kCopyTo);
  shared.selector = {"topk", {{"share", "all"}}};
  add("shared COPY_TO", shared);
  pipeline::Policy renumbered = With({{"random", {}}}, Placement::kCompact);
  renumbered.positions = pipeline::PositionMode::kRenumber;
  add("renumbered COMPACT", renumbered);
  add("INDICES_ONLY", With({{"keydiff", {}}}, Placement::kIndicesOnly));
  return jobs;
}

}  // namespace kvern::engine

#endif  // KVERN_TESTS_DEVICE_DEVICE_FIXTURE_H_
