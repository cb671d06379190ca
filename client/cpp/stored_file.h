// A fetched sequence as a cache file.
#ifndef KVERN_CLIENT_CPP_STORED_FILE_H_
#define KVERN_CLIENT_CPP_STORED_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "client/cpp/upload.h"
#include "kvern/v1/model.pb.h"

namespace kvern::client {

// `kvern-cache/1`, dense or packed as fetched; geometry and RoPE are the model's. Errors:
// InvalidArgument when sequence and model do not fit; of the file system.
absl::Status WriteFetchedFile(const std::string& path, const v1::Model& model,
                              const FetchedSequence& fetched, const Progress& progress);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_STORED_FILE_H_
