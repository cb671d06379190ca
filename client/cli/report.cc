// Figures that were not computed are left out, never shown as zero.
#include "client/cli/report.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/density_map.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"

namespace kvern::cli {
namespace {

using client::CompressedCache;

int64_t Total(const std::vector<int32_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

int64_t SourceSlots(const client::CacheFile& source) {
  const std::vector<int32_t> lengths = source.Lengths();
  return lengths.empty() ? source.Shape().Rows() * source.Shape().tokens : Total(lengths);
}

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 1;
}

std::string ShapeClassText(v1::ShapeClass shape_class) {
  return shape_class == v1::SHAPE_CLASS_UNSPECIFIED
             ? "?"
             : absl::StrCat("S", static_cast<int>(shape_class) - 1);
}

std::string KeptText(const client::CacheFile& source, const CompressedCache& compressed) {
  const std::vector<int32_t>& counts = compressed.kept_counts;
  if (counts.empty()) return "?";
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  const int64_t kept = Total(counts);
  const std::string each =
      *least == *most
          ? absl::StrCat(*most, " of ", source.Shape().tokens, " tokens")
          : absl::StrCat(*least, " to ", *most, " of ", source.Shape().tokens, " tokens per head");
  return absl::StrCat(each, " (", HumanShare(Share(kept, SourceSlots(source))), "), shape class ",
                      ShapeClassText(compressed.result.shape_class()));
}

std::string BytesText(const v1::SequenceResult& result) {
  const double share = Share(result.bytes_after(), result.bytes_before());
  std::string text = absl::StrCat(HumanBytes(result.bytes_before()), " -> ",
                                  HumanBytes(result.bytes_after()), " (", HumanShare(share), ")");
  if (share > 0 && share < 1) absl::StrAppend(&text, absl::StrFormat(", %.2fx smaller", 1 / share));
  return text;
}

std::string QualityText(const v1::Quality& quality) {
  std::vector<std::string> parts;
  if (quality.has_kept_attention_mass()) {
    parts.push_back(absl::StrCat(HumanShare(quality.kept_attention_mass()), " of attention kept"));
  }
  if (quality.has_k_error()) {
    parts.push_back(absl::StrFormat("k error %.2g", quality.k_error()));
  }
  if (quality.has_v_error()) {
    parts.push_back(absl::StrFormat("v error %.2g", quality.v_error()));
  }
  if (quality.nan_scores() > 0) parts.push_back(absl::StrCat(quality.nan_scores(), " NaN scores"));
  if (quality.nonfinite_values() > 0) {
    parts.push_back(absl::StrCat(quality.nonfinite_values(), " values were not finite"));
  }
  return absl::StrJoin(parts, ", ");
}

std::string TimeText(const v1::Timings& timings) {
  const std::pair<const char*, int64_t> stages[] = {
      {"plan", timings.plan_us()},     {"score", timings.score_us()},
      {"select", timings.select_us()}, {"encode", timings.encode_us()},
      {"move", timings.move_us()},     {"queue", timings.queue_us()}};
  std::vector<std::string> parts;
  for (const auto& [name, micros] : stages) {
    if (micros > 0) parts.push_back(absl::StrCat(name, " ", HumanMicros(micros)));
  }
  return absl::StrJoin(parts, ", ");
}

std::string ChainText(const v1::ResolvedPolicy& resolved) {
  std::vector<std::string> parts = {resolved.preset(),
                                    resolved.budgeter(),
                                    resolved.scorer(),
                                    resolved.selector(),
                                    absl::StrCat("k ", resolved.k_codec()),
                                    absl::StrCat("v ", resolved.v_codec())};
  std::erase(parts, std::string());
  return absl::StrJoin(parts, " | ");
}

}  // namespace

void PrintResult(const Console& console, const client::CacheFile& source,
                 const CompressedCache& compressed, const v1::Model& model) {
  const client::CacheShape& shape = source.Shape();
  const v1::SequenceResult& result = compressed.result;
  TextTable table({});
  const auto add = [&table](const std::string& label, const std::string& text) {
    if (!text.empty()) table.Add({label, text});
  };
  add("cache", absl::StrCat(shape.layers, " layers, ", shape.kv_heads, " kv_heads, ", shape.tokens,
                            " tokens, head_dim ", shape.head_dim, ", ", Name(shape.dtype)));
  if (const int count = model.calibrations_size(); count > 0) {
    add("model", absl::StrCat(model.name(), ", with the server's ", count, " calibration",
                              count == 1 ? "" : "s"));
  }
  add("chain", ChainText(result.resolved()));
  add("because", result.resolved().fallback());
  add("kept",
      result.outcome() == v1::OUTCOME_NOOP
          ? absl::StrCat("everything: already within the budget; ", KeptText(source, compressed))
          : KeptText(source, compressed));
  add("bytes", BytesText(result));
  add("quality", QualityText(result.quality()));
  add("time", TimeText(result.timings()));
  add("sent", compressed.via == client::Transport::kPool     ? "through shared memory"
              : compressed.via == client::Transport::kInline ? "in the message"
                                                             : "through the store");
  for (const std::string& warning : result.warnings()) add("note", warning);
  table.Print(console);
}

void PrintBudgets(const Console& console, const client::CacheFile& source,
                  const CompressedCache& compressed) {
  const client::CacheShape& shape = source.Shape();
  if (std::ssize(compressed.kept_counts) != shape.Rows()) return;
  const std::vector<int32_t> layers = source.LayerIndices();
  TextTable table({"layer", "kept", "heads", ""});
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const auto begin = compressed.kept_counts.begin() + layer * shape.kv_heads;
    const std::vector<int32_t> heads(begin, begin + shape.kv_heads);
    const auto [least, most] = std::minmax_element(heads.begin(), heads.end());
    const double share = Share(Total(heads), shape.kv_heads * shape.tokens);
    table.Add({absl::StrCat(layers.empty() ? layer : layers[layer]), HumanShare(share),
               *least == *most ? absl::StrCat(*most) : absl::StrCat(*least, "..", *most),
               Bar(share, std::min(console.width / 2, 50))});
  }
  console.out << "\n";
  table.Print(console);
}

nlohmann::ordered_json ResultToJson(const client::CacheFile& source,
                                    const CompressedCache& compressed) {
  const client::CacheShape& shape = source.Shape();
  nlohmann::ordered_json json = ToJson(compressed.result);
  json["input"] = source.Path();
  json["layers"] = shape.layers;
  json["kv_heads"] = shape.kv_heads;
  json["tokens"] = shape.tokens;
  json["head_dim"] = shape.head_dim;
  json["dtype"] = Name(shape.dtype);
  json["via"] = Name(compressed.via);
  return json;
}

}  // namespace kvern::cli
