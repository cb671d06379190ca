// Shuffles, votes and reductions of one warp.
#include "simt/warp.h"

#include <bit>
#include <cstdio>
#include <cstring>

namespace simt {
namespace {

void CheckAgreement(const Thread* lanes, uint32_t participants, int first) {
  const WarpCall& expected = lanes[first].call;
  for (uint32_t m = participants; m != 0; m &= m - 1) {
    const WarpCall& call = lanes[std::countr_zero(m)].call;
    if (call.op == expected.op && call.mask == expected.mask && call.width == expected.width &&
        call.site.line == expected.site.line &&
        (call.site.file == expected.site.file ||
         std::strcmp(call.site.file, expected.site.file) == 0)) {
      continue;
    }
    char text[300];
    std::snprintf(text, sizeof(text),
                  "lanes meet in different collectives: lane %d here with mask %08x, lane %d at "
                  "%s:%d with mask %08x",
                  first, expected.mask, std::countr_zero(m), call.site.file, call.site.line,
                  call.mask);
    Fail(Fault::kCollective, expected.site, text);
  }
}

// The lane whose value `lane` gets: itself where the source lies outside its group.
int Source(const WarpCall& call, int lane) {
  const int width = static_cast<int>(call.width);
  const int group = lane & ~(width - 1);
  const int argument = static_cast<int>(call.argument);
  int source = lane;
  if (call.op == WarpOp::kShuffle) source = group + (argument & (width - 1));
  if (call.op == WarpOp::kShuffleUp) source = lane - argument;
  if (call.op == WarpOp::kShuffleDown) source = lane + argument;
  if (call.op == WarpOp::kShuffleXor) source = lane ^ argument;
  if (source >= group + width) return lane;
  if (source < group && call.op != WarpOp::kShuffleXor) return lane;
  return source;
}

void Shuffle(Thread* lanes, uint32_t participants) {
  for (uint32_t m = participants; m != 0; m &= m - 1) {
    const int lane = std::countr_zero(m);
    const WarpCall& call = lanes[lane].call;
    const int source = Source(call, lane);
    if (source < 0 || (participants >> source & 1) == 0) {
      char text[160];
      std::snprintf(text, sizeof(text),
                    "lane %d reads lane %d by a shuffle in which that takes no part", lane, source);
      Fail(Fault::kCollective, call.site, text);
    }
    lanes[lane].result = lanes[source].call.bits;
  }
}

void MatchAny(Thread* lanes, uint32_t participants) {
  for (uint32_t m = participants; m != 0; m &= m - 1) {
    Thread& lane = lanes[std::countr_zero(m)];
    lane.result = 0;
    for (uint32_t n = participants; n != 0; n &= n - 1) {
      const int other = std::countr_zero(n);
      if (lanes[other].call.bits == lane.call.bits) lane.result |= 1u << other;
    }
  }
}

uint32_t Combine(WarpOp op, uint32_t a, uint32_t b) {
  const auto x = static_cast<int32_t>(a);
  const auto y = static_cast<int32_t>(b);
  switch (op) {
    case WarpOp::kReduceAdd:
      return a + b;
    case WarpOp::kReduceMin:
      return a < b ? a : b;
    case WarpOp::kReduceMax:
      return a > b ? a : b;
    case WarpOp::kReduceMinSigned:
      return x < y ? a : b;
    case WarpOp::kReduceMaxSigned:
      return x > y ? a : b;
    case WarpOp::kReduceAnd:
    case WarpOp::kAll:
      return a & b;
    case WarpOp::kReduceXor:
      return a ^ b;
    default:  // kReduceOr, kAny, kBallot
      return a | b;
  }
}

uint32_t ReduceAll(const Thread* lanes, uint32_t participants, WarpOp op) {
  const auto value = [&](int lane) {
    const auto bits = static_cast<uint32_t>(lanes[lane].call.bits);
    return op == WarpOp::kBallot ? bits << lane : bits;
  };
  uint32_t result = value(std::countr_zero(participants));
  for (uint32_t m = participants & (participants - 1); m != 0; m &= m - 1) {
    result = Combine(op, result, value(std::countr_zero(m)));
  }
  return result;
}

}  // namespace

void ResolveWarp(Thread* lanes, uint32_t participants, int first) {
  CheckAgreement(lanes, participants, first);
  const WarpOp op = lanes[first].call.op;
  if (op == WarpOp::kSync) return;
  if (op >= WarpOp::kShuffle && op <= WarpOp::kShuffleXor) return Shuffle(lanes, participants);
  if (op == WarpOp::kMatchAny) return MatchAny(lanes, participants);
  const uint32_t result = ReduceAll(lanes, participants, op);
  for (uint32_t m = participants; m != 0; m &= m - 1) {
    lanes[std::countr_zero(m)].result = result;
  }
}

}  // namespace simt
