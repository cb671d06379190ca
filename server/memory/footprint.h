// Which bytes a strided view can touch, and whether two views keep out of each other's way.
#ifndef KVERN_SERVER_MEMORY_FOOTPRINT_H_
#define KVERN_SERVER_MEMORY_FOOTPRINT_H_

#include <cstdint>
#include <vector>

namespace kvern::memory {

// Sums of products of untrusted 64-bit numbers stay exact in it.
__extension__ using Wide = __int128;

struct ViewAxis {
  int64_t stride_bytes = 0;  // either sign
  int64_t extent = 1;        // at least 1
};

// The addresses base + sum(index x stride) + [0, element) as a set: signs are folded away, axes
// that continue each other without a gap are one run.
struct Footprint {
  Wide begin = 0;              // first byte, relative to the region
  Wide end = 0;                // one past the last byte
  Wide run = 0;                // bytes of one contiguous piece
  std::vector<ViewAxis> axes;  // of the pieces: extents above 1, strides positive, ascending
  // Each axis steps over everything inside it, so no two coordinates share a byte. Sufficient, and
  // true for every slice of a dense tensor in any axis order.
  bool nested = false;
};

Footprint FootprintOf(int64_t base_offset, int64_t element_bytes, std::vector<ViewAxis> axes);

// True when the two, both nested, provably share no byte: they agree on some of their outermost
// axes (often none) and, inside one step of these, lie one behind the other. Packed K|V rows, K and
// V halves of a block, and layers inside a block all pass.
bool AreApart(const Footprint& a, const Footprint& b);

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_FOOTPRINT_H_
