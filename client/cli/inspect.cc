// Draws which tokens every layer and head holds: columns are tokens from oldest to newest.
#include <algorithm>
#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/app.h"
#include "client/cli/density_map.h"
#include "client/cli/errors.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "client/cpp/cache_file.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kInspectExamples[] = R"(Examples:
  kvern inspect small.safetensors
      which tokens each layer and head kept
  kvern inspect small.safetensors --layer 0
      one layer only
Blank: no token of that stretch was kept; full block: all of them.)";

constexpr int64_t kMaxRowsByDefault = 96;
constexpr int kLabelColumns = 26;  // layer, head, tokens and share, with the gap before the map
constexpr int kMaxMapColumns = 160;

struct InspectFlags {
  std::string input;
  int layer = -1;
};

// What each (layer, kv_head) holds out of [0, total).
struct Holdings {
  std::vector<std::vector<int32_t>> rows;  // [layers x kv_heads]
  int64_t total = 0;
  const char* axis = "";
};

Holdings HoldingsOf(const client::CacheFile& cache) {
  const client::CacheShape& shape = cache.Shape();
  Holdings held;
  held.rows.resize(shape.Rows());
  const formats::TensorEntry* kept = cache.Contents().Find("kept_indices");
  const bool is_result = kept != nullptr && kept->dtype == "I32" && kept->shape.size() == 3 &&
                         kept->shape[0] * kept->shape[1] == shape.Rows();
  const std::vector<int32_t> slots = cache.Ints(is_result ? "kept_indices" : "positions");
  const int64_t per_row = is_result ? kept->shape[2] : shape.tokens;
  const bool shared = std::ssize(slots) != shape.Rows() * per_row;
  for (int64_t row = 0; row < shape.Rows(); ++row) {
    std::vector<int32_t>& mine = held.rows[row];
    mine.resize(per_row);
    if (slots.empty()) {
      std::iota(mine.begin(), mine.end(), 0);
    } else {
      const auto begin = slots.begin() + (shared ? 0 : row * per_row);
      std::copy(begin, begin + per_row, mine.begin());
    }
    std::erase_if(mine, [](int32_t slot) { return slot < 0; });
    for (const int32_t slot : mine) held.total = std::max<int64_t>(held.total, slot + 1);
  }
  const int64_t known =
      is_result ? cache.Number("source_tokens", held.total) : cache.LogicalTokens();
  held.total = std::max(held.total, known);
  held.axis = is_result ? "source tokens" : "positions";
  return held;
}

std::string LayerName(const std::vector<int32_t>& layers, int64_t layer) {
  return absl::StrCat(layers.empty() ? layer : layers[layer]);
}

std::string CountLabel(int64_t count, int64_t total) {
  const double share = total > 0 ? static_cast<double>(count) / static_cast<double>(total) : 0;
  return absl::StrFormat("%7d %6s", count, HumanShare(share));
}

void PrintHeader(const client::CacheFile& cache, const Holdings& held, const Console& console) {
  const client::CacheShape& shape = cache.Shape();
  TextTable facts({});
  facts.Add({"file", cache.Path()});
  if (const std::string model = cache.Contents().Metadata("model"); !model.empty()) {
    facts.Add({"model", model});
  }
  facts.Add({"cache", absl::StrCat(shape.layers, " layers, ", shape.kv_heads, " kv_heads, up to ",
                                   shape.tokens, " tokens, head_dim ", shape.head_dim, ", ",
                                   Name(shape.dtype), cache.Packed() ? ", packed" : "")});
  const int64_t bytes = cache.Packed() ? std::ssize(cache.BytesOf("packed")) +
                                             std::ssize(cache.BytesOf("packed_table")) +
                                             std::ssize(cache.BytesOf("packed_mu"))
                                       : 2 * shape.PlaneBytes();
  const int64_t whole = 2 * shape.Rows() * held.total * shape.head_dim * SizeOf(shape.dtype);
  facts.Add({"bytes", absl::StrCat(HumanBytes(bytes), " of ", HumanBytes(whole), " for all ",
                                   held.total, " ", held.axis)});
  facts.Print(console);
}

// What the map's columns are, as far as there is room.
std::string MapTitle(const Holdings& held, int columns) {
  const std::string title = absl::StrFormat("oldest to newest of %d %s", held.total, held.axis);
  return static_cast<int>(title.size()) <= columns ? title : "old to new";
}

