// Draws the parts of a case one after the other; later parts fit the earlier ones, so that nearly
// every request is one that a server accepts.
#include "tests/support/random_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace kvern::support {
namespace {

using pipeline::StageSpec;

constexpr int64_t kMaxTokens = 256;
constexpr int64_t kUsualWork = 4'000'000;
constexpr int64_t kLargeWork = 40'000'000;
constexpr int64_t kMaxWindow = 8;

class CaseMaker {
 public:
  CaseMaker(int64_t geometry, uint64_t seed) : rng_(seed) {
    out_.geometry = MakeGeometry(geometry);
    out_.dtype = rng_.Pick({DType::kBF16, DType::kF16, DType::kF32});
  }

  RandomCase Make() {
    if (rng_.Chance(10)) {
      DrawPreset();
    } else {
      DrawStages();
    }
    DrawTokens();
    if (out_.policy.preset.empty()) DrawParameters();
    DrawBudget();
    DrawProtection();
    DrawCodecs();
    DrawPositions();
    DrawSide();
    DrawBytes(&out_.k);
    DrawBytes(&out_.v);
    return std::move(out_);
  }

 private:
  const pipeline::ModelSpec& Model() const { return out_.geometry.model; }
  bool KnowsRope() const { return Model().rope.Bands() > 0; }
  bool Scores(const std::string& name) const {
    const auto& specs = out_.policy.scorers;
    return std::any_of(specs.begin(), specs.end(),
                       [&](const StageSpec& spec) { return spec.name == name; });
  }

  void DrawPreset() {
    out_.uses_centres = rng_.Chance(50);
    out_.uses_moments = out_.geometry.has_moments && rng_.Chance(50);
    // The others remove the mean key before RoPE.
    out_.policy.preset =
        KnowsRope() ? rng_.Pick({"balanced", "small", "safe", "evict50"}) : "evict50";
    // What a profile scores by has to be there.
    const bool calibrated = out_.uses_centres && out_.uses_moments && KnowsRope();
    if (calibrated && rng_.Chance(50)) out_.policy.profile = rng_.Pick({"retrieval", "text"});
  }

  void DrawStages() {
    std::vector<std::string> scorers = {"key_norm", "value_norm",     "keydiff", "random",
                                        "snapkv",   "attention_mass", "external"};
    if (KnowsRope()) scorers.push_back("triattention");
    if (KnowsRope() && out_.geometry.has_moments) scorers.push_back("expected_attention");
    rng_.Shuffle(&scorers);
    const int64_t count = rng_.Chance(60) ? 1 : rng_.Int(2, 3);
    for (int64_t i = 0; i < count; ++i) out_.policy.scorers.push_back({scorers[i], {}});
    if (rng_.Chance(70)) {
      out_.policy.selector = StageSpec{rng_.Pick({"topk", "topk", "diverse", "sink_recent"}), {}};
    }
    if (count > 1 && rng_.Chance(70)) {
      out_.policy.blend = rng_.Pick({BlendKind::kMax, BlendKind::kSum});
    }
    if (rng_.Chance(40)) {
      out_.policy.budgeter = StageSpec{rng_.Pick({"uniform", "sensitivity", "pyramid"}), {}};
    }
    const bool by_sensitivity = out_.policy.budgeter && out_.policy.budgeter->name == "sensitivity";
    out_.uses_centres = Scores("triattention") || by_sensitivity;
    out_.uses_moments = Scores("expected_attention");
  }

  // Elements that the request's stages read, about.
  int64_t Work(int64_t tokens) const {
    const int64_t dims = Model().head_dim;
    const int64_t q_heads = int64_t{Model().num_layers} * Model().q_heads;
    int64_t per_token = out_.Rows() * dims;
    if (out_.uses_centres) per_token += q_heads * dims;
    if (out_.uses_moments) per_token += q_heads * dims * dims;
    if (Scores("snapkv")) per_token += q_heads * dims * kMaxWindow;
    const bool diverse = out_.policy.selector && out_.policy.selector->name == "diverse";
    if (diverse) per_token += out_.Rows() * dims * tokens / 4;
    return per_token * tokens;
  }

