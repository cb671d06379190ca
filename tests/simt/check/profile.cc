// The lanes of a warp that execute the same code for the k-th time form one request.
#include "simt/check/profile.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>

#include "simt/machine.h"
#include "simt/mem_stats.h"
#include "simt/runtime/symbols.h"

namespace simt::check {
namespace {

constexpr uint64_t kSectorBytes = 32;
constexpr uint64_t kBanks = 32;  // of 4 bytes
constexpr uint64_t kBankBytes = 4;

struct Piece {
  const void* pc;
  uint32_t warp;
  uint32_t execution;  // k
  uint64_t address;
  uint32_t bytes;
  bool shared;
  bool write;
};

struct Counts {
  bool shared = false;
  bool write = false;
  uint64_t requests = 0;
  uint64_t transfers = 0;
  uint64_t ideal = 0;
};

std::vector<Piece> pieces;  // of the block
std::unordered_map<uint64_t, uint32_t> executions;
using Place = std::pair<const void*, const void*>;  // kernel, code
// Outlives other statics: it is written when the process ends.
std::map<Place, Counts>& AllCounts() {
  static auto* counts = new std::map<Place, Counts>;
  return *counts;
}

using Request = std::vector<Piece>;

void CountSectors(const Request& request, Counts* to) {
  std::set<uint64_t> sectors;
  std::set<std::pair<uint64_t, uint32_t>> distinct;
  uint64_t bytes = 0;
  for (const Piece& piece : request) {
    if (distinct.emplace(piece.address, piece.bytes).second) bytes += piece.bytes;
    const uint64_t last = (piece.address + piece.bytes - 1) / kSectorBytes;
    for (uint64_t s = piece.address / kSectorBytes; s <= last; ++s) sectors.insert(s);
  }
  to->transfers += sectors.size();
  to->ideal += (bytes + kSectorBytes - 1) / kSectorBytes;
}

// 8-byte accesses go by half warps, 16-byte ones by quarters; lanes that want the same word share.
void CountBanks(const Request& request, Counts* to) {
  const size_t lanes =
      std::max<size_t>(1, kBanks * kBankBytes / std::max<uint64_t>(request[0].bytes, kBankBytes));
  for (size_t first = 0; first < request.size(); first += lanes) {
    std::set<uint64_t> words;
    for (size_t i = first; i < std::min(first + lanes, request.size()); ++i) {
      const uint64_t last = (request[i].address + request[i].bytes - 1) / kBankBytes;
      for (uint64_t w = request[i].address / kBankBytes; w <= last; ++w) words.insert(w);
    }
    uint64_t of_bank[kBanks] = {};
    for (const uint64_t word : words) ++of_bank[word % kBanks];
    to->transfers += *std::max_element(of_bank, of_bank + kBanks);
    to->ideal += (words.size() + kBanks - 1) / kBanks;
  }
}

// At the end of the process, for programs that do not take the counts themselves. A line has, by
// tabs: kernel, line, memory, direction, requests, transfers, fewest transfers.
void WriteProfile() {
  std::FILE* file = std::fopen(std::getenv("KVERN_SIMT_PROFILE"), "a");
  if (file == nullptr) return;
  for (const MemStats& stats : TakeMemStats()) {
    std::fprintf(file, "%s\t%s\t%s\t%s\t%llu\t%llu\t%llu\n", stats.kernel.c_str(),
                 stats.line.c_str(), stats.shared ? "shared" : "device",
                 stats.write ? "write" : "read",
                 static_cast<unsigned long long>(stats.requests),   // NOLINT(runtime/int)
                 static_cast<unsigned long long>(stats.transfers),  // NOLINT(runtime/int)
                 static_cast<unsigned long long>(stats.ideal));     // NOLINT(runtime/int)
  }
  std::fclose(file);
}

}  // namespace

void AddToProfile(const Access& access, const void* pc, Space space) {
  if (!machine.config.profile) return;
  const auto code = reinterpret_cast<uint64_t>(pc);
  const auto thread = static_cast<uint64_t>(machine.current);
  const uint32_t execution = executions[code << 10 ^ thread]++;
  const bool shared = space == Space::kShared;
  const uint64_t address =
      shared ? machine.arena.OffsetOf(access.address) : reinterpret_cast<uint64_t>(access.address);
  pieces.push_back({pc, static_cast<uint32_t>(thread / kWarpLanes), execution, address,
                    access.bytes, shared, access.write});
}

void FoldProfile() {
  static const bool written_at_exit =
      std::getenv("KVERN_SIMT_PROFILE") != nullptr && std::atexit(&WriteProfile) == 0;
  static_cast<void>(written_at_exit);
  const auto key = [](const Piece& p) { return std::tuple(p.pc, p.warp, p.execution); };
  // Lanes come in any order; addresses sort them well enough, since the lanes of a pass only share.
  std::sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) {
    return std::tuple(key(a), a.address) < std::tuple(key(b), b.address);
  });
  for (size_t first = 0; first < pieces.size();) {
    size_t end = first + 1;
    while (end < pieces.size() && key(pieces[end]) == key(pieces[first])) ++end;
    const Request request(pieces.begin() + static_cast<ptrdiff_t>(first),
                          pieces.begin() + static_cast<ptrdiff_t>(end));
    Counts& to = AllCounts()[{machine.shape.kernel, pieces[first].pc}];
    to.shared = pieces[first].shared;
    to.write = pieces[first].write;
    ++to.requests;
    if (to.shared) {
      CountBanks(request, &to);
    } else {
      CountSectors(request, &to);
    }
    first = end;
  }
  pieces.clear();
  executions.clear();
}

}  // namespace simt::check

namespace simt {

std::vector<MemStats> TakeMemStats() {
  const std::lock_guard lock(GridMutex());
  std::map<const void*, std::string> lines;
  std::map<std::tuple<std::string, std::string, bool, bool>, MemStats> by_line;
  for (const auto& [place, count] : check::AllCounts()) {
    const auto& [kernel, pc] = place;
    const auto [line, fresh] = lines.try_emplace(pc);
    if (fresh) line->second = AccessLineOf(pc);
    const std::string name = kernel == nullptr ? "" : runtime::KernelName(kernel);
    MemStats& stats = by_line[{name, line->second, count.shared, count.write}];
    stats.kernel = name;
    stats.line = line->second;
    stats.shared = count.shared;
    stats.write = count.write;
    stats.requests += count.requests;
    stats.transfers += count.transfers;
    stats.ideal += count.ideal;
  }
  check::AllCounts().clear();
  std::vector<MemStats> all;
  for (const auto& [key, stats] : by_line) all.push_back(stats);
  return all;
}

}  // namespace simt