// One line per head, or per layer when heads would flood the screen.
void PrintMap(const client::CacheFile& cache, const Holdings& held, const InspectFlags& flags,
              const Console& console) {
  const client::CacheShape& shape = cache.Shape();
  const std::vector<int32_t> layers = cache.LayerIndices();
  const bool by_head = flags.layer >= 0 || shape.Rows() <= kMaxRowsByDefault;
  const int columns = std::clamp(console.width - kLabelColumns - 2, 10, kMaxMapColumns);
  console.out << "\n"
              << Bold(console, absl::StrFormat("%6s %s    kept         %s", "layer",
                                               by_head ? "head" : "    ", MapTitle(held, columns)))
              << "\n";
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string name = LayerName(layers, layer);
    if (flags.layer >= 0 && name != absl::StrCat(flags.layer)) continue;
    std::vector<double> mean;
    int64_t layer_count = 0;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const std::vector<int32_t>& row = held.rows[layer * shape.kv_heads + head];
      const std::vector<double> density = Density(row, held.total, columns);
      layer_count += std::ssize(row);
      mean.resize(density.size());
      for (size_t i = 0; i < density.size(); ++i) {
        mean[i] += density[i] / static_cast<double>(shape.kv_heads);
      }
      if (!by_head) continue;
      console.out << absl::StrFormat("%6s %4d", head == 0 ? name : "", head)
                  << CountLabel(std::ssize(row), held.total) << " │" << DensityLine(density)
                  << "│\n";
    }
    if (by_head) continue;
    console.out << absl::StrFormat("%6s     ", name)
                << CountLabel(layer_count / std::max<int64_t>(1, shape.kv_heads), held.total)
                << " │" << DensityLine(mean) << "│\n";
  }
}

void PrintLayerBars(const client::CacheFile& cache, const Holdings& held, const Console& console) {
  const client::CacheShape& shape = cache.Shape();
  const std::vector<int32_t> layers = cache.LayerIndices();
  TextTable table({"layer", "kept", ""});
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    int64_t count = 0;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      count += std::ssize(held.rows[layer * shape.kv_heads + head]);
    }
    const double share = static_cast<double>(count) /
                         static_cast<double>(std::max<int64_t>(1, shape.kv_heads * held.total));
    table.Add({LayerName(layers, layer), HumanShare(share),
               Bar(share, std::min(console.width - kLabelColumns, 50))});
  }
  console.out << "\n";
  table.Print(console);
}

nlohmann::ordered_json InspectionToJson(const client::CacheFile& cache, const Holdings& held) {
  const client::CacheShape& shape = cache.Shape();
  nlohmann::ordered_json json = {
      {"file", cache.Path()},     {"layers", shape.layers},     {"kv_heads", shape.kv_heads},
      {"tokens", shape.tokens},   {"head_dim", shape.head_dim}, {"dtype", Name(shape.dtype)},
      {"packed", cache.Packed()}, {"axis", held.axis},          {"axis_tokens", held.total}};
  json["layer_indices"] = cache.LayerIndices();
  std::vector<int64_t> counts;
  for (const auto& row : held.rows) counts.push_back(std::ssize(row));
  json["kept_counts"] = counts;
  json["kept"] = held.rows;
  json["metadata"] = cache.Contents().metadata;
  return json;
}

absl::Status RunInspect(const InspectFlags& flags, const GlobalFlags& globals,
                        const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const client::CacheFile cache, client::CacheFile::Open(flags.input));
  const std::vector<int32_t> layers = cache.LayerIndices();
  const bool known = layers.empty()
                         ? flags.layer < cache.Shape().layers
                         : std::find(layers.begin(), layers.end(), flags.layer) != layers.end();
  if (flags.layer >= 0 && !known) {
    return UsageError(absl::StrCat("--layer: got ", flags.layer, ", want a layer of the file"));
  }
  const Holdings held = HoldingsOf(cache);
  if (globals.json) {
    PrintJson(console, InspectionToJson(cache, held));
    return absl::OkStatus();
  }
  PrintHeader(cache, held, console);
  PrintMap(cache, held, flags, console);
  if (flags.layer < 0) PrintLayerBars(cache, held, console);
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb =
      app->add_subcommand("inspect", "draw which tokens each layer and head of a file holds");
  verb->footer(kInspectExamples);
  const auto flags = std::make_shared<InspectFlags>();
  verb->add_option("FILE", flags->input, "result or cache file")->required();
  verb->add_option("--layer", flags->layer, "one layer of the model only")->type_name("N");
  commands->push_back({verb, [flags, globals](const Console& console) {
                         return RunInspect(*flags, *globals, console);
                       }});
}

}  // namespace kvern::cli
