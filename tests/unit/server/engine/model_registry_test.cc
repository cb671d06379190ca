// Models and calibrations: what is let in, what it is checked against, what goes first.
#include "server/engine/model_registry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <thread>

#include "formats/safetensors.h"
#include "kernels/base/error_reason.h"

namespace kvern::engine {
namespace {

RegisteredModel Model(const std::string& id) {
  RegisteredModel model;
  model.id = id;
  model.spec.num_layers = 2;
  model.spec.q_heads = 4;
  model.spec.kv_heads = 2;
  model.spec.head_dim = 8;
  model.spec.rope.inv_freq = {1.0f, 0.1f, 0.01f, 0.001f};
  return model;
}

std::string ReadFile(const std::string& name) {
  std::ifstream file(std::string(KVERN_TEST_DATA) + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A calibration of 2 layers, 4 query heads, 4 bands, with one value of one tensor changed.
struct Centres {
  std::vector<float> re = std::vector<float>(32, 0.3f);
  std::vector<float> im = std::vector<float>(32, 0.4f);
  std::vector<float> abs = std::vector<float>(32, 0.6f);
  std::vector<float> sensitivity = {0.5f, 1.0f};
  std::string format = "kvern-calibration/1";

  std::string File() const {
    formats::Safetensors file;
    file.metadata["format"] = format;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape,
                         const std::vector<float>& values) {
      file.tensors[name] = {"F32", std::move(shape), std::as_bytes(std::span(values))};
    };
    add("q_mean_re", {2, 4, 4}, re);
    add("q_mean_im", {2, 4, 4}, im);
    add("q_abs_mean", {2, 4, 4}, abs);
    add("layer_sensitivity", {2}, sensitivity);
    return formats::WriteSafetensors(file);
  }
};

TEST(ModelRegistry, TakesTheSameModelAgainAndNoOtherUnderItsName) {
  ModelRegistry registry{Limits()};
  EXPECT_TRUE(registry.Register(Model("m")).ok());
  EXPECT_TRUE(registry.Register(Model("m")).ok());
  RegisteredModel other = Model("m");
  other.spec.head_dim = 16;
  EXPECT_EQ(registry.Register(other).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(registry.List().size(), 1u);
  EXPECT_TRUE(registry.Delete("m"));
  EXPECT_EQ(ReasonOf(registry.Find("m").status()), "MODEL_UNKNOWN");
}

TEST(ModelRegistry, DerivesOneNameFromOneSpec) {
  ModelRegistry registry{Limits()};
  const auto first = registry.Register(Model(""));
  const auto second = registry.Register(Model(""));
  RegisteredModel other = Model("");
  other.spec.rope.inv_freq[3] = 0.002f;
  const auto third = registry.Register(other);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok());
  EXPECT_EQ(first->id, second->id);
  EXPECT_NE(first->id, third->id);
}

TEST(ModelRegistry, NamesTheFieldOfASpecThatDoesNotFit) {
  ModelRegistry registry{Limits()};
  const auto field = [&](auto change) {
    RegisteredModel model = Model("m");
    change(&model);
    return FieldOf(registry.Register(model).status());
  };
  EXPECT_EQ(field([](auto* m) { m->spec.num_layers = 513; }), "model.spec.num_layers");
  EXPECT_EQ(field([](auto* m) { m->spec.kv_heads = 0; }), "model.spec.kv_heads");
  EXPECT_EQ(field([](auto* m) { m->spec.q_heads = 3; }), "model.spec.q_heads");
  EXPECT_EQ(field([](auto* m) { m->spec.head_dim = 12; }), "model.spec.head_dim");
  EXPECT_EQ(field([](auto* m) { m->spec.rope.inv_freq.assign(5, 1.0f); }),
            "model.spec.rope.inv_freq");
  EXPECT_EQ(field([](auto* m) { m->spec.rope.inv_freq[0] = NAN; }), "model.spec.rope.inv_freq");
  EXPECT_EQ(field([](auto* m) { m->id = "a/b"; }), "model.name");
}

TEST(ModelRegistry, ImportsTheShippedCalibrations) {
  ModelRegistry registry{Limits()};
  for (const char* name : {"smollm2-calibration.safetensors", "smollm2-query-moments.safetensors",
                           "qwen-calibration.safetensors", "qwen-query-moments.safetensors"}) {
    bool existed = true;
    const auto artifact = registry.Import(ReadFile(name), &existed);
    ASSERT_TRUE(artifact.ok()) << name << ": " << artifact.status();
    EXPECT_FALSE(existed);
    EXPECT_EQ(artifact->sha256.size(), 64u);
    EXPECT_EQ(artifact->centres != nullptr, std::string(name).find("moments") == std::string::npos);
    EXPECT_TRUE(registry.Import(ReadFile(name), &existed).ok());
    EXPECT_TRUE(existed);
  }
  EXPECT_EQ(registry.ListCalibrations().size(), 4u);
}

TEST(ModelRegistry, NamesTheTensorThatIsWrong) {
  ModelRegistry registry{Limits()};
  const auto message = [&](auto change) {
    Centres centres;
    change(&centres);
    bool existed = false;
    const auto artifact = registry.Import(centres.File(), &existed);
    EXPECT_TRUE(absl::IsInvalidArgument(artifact.status())) << artifact.status();
    return std::string(artifact.status().message());
  };
  EXPECT_NE(message([](auto* c) { c->abs[7] = 0.4f; }).find("q_abs_mean"), std::string::npos);
  EXPECT_NE(message([](auto* c) { c->im[7] = INFINITY; }).find("q_mean_im"), std::string::npos);
  EXPECT_NE(message([](auto* c) { c->sensitivity[0] = -1; }).find("layer_sensitivity"),
            std::string::npos);
  EXPECT_NE(message([](auto* c) { c->format = "other/1"; }).find("format"), std::string::npos);
  EXPECT_TRUE(registry.ListCalibrations().empty());
}

TEST(ModelRegistry, ResolvesDefaultsAndNamesAndChecksGeometry) {
  ModelRegistry registry{Limits()};
  bool existed = false;
  const auto artifact = registry.Import(Centres().File(), &existed);
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  RegisteredModel model = Model("m");
  model.calibrations = {artifact->sha256};
  ASSERT_TRUE(registry.Register(model).ok());
  const auto defaults = registry.Resolve(model, {});
  ASSERT_TRUE(defaults.ok());
  EXPECT_NE(defaults->centres, nullptr);
  EXPECT_EQ(defaults->moments, nullptr);
  EXPECT_EQ(ReasonOf(registry.Resolve(model, {"unknown"}).status()), "CALIBRATION_UNKNOWN");
  EXPECT_TRUE(absl::IsInvalidArgument(
      registry.Resolve(model, {artifact->sha256, artifact->sha256}).status()));
  model.spec.num_layers = 3;
  EXPECT_TRUE(absl::IsInvalidArgument(registry.Resolve(model, {}).status()));
}

TEST(ModelRegistry, EvictsTheLeastRecentlyUsedThatNoModelNames) {
  Limits limits;
  limits.calibration_bytes = 3 * (3 * 32 + 2) * 4;
  ModelRegistry registry(limits);
  bool existed = false;
  std::vector<std::string> names;
  for (int i = 0; i < 3; ++i) {
    Centres centres;
    centres.re[0] = 0.01f * static_cast<float>(i);
    const auto artifact = registry.Import(centres.File(), &existed);
    ASSERT_TRUE(artifact.ok()) << artifact.status();
    names.push_back(artifact->sha256);
  }
  RegisteredModel model = Model("m");
  model.calibrations = {names[0]};
  ASSERT_TRUE(registry.Register(model).ok());
  ASSERT_TRUE(registry.FindCalibration(names[1]).ok());
  Centres centres;
  centres.re[0] = 0.2f;
  ASSERT_TRUE(registry.Import(centres.File(), &existed).ok());
  EXPECT_TRUE(registry.Has(names[0]));
  EXPECT_TRUE(registry.Has(names[1]));
  EXPECT_FALSE(registry.Has(names[2]));
}

TEST(ModelRegistry, KeepsTheDefaultsOfAModelWhateverIsImportedMeanwhile) {
  Limits limits;
  limits.calibration_bytes = (3 * 32 + 2) * 4;  // of one
  ModelRegistry registry(limits);
  Centres other;
  other.re[0] = 0.1f;
  const std::string wanted_file = Centres().File(), other_file = other.File();
  bool existed = false;
  const auto wanted = registry.Import(wanted_file, &existed);
  ASSERT_TRUE(wanted.ok()) << wanted.status();
  std::atomic<bool> stop = false;
  std::thread importer([&] {
    for (bool ignored = false; !stop;) {
      (void)registry.Import(other_file, &ignored);
      (void)registry.Import(wanted_file, &ignored);
    }
  });
  RegisteredModel model = Model("m");
  model.calibrations = {wanted->sha256};
  for (int i = 0; i < 2000; ++i) {
    const auto registered = registry.Register(model);
    if (registered.ok()) {
      EXPECT_TRUE(registry.Has(wanted->sha256));
    } else {
      EXPECT_EQ(ReasonOf(registered.status()), "CALIBRATION_UNKNOWN");
    }
    registry.Delete("m");
  }
  stop = true;
  importer.join();
}

}  // namespace
}  // namespace kvern::engine
