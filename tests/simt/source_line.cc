// Code addresses as lines of source, by the toolchain's own reader of debug information.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "simt/machine.h"

namespace simt {
namespace {

// Headers whose lines say nothing about the kernel that uses them.
bool OfTheEmulator(const std::string& line) {
  for (const char* header : {"/simt/simt.h:", "/simt/atomics.h:", "/simt/collectives.h:",
                             "/simt/intrinsics.h:", "/simt/launch.h:", "/cuda/device.h:"}) {
    if (line.find(header) != std::string::npos) return true;
  }
  return line.rfind("??", 0) == 0;
}

struct Frame {
  std::string function;
  std::string line;
};

// One of the functions named Load... that many kernels share: its caller says more.
bool IsLoader(const std::string& function) {
  const std::string name = function.substr(0, function.find_first_of("<("));
  const size_t scope = name.rfind(':');
  return name.compare(scope == std::string::npos ? 0 : scope + 1, 4, "Load") == 0;
}

// Innermost first; empty if nothing is known.
std::vector<Frame> FramesOf(const void* pc) {
  Dl_info module = {};
  if (dladdr(pc, &module) == 0 || module.dli_fname == nullptr) return {};
  const auto base = reinterpret_cast<uintptr_t>(module.dli_fbase);
  auto offset = reinterpret_cast<uintptr_t>(pc);
  if (base != 0x400000) offset -= base;  // programs at a fixed address name it absolutely
  char path[1024];
  std::snprintf(path, sizeof(path), "%s", module.dli_fname);
  if (std::strchr(path, '/') == nullptr) std::snprintf(path, sizeof(path), "/proc/self/exe");
  char command[1200];
  std::snprintf(command, sizeof(command), "addr2line -C -f -i -e '%s' 0x%zx 2>/dev/null", path,
                static_cast<size_t>(offset));
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return {};
  std::vector<Frame> frames;
  char function[4096];
  char line[4096];
  while (std::fgets(function, sizeof(function), pipe) != nullptr &&
         std::fgets(line, sizeof(line), pipe) != nullptr) {
    function[std::strcspn(function, "\n")] = '\0';
    line[std::strcspn(line, " \n")] = '\0';  // without " (discriminator 1)"
    frames.push_back({function, line});
  }
  pclose(pipe);
  return frames;
}

}  // namespace

std::string LineOf(const void* pc) {
  const std::vector<Frame> frames = FramesOf(pc);
  for (const Frame& frame : frames) {
    if (!OfTheEmulator(frame.line)) return frame.line;
  }
  return frames.empty() ? "unknown code" : frames.front().line;
}

std::string AccessLineOf(const void* pc) {
  for (const Frame& frame : FramesOf(pc)) {
    if (!OfTheEmulator(frame.line) && !IsLoader(frame.function)) return frame.line;
  }
  return LineOf(pc);
}

}  // namespace simt
