// Widths come from the cells; only the last column gives way when the screen is narrow.
#include "client/cli/text_table.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace kvern::cli {
namespace {

constexpr size_t kGap = 2;
constexpr size_t kMinLastColumn = 20;
constexpr size_t kMaxNumber = 14;  // "1023.9 KiB" is one, a sentence that begins with 8 is not

bool IsNumber(const std::string& text) {
  return !text.empty() && text.size() <= kMaxNumber &&
         std::isdigit(static_cast<unsigned char>(text[0])) != 0;
}

enum class Align { kByContent, kLeft };

std::string Padded(const std::string& text, size_t width, Align align) {
  const size_t have = DisplayWidth(text);
  const std::string fill(width > have ? width - have : 0, ' ');
  return align == Align::kByContent && IsNumber(text) ? absl::StrCat(fill, text)
                                                      : absl::StrCat(text, fill);
}

}  // namespace

size_t DisplayWidth(const std::string& text) {
  return std::count_if(text.begin(), text.end(),
                       [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; });
}

std::vector<std::string> WrapWords(const std::string& text, size_t width) {
  std::vector<std::string> lines(1);
  for (const absl::string_view word : absl::StrSplit(text, ' ')) {
    std::string& line = lines.back();
    if (line.empty()) {
      line = std::string(word);
    } else if (DisplayWidth(line) + 1 + DisplayWidth(std::string(word)) <= width) {
      absl::StrAppend(&line, " ", word);
    } else {
      lines.emplace_back(word);
    }
  }
  return lines;
}

void TextTable::Print(const Console& console) const {
  std::vector<size_t> widths;
  const auto measure = [&widths](const std::vector<std::string>& row) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  };
  measure(header_);
  for (const auto& row : rows_) measure(row);
  if (widths.empty()) return;
  size_t indent = 0;
  for (size_t i = 0; i + 1 < widths.size(); ++i) indent += widths[i] + kGap;
  const size_t screen = static_cast<size_t>(console.width);
  const size_t last = screen > indent + kMinLastColumn ? screen - indent : kMinLastColumn;

  // Without a heading the table is a list of facts.
  const Align align = header_.empty() ? Align::kLeft : Align::kByContent;
  const auto holds_numbers = [this](size_t column) {
    const auto is_number = [column](const auto& row) {
      return column < row.size() && IsNumber(row[column]);
    };
    return !rows_.empty() && std::all_of(rows_.begin(), rows_.end(), is_number);
  };
  const auto line_of = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i + 1 < row.size(); ++i) {
      absl::StrAppend(&line, Padded(row[i], widths[i], align), std::string(kGap, ' '));
    }
    if (row.empty()) return line;
    const std::vector<std::string> lines = WrapWords(row.back(), last);
    const bool right = align == Align::kByContent && lines.size() == 1 && IsNumber(row.back());
    absl::StrAppend(&line,
                    right ? Padded(row.back(), std::min(widths.back(), last), align) : lines[0]);
    for (size_t i = 1; i < lines.size(); ++i) {
      absl::StrAppend(&line, "\n", std::string(indent, ' '), lines[i]);
    }
    absl::StripTrailingAsciiWhitespace(&line);
    return line;
  };
  if (!header_.empty()) {
    std::vector<std::string> header = header_;
    for (size_t i = 0; i < header.size(); ++i) {
      if (holds_numbers(i)) header[i].insert(0, widths[i] - DisplayWidth(header[i]), ' ');
    }
    console.out << Bold(console, line_of(header)) << "\n";
  }
  for (const auto& row : rows_) console.out << line_of(row) << "\n";
}

std::string TextTable::Markdown() const {
  std::string text = absl::StrCat("| ", absl::StrJoin(header_, " | "), " |\n|");
  for (size_t i = 0; i < header_.size(); ++i) absl::StrAppend(&text, "---|");
  absl::StrAppend(&text, "\n");
  for (const auto& row : rows_) {
    std::vector<std::string> cells;
    // A bar inside a cell would end it.
    for (const std::string& cell : row) cells.push_back(absl::StrReplaceAll(cell, {{"|", "\\|"}}));
    absl::StrAppend(&text, "| ", absl::StrJoin(cells, " | "), " |\n");
  }
  return text;
}

}  // namespace kvern::cli
