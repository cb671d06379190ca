// Streams as queues of closures that run in the thread that waits for them.
//
// The emulator takes every freedom that the real runtime has: under StreamMode::kLazy nothing runs
// before something waits for it or asks about it, and a question moves the queue by one item only
// after it was answered; under kRandom every call may or may not move any stream; under kEager all
// runs in the call. A device executes one item at a time; its clock is the time of the items done.
// All of it runs under the lock of Runtime.
#ifndef KVERN_TESTS_SIMT_RUNTIME_STREAMS_H_
#define KVERN_TESTS_SIMT_RUNTIME_STREAMS_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>

namespace simt::runtime {

// The end of one item of a stream.
struct Mark {
  std::weak_ptr<CUstream_st> stream;
  bool done = false;
  uint64_t nanoseconds = 0;  // of the device's clock, when done
};

struct Work {
  std::function<cudaError_t()> run = nullptr;  // null: nothing to do; an error is sticky
  std::shared_ptr<Mark> after = nullptr;       // null: only the items before it
  std::shared_ptr<Mark> mark = nullptr;
  bool never = false;  // a fault was injected: does not complete
};

}  // namespace simt::runtime

// cudaEventRecord replaces `mark`, so what waited on the old one still does.
struct CUevent_st {
  std::shared_ptr<simt::runtime::Mark> mark;  // null: never recorded
  bool timed = true;
};

struct CUstream_st {
  std::deque<simt::runtime::Work> queue;
  std::shared_ptr<simt::runtime::Mark> tail;  // of the last item; null: none yet
  bool blocking = true;                       // waits for, and is waited for by, the null stream
};

namespace simt::runtime {

using StreamRef = std::shared_ptr<CUstream_st>;

class Streams {
 public:
  Streams();

  StreamRef Create(unsigned int flags);
  // Null for a handle that is none; the null stream for nullptr.
  StreamRef Find(cudaStream_t handle) const;
  void Destroy(const StreamRef& stream);  // what is queued still runs

  // Returns the end of the new item. Its error is sticky and shows in later calls.
  std::shared_ptr<Mark> Push(const StreamRef& stream, std::function<cudaError_t()> run);
  void PushWait(const StreamRef& stream, const std::shared_ptr<Mark>& after);

  // Runs one item that `stream` or something that it waits for has next. False if nothing could.
  bool Advance(const StreamRef& stream);
  // Runs until `mark` is done. False: it never will be.
  bool RunTo(const std::shared_ptr<Mark>& mark);
  bool RunAll();
  // In kRandom: moves some streams or none.
  void Stir();
  void HangNext() { hang_next_ = true; }
  void Clear();  // forgets all queued items

  cudaError_t failure() const { return failure_; }

 private:
  bool RunFront(CUstream_st& stream);
  std::shared_ptr<Mark> Append(const StreamRef& stream, Work work);

  StreamRef null_;
  std::map<cudaStream_t, StreamRef> live_;
  std::deque<StreamRef> retired_;  // destroyed, not yet empty
  uint64_t clock_ = 0;             // nanoseconds of items done
  uint64_t random_ = 0;
  bool hang_next_ = false;
  cudaError_t failure_ = cudaSuccess;  // of the first item that failed
};

}  // namespace simt::runtime

#endif  // KVERN_TESTS_SIMT_RUNTIME_STREAMS_H_
