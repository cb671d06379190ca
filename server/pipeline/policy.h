// What a caller asks for: the typed form of kvern.v1.Policy and of the command line's words.
#ifndef KVERN_SERVER_PIPELINE_POLICY_H_
#define KVERN_SERVER_PIPELINE_POLICY_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/backend.h"

namespace kvern::pipeline {

// `snapkv:window=32,pool=avg`. Ordered, so that text and hashes are canonical.
struct StageSpec {
  std::string name;
  std::map<std::string, std::string> params;
  bool operator==(const StageSpec&) const = default;
};

struct TokenBudget {
  int64_t tokens = 0;  // per (layer, kv_head), on average
  bool operator==(const TokenBudget&) const = default;
};
struct KeepRatioBudget {
  double ratio = 1.0;  // floor(ratio * tokens + 1e-9) per (layer, kv_head)
  bool operator==(const KeepRatioBudget&) const = default;
};
struct ByteBudget {
  int64_t bytes = 0;  // of the whole sequence, metadata counted
  bool operator==(const ByteBudget&) const = default;
};
using Budget = std::variant<TokenBudget, KeepRatioBudget, ByteBudget>;

enum class Placement : uint8_t { kDefault, kCopyTo, kCompact, kIndicesOnly, kToStore, kReturn };
enum class PositionMode : uint8_t { kKeepLogical, kRenumber };
enum class OnConflict : uint8_t { kGrowBudget, kFail, kTrimOldest };
enum class ShapeClass : uint8_t { kS0 = 0, kS1, kS2, kS3, kS4 };
enum class Source : uint8_t { kPaged, kStored, kInline };

// Unset members take the preset's value, or the defaults of ruling 2.
struct Policy {
  std::string preset;
  std::string profile;  // "", "retrieval", "text"
  std::optional<Budget> budget;
  std::optional<StageSpec> budgeter;
  std::vector<StageSpec> scorers;
  std::optional<BlendKind> blend;
  std::optional<StageSpec> selector;
  std::optional<std::string> k_codec;  // "i8t+rm"
  std::optional<std::string> v_codec;
  std::optional<int64_t> sink_tokens;
  std::optional<int64_t> recent_tokens;
  std::optional<double> recent_share;
  PositionMode positions = PositionMode::kKeepLogical;
  Placement placement = Placement::kDefault;
  OnConflict on_conflict = OnConflict::kGrowBudget;
  std::vector<std::string> calibrations;  // names the caller lists; the engine resolves them
  bool operator==(const Policy&) const = default;
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_POLICY_H_
