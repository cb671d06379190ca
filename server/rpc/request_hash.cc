// Tensor bytes are swapped out of the message while the rest is serialised, so that none is copied
// and no field can be forgotten.
#include "server/rpc/request_hash.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <openssl/evp.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/base/status_macros.h"

namespace kvern::rpc {
namespace {

// Takes the tensors' bytes out, and puts them back at the end of its life.
class TensorsAside {
 public:
  explicit TensorsAside(v1::CompressCacheRequest* request) {
    for (v1::SequenceRequest& sequence : *request->mutable_sequences()) {
      if (sequence.has_inline_()) {
        v1::InlineSource* source = sequence.mutable_inline_();
        if (source->has_k()) Take(source->mutable_k());
        if (source->has_v()) Take(source->mutable_v());
      }
      if (!sequence.has_side()) continue;
      v1::SideTensors* side = sequence.mutable_side();
      if (side->has_q_window()) Take(side->mutable_q_window());
      if (side->has_attention_mass()) Take(side->mutable_attention_mass());
      if (side->has_external_scores()) Take(side->mutable_external_scores());
    }
  }
  ~TensorsAside() {
    for (auto& [tensor, data] : taken_) tensor->mutable_data()->swap(data);
  }
  TensorsAside(const TensorsAside&) = delete;
  TensorsAside& operator=(const TensorsAside&) = delete;

 private:
  void Take(v1::Tensor* tensor) {
    taken_.emplace_back(tensor, std::string());
    tensor->mutable_data()->swap(taken_.back().second);
  }
  std::vector<std::pair<v1::Tensor*, std::string>> taken_;
};

}  // namespace

uint64_t HashWithoutTensors(v1::CompressCacheRequest* request) {
  std::string bytes;
  {
    const TensorsAside aside(request);
    google::protobuf::io::StringOutputStream sink(&bytes);
    google::protobuf::io::CodedOutputStream coded(&sink);
    coded.SetSerializationDeterministic(true);
    KVERN_CHECK(request->SerializeToCodedStream(&coded));
  }
  uint64_t hash;
  std::memcpy(&hash, Sha256(bytes).data(), sizeof(hash));
  return hash;
}

std::string Sha256(absl::string_view bytes) {
  std::array<unsigned char, 32> digest;
  unsigned int size = 0;
  KVERN_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) ==
              1);
  KVERN_CHECK(size == digest.size());
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace kvern::rpc
