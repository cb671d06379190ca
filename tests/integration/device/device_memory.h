// Memory of the emulated GPU as a frontend allocates and shares it.
#ifndef KVERN_TESTS_INTEGRATION_DEVICE_DEVICE_MEMORY_H_
#define KVERN_TESTS_INTEGRATION_DEVICE_DEVICE_MEMORY_H_

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "client/cpp/device_pool.h"
#include "gtest/gtest.h"
#include "tests/integration/faults/server_pool.h"

namespace kvern::device {

enum class Kind { kIpcHandle, kFile };
inline constexpr Kind kKinds[] = {Kind::kIpcHandle, Kind::kFile};
inline const char* Name(Kind kind) { return kind == Kind::kFile ? "file" : "IPC handle"; }

// A region in the midst of an allocation, so that offsets count.
class DeviceMemory {
 public:
  static constexpr int64_t kOffset = 4096;

  DeviceMemory(Kind kind, int64_t bytes) : kind_(kind), bytes_(bytes) {
    if (kind == Kind::kFile) {
      Create();
      return;
    }
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&base_), AllocationBytes()), cudaSuccess);
    EXPECT_EQ(cudaIpcGetMemHandle(&ipc_, base_ + kOffset), cudaSuccess);
  }
  ~DeviceMemory() {
    if (kind_ == Kind::kIpcHandle) {
      EXPECT_EQ(cudaFree(base_), cudaSuccess);
      return;
    }
    EXPECT_EQ(cuMemUnmap(Address(), AllocationBytes()), CUDA_SUCCESS);
    EXPECT_EQ(cuMemAddressFree(Address(), AllocationBytes()), CUDA_SUCCESS);
    close(file_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  client::DeviceRegion Region(const std::string& device_uuid) const {
    client::DeviceRegion region;
    if (kind_ == Kind::kIpcHandle) {
      region.ipc_handle.assign(ipc_.reserved, sizeof(ipc_.reserved));
    } else {
      region.file = file_;
    }
    region.device_uuid = device_uuid;
    region.offset_bytes = kOffset;
    region.size_bytes = bytes_;
    return region;
  }
  int64_t AllocationBytes() const {
    const int64_t granularity = kind_ == Kind::kFile ? int64_t{2} << 20 : 4096;
    return (bytes_ + 2 * kOffset + granularity - 1) / granularity * granularity;
  }

  void Restore(const faults::Image& image) {
    EXPECT_EQ(cudaMemcpy(base_ + kOffset, image.data(), image.size(), cudaMemcpyHostToDevice),
              cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }
  faults::Image Now() const {
    faults::Image image(static_cast<size_t>(bytes_));
    EXPECT_EQ(cudaMemcpy(image.data(), base_ + kOffset, image.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return image;
  }

 private:
  CUdeviceptr Address() const { return reinterpret_cast<CUdeviceptr>(base_); }
  void Create() {
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    CUmemGenericAllocationHandle allocation = 0;
    CUdeviceptr address = 0;
    const auto bytes = static_cast<size_t>(AllocationBytes());
    EXPECT_EQ(cuMemCreate(&allocation, bytes, &properties, 0), CUDA_SUCCESS);
    EXPECT_EQ(cuMemExportToShareableHandle(&file_, allocation,
                                           CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
              CUDA_SUCCESS);
    EXPECT_EQ(cuMemAddressReserve(&address, bytes, 0, 0, 0), CUDA_SUCCESS);
    EXPECT_EQ(cuMemMap(address, bytes, 0, allocation, 0), CUDA_SUCCESS);
    const CUmemAccessDesc access = {properties.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    EXPECT_EQ(cuMemSetAccess(address, bytes, &access, 1), CUDA_SUCCESS);
    EXPECT_EQ(cuMemRelease(allocation), CUDA_SUCCESS);
    base_ = reinterpret_cast<char*>(address);
  }

  const Kind kind_;
  const int64_t bytes_;
  char* base_ = nullptr;
  cudaIpcMemHandle_t ipc_ = {};
  int file_ = -1;
};

// All of a pool but its regions.
inline v1::Pool DescriptionOf(const faults::PoolLayout& layout, const std::string& model) {
  v1::Pool pool;
  pool.set_model(model);
  pool.set_dtype(v1::DTYPE_BF16);
  pool.set_block_tokens(static_cast<int32_t>(layout.block_tokens));
  pool.set_num_blocks(layout.num_blocks);
  for (int64_t layer = 0; layer < faults::kLayers; ++layer) {
    v1::PoolLayer* described = pool.add_layers();
    described->set_layer(static_cast<int32_t>(layer));
    faults::Describe(layout, layout.k, layer, described->mutable_k());
    faults::Describe(layout, layout.v, layer, described->mutable_v());
  }
  return pool;
}

// A kvernd on the emulated GPU, or on the host, and a client of it.
struct Serving {
  std::unique_ptr<support::ServerProcess> process;
  std::optional<client::Client> client;
  std::string device_uuid;  // empty on the host
  std::string model;        // of `head_dim`

  static std::optional<Serving> Start(std::vector<std::string> flags, int64_t head_dim) {
    Serving serving;
    serving.process = support::ServerProcess::Start(flags);
    if (serving.process == nullptr) return std::nullopt;
    auto client = client::Client::Connect(serving.process->Address());
    if (!client.ok()) return std::nullopt;
    serving.client = *std::move(client);
    const auto info = serving.client->GetServerInfo();
    const auto model = serving.client->RegisterModel(faults::TestModel(head_dim));
    if (!info.ok() || !model.ok()) return std::nullopt;
    serving.device_uuid = info->device().uuid();
    serving.model = model->name();
    return serving;
  }
  int64_t Metric(const std::string& family, const std::string& label = "") const {
    return faults::MetricSum(process->Scrape(), family, label);
  }
};

inline const std::vector<std::string>& OnDevice() {
  static const auto* const flags =
      new std::vector<std::string>{"--backend", "cuda", "--scratch-bytes", "64MiB"};
  return *flags;
}

}  // namespace kvern::device

#endif  // KVERN_TESTS_INTEGRATION_DEVICE_DEVICE_MEMORY_H_
