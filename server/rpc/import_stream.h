// ImportCalibration: an artifact gathered in memory, checked, handed to the registry.
#ifndef KVERN_SERVER_RPC_IMPORT_STREAM_H_
#define KVERN_SERVER_RPC_IMPORT_STREAM_H_

#include <string>

#include "kvern/v1/model.pb.h"
#include "server/rpc/read_stream.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

class ImportStream final : public ReadStream<v1::ImportCalibrationRequest> {
 public:
  ImportStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
               v1::ImportCalibrationResponse* response);

 private:
  absl::StatusOr<Next> OnMessage(v1::ImportCalibrationRequest* message) override;
  void OnComplete() override;
  absl::Status OnDigest(const std::string& sha256);
  absl::Status Import();
  absl::Status AnswerExisting();

  const ServiceDeps deps_;
  v1::ImportCalibrationResponse* const response_;
  ByteBudget::Share share_;
  bool first_ = true;
  bool existed_ = false;
  std::string sha256_;  // 32 bytes, or empty
  std::string bytes_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_IMPORT_STREAM_H_
