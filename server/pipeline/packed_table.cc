// Where every packed block lies and what all of it weighs, from counts alone.
#include <algorithm>

#include "server/pipeline/plan.h"
#include "server/pipeline/protection.h"

namespace kvern::pipeline {
namespace {

// A run of equally coded slots of one row.
struct CodedRun {
  CodecSpec codec;
  int64_t first_slot = 0;
  int64_t tokens = 0;
};

struct RowRuns {
  CodedRun sinks;
  CodedRun rest;
};

// Sinks stay raw in keys and values as soon as one of the codes is below 8 bits (quality.md 2.6).
int64_t RawSinks(const ResolvedPolicy& policy) {
  const int32_t bits =
      std::min(EntryOf(policy.codecs.k.id).code_bits, EntryOf(policy.codecs.v.id).code_bits);
  return bits < 8 ? policy.sink_tokens : 0;
}

RowRuns RunsOf(const ResolvedPolicy& policy, Role role, int64_t count) {
  const CodecSpec codec = role == Role::kKey ? policy.codecs.k : policy.codecs.v;
  const bool split = codec.id != CodecId::kRaw16;
  const int64_t sinks = split ? std::min(RawSinks(policy), count) : 0;
  return {{{CodecId::kRaw16, 0}, 0, sinks}, {codec, sinks, count - sinks}};
}

int64_t BlockSpan(CodecSpec codec, const KvRef& rows, int64_t tokens) {
  const CodecId id = CodecOfBlock(codec, tokens).id;
  return AlignUp(BlockBytes(id, rows.dtype, tokens, rows.head_dim), kPackedBlockAlign);
}

// Blocks and their table rows.
int64_t RunBytes(const CodedRun& run, const KvRef& rows) {
  if (run.tokens == 0) return 0;
  constexpr int64_t kRowBytes = sizeof(PackedRow);
  const int64_t full = run.tokens / kPackedBlockTokens;
  const int64_t rest = run.tokens % kPackedBlockTokens;
  const int64_t last = rest > 0 ? BlockSpan(run.codec, rows, rest) + kRowBytes : 0;
  return full * (BlockSpan(run.codec, rows, kPackedBlockTokens) + kRowBytes) + last;
}

int64_t MeanKeyBytes(const SequenceInput& input, const ResolvedPolicy& policy) {
  if ((policy.codecs.k.flags & kFlagRopeMean) == 0 || input.Tokens() == 0) return 0;
  return input.Layers() * input.KvHeads() * input.model->head_dim *
         static_cast<int64_t>(sizeof(Float16));
}

const KvRef& RowsOf(const SequenceInput& input, Role role, int64_t layer) {
  return (role == Role::kKey ? input.keys : input.values)[static_cast<size_t>(layer)];
}

class TableWriter {
 public:
  TableWriter(int64_t layer, int64_t head, Role role) {
    row_.layer = layer;
    row_.kv_head = head;
    row_.role = static_cast<int64_t>(role);
  }

  void Append(const CodedRun& run, const KvRef& rows, std::vector<PackedRow>* table,
              int64_t* offset) {
    for (int64_t done = 0; done < run.tokens; done += kPackedBlockTokens) {
      row_.first_slot = run.first_slot + done;
      row_.tokens = std::min<int64_t>(kPackedBlockTokens, run.tokens - done);
      const CodecSpec codec = CodecOfBlock(run.codec, row_.tokens);
      row_.codec = static_cast<int64_t>(codec.id);
      row_.flags = codec.flags;
      row_.byte_offset = *offset;
      table->push_back(row_);
      *offset += BlockSpan(run.codec, rows, row_.tokens);
    }
  }

 private:
  PackedRow row_{};
};

}  // namespace

int64_t BytesBefore(const SequenceInput& input) {
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    const KvRef& k = RowsOf(input, Role::kKey, layer);
    const KvRef& v = RowsOf(input, Role::kValue, layer);
    const int64_t token_bytes = k.head_dim * SizeOf(k.dtype) + v.head_dim * SizeOf(v.dtype);
    for (int64_t head = 0; head < input.KvHeads(); ++head) {
      bytes += RowLength(input, layer, head) * token_bytes;
    }
  }
  return bytes;
}

int64_t PackedBytes(const SequenceInput& input, const ResolvedPolicy& policy,
                    const std::vector<int32_t>& counts) {
  const bool packs = policy.codecs.Packs();
  int64_t bytes = packs ? MeanKeyBytes(input, policy) : 0;
  size_t row = 0;
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    for (int64_t head = 0; head < input.KvHeads(); ++head, ++row) {
      for (const Role role : {Role::kKey, Role::kValue}) {
        const KvRef& rows = RowsOf(input, role, layer);
        if (!packs) {
          bytes += int64_t{counts[row]} * rows.head_dim * SizeOf(rows.dtype);
          continue;
        }
        const RowRuns runs = RunsOf(policy, role, counts[row]);
        bytes += RunBytes(runs.sinks, rows) + RunBytes(runs.rest, rows);
      }
    }
  }
  return bytes;
}

std::vector<PackedRow> PlanPackedTable(const SequenceInput& input, const ResolvedPolicy& policy,
                                       const std::vector<int32_t>& counts, int64_t* total_bytes) {
  std::vector<PackedRow> table;
  int64_t offset = 0;
  for (const Role role : {Role::kKey, Role::kValue}) {
    size_t row = 0;
    for (int64_t layer = 0; layer < input.Layers(); ++layer) {
      for (int64_t head = 0; head < input.KvHeads(); ++head, ++row) {
        const RowRuns runs = RunsOf(policy, role, counts[row]);
        TableWriter writer(layer, head, role);
        writer.Append(runs.sinks, RowsOf(input, role, layer), &table, &offset);
        writer.Append(runs.rest, RowsOf(input, role, layer), &table, &offset);
      }
    }
  }
  *total_bytes = offset;
  return table;
}

}  // namespace kvern::pipeline
