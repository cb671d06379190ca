// Everything a cache file claims is checked once, when it is opened.
#include "client/cpp/cache_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cpp/proto_types.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::client {
namespace {

constexpr char kCacheFormat[] = "kvern-cache/1";
constexpr int64_t kMaxHeadDim = 1024;
constexpr size_t kWriteBytes = size_t{4} << 20;

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status Mismatch(const std::string& name, const formats::TensorEntry& got,
                      const std::string& want) {
  return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "': got ", got.dtype, " ",
                                                 ShapeText(got.shape), ", want ", want));
}

// Absent tensors pass.
absl::Status CheckTensor(const formats::Safetensors& file, const std::string& name,
                         const std::string& dtype, const std::vector<int64_t>& shape) {
  const formats::TensorEntry* tensor = file.Find(name);
  if (tensor == nullptr || (tensor->dtype == dtype && tensor->shape == shape)) {
    return absl::OkStatus();
  }
  return Mismatch(name, *tensor, absl::StrCat(dtype, " ", ShapeText(shape)));
}

absl::StatusOr<CacheShape> DenseShape(const formats::Safetensors& file) {
  const formats::TensorEntry* k = file.Find("k");
  const formats::TensorEntry* v = file.Find("v");
  if (k == nullptr || v == nullptr) {
    return absl::InvalidArgumentError("tensors 'k' and 'v': want both, or 'packed' and its table");
  }
  const auto dtype = FromFileDType(k->dtype);
  if (!dtype.has_value() || k->shape.size() != 4) {
    return Mismatch("k", *k, "BF16, F16 or F32 [layers, kv_heads, tokens, head_dim]");
  }
  KVERN_RETURN_IF_ERROR(CheckTensor(file, "v", k->dtype, k->shape));
  return CacheShape{k->shape[0], k->shape[1], k->shape[2], k->shape[3], *dtype};
}

