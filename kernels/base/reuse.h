// Memory that comes back: what a call asked for is kept for the next call, so that calls which come
// again and again ask the heap for nothing.
#ifndef KVERN_KERNELS_BASE_REUSE_H_
#define KVERN_KERNELS_BASE_REUSE_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace kvern {

// Larger vectors go back to the heap: what fills them costs more than asking for them.
inline constexpr size_t kMostSpareBytes = size_t{1} << 20;         // of one vector
inline constexpr size_t kMostSpareThreadBytes = size_t{32} << 20;  // of one thread and type
inline constexpr size_t kMostSpares = 512;                         // of one thread and type
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kKeepSpares = false;  // reuse would hide a use after the end
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
inline constexpr bool kKeepSpares = false;
#else
inline constexpr bool kKeepSpares = true;
#endif
#else
inline constexpr bool kKeepSpares = true;
#endif

// Empty vectors of one thread that still hold memory.
template <class T>
class SpareVectors {
 public:
  static void Take(std::vector<T>* into) {
    if (closed_ || Mine().vectors_.empty()) return;
    std::vector<std::vector<T>>& spares = Mine().vectors_;
    into->swap(spares.back());
    spares.pop_back();
    thread_bytes_ -= into->capacity() * sizeof(T);
  }
  // `from` is empty and without memory afterwards, or keeps it where there is room no more.
  static void Give(std::vector<T>* from) noexcept {
    from->clear();
    const size_t bytes = from->capacity() * sizeof(T);
    if (!kKeepSpares || closed_ || bytes == 0 || bytes > kMostSpareBytes) return;
    std::vector<std::vector<T>>& spares = Mine().vectors_;
    if (spares.size() == spares.capacity()) return;
    if (thread_bytes_ + bytes > kMostSpareThreadBytes) return;
    thread_bytes_ += bytes;
    spares.emplace_back().swap(*from);
  }

 private:
  SpareVectors() {
    try {
      vectors_.reserve(kMostSpares);
    } catch (const std::bad_alloc&) {  // then nothing is kept
    }
  }
  ~SpareVectors() { closed_ = true; }
  static SpareVectors& Mine() {
    static thread_local SpareVectors mine;
    return mine;
  }

  // Outlives `mine`, after whose end a vector may still end.
  static inline thread_local bool closed_ = false;
  static inline thread_local size_t thread_bytes_ = 0;
  std::vector<std::vector<T>> vectors_;
};

// A vector whose memory comes from, and goes back to, its thread's spares. Everything else is
// std::vector's.
template <class T>
class ScratchVector : public std::vector<T> {
  using Base = std::vector<T>;

 public:
  ScratchVector() { SpareVectors<T>::Take(this); }
  explicit ScratchVector(size_t count) : ScratchVector() { this->resize(count); }
  ScratchVector(size_t count, const T& value) : ScratchVector() { this->assign(count, value); }
  template <std::input_iterator It>
  ScratchVector(It begin, It end) : ScratchVector() {
    if constexpr (std::forward_iterator<It>) this->reserve(std::distance(begin, end));
    for (; begin != end; ++begin) this->emplace_back(*begin);
  }
  ScratchVector(std::initializer_list<T> items) : ScratchVector() { this->assign(items); }
  ScratchVector(const Base& other) : ScratchVector() { this->assign(other.begin(), other.end()); }
  ScratchVector(const ScratchVector& other) : ScratchVector(static_cast<const Base&>(other)) {}
  ScratchVector(Base&& other) noexcept : Base(std::move(other)) {}
  ScratchVector(ScratchVector&& other) noexcept : Base(std::move(static_cast<Base&>(other))) {}
  ~ScratchVector() { SpareVectors<T>::Give(this); }

  ScratchVector& operator=(const ScratchVector& other) {
    Base::operator=(other);
    return *this;
  }
  ScratchVector& operator=(ScratchVector&& other) noexcept {
    if (this == &other) return *this;
    SpareVectors<T>::Give(this);
    Base::operator=(std::move(static_cast<Base&>(other)));
    return *this;
  }
  using Base::operator=;
};

// For what is kept for long: memory that a larger vector left is given up.
template <class T>
void GiveUpSpace(std::vector<T>* values) {
  if (values->capacity() > 2 * values->size() + 64) values->shrink_to_fit();
}

// Storage of single objects, shared by all threads: one makes an object, another one ends it.
template <class T>
class RecyclingAllocator {
 public:
  using value_type = T;
  RecyclingAllocator() = default;
  template <class U>
  RecyclingAllocator(const RecyclingAllocator<U>&) {}

  T* allocate(size_t count) {
    if (count == 1) {
      const std::lock_guard<std::mutex> lock(Spares().mutex);
      if (Node* node = Spares().first; node != nullptr) {
        Spares().first = node->next;
        --Spares().count;
        return reinterpret_cast<T*>(node);
      }
    }
    return static_cast<T*>(::operator new(count * sizeof(T)));
  }
  void deallocate(T* memory, size_t count) noexcept {
    if (kKeepSpares && count == 1) {
      const std::lock_guard<std::mutex> lock(Spares().mutex);
      if (Spares().count < kMostSpares) {
        Spares().first = new (memory) Node{Spares().first};
        ++Spares().count;
        return;
      }
    }
    ::operator delete(memory);
  }
  bool operator==(const RecyclingAllocator&) const { return true; }

 private:
  struct Node {
    Node* next;
  };
  struct List {
    std::mutex mutex;
    Node* first = nullptr;
    size_t count = 0;
  };
  static_assert(sizeof(T) >= sizeof(Node) && alignof(T) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
  static List& Spares() {
    static List* const spares = new List;  // never ends: objects may end after any static
    return *spares;
  }
};

// Base of a final class whose objects `new` makes from recycled storage.
template <class T>
class Recycled {
 public:
  static void* operator new(size_t) { return RecyclingAllocator<T>().allocate(1); }
  static void operator delete(void* memory) {
    RecyclingAllocator<T>().deallocate(static_cast<T*>(memory), 1);
  }
};

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_REUSE_H_
