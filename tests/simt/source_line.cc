// Code addresses as lines of source, by the toolchain's own reader of debug information.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

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

}  // namespace

std::string LineOf(const void* pc) {
  Dl_info module = {};
  if (dladdr(pc, &module) == 0 || module.dli_fname == nullptr) return "unknown code";
  const auto base = reinterpret_cast<uintptr_t>(module.dli_fbase);
  auto offset = reinterpret_cast<uintptr_t>(pc);
  if (base != 0x400000) offset -= base;  // programs at a fixed address name it absolutely
  char path[1024];
  std::snprintf(path, sizeof(path), "%s", module.dli_fname);
  if (std::strchr(path, '/') == nullptr) std::snprintf(path, sizeof(path), "/proc/self/exe");
  char command[1200];
  std::snprintf(command, sizeof(command), "addr2line -i -e '%s' 0x%zx 2>/dev/null", path,
                static_cast<size_t>(offset));
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "unknown code";
  std::string first;
  std::string found;
  char buffer[1024];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) {
    std::string line(buffer, std::strcspn(buffer, " \n"));  // without " (discriminator 1)"
    if (first.empty()) first = line;
    if (found.empty() && !OfTheEmulator(line)) found = line;
  }
  pclose(pipe);
  if (found.empty()) found = first;
  return found.empty() ? "unknown code" : found;
}

}  // namespace simt