absl::StatusOr<int64_t> MetadataNumber(const formats::Safetensors& file, const std::string& key) {
  const std::string text = file.Metadata(key);
  int64_t value = 0;
  if (!text.empty() && (!absl::SimpleAtoi(text, &value) || value < 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata '", key, "': got '", text, "', want a whole number"));
  }
  return value;
}

absl::StatusOr<CacheShape> PackedShape(const formats::Safetensors& file) {
  const formats::TensorEntry* counts = file.Find("kept_counts");
  const formats::TensorEntry* positions = file.Find("positions");
  const formats::TensorEntry* table = file.Find("packed_table");
  if (counts == nullptr || counts->dtype != "I32" || counts->shape.size() != 2) {
    return absl::InvalidArgumentError("a packed file wants 'kept_counts' I32 [layers, kv_heads]");
  }
  if (positions == nullptr || positions->dtype != "I32" || positions->shape.size() != 3) {
    return absl::InvalidArgumentError(
        "a packed file wants 'positions' I32 [layers, kv_heads, max_kept]");
  }
  if (table == nullptr || table->dtype != "I64" || table->shape.size() != 2 ||
      table->shape[1] != 8) {
    return absl::InvalidArgumentError("a packed file wants 'packed_table' I64 [rows, 8]");
  }
  CacheShape shape{counts->shape[0], counts->shape[1], positions->shape[2]};
  KVERN_ASSIGN_OR_RETURN(shape.head_dim, MetadataNumber(file, "head_dim"));
  if (shape.head_dim < 1 || shape.head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata 'head_dim': got ", shape.head_dim, ", want 1 to ", kMaxHeadDim));
  }
  const std::string dtype = file.Metadata("dtype");
  for (const DType known : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (dtype == Name(known)) shape.dtype = known;
  }
  KVERN_RETURN_IF_ERROR(
      CheckTensor(file, "packed_mu", "F16", {shape.layers, shape.kv_heads, shape.head_dim}));
  return shape;
}

absl::Status CheckOptionalTensors(const formats::Safetensors& file, const CacheShape& shape) {
  const std::vector<int64_t> rows = {shape.layers, shape.kv_heads, shape.tokens};
  const formats::TensorEntry* positions = file.Find("positions");
  if (positions != nullptr && positions->shape.size() != 1) {
    KVERN_RETURN_IF_ERROR(CheckTensor(file, "positions", "I32", rows));
  } else {
    KVERN_RETURN_IF_ERROR(CheckTensor(file, "positions", "I32", {shape.tokens}));
  }
  KVERN_RETURN_IF_ERROR(CheckTensor(file, "layer_indices", "I32", {shape.layers}));
  KVERN_RETURN_IF_ERROR(CheckTensor(file, "kept_counts", "I32", {shape.layers, shape.kv_heads}));
  KVERN_RETURN_IF_ERROR(CheckTensor(file, "attention_mass", "F32", rows));
  KVERN_RETURN_IF_ERROR(CheckTensor(file, "external_scores", "F32", rows));
  const formats::TensorEntry* window = file.Find("q_window");
  if (window != nullptr &&
      (!FromFileDType(window->dtype).has_value() || window->shape.size() != 4 ||
       window->shape[0] != shape.layers || window->shape[3] != shape.head_dim)) {
    return Mismatch("q_window", *window, "floats [layers, q_heads, window, head_dim]");
  }
  const formats::TensorEntry* frequencies = file.Find("inv_freq");
  if (frequencies != nullptr && (frequencies->dtype != "F32" || frequencies->shape.size() != 1 ||
                                 frequencies->shape[0] > shape.head_dim / 2)) {
    return Mismatch("inv_freq", *frequencies, "F32 [head_dim / 2] or fewer");
  }
  for (const char* key : {"num_layers", "q_heads", "kv_heads", "head_dim", "logical_tokens"}) {
    KVERN_RETURN_IF_ERROR(MetadataNumber(file, key).status());
  }
  return absl::OkStatus();
}

absl::Status FileError(const char* what, const std::string& path) {
  const std::string message = absl::StrCat(what, " '", path, "': ", std::strerror(errno));
  return WithReason(
      errno == ENOENT ? absl::NotFoundError(message) : absl::FailedPreconditionError(message),
      "FILE_ACCESS");
}

// The checks see tensors and keys; the reader of the message wants the file.
absl::Status ContentError(const std::string& path, const absl::Status& status) {
  return WithReason(absl::InvalidArgumentError(absl::StrCat("'", path, "': ", status.message())),
                    "FILE_CONTENT");
}

absl::StatusOr<CacheShape> CheckedShape(const formats::Safetensors& file) {
  const std::string format = file.Metadata("format");
  if (!format.empty() && format != kCacheFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat("got format '", format, "', want '", kCacheFormat, "'"));
  }
  const bool packed = file.Find("packed") != nullptr;
  KVERN_ASSIGN_OR_RETURN(const CacheShape shape, packed ? PackedShape(file) : DenseShape(file));
  KVERN_RETURN_IF_ERROR(CheckOptionalTensors(file, shape));
  return shape;
}

