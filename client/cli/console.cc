// Colour and progress are for people: they appear only where a terminal is.
#include "client/cli/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvern::cli {
namespace {

constexpr int kMinWidth = 40;
constexpr int kMaxWidth = 240;
constexpr int kBarCells = 24;
constexpr absl::Duration kRedrawEvery = absl::Milliseconds(100);

int TerminalWidth() {
  int width = 0;
  const char* columns = std::getenv("COLUMNS");
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    width = size.ws_col;
  } else if (columns == nullptr || !absl::SimpleAtoi(columns, &width)) {
    width = 100;
  }
  return std::clamp(width, kMinWidth, kMaxWidth);
}

std::string Styled(const Console& console, const char* code, const std::string& text) {
  if (!console.colours) return text;
  return absl::StrCat("\033[", code, "m", text, "\033[0m");
}

}  // namespace

Console StandardConsole() {
  const char* no_colour = std::getenv("NO_COLOR");
  const bool plain = no_colour != nullptr && *no_colour != '\0';
  return {.out = std::cout,
          .err = std::cerr,
          .width = TerminalWidth(),
          .colours = !plain && isatty(STDOUT_FILENO) == 1,
          .progress = isatty(STDERR_FILENO) == 1};
}

std::string Bold(const Console& console, const std::string& text) {
  return Styled(console, "1", text);
}
std::string Dim(const Console& console, const std::string& text) {
  return Styled(console, "2", text);
}

client::Progress ProgressLine(const Console& console, const std::string& what) {
  if (!console.progress) return nullptr;
  const auto drawn = std::make_shared<absl::Time>(absl::InfinitePast());
  return [&console, what, drawn](int64_t done, int64_t total) {
    const absl::Time now = absl::Now();
    if (done < total && now - *drawn < kRedrawEvery) return;
    *drawn = now;
    if (done >= total) {
      console.err << "\r\033[K" << std::flush;
      return;
    }
    const int64_t cells = total > 0 ? done * kBarCells / total : 0;
    console.err << "\r\033[K" << what << " [" << std::string(cells, '#')
                << std::string(kBarCells - cells, '.') << "] " << HumanBytes(done) << " of "
                << HumanBytes(total) << std::flush;
  };
}

std::string HumanBytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string HumanMicros(int64_t micros) {
  if (micros < 1000) return absl::StrCat(micros, " us");
  if (micros < 1'000'000) return absl::StrFormat("%.1f ms", static_cast<double>(micros) / 1e3);
  return absl::StrFormat("%.2f s", static_cast<double>(micros) / 1e6);
}

std::string HumanShare(double share) { return absl::StrFormat("%.3g %%", share * 100); }

}  // namespace kvern::cli
