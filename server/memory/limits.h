// Every limit of the contract in one place: a flag of kvernd, a gauge, and a test at ten times it.
#ifndef KVERN_SERVER_MEMORY_LIMITS_H_
#define KVERN_SERVER_MEMORY_LIMITS_H_

#include <cstdint>
#include <span>

namespace kvern {

// Field names with dashes are the flags' names; units are in the names.
struct Limits {
  int64_t inline_bytes = int64_t{16} << 20;  // k + v of one inline request
  int64_t metadata_bytes = 8 << 10;          // of one call's headers
  int64_t pools_per_peer = 64;
  int64_t regions_per_pool = 64;
  int64_t sequences = 16384;  // remembered and stored
  int64_t layers = 512;
  int64_t kv_heads = 1024;
  int64_t head_dim = 1024;
  int64_t block_tokens = 256;
  int64_t tokens_per_sequence = int64_t{1} << 22;
  int64_t blocks_per_table = int64_t{1} << 20;
  int64_t sequences_per_call = 1024;
  int64_t queued_calls = 64;
  int64_t queued_bytes = int64_t{1} << 30;
  int64_t idle_stream_seconds = 30;
  int64_t drain_seconds = 30;
  int64_t default_deadline_seconds = 60;  // for calls that bring none
  int64_t store_bytes = int64_t{1} << 30;
  int64_t calibration_bytes = int64_t{1} << 30;
  int64_t max_response_bytes = int64_t{64} << 20;
  int64_t replay_answers = 4096;
  int64_t replay_bytes = int64_t{64} << 20;
  int64_t replay_seconds = 60;
  int64_t pool_lease = 60;  // seconds
  int64_t observed_bytes = int64_t{1} << 30;
  int64_t plans = 1024;
  int64_t plan_bytes = int64_t{256} << 20;
  int64_t plan_seconds = 60;
};

struct LimitField {
  const char* flag;  // "inline-bytes"
  const char* help;
  int64_t Limits::*field;
  int64_t max;  // largest value that the flag takes; the smallest is 1
};
// All fields, in declaration order: flags, gauges and GetServerInfo are made from this table.
std::span<const LimitField> LimitFields();

}  // namespace kvern

#endif  // KVERN_SERVER_MEMORY_LIMITS_H_