// A file that vanishes unless it is renamed in time.
class NewFile {
 public:
  explicit NewFile(const std::string& path)
      : path_(path), draft_(absl::StrCat(path, ".", getpid(), ".part")) {
    fd_ = open(draft_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  }
  ~NewFile() {
    if (fd_ >= 0) {
      close(fd_);
      unlink(draft_.c_str());
    }
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  absl::Status Status() const {
    return fd_ >= 0 ? absl::OkStatus() : FileError("cannot write", path_);
  }
  absl::Status Append(const char* data, size_t size) {
    while (size > 0) {
      const ssize_t written = write(fd_, data, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return FileError("cannot write", path_);
      data += written;
      size -= static_cast<size_t>(written);
    }
    return absl::OkStatus();
  }
  absl::Status Commit() {
    if (close(std::exchange(fd_, -1)) != 0 || rename(draft_.c_str(), path_.c_str()) != 0) {
      const absl::Status status = FileError("cannot write", path_);
      unlink(draft_.c_str());
      return status;
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const std::string draft_;
  int fd_ = -1;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError("cannot read", path);
  struct stat info = {};
  void* data = MAP_FAILED;
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
  if (regular) data = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (data == MAP_FAILED) {
    return WithReason(absl::InvalidArgumentError(absl::StrCat(
                          "cannot read '", path, "': want a regular file that is not empty")),
                      "FILE_ACCESS");
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile({static_cast<const std::byte*>(data), static_cast<size_t>(info.st_size)}));
}

MappedFile::~MappedFile() { munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

absl::StatusOr<CacheFile> CacheFile::Open(const std::string& path) {
  CacheFile cache;
  cache.path_ = path;
  KVERN_ASSIGN_OR_RETURN(cache.file_, MappedFile::Open(path));
  auto contents = formats::ParseSafetensors(cache.file_->Bytes());
  if (!contents.ok()) return ContentError(path, contents.status());
  cache.contents_ = *std::move(contents);
  const auto shape = CheckedShape(cache.contents_);
  if (!shape.ok()) return ContentError(path, shape.status());
  cache.shape_ = *shape;
  return cache;
}

std::span<const std::byte> CacheFile::BytesOf(const std::string& tensor) const {
  const formats::TensorEntry* entry = contents_.Find(tensor);
  return entry == nullptr ? std::span<const std::byte>() : entry->bytes;
}

std::vector<int32_t> CacheFile::Ints(const std::string& tensor) const {
  const formats::TensorEntry* entry = contents_.Find(tensor);
  if (entry == nullptr || entry->dtype != "I32") return {};
  std::vector<int32_t> values(entry->bytes.size() / sizeof(int32_t));
  if (!values.empty()) std::memcpy(values.data(), entry->bytes.data(), entry->bytes.size());
  return values;
}

int64_t CacheFile::Number(const std::string& key, int64_t fallback) const {
  int64_t value = 0;
  return absl::SimpleAtoi(contents_.Metadata(key), &value) ? value : fallback;
}

int64_t CacheFile::LogicalTokens() const {
  int64_t next = 0;
  for (const int32_t position : Ints("positions")) next = std::max<int64_t>(next, position + 1);
  if (contents_.Find("positions") == nullptr) next = shape_.tokens;
  return std::max(next, Number("logical_tokens", 0));
}

v1::Positions CacheFile::Positions() const {
  v1::Positions positions;
  const formats::TensorEntry* entry = contents_.Find("positions");
  if (entry == nullptr) return positions;
  const std::vector<int32_t> values = Ints("positions");
  positions.mutable_values()->Assign(values.begin(), values.end());
  positions.set_per_head(entry->shape.size() == 3);
  return positions;
}

std::vector<int32_t> CacheFile::Lengths() const {
  std::vector<int32_t> lengths = Ints("kept_counts");
  const formats::TensorEntry* entry = contents_.Find("positions");
  if (lengths.empty() && entry != nullptr && entry->shape.size() == 3) {
    const std::vector<int32_t> positions = Ints("positions");
    for (int64_t row = 0; row < shape_.Rows(); ++row) {
      const auto begin = positions.begin() + row * shape_.tokens;
      lengths.push_back(static_cast<int32_t>(
          std::count_if(begin, begin + shape_.tokens, [](int32_t at) { return at >= 0; })));
    }
  }
  const bool equal = std::all_of(lengths.begin(), lengths.end(),
                                 [this](int32_t length) { return length == shape_.tokens; });
  return equal ? std::vector<int32_t>() : lengths;
}

absl::Status WriteSafetensorsFile(const std::string& path, const formats::Safetensors& contents,
                                  const Progress& progress) {
  const std::string header = formats::SafetensorsHeader(contents);
  int64_t total = static_cast<int64_t>(header.size());
  for (const auto& [name, tensor] : contents.tensors) total += std::ssize(tensor.bytes);
  NewFile file(path);
  KVERN_RETURN_IF_ERROR(file.Status());
  KVERN_RETURN_IF_ERROR(file.Append(header.data(), header.size()));
  int64_t done = static_cast<int64_t>(header.size());
  for (const auto& [name, tensor] : contents.tensors) {
    for (size_t at = 0; at < tensor.bytes.size(); at += kWriteBytes) {
      const size_t size = std::min(kWriteBytes, tensor.bytes.size() - at);
      KVERN_RETURN_IF_ERROR(
          file.Append(reinterpret_cast<const char*>(tensor.bytes.data()) + at, size));
      done += static_cast<int64_t>(size);
      if (progress) progress(done, total);
    }
  }
  return file.Commit();
}

}  // namespace kvern::client
