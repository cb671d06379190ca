// Observed queries in the registry: when they serve, what they cost, how they leave as files.
#include "server/engine/observed_queries.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <span>

#include "kernels/base/error_reason.h"
#include "server/engine/calibration_export.h"
#include "server/engine/calibration_file.h"
#include "server/engine/model_registry.h"

namespace kvern::engine {
namespace {

constexpr int64_t kConfident = 32;  // 4 x head_dim

RegisteredModel Model(const std::string& id) {
  RegisteredModel model;
  model.id = id;
  model.spec.num_layers = 2;
  model.spec.q_heads = 4;
  model.spec.kv_heads = 2;
  model.spec.head_dim = 8;
  model.spec.rope.inv_freq = {1.0f, 0.1f, 0.01f, 0.001f};
  model.spec.rope.attention_scaling = 1.1;
  return model;
}

pipeline::QueryBatch Queries(int64_t tokens, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.5f, 2.0f);
  pipeline::QueryBatch batch;
  batch.layers = {0, 1};
  batch.tokens = tokens;
  for (int64_t at = 0; at < 2 * 4 * tokens * 8; ++at) batch.queries.push_back(normal(random));
  return batch;
}

TEST(ObservedQueries, ServeFromConfidenceOnAndAreReadAnewAQuarterLater) {
  ObservedQueries observed(Model("m").spec);
  observed.Add(Queries(kConfident - 1));
  EXPECT_EQ(observed.Current(), nullptr);
  EXPECT_FALSE(observed.Describe(ObservedQueries::Detail::kBrief).confident);
  observed.Add(Queries(1));
  const auto first = observed.Current();
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->LeastTokens(), kConfident);
  EXPECT_TRUE(observed.Describe(ObservedQueries::Detail::kBrief).confident);
  observed.Add(Queries(kConfident / 4 - 1, 2));
  EXPECT_EQ(observed.Current(), first);
  observed.Add(Queries(1));
  const auto second = observed.Current();
  EXPECT_EQ(second->LeastTokens(), kConfident + kConfident / 4);
  EXPECT_NE(second->cache_key, first->cache_key);
  EXPECT_NE(second->moments->mean, first->moments->mean);
}

TEST(ObservedQueries, ServeLayersThatHaveEnoughWhileOthersHaveNone) {
  ObservedQueries observed(Model("m").spec);
  pipeline::QueryBatch batch = Queries(kConfident);
  batch.layers = {1};
  batch.queries.resize(batch.queries.size() / 2);
  observed.Add(batch);
  const int32_t first = 0, second = 1;
  EXPECT_EQ(observed.Current(std::span(&first, 1)), nullptr);
  const auto of_second = observed.Current(std::span(&second, 1));
  ASSERT_NE(of_second, nullptr);
  EXPECT_EQ(of_second->moments->mean[0], 0.0f);  // not 0 / 0
  observed.Add(Queries(kConfident));
  const auto of_first = observed.Current(std::span(&first, 1));
  ASSERT_NE(of_first, nullptr);
  EXPECT_NE(of_first, of_second);
  EXPECT_EQ(of_first->LeastTokens(), kConfident);
  EXPECT_EQ(observed.Current(), of_first);
}

TEST(ObservedQueries, OfTwoLivesOfAModelHaveKeysOfTheirOwn) {
  ObservedQueries first(Model("m").spec), second(Model("m").spec);
  first.Add(Queries(kConfident));
  second.Add(Queries(kConfident, 2));
  EXPECT_NE(first.Current()->cache_key, second.Current()->cache_key);
}

TEST(ModelRegistryObserved, FillsWhatTheDefaultsLackAndOnlyThat) {
  ModelRegistry registry{Limits()};
  const RegisteredModel model = *registry.Register(Model("m"));
  EXPECT_EQ(ReasonOf(registry.Resolve(model, {kObservedCalibration}).status()), "OBSERVED_TOO_FEW");
  const auto observed = *registry.Observe(model);
  observed->Add(Queries(kConfident - 1));
  // Asked for by name they are refused while few, and otherwise not there yet.
  const absl::Status few = registry.Resolve(model, {kObservedCalibration}).status();
  EXPECT_EQ(ReasonOf(few), "OBSERVED_TOO_FEW");
  EXPECT_THAT(std::string(few.message()), testing::HasSubstr("got 31"));
  EXPECT_EQ(registry.Resolve(model, {})->moments, nullptr);

  observed->Add(Queries(1));
  const auto resolved = registry.Resolve(model, {});
  ASSERT_TRUE(resolved.ok());
  EXPECT_NE(resolved->centres, nullptr);
  EXPECT_NE(resolved->moments, nullptr);
  EXPECT_TRUE(resolved->observed_centres && resolved->observed_moments);
  EXPECT_EQ(resolved->observed_tokens, kConfident);
  EXPECT_FALSE(resolved->cache_key.empty());

  bool existed = true;
  const auto file =
      registry.Import(*ExportCalibration(model, *observed->Export(), kMomentsFormat), &existed);
  ASSERT_TRUE(file.ok()) << file.status();
  // A file of one kind leaves the other kind to them; named alone, it stays alone.
  RegisteredModel other = Model("other");
  other.calibrations = {file->sha256};
  const RegisteredModel with_file = *registry.Register(other);
  (*registry.Observe(with_file))->Add(Queries(kConfident, 3));
  const auto mixed = registry.Resolve(with_file, {});
  EXPECT_EQ(mixed->moments, file->moments);
  EXPECT_TRUE(mixed->observed_centres);
  EXPECT_FALSE(mixed->observed_moments);
  EXPECT_EQ(registry.Resolve(with_file, {file->sha256})->centres, nullptr);
}

