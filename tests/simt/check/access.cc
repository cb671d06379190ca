// Judges one access of a kernel: whose memory is it, is it aligned, did anybody write it, and is it
// ordered with the accesses of others?
#include <link.h>

#include <cstdio>

#include "simt/check/order.h"
#include "simt/check/profile.h"
#include "simt/check/shadow.h"
#include "simt/machine.h"

namespace simt {
namespace check {
namespace {

// Parts of the program and its libraries: constants, and the emulator's threadIdx.
struct Image {
  static constexpr int kMost = 512;
  struct Part {
    uintptr_t begin;
    uintptr_t end;
  };
  Part parts[kMost];
  int count = 0;

  Image() {
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* self) {
          auto* image = static_cast<Image*>(self);
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD || image->count == kMost) continue;
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            image->parts[image->count++] = {begin, begin + header.p_memsz};
          }
          return 0;
        },
        this);
  }
  bool Holds(const std::byte* address) const {
    const auto a = reinterpret_cast<uintptr_t>(address);
    for (int i = 0; i < count; ++i) {
      if (a >= parts[i].begin && a < parts[i].end) return true;
    }
    return false;
  }
};

Shadow& ArenaShadow() {
  static auto* shadow = new Shadow(machine.arena.dynamic(), Arena::kBytes);
  return *shadow;
}

[[noreturn]] void FailRace(const Mark& before, const char* did_before, const char* what,
                           const void* pc) {
  machine.failure.other_pc = before.pc;
  char text[200];
  std::snprintf(text, sizeof(text), "race: %s what thread %d of %s %s before, unordered", what,
                before.thread, before.run == MarkNow(pc, false).run ? "its block" : "another block",
                did_before);
  FailAt(Fault::kRace, pc, text);
}

// Reads and writes as one verb.
const char* Verb(const Access& access) {
  if (access.atomic) return "updates";
  return access.write ? "writes" : "reads";
}

void CheckWrite(const Cell& cell, const Mark& now, const Access& access, Space space) {
  const Mark& before = cell.write;
  if (before.run == 0 || (before.atomic && now.atomic) || Ordered(before, now, space)) return;
  FailRace(before, before.atomic ? "updated" : "wrote", Verb(access), now.pc);
}

void CheckReads(const Cell& cell, const Mark& now, const Access& access, Space space) {
  for (const Mark& read : cell.reads) {
    if (read.run == 0 || Ordered(read, now, space)) continue;
    FailRace(read, "read", Verb(access), now.pc);
  }
}

void AddRead(Cell* cell, const Mark& now, Space space) {
  Mark& first = cell->reads[0];
  const bool replace = first.run == 0 || Ordered(first, now, space);
  (replace ? first : cell->reads[1]) = now;
}

void Judge(Shadow* shadow, const Access& access, const Mark& now, Space space) {
  const auto* address = static_cast<const std::byte*>(access.address);
  const auto offset = static_cast<size_t>(address - shadow->begin());
  for (size_t i = offset; i < offset + access.bytes; ++i) {
    Cell& cell = shadow->cells()[i];
    const bool reads = !access.write || access.atomic;
    if (reads && !shadow->Written(i)) {
      FailAt(Fault::kUninitialised, now.pc,
             space == Space::kShared ? "reads shared memory that nobody wrote"
                                     : "reads device memory that nobody wrote");
    }
    CheckWrite(cell, now, access, space);
    if (access.write) {
      CheckReads(cell, now, access, space);
      cell.write = now;
      cell.reads[0] = cell.reads[1] = {};
      shadow->written()[i] = 1;
    } else {
      AddRead(&cell, now, space);
    }
  }
}

[[noreturn]] void FailElsewhere(const Access& access, const void* pc) {
  char text[200];
  const auto* address = static_cast<const std::byte*>(access.address);
  const Shadow* nearest = NearestShadow(address);
  if (nearest == nullptr) {
    std::snprintf(text, sizeof(text), "%s %p, which is not device memory", Verb(access),
                  access.address);
    FailAt(Fault::kNotDevice, pc, text);
  }
  const std::byte* end = nearest->begin() + nearest->bytes();
  std::snprintf(text, sizeof(text), "%s %td bytes %s device memory of %zu bytes", Verb(access),
                address < nearest->begin() ? nearest->begin() - address : address - end,
                address < nearest->begin() ? "before" : "behind the end of", nearest->bytes());
  FailAt(Fault::kOutOfBounds, pc, text);
}

bool IsLocal(const std::byte* address) {
  const Stack* stack = machine.threads[machine.current].stack;
  return stack != nullptr && stack->Holds(address);
}

// Kernels read, never write, their parameters and the program's constants.
bool IsConstant(const std::byte* address, bool write) {
  if (write) return false;
  const auto* parameters = static_cast<const std::byte*>(machine.context);
  if (address >= parameters && address < parameters + machine.shape.context_bytes) return true;
  static const Image image;
  return image.Holds(address);
}

}  // namespace

void ForgetSharedWrites() { ArenaShadow().ForgetWrites(); }

}  // namespace check

void NoteAccess(const Access& access, const void* pc) {
  if (!on_fiber || !kernel_code) return;
  const EmulatorScope scope;
  using check::Space;
  const auto* address = static_cast<const std::byte*>(access.address);
  if (check::IsLocal(address)) return;
  pc = static_cast<const char*>(pc) - 1;  // the call itself, not what follows it
  if (machine.arena.Holds(address)) {
    if (machine.arena.VariableAt(address, access.bytes) == nullptr) {
      FailAt(Fault::kOutOfBounds, pc, "touches shared memory outside of every variable");
    }
    check::AddToProfile(access, pc, Space::kShared);
    return check::Judge(&check::ArenaShadow(), access, check::MarkNow(pc, access.atomic),
                        Space::kShared);
  }
  check::Shadow* shadow = check::FindShadow(address);
  if (shadow == nullptr) {
    if (check::IsConstant(address, access.write)) return;
    check::FailElsewhere(access, pc);
  }
  if (address + access.bytes > shadow->begin() + shadow->bytes()) {
    FailAt(Fault::kOutOfBounds, pc, "reaches over the end of device memory");
  }
  check::AddToProfile(access, pc, Space::kDevice);
  check::Judge(shadow, access, check::MarkNow(pc, access.atomic), Space::kDevice);
}

}  // namespace simt
