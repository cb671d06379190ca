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
    {{.name = "fp8t",
      .help =
          "e4m3 with one f16 scale per token and head, largest / 448; H rotates first, rm codes "
          "keys minus their rotated mean and needs rope. On keys i8t loses far less.",
      .params = {}},
     CodecId::kFp8t,
     8,
     /*takes_hadamard=*/true,
     /*takes_rope_mean=*/true},
    {{.name = "kch4",
      .help = "Affine int4 with a scale and a zero per channel and 64 tokens (KIVI, arXiv "
              "2402.02750), for keys of models without rope; what fills no block stays raw.",
      .params = {}},
     CodecId::kKch4,
     4,
     /*takes_hadamard=*/false,
     /*takes_rope_mean=*/false,
     CodecRoles::kKeys},
    {{.name = "i4t",
      .help = "Affine int4 with a scale and a zero per token and 64 coordinates; H rotates first; "
              "keys need rm, rm needs rope.",
      .params = {}},
     CodecId::kI4t,
     4,
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
    {{.name = "sfv3",
      .help = "Hadamard rotation, 4 coordinates as their signs and one of 256 vectors, "
              "norm-matching f16 scale: 3 bits; keys need rm, rm needs rope.",
      .params = {}},
     CodecId::kSfv3,
     3,
     /*takes_hadamard=*/false,
     /*takes_rope_mean=*/true},
    {{.name = "sfv2",
      .help = "As sfv3 with 16 vectors and an unbiased f16 scale: 2 bits, for values only.",
      .params = {}},
     CodecId::kSfv2,
     2,
     /*takes_hadamard=*/false,
     /*takes_rope_mean=*/false,
     CodecRoles::kValues},
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

// Why a flag that is a choice elsewhere is none here.
absl::string_view WhyNotHadamard(const CodecEntry& entry) {
  if (AlwaysRotates(entry.id)) return " always rotates)";
  return entry.id == CodecId::kRaw16 ? " codes nothing)" : " has scales of channels)";
}
absl::string_view WhyNotRopeMean(const CodecEntry& entry) {
  return entry.id == CodecId::kRaw16 ? " codes nothing)" : " has a zero per channel)";
}

absl::Status CheckFlags(const CodecEntry& entry, uint8_t flags, Role role) {
  const absl::string_view name = entry.info.name;
  if (!entry.Takes(role)) {
    return absl::InvalidArgumentError(
        role == Role::kKey
            ? absl::StrCat("codec ", name, ": got keys, want values only (2 bits break keys)")
            : absl::StrCat("codec ", name, ": got values, want keys only"));
  }
  if ((flags & kFlagHadamard) != 0 && !entry.takes_hadamard) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec ", name, ": flag H got set, want it absent (", name, WhyNotHadamard(entry)));
  }
  if ((flags & kFlagRopeMean) != 0 && role == Role::kValue) {
    return absl::InvalidArgumentError(
        absl::StrCat("codec ", name, ": flag rm got set for values, want it on keys only"));
  }
  if ((flags & kFlagRopeMean) != 0 && !entry.takes_rope_mean) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec ", name, ": flag rm got set, want it absent (", name, WhyNotRopeMean(entry)));
  }
  const bool needs_mean = entry.takes_rope_mean && entry.code_bits < 8;
  if ((flags & kFlagRopeMean) == 0 && role == Role::kKey && needs_mean) {
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
  // The rows of a code that is defined on rotated coordinates say so, like all that are rotated.
  if (AlwaysRotates(entry->id)) flags |= kFlagHadamard;
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