TEST(ModelRegistryObserved, GoesWithItsModel) {
  ModelRegistry registry{Limits()};
  const RegisteredModel model = *registry.Register(Model("m"));
  EXPECT_EQ(ReasonOf(registry.Observe(Model("none")).status()), "MODEL_UNKNOWN");
  const auto observed = *registry.Observe(model);
  EXPECT_EQ(*registry.Observe(*registry.Register(Model("m"))), observed);  // registered already
  EXPECT_EQ(registry.ObservedBytes(), ObservedQueries::BytesFor(Model("m").spec));
  EXPECT_TRUE(registry.Delete("m"));
  EXPECT_EQ(registry.ObservedBytes(), 0);
  EXPECT_EQ(registry.Observed(model), nullptr);
  EXPECT_EQ(ReasonOf(registry.Observe(model).status()), "MODEL_UNKNOWN");
  EXPECT_EQ(registry.ObservedBytes(), 0);
  EXPECT_NE(*registry.Observe(*registry.Register(Model("m"))), observed);
}

// Of more layers than the later one, whose statistics would be read past their end; and of the same
// shape, whose queries are those of another model all the same.
TEST(ModelRegistryObserved, OfALaterLifeAreNotThoseOfAModelThatACallStillHolds) {
  for (const int32_t num_layers : {32, 2}) {
    SCOPED_TRACE(num_layers);
    ModelRegistry registry{Limits()};
    RegisteredModel spec = Model("m");
    spec.spec.num_layers = num_layers;
    const RegisteredModel held = *registry.Register(spec);
    ASSERT_TRUE(registry.Delete("m"));
    const RegisteredModel later = *registry.Register(Model("m"));
    (*registry.Observe(later))->Add(Queries(kConfident));
    EXPECT_EQ(registry.Observed(held), nullptr);
    EXPECT_EQ(ReasonOf(registry.Observe(held).status()), "MODEL_UNKNOWN");
    const std::vector<int32_t> layers = {0, num_layers - 1};
    const auto calibrations = registry.Resolve(held, {}, layers);
    ASSERT_TRUE(calibrations.ok()) << calibrations.status();
    EXPECT_EQ(calibrations->centres, nullptr);
    EXPECT_EQ(ReasonOf(registry.Resolve(held, {kObservedCalibration}, layers).status()),
              "OBSERVED_TOO_FEW");
    EXPECT_NE(registry.Resolve(later, {})->centres, nullptr);
  }
}

TEST(ModelRegistryObserved, StaysWithinItsBytes) {
  Limits limits;
  limits.observed_bytes = 2 * ObservedQueries::BytesFor(Model("m").spec);
  ModelRegistry registry{limits};
  const RegisteredModel a = *registry.Register(Model("a")), b = *registry.Register(Model("b")),
                        c = *registry.Register(Model("c"));
  ASSERT_TRUE(registry.Observe(a).ok());
  ASSERT_TRUE(registry.Observe(b).ok());
  const absl::Status full = registry.Observe(c).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), "QUOTA");
  EXPECT_TRUE(registry.Delete("a"));
  EXPECT_TRUE(registry.Observe(c).ok());
}

TEST(CalibrationExport, IsReadBackBitForBit) {
  ObservedQueries observed(Model("m").spec);
  EXPECT_EQ(ReasonOf(observed.Export().status()), "OBSERVED_TOO_FEW");
  observed.Add(Queries(50));
  const auto snapshot = observed.Export();
  ASSERT_TRUE(snapshot.ok());
  for (const char* format : {kCentresFormat, kMomentsFormat}) {
    const auto file = ExportCalibration(Model("m"), *snapshot, format);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto artifact = ParseCalibration(std::as_bytes(std::span(*file)), Limits());
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    EXPECT_EQ(artifact->format, format);
    if (artifact->centres != nullptr) {
      EXPECT_EQ(artifact->centres->mean_re, snapshot->centres->mean_re);
      EXPECT_EQ(artifact->centres->abs_mean, snapshot->centres->abs_mean);
    } else {
      EXPECT_EQ(artifact->moments->mean, snapshot->moments->mean);
      EXPECT_EQ(artifact->moments->cov, snapshot->moments->cov);
    }
  }
  EXPECT_EQ(FieldOf(ExportCalibration(Model("m"), *snapshot, "other").status()), "format");
}

}  // namespace
}  // namespace kvern::engine
