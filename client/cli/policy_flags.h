// The policy words of the command line, and the message they make (ruling 2).
#ifndef KVERN_CLIENT_CLI_POLICY_FLAGS_H_
#define KVERN_CLIENT_CLI_POLICY_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "kvern/v1/types.pb.h"

namespace kvern::cli {

struct PolicyFlags {
  std::string preset;
  std::string profile;
  std::optional<int64_t> budget_tokens;
  std::optional<double> keep_ratio;
  std::string budget_bytes;
  std::string budgeter;
  std::vector<std::string> scorers;
  std::string blend;
  std::string selector;
  std::string codec;
  std::optional<int64_t> sink;
  std::optional<int64_t> recent;
  std::optional<double> recent_share;
  std::string positions;
  std::string on_conflict;
};

void AddPolicyFlags(CLI::App* app, PolicyFlags* flags);

// `cache_bytes`, k + v of the cache, is what a budget in per cent counts from. Errors:
// InvalidArgument naming the flag (a usage error). Names and ranges of stages are the
// server's to judge.
absl::StatusOr<v1::Policy> ToPolicy(const PolicyFlags& flags, int64_t cache_bytes);

// `name:k=v,k=v`; a bare `k` means `k=true`.
absl::StatusOr<v1::StageSpec> ParseStage(const std::string& flag, const std::string& text);
// `64000`, `512KiB`, `1.5GiB`, `2GB`, or `25%` of `whole` bytes, rounded down.
absl::StatusOr<int64_t> ParseSize(const std::string& flag, const std::string& text, int64_t whole);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_POLICY_FLAGS_H_
