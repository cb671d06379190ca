// The codecs by name, and the rules of what may be combined.
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/codec.h"
#include "server/pipeline/quoted.h"

namespace kvern::pipeline {
namespace {

constexpr CodecEntry kCodecs[] = {
    {{.name = "raw16", .help = "Bytes as they were, at the cache's own dtype.", .params = {}},
     CodecId::kRaw16,
     16,
     /*takes_hadamard=*/false,
     /*takes_rope_mean=*/false},
    {{.name = "i8t",
      .help = "Symmetric int8 with one f16 scale per token and head; H rotates first, rm codes "
              "keys minus their rotated mean and needs rope.",
      .params = {}},
     CodecId::kI8t,
     8,
     /*takes_hadamard=*/true,
     /*takes_rope_mean=*/true},
    {{.name = "lm4",
      .help = "Hadamard rotation, 16 Lloyd-Max levels (TurboQuant, arXiv 2504.19874), "
              "norm-matching f16 scale; keys need rm, rm needs rope.",
      .params = {}},
     CodecId::kLm4,
     4,
     /*takes_hadamard=*/false,
     /*takes_rope_mean=*/true},
};

const CodecEntry* Find(absl::string_view name) {
  for (const CodecEntry& entry : kCodecs) {
    if (name == entry.info.name) return &entry;
  }
  return nullptr;
}

// 0 for a word that is no flag.
uint8_t FlagOf(absl::string_view word) {
  if (word == "H") return kFlagHadamard;
  if (word == "rm") return kFlagRopeMean;
  return 0;
}

absl::Status UnknownWord(absl::string_view text, absl::string_view word) {
  std::string known;
  for (const CodecEntry& entry : kCodecs) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", entry.info.name);
  }
  return absl::InvalidArgumentError(absl::StrCat("codec ", Quoted(text), ": got the unknown ",
                                                 Quoted(word), ", want one of ", known,
                                                 " joined by + with flags of H, rm"));
}

absl::Status CheckFlags(const CodecEntry& entry, uint8_t flags, Role role) {
  const absl::string_view name = entry.info.name;
  if ((flags & kFlagHadamard) != 0 && !entry.takes_hadamard) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", name, ": flag H got set, want it absent (",
                     entry.id == CodecId::kLm4 ? "lm4 always rotates" : "nothing is coded", ")"));
  }
  if ((flags & kFlagRopeMean) != 0 && role == Role::kValue) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", name, ": flag rm got set for values, want it on keys only"));
  }
  if ((flags & kFlagRopeMean) != 0 && !entry.takes_rope_mean) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", name, ": flag rm got set, want it absent (nothing is coded)"));
  }
  if ((flags & kFlagRopeMean) == 0 && role == Role::kKey && entry.code_bits < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", name, ": got keys below 8 bits without rm, want ", name, "+rm"));
  }
  return absl::OkStatus();
}

}  // namespace

std::span<const CodecEntry> Codecs() { return kCodecs; }

absl::StatusOr<CodecSpec> ParseCodec(absl::string_view text, Role role) {
  const CodecEntry* entry = nullptr;
  uint8_t flags = 0;
  for (const absl::string_view word : absl::StrSplit(text, '+')) {
    const uint8_t flag = FlagOf(word);
    const CodecEntry* named = flag == 0 ? Find(word) : nullptr;
    if (flag == 0 && named == nullptr) return UnknownWord(text, word);
    const bool repeated = flag != 0 ? (flags & flag) != 0 : entry != nullptr;
    if (repeated) {
      return absl::InvalidArgumentError(absl::StrCat("codec ", Quoted(text), ": got ", Quoted(word),
                                                     " too, want one codec, each flag once"));
    }
    flags |= flag;
    if (named != nullptr) entry = named;
  }
  if (entry == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", Quoted(text), ": got flags only, want a codec"));
  }
  KVERN_RETURN_IF_ERROR(CheckFlags(*entry, flags, role));
  // lm4 is defined on rotated coordinates; its rows say so, like those of every rotated code.
  if (entry->id == CodecId::kLm4) flags |= kFlagHadamard;
  return CodecSpec{entry->id, flags};
}

std::string ToText(CodecSpec codec) {
  const CodecEntry& entry = EntryOf(codec.id);
  const bool says_hadamard = (codec.flags & kFlagHadamard) != 0 && entry.takes_hadamard;
  return absl::StrCat(says_hadamard ? "H+" : "", entry.info.name,
                      (codec.flags & kFlagRopeMean) != 0 ? "+rm" : "");
}

const CodecEntry& EntryOf(CodecId id) {
  for (const CodecEntry& entry : kCodecs) {
    if (entry.id == id) return entry;
  }
  KVERN_CHECK(false);
  return kCodecs[0];
}

}  // namespace kvern::pipeline
