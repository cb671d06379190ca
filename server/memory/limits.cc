// The table that flags, gauges and GetServerInfo are made from.
#include "server/memory/limits.h"

#include <iterator>

namespace kvern {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kGrpcMessageBytes = (int64_t{1} << 31) - 1;  // gRPC counts messages in int

// Geometry cannot be raised: the wire contract and the kernels' fixed rows state the same numbers.
constexpr LimitField kFields[] = {
    {"inline-bytes", "bytes of keys and values in one inline request", &Limits::inline_bytes, kGiB},
    {"metadata-bytes", "bytes of one call's headers", &Limits::metadata_bytes, 1 << 20},
    {"pools-per-peer", "registered pools per peer", &Limits::pools_per_peer, 4096},
    {"regions-per-pool", "memory regions per pool", &Limits::regions_per_pool, 64},
    {"sequences", "sequences remembered or stored", &Limits::sequences, 1 << 20},
    {"layers", "layers per model", &Limits::layers, 512},
    {"kv-heads", "KV heads per layer", &Limits::kv_heads, 1024},
    {"head-dim", "dims per head", &Limits::head_dim, 1024},
    {"block-tokens", "tokens per block of a pool", &Limits::block_tokens, 256},
    {"tokens-per-sequence", "physical tokens per sequence", &Limits::tokens_per_sequence,
     int64_t{1} << 30},
    {"blocks-per-table", "block ids per block table", &Limits::blocks_per_table, int64_t{1} << 26},
    {"sequences-per-call", "sequences in one compression call", &Limits::sequences_per_call,
     1 << 16},
    {"queued-calls", "admitted calls that wait for the device", &Limits::queued_calls, 1 << 16},
    {"queued-bytes", "bytes held by admitted calls", &Limits::queued_bytes, 1024 * kGiB},
    {"idle-stream-seconds", "seconds without a message before a stream ends",
     &Limits::idle_stream_seconds, 3600},
    {"drain-seconds", "seconds that running calls get at shutdown", &Limits::drain_seconds, 3600},
    {"default-deadline-seconds", "deadline in seconds of calls that bring none",
     &Limits::default_deadline_seconds, 3600},
    {"store-bytes", "capacity of the store in bytes, touched as it fills", &Limits::store_bytes,
     8192 * kGiB},
    {"calibration-bytes", "bytes of all imported calibrations", &Limits::calibration_bytes,
     1024 * kGiB},
    {"max-response-bytes", "bytes of one response", &Limits::max_response_bytes, kGrpcMessageBytes},
    {"replay-answers", "answers kept for replayed requests", &Limits::replay_answers, 1 << 20},
    {"replay-bytes", "bytes of answers kept for replayed requests", &Limits::replay_bytes,
     16 * kGiB},
    {"replay-seconds", "seconds that an answer is kept for replay", &Limits::replay_seconds, 86400},
    {"pool-lease", "seconds that a pool with a CUDA IPC handle lives without renewal",
     &Limits::pool_lease, 86400},
    {"observed-bytes", "bytes of all statistics of observed queries", &Limits::observed_bytes,
     1024 * kGiB},
    {"plans", "compression plans that wait to be applied", &Limits::plans, 1 << 20},
    {"plan-bytes", "bytes of all plans that wait to be applied", &Limits::plan_bytes, 1024 * kGiB},
    {"plan-seconds", "seconds that a plan waits at most", &Limits::plan_seconds, 86400},
};
static_assert(sizeof(Limits) == std::size(kFields) * sizeof(int64_t), "every limit has a row");

}  // namespace

std::span<const LimitField> LimitFields() { return kFields; }

}  // namespace kvern
