// Protection is interval arithmetic on one row: union, trim at the old end, grow at the new end.
#include "server/pipeline/protection.h"

#include <algorithm>
#include <utility>

namespace kvern::pipeline {
namespace {

// Clips to [0, length), sorts, merges.
TokenSpans Union(TokenSpans spans, int64_t length) {
  for (TokenSpan& span : spans) {
    span.begin = std::clamp<int64_t>(span.begin, 0, length);
    span.end = std::clamp<int64_t>(span.end, 0, length);
  }
  std::sort(spans.begin(), spans.end(),
            [](const TokenSpan& a, const TokenSpan& b) { return a.begin < b.begin; });
  TokenSpans merged;
  for (const TokenSpan& span : spans) {
    if (span.begin >= span.end) continue;
    if (!merged.empty() && span.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, span.end);
    } else {
      merged.push_back(span);
    }
  }
  return merged;
}

}  // namespace

int64_t CountTokens(const TokenSpans& spans) {
  int64_t count = 0;
  for (const TokenSpan& span : spans) count += span.end - span.begin;
  return count;
}

int64_t RowLength(const SequenceInput& input, int64_t layer, int64_t head) {
  return input.keys[static_cast<size_t>(layer)].Length(head);
}

int64_t PinnedPrefix(const SequenceInput& input, const ResolvedPolicy& policy, int64_t length) {
  return std::clamp<int64_t>(std::max(policy.sink_tokens, input.readonly_prefix_tokens), 0, length);
}

TokenSpans HardProtected(const SequenceInput& input, const ResolvedPolicy& policy, int64_t length) {
  TokenSpans spans = {{0, PinnedPrefix(input, policy, length)}};
  for (const auto& [begin, end] : input.protected_ranges) spans.push_back({begin, end});
  int64_t tail = 0;
  for (const auto& scorer : policy.scorers) tail = std::max(tail, scorer->ProtectedTail());
  spans.push_back({length - std::min(tail, length), length});
  return Union(std::move(spans), length);
}

TokenSpans TrimOldest(TokenSpans spans, int64_t pinned, int64_t count) {
  int64_t excess = CountTokens(spans) - count;
  TokenSpans left;
  for (TokenSpan span : spans) {
    const int64_t from = std::clamp(pinned, span.begin, span.end);
    if (from > span.begin) left.push_back({span.begin, from});
    const int64_t dropped = std::clamp<int64_t>(excess, 0, span.end - from);
    excess -= dropped;
    if (from + dropped < span.end) left.push_back({from + dropped, span.end});
  }
  return Union(std::move(left), spans.empty() ? 0 : spans.back().end);
}

int64_t RecentThatFit(const TokenSpans& hard, int64_t length, int64_t count, int64_t wanted) {
  int64_t free = std::max<int64_t>(0, count - CountTokens(hard));
  int64_t begin = length;  // of the recent tokens
  for (auto span = hard.rbegin(); span != hard.rend() && free >= begin - span->end; ++span) {
    free -= begin - span->end;
    begin = span->begin;
  }
  // What is still free lies before `begin`, where a gap to the next protected span is wider.
  const bool before_all = hard.empty() || begin <= hard.front().begin;
  const int64_t reach = before_all ? std::min(free, begin) : free;
  return std::clamp<int64_t>(length - begin + reach, 0, std::max<int64_t>(0, wanted));
}

}  // namespace kvern::pipeline
