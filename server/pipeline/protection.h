// Which tokens of one row stay whatever their scores say.
#ifndef KVERN_SERVER_PIPELINE_PROTECTION_H_
#define KVERN_SERVER_PIPELINE_PROTECTION_H_

#include <cstdint>
#include <vector>

#include "kernels/base/reuse.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::pipeline {

// Half-open, physical tokens.
struct TokenSpan {
  int64_t begin = 0;
  int64_t end = 0;
};
using TokenSpans = ScratchVector<TokenSpan>;  // ascending, disjoint, none empty

int64_t CountTokens(const TokenSpans& spans);

// Tokens of (layer, head) that the sequence holds.
int64_t RowLength(const SequenceInput& input, int64_t layer, int64_t head);

// Sinks and the read-only prefix of a row of `length` tokens: not even TRIM_OLDEST drops them.
int64_t PinnedPrefix(const SequenceInput& input, const ResolvedPolicy& policy, int64_t length);

// All hard protection of a row of `length` tokens: the pinned prefix, explicit ranges and the tail
// that a scorer cannot judge. Any garbage in the ranges is clipped to the row.
TokenSpans HardProtected(const SequenceInput& input, const ResolvedPolicy& policy, int64_t length);

// Drops the oldest tokens at or after `pinned` until at most `count` remain, or none is left there.
TokenSpans TrimOldest(TokenSpans spans, int64_t pinned, int64_t count);

// The last tokens, at most `wanted`, that fit beside `hard` in `count` tokens of a row of `length`.
// Hard-protected ones among them cost nothing. Never below 0.
int64_t RecentThatFit(const TokenSpans& hard, int64_t length, int64_t count, int64_t wanted);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_PROTECTION_H_
