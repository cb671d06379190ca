// Reads .symtab of the ELF file around an address.
#include "simt/runtime/symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace simt::runtime {
namespace {

template <class T>
std::vector<T> ReadArray(std::ifstream& file, uint64_t offset, uint64_t count) {
  std::vector<T> items(count);
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(items.data()), static_cast<std::streamsize>(count * sizeof(T)));
  if (!file) items.clear();
  return items;
}

using Names = std::map<uint64_t, std::string>;  // by address, mangled

// Empty if stripped.
Names ReadFunctions(const std::string& path, uint64_t base) {
  Names names;
  std::ifstream file(path, std::ios::binary);
  const auto header = ReadArray<Elf64_Ehdr>(file, 0, 1);
  if (header.empty() || std::memcmp(header[0].e_ident, ELFMAG, SELFMAG) != 0) return names;
  const uint64_t bias = header[0].e_type == ET_EXEC ? 0 : base;
  const auto sections = ReadArray<Elf64_Shdr>(file, header[0].e_shoff, header[0].e_shnum);
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections.size()) continue;
    const Elf64_Shdr& text = sections[section.sh_link];
    auto strings = ReadArray<char>(file, text.sh_offset, text.sh_size);
    strings.push_back('\0');
    for (const Elf64_Sym& symbol :
         ReadArray<Elf64_Sym>(file, section.sh_offset, section.sh_size / sizeof(Elf64_Sym))) {
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_name >= strings.size()) continue;
      names[symbol.st_value + bias] = strings.data() + symbol.st_name;
    }
  }
  return names;
}

// From "void a::(anonymous namespace)::F<int>(a::P)" to "a::(anonymous namespace)::F<int>".
std::string WithoutSignature(std::string name) {
  int depth = 0;
  size_t end = name.size();
  for (size_t i = name.size(); i-- > 0;) {
    if (name[i] == ')') ++depth;
    if (name[i] == '(' && --depth == 0) {
      end = i;
      break;
    }
  }
  name.resize(end);
  return name.rfind("void ", 0) == 0 ? name.substr(5) : name;
}

std::string Demangle(const std::string& mangled) {
  int status = 0;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (text == nullptr) return mangled;
  std::string name = WithoutSignature(text);
  std::free(text);
  return name;
}

}  // namespace

std::string KernelName(const void* kernel) {
  static std::mutex mutex;
  static std::map<void*, Names> files;  // by load address
  Dl_info info = {};
  if (dladdr(kernel, &info) == 0) return "?";
  const std::lock_guard lock(mutex);
  auto [file, fresh] = files.try_emplace(info.dli_fbase);
  if (fresh) {
    file->second = ReadFunctions(info.dli_fname, reinterpret_cast<uint64_t>(info.dli_fbase));
    if (file->second.empty()) {  // dli_fname of the program is what it was called by
      file->second = ReadFunctions("/proc/self/exe", reinterpret_cast<uint64_t>(info.dli_fbase));
    }
  }
  const auto found = file->second.find(reinterpret_cast<uint64_t>(kernel));
  return found == file->second.end() ? "?" : Demangle(found->second);
}

}  // namespace simt::runtime