  void DrawTokens() {
    out_.tokens = rng_.Chance(20)   ? rng_.Int(0, 8)
                  : rng_.Chance(60) ? rng_.Int(9, 64)
                                    : rng_.Int(65, kMaxTokens);
    const int64_t most = rng_.Chance(4) ? kLargeWork : kUsualWork;
    while (Work(out_.tokens) > most) out_.tokens = out_.tokens * 3 / 4;
    if (out_.tokens == 0 || !rng_.Chance(12)) return;
    for (int64_t row = 0; row < out_.Rows(); ++row) {
      out_.lengths.push_back(static_cast<int32_t>(rng_.Int(0, out_.tokens)));
    }
    out_.lengths[rng_.Int(0, out_.Rows() - 1)] = static_cast<int32_t>(out_.tokens);
  }

  void Give(StageSpec* spec, const std::string& name, const std::string& value) {
    if (rng_.Chance(60)) spec->params[name] = value;
  }
  const char* Bool() { return rng_.Pick({"false", "true"}); }

  void DrawParameters() {
    for (StageSpec& spec : out_.policy.scorers) DrawScorer(&spec);
    if (out_.policy.selector && out_.policy.selector->name != "sink_recent") {
      StageSpec* selector = &*out_.policy.selector;
      Give(selector, "tie", rng_.Pick({"recent", "oldest"}));
      // Rows of unequal lengths share no set.
      if (out_.lengths.empty())
        Give(selector, "share", rng_.Pick({"none", "heads", "layers", "all"}));
      Give(selector, "reduce", rng_.Pick({"mean", "max"}));
      if (selector->name == "diverse") {
        Give(selector, "lambda", rng_.Pick({"0", "0.25", "1", "10"}));
        Give(selector, "scale", rng_.Pick({"asis", "minmax"}));
      }
    }
    if (!out_.policy.budgeter) return;
    StageSpec* budgeter = &*out_.policy.budgeter;
    if (budgeter->name == "pyramid") {
      Give(budgeter, "beta", absl::StrCat(rng_.Int(1, 30)));
      Give(budgeter, "window", absl::StrCat(rng_.Int(0, 16)));
      Give(budgeter, "compat", rng_.Pick({"none", "kvpress"}));
    }
    if (budgeter->name == "sensitivity") {
      Give(budgeter, "power", rng_.Pick({"0", "0.5", "2"}));
      Give(budgeter, "floor", absl::StrCat(rng_.Int(0, 16)));
    }
  }

  void DrawScorer(StageSpec* spec) {
    const std::string group = rng_.Pick({"mean", "max"});
    if (spec->name == "snapkv" && out_.tokens == 0) spec->name = "key_norm";  // no query to send
    if (spec->name == "triattention") {
      Give(spec, "offsets", rng_.Pick({"mean", "max"}));
      Give(spec, "normalize", rng_.Pick({"zscore", "none"}));
      Give(spec, "group", group);
    } else if (spec->name == "snapkv") {
      out_.side.window = rng_.Int(1, std::min(kMaxWindow, out_.tokens));
      spec->params["window"] = absl::StrCat(out_.side.window);
      Give(spec, "pool", rng_.Pick({"avg", "max"}));
      Give(spec, "pool_width", rng_.Pick({"1", "3", "7"}));
      Give(spec, "group", group);
    } else if (spec->name == "expected_attention") {
      spec->params["future"] = absl::StrCat(rng_.Int(1, 64));
      // The ranks need eigenpairs, which cost head_dim^3.
      if (Model().head_dim <= 40) Give(spec, "rank", rng_.Pick({"full", "1", "4"}));
      Give(spec, "value_norm", Bool());
      const bool log = rng_.Chance(40);
      if (log) spec->params["log"] = "true";
      if (!log) Give(spec, "epsilon", rng_.Pick({"0", "0.01"}));
    } else if (spec->name == "keydiff" && KnowsRope()) {
      Give(spec, "unrotate", Bool());
    } else if (spec->name == "attention_mass") {
      Give(spec, "per_visible", Bool());
      Give(spec, "value_norm", Bool());
      Give(spec, "log", Bool());
    } else if (spec->name == "random") {
      Give(spec, "seed", absl::StrCat(rng_.Int(0, 1'000'000)));
    }
  }

