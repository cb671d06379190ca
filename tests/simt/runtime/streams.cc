// Which item of which queue runs next.
#include "simt/runtime/streams.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "simt/config.h"

namespace simt::runtime {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014).
uint64_t NextRandom(uint64_t* state) {
  uint64_t x = *state += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

bool Done(const std::shared_ptr<Mark>& mark) { return mark == nullptr || mark->done; }

}  // namespace

Streams::Streams() : null_(std::make_shared<CUstream_st>()), random_(Current().seed) {}

StreamRef Streams::Create(unsigned int flags) {
  auto stream = std::make_shared<CUstream_st>();
  stream->blocking = (flags & cudaStreamNonBlocking) == 0;
  live_.emplace(stream.get(), stream);
  return stream;
}

StreamRef Streams::Find(cudaStream_t handle) const {
  if (handle == nullptr || handle == cudaStreamLegacy) return null_;
  const auto found = live_.find(handle);
  return found == live_.end() ? nullptr : found->second;
}

void Streams::Destroy(const StreamRef& stream) {
  if (!stream->queue.empty()) retired_.push_back(stream);
  live_.erase(stream.get());
}

std::shared_ptr<Mark> Streams::Append(const StreamRef& stream, Work work) {
  work.mark = std::make_shared<Mark>();
  work.mark->stream = stream;
  stream->tail = work.mark;
  stream->queue.push_back(std::move(work));
  return stream->tail;
}

std::shared_ptr<Mark> Streams::Push(const StreamRef& stream, std::function<cudaError_t()> run) {
  if (stream == null_) {
    for (const auto& [handle, other] : live_) {
      if (other->blocking && !Done(other->tail)) PushWait(null_, other->tail);
    }
  } else if (stream->blocking && !Done(null_->tail)) {
    PushWait(stream, null_->tail);
  }
  if (std::exchange(hang_next_, false)) Append(stream, {.never = true});
  const std::shared_ptr<Mark> mark = Append(stream, {.run = std::move(run)});
  if (Current().streams == StreamMode::kEager) RunTo(mark);
  Stir();
  return mark;
}

void Streams::PushWait(const StreamRef& stream, const std::shared_ptr<Mark>& after) {
  Append(stream, {.after = after});
}

bool Streams::RunFront(CUstream_st& stream) {
  const Work work = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (work.run && failure_ == cudaSuccess) {
    const auto start = std::chrono::steady_clock::now();
    const cudaError_t error = work.run();
    clock_ += static_cast<uint64_t>(
        std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
    if (error != cudaSuccess) failure_ = error;
  }
  work.mark->done = true;
  work.mark->nanoseconds = clock_;
  return true;
}

// What an item waits for was queued before it, so this chain ends.
bool Streams::Advance(const StreamRef& stream) {
  StreamRef next = stream;
  while (next != nullptr && !next->queue.empty()) {
    const Work& front = next->queue.front();
    if (front.never) return false;
    if (Done(front.after)) return RunFront(*next);
    next = front.after->stream.lock();
  }
  return false;
}

bool Streams::RunTo(const std::shared_ptr<Mark>& mark) {
  while (!Done(mark)) {
    const StreamRef stream = mark->stream.lock();
    if (stream == nullptr || !Advance(stream)) return false;
  }
  return true;
}

bool Streams::RunAll() {
  std::vector<StreamRef> all = {null_};
  for (const auto& [handle, stream] : live_) all.push_back(stream);
  all.insert(all.end(), retired_.begin(), retired_.end());
  bool complete = true;
  for (const StreamRef& stream : all) complete = RunTo(stream->tail) && complete;
  std::erase_if(retired_, [](const StreamRef& stream) { return stream->queue.empty(); });
  return complete;
}

void Streams::Stir() {
  if (Current().streams != StreamMode::kRandom) return;
  while (NextRandom(&random_) % 2 == 0) {
    const size_t pick = NextRandom(&random_) % (live_.size() + 1);
    Advance(pick == live_.size() ? null_
                                 : std::next(live_.begin(), static_cast<ptrdiff_t>(pick))->second);
  }
}

void Streams::Clear() {
  const auto forget = [](CUstream_st& stream) {
    for (const Work& work : stream.queue) work.mark->done = true;
    stream.queue.clear();
  };
  forget(*null_);
  for (const auto& [handle, stream] : live_) forget(*stream);
  for (const StreamRef& stream : retired_) forget(*stream);
  retired_.clear();
  random_ = Current().seed;
  hang_next_ = false;
  failure_ = cudaSuccess;
}

}  // namespace simt::runtime
