// Which of the emulator's three builds this is: plain, with AddressSanitizer, or with the checker.
#ifndef KVERN_TESTS_SIMT_BUILD_H_
#define KVERN_TESTS_SIMT_BUILD_H_

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#else
#define SIMT_ASAN 0
#endif
#else
#define SIMT_ASAN 0
#endif

// The switch written for the processor, or the portable one, which can be asked for.
#if defined(__x86_64__) && !defined(KVERN_SIMT_UCONTEXT)
#define SIMT_FAST_SWITCH 1
#else
#define SIMT_FAST_SWITCH 0
#endif

namespace simt {

#if defined(KVERN_SIMT_CHECK)
inline constexpr bool kChecking = true;
#else
inline constexpr bool kChecking = false;
#endif

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_BUILD_H_