  void DrawBudget() {
    if (!out_.policy.preset.empty() && rng_.Chance(70)) return;
    const int64_t kind = rng_.Int(0, 9);
    if (kind < 5) {
      out_.policy.budget = pipeline::TokenBudget{rng_.Int(0, out_.tokens + 2)};
    } else if (kind < 8) {
      out_.policy.budget = pipeline::KeepRatioBudget{static_cast<double>(rng_.Int(1, 100)) / 100};
    } else {
      const int64_t all = 2 * out_.Rows() * out_.tokens * out_.RowBytes();
      out_.policy.budget = pipeline::ByteBudget{all * rng_.Int(20, 110) / 100};
    }
  }

  void DrawProtection() {
    pipeline::Policy& policy = out_.policy;
    if (rng_.Chance(70)) policy.sink_tokens = rng_.Int(0, 6);
    if (rng_.Chance(70)) policy.recent_tokens = rng_.Int(0, 12);
    if (rng_.Chance(70)) policy.recent_share = rng_.Pick({0.0, 0.25, 0.5, 1.0});
    if (rng_.Chance(30)) policy.on_conflict = pipeline::OnConflict::kTrimOldest;
    if (rng_.Chance(3)) policy.on_conflict = pipeline::OnConflict::kFail;
    const int64_t ranges = rng_.Chance(20) ? rng_.Int(1, 2) : 0;
    for (int64_t i = 0; i < ranges; ++i) {
      const int64_t begin = rng_.Int(0, out_.tokens);
      out_.protected_ranges.emplace_back(begin, rng_.Int(begin, std::min(begin + 9, out_.tokens)));
    }
  }

  void DrawCodecs() {
    if (!out_.policy.preset.empty() || rng_.Chance(50)) return;
    out_.policy.k_codec = KnowsRope()
                              ? rng_.Pick({"raw16", "i8t", "H+i8t", "i8t+rm", "H+i8t+rm", "lm4+rm",
                                           "lm4+rm", "sfv3+rm", "i4t+rm", "H+fp8t+rm", "kch4"})
                              : rng_.Pick({"raw16", "i8t", "H+i8t", "fp8t", "kch4"});
    out_.policy.v_codec =
        rng_.Pick({"raw16", "i8t", "H+i8t", "lm4", "sfv3", "sfv2", "i4t", "fp8t"});
  }

  void DrawPositions() {
    const bool shares = out_.policy.preset == "balanced" || out_.policy.preset == "small";
    const bool by_sensitivity = shares && out_.uses_centres;
    const bool equal_layers =
        out_.policy.budgeter ? out_.policy.budgeter->name == "uniform" : !by_sensitivity;
    if (KnowsRope() && equal_layers && out_.lengths.empty() && rng_.Chance(20)) {
      out_.policy.positions = pipeline::PositionMode::kRenumber;
    }
    if (out_.tokens == 0 || !rng_.Chance(30)) return;
    out_.per_head_positions = rng_.Chance(40);
    const int64_t rows = out_.per_head_positions ? out_.Rows() : 1;
    out_.positions.assign(rows * out_.tokens, -1);
    int32_t last = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t length = out_.per_head_positions ? out_.Length(row) : out_.tokens;
      auto position = static_cast<int32_t>(rng_.Int(0, 20));
      for (int64_t token = 0; token < length; ++token) {
        out_.positions[row * out_.tokens + token] = position;
        last = std::max(last, position);
        position += static_cast<int32_t>(rng_.Int(1, 4));
      }
    }
    out_.logical_tokens = std::max<int64_t>(out_.tokens, last + 1 + rng_.Int(0, 9));
  }

  void DrawSide() {
    const int64_t cells = out_.Rows() * out_.tokens;
    if (out_.side.window > 0) {
      out_.side.q_window = rng_.Normals(int64_t{Model().num_layers} * Model().q_heads *
                                        out_.side.window * Model().head_dim);
    }
    if (Scores("attention_mass") || rng_.Chance(5)) {
      out_.side.attention_mass = rng_.Normals(cells);
      for (float& mass : out_.side.attention_mass) mass = std::max(0.0f, std::abs(mass) - 0.05f);
    }
    if (!Scores("external")) return;
    out_.side.external_scores = rng_.Normals(cells);
    const bool has_ties = rng_.Chance(50);
    const bool has_nan = rng_.Chance(10);
    for (float& score : out_.side.external_scores) {
      if (has_ties) score = std::round(score);
      if (has_nan && rng_.Chance(5)) score = std::numeric_limits<float>::quiet_NaN();
    }
  }

