// Where a command writes, and what the other side of the screen can show.
#ifndef KVERN_CLIENT_CLI_CONSOLE_H_
#define KVERN_CLIENT_CLI_CONSOLE_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "client/cpp/cache_file.h"

namespace kvern::cli {

struct Console {
  std::ostream& out;      // answers
  std::ostream& err;      // errors and progress
  int width = 100;        // columns
  bool colours = false;   // out is a terminal and NO_COLOR is unset
  bool progress = false;  // err is a terminal
};

// The process's own terminal.
Console StandardConsole();

std::string Bold(const Console& console, const std::string& text);
std::string Dim(const Console& console, const std::string& text);

// A progress line on console.err for `what`; does nothing without a terminal there.
client::Progress ProgressLine(const Console& console, const std::string& what);

// "6.0 MiB", "512 B".
std::string HumanBytes(int64_t bytes);
// "12.3 ms", "850 us", "2.1 s".
std::string HumanMicros(int64_t micros);
// "63 %", "0.31 %": three digits at most.
std::string HumanShare(double share);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_CONSOLE_H_
