// Calls below the generated stubs: any bytes, any method, credentials of one's own.
#ifndef KVERN_TESTS_INTEGRATION_HOSTILE_RAW_CALL_H_
#define KVERN_TESTS_INTEGRATION_HOSTILE_RAW_CALL_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace kvern::hostile {

struct RawAnswer {
  grpc::Status status;
  std::string bytes;
};

// Sends one message and reads one; streams look the same from here. `metadata` adds bytes of
// headers.
inline RawAnswer RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                         const std::string& message, size_t metadata = 0) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  if (metadata > 0) context.AddMetadata("x-padding", std::string(metadata, 'x'));
  const grpc::Slice slice(message);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> ended;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) { ended.set_value(std::move(status)); });
  RawAnswer answer;
  answer.status = ended.get_future().get();
  std::vector<grpc::Slice> slices;
  if (!response.Valid() || !response.Dump(&slices).ok()) return answer;
  for (const grpc::Slice& part : slices) {
    answer.bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return answer;
}

}  // namespace kvern::hostile

#endif  // KVERN_TESTS_INTEGRATION_HOSTILE_RAW_CALL_H_