  void DrawBytes(std::vector<std::byte>* plane) {
    const int64_t dims = Model().head_dim;
    std::vector<float> values = rng_.Normals(out_.Rows() * out_.tokens * dims);
    const bool is_biased = rng_.Chance(50);
    const std::vector<float> bias = rng_.Normals(is_biased ? dims : 0);
    if (is_biased) {
      for (size_t i = 0; i < values.size(); ++i) values[i] += 6 * bias[i % dims];
    }
    // Equal tokens have equal scores: only the tie rule tells them apart.
    const int64_t twins = out_.tokens > 1 && rng_.Chance(30) ? rng_.Int(1, 20) : 0;
    for (int64_t i = 0; i < twins; ++i) {
      float* row = values.data() + rng_.Int(0, out_.Rows() - 1) * out_.tokens * dims;
      const float* from = row + rng_.Int(0, out_.tokens - 1) * dims;
      std::memmove(row + rng_.Int(0, out_.tokens - 1) * dims, from, dims * sizeof(float));
    }
    const int64_t strange = !values.empty() && rng_.Chance(4) ? rng_.Int(1, 3) : 0;
    for (int64_t i = 0; i < strange; ++i) {
      constexpr float kInfinity = std::numeric_limits<float>::infinity();
      values[rng_.Int(0, static_cast<int64_t>(values.size()) - 1)] =
          rng_.Pick({kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 1e30f, 7e4f});
    }
    Store(values, plane);
  }

  void Store(const std::vector<float>& values, std::vector<std::byte>* plane) const {
    plane->resize(values.size() * SizeOf(out_.dtype));
    VisitDType(out_.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      for (size_t i = 0; i < values.size(); ++i) {
        const T value = FromFloat<T>(values[i]);
        std::memcpy(plane->data() + i * sizeof(T), &value, sizeof(T));
      }
    });
  }

  Rng rng_;
  RandomCase out_;
};

std::string TextOf(const StageSpec& spec) {
  return absl::StrCat(spec.name, ":", absl::StrJoin(spec.params, ",", absl::PairFormatter("=")));
}

std::string BudgetText(const pipeline::Policy& policy) {
  if (!policy.budget) return "none";
  if (const auto* tokens = std::get_if<pipeline::TokenBudget>(&*policy.budget)) {
    return absl::StrCat(tokens->tokens, " tokens");
  }
  if (const auto* bytes = std::get_if<pipeline::ByteBudget>(&*policy.budget)) {
    return absl::StrCat(bytes->bytes, " bytes");
  }
  return absl::StrCat("ratio ", std::get<pipeline::KeepRatioBudget>(*policy.budget).ratio);
}

}  // namespace

bool RandomCase::Packs() const {
  const auto codes = [](const std::optional<std::string>& codec) {
    return codec && *codec != "raw16";
  };
  return codes(policy.k_codec) || codes(policy.v_codec) || policy.preset == "balanced" ||
         policy.preset == "small" || policy.preset == "safe";
}

RandomCase MakeRandomCase(int64_t geometry, uint64_t seed) {
  return CaseMaker(geometry, seed).Make();
}

std::string Describe(const RandomCase& random) {
  const pipeline::Policy& policy = random.policy;
  const pipeline::ModelSpec& model = random.geometry.model;
  std::string text = absl::StrCat(
      Name(random.dtype), " layers=", model.num_layers, " q_heads=", model.q_heads,
      " kv_heads=", model.kv_heads, " tokens=", random.tokens, " head_dim=", model.head_dim,
      " bands=", model.rope.Bands(), random.lengths.empty() ? "" : " ragged", " preset=\"",
      policy.preset, "\" profile=\"", policy.profile, "\" budget=", BudgetText(policy));
  for (const StageSpec& spec : policy.scorers) {
    absl::StrAppend(&text, " scorer=", TextOf(spec));
  }
  if (policy.selector) absl::StrAppend(&text, " selector=", TextOf(*policy.selector));
  if (policy.budgeter) absl::StrAppend(&text, " budgeter=", TextOf(*policy.budgeter));
  absl::StrAppend(&text, " k=", policy.k_codec.value_or(""), " v=", policy.v_codec.value_or(""),
                  policy.positions == pipeline::PositionMode::kRenumber ? " renumber" : "",
                  random.positions.empty() ? "" : " positions",
                  random.per_head_positions ? " per head" : "");
  return text;
}

}  // namespace kvern::support
