// Columns that line up, for people.
#ifndef KVERN_CLIENT_CLI_TEXT_TABLE_H_
#define KVERN_CLIENT_CLI_TEXT_TABLE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "client/cli/console.h"

namespace kvern::cli {

// Terminal columns that UTF-8 text takes, one per character.
size_t DisplayWidth(const std::string& text);

// Words of `text` in lines of at most `width` columns; a longer word has a line of its own.
std::vector<std::string> WrapWords(const std::string& text, size_t width);

class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header) : header_(std::move(header)) {}
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool Empty() const { return rows_.empty(); }
  // Below a heading numbers stand right, as do headings of numbers alone; the last column wraps at
  // the console's width.
  void Print(const Console& console) const;
  // As a Markdown table.
  std::string Markdown() const;

 private:
  std::vector<std::string> header_;  // empty: no heading
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_TEXT_TABLE_H_
