// Marks functions that device code may call.
#ifndef KVERN_KERNELS_BASE_HOST_DEVICE_H_
#define KVERN_KERNELS_BASE_HOST_DEVICE_H_

#if defined(__CUDACC__)
#define KVERN_HD __host__ __device__
#else
#define KVERN_HD
#endif

#endif  // KVERN_KERNELS_BASE_HOST_DEVICE_H_
