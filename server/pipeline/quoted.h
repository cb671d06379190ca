// A caller's text as it may stand in an error message: short, printable, in quotes.
#ifndef KVERN_SERVER_PIPELINE_QUOTED_H_
#define KVERN_SERVER_PIPELINE_QUOTED_H_

#include <cstddef>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvern::pipeline {

inline constexpr size_t kQuotedBytes = 64;

inline std::string Quoted(absl::string_view text) {
  const bool fits = text.size() <= kQuotedBytes;
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, kQuotedBytes)), fits ? "'" : "'...");
}

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_QUOTED_H_
