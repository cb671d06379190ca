// Codec: how kept tokens are stored. The arithmetic is one backend op; a codec here is its name,
// its rules and its bytes.
#ifndef KVERN_SERVER_PIPELINE_CODEC_H_
#define KVERN_SERVER_PIPELINE_CODEC_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/packed_layout.h"
#include "server/pipeline/stage_info.h"

namespace kvern::pipeline {

enum class CodecRoles : uint8_t { kBoth, kKeys, kValues };

struct CodecEntry {
  StageInfo info;
  CodecId id;
  int32_t code_bits;     // of one coordinate; below 8 sinks stay raw, and K needs rm if it takes it
  bool takes_hadamard;   // the flag H is a choice
  bool takes_rope_mean;  // the flag rm is a choice (keys only)
  CodecRoles roles = CodecRoles::kBoth;

  bool Takes(Role role) const {
    return roles == CodecRoles::kBoth || (roles == CodecRoles::kKeys) == (role == Role::kKey);
  }
};

std::span<const CodecEntry> Codecs();

struct CodecPair {
  CodecSpec k;
  CodecSpec v;
  bool Packs() const { return k.id != CodecId::kRaw16 || v.id != CodecId::kRaw16; }
};

// Parses `lm4+rm`, `H+i8t+rm`. Errors: InvalidArgument for an unknown codec or flag (lists those
// known), rm on values, a K code below 8 bits without rm (ruling 12), a codec of the other role.
absl::StatusOr<CodecSpec> ParseCodec(absl::string_view text, Role role);
std::string ToText(CodecSpec codec);
const CodecEntry& EntryOf(CodecId id);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_CODEC_H_
