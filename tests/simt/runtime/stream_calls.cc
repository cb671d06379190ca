// Streams and events of the runtime.
#include <cuda_runtime_api.h>

#include <map>
#include <memory>

#include "simt/runtime/runtime.h"

namespace {

using simt::runtime::Mark;
using simt::runtime::Runtime;
using simt::runtime::StreamRef;

using Events = std::map<cudaEvent_t, std::unique_ptr<CUevent_st>>;

Events& LiveEvents() {
  static Events* const events = new Events;
  return *events;
}

bool Known(cudaEvent_t event) { return LiveEvents().count(event) != 0; }

// body(stream) for a stream that exists.
template <class Body>
cudaError_t OnStream(const char* name, cudaStream_t handle, Body&& body) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call(name, [&]() -> cudaError_t {
    const StreamRef stream = runtime.streams().Find(handle);
    return stream == nullptr ? cudaErrorInvalidResourceHandle : body(runtime, stream);
  });
}

template <class Body>
cudaError_t OnEvent(const char* name, cudaEvent_t event, Body&& body) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call(name, [&]() -> cudaError_t {
    return Known(event) ? body(runtime) : cudaErrorInvalidResourceHandle;
  });
}

// The state before the question; the question moves the stream on, or polling would never end.
cudaError_t Ask(Runtime& runtime, const std::shared_ptr<Mark>& mark) {
  if (mark == nullptr || mark->done) return cudaSuccess;
  if (const StreamRef stream = mark->stream.lock()) runtime.streams().Advance(stream);
  return cudaErrorNotReady;
}

}  // namespace

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaStreamCreateWithFlags", [&]() -> cudaError_t {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = runtime.streams().Create(flags).get();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int flags,
                                         int /*priority*/) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  if (handle == nullptr) return Runtime::Get().Remember(cudaErrorInvalidResourceHandle);
  return OnStream("cudaStreamDestroy", handle, [](Runtime& runtime, const StreamRef& stream) {
    runtime.streams().Destroy(stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return OnStream("cudaStreamQuery", handle, [](Runtime& runtime, const StreamRef& stream) {
    return Ask(runtime, stream->tail);
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return OnStream("cudaStreamSynchronize", handle, [](Runtime& runtime, const StreamRef& stream) {
    runtime.WaitFor(stream->tail);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaDeviceSynchronize", [&] {
    runtime.WaitForAll();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int /*flags*/) {
  return OnStream("cudaStreamWaitEvent", handle,
                  [&](Runtime& runtime, const StreamRef& stream) -> cudaError_t {
                    if (!Known(event)) return cudaErrorInvalidResourceHandle;
                    if (event->mark != nullptr && !event->mark->done) {
                      runtime.streams().PushWait(stream, event->mark);
                    }
                    return cudaSuccess;
                  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags) {
  return Runtime::Get().Call("cudaEventCreateWithFlags", [&]() -> cudaError_t {
    if (event == nullptr || flags > (cudaEventBlockingSync | cudaEventDisableTiming)) {
      return cudaErrorInvalidValue;
    }
    auto created = std::make_unique<CUevent_st>();
    created->timed = (flags & cudaEventDisableTiming) == 0;
    *event = created.get();
    LiveEvents().emplace(*event, std::move(created));
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return OnEvent("cudaEventDestroy", event, [&](Runtime&) {
    LiveEvents().erase(event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return OnStream("cudaEventRecord", handle,
                  [&](Runtime& runtime, const StreamRef& stream) -> cudaError_t {
                    if (!Known(event)) return cudaErrorInvalidResourceHandle;
                    event->mark = runtime.streams().Push(stream, nullptr);
                    return cudaSuccess;
                  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return OnEvent("cudaEventQuery", event,
                 [&](Runtime& runtime) { return Ask(runtime, event->mark); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return OnEvent("cudaEventSynchronize", event, [&](Runtime& runtime) {
    runtime.WaitFor(event->mark);
    return cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return Runtime::Get().Call("cudaEventElapsedTime", [&]() -> cudaError_t {
    if (milliseconds == nullptr) return cudaErrorInvalidValue;
    if (!Known(start) || !Known(end) || !start->timed || !end->timed || start->mark == nullptr ||
        end->mark == nullptr) {
      return cudaErrorInvalidResourceHandle;
    }
    if (!start->mark->done || !end->mark->done) return cudaErrorNotReady;
    const double nanoseconds =
        static_cast<double>(end->mark->nanoseconds) - static_cast<double>(start->mark->nanoseconds);
    *milliseconds = static_cast<float>(nanoseconds / 1e6);
    return cudaSuccess;
  });
}
