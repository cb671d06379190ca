// A line of kernel source: where a thread waits, or where it went wrong.
#ifndef KVERN_TESTS_SIMT_SITE_H_
#define KVERN_TESTS_SIMT_SITE_H_

namespace simt {

struct Site {
  const char* file = "";
  int line = 0;

  // As a default argument: the line of the caller.
  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_SITE_H_
