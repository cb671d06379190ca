// The three macros of error handling. Messages say what, got, want.
#ifndef KVERN_KERNELS_BASE_STATUS_MACROS_H_
#define KVERN_KERNELS_BASE_STATUS_MACROS_H_

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define KVERN_CONCAT_INNER(a, b) a##b
#define KVERN_CONCAT(a, b) KVERN_CONCAT_INNER(a, b)

#define KVERN_RETURN_IF_ERROR(expression)                             \
  if (absl::Status kvern_status = (expression); !kvern_status.ok()) { \
    return kvern_status;                                              \
  }                                                                   \
  static_assert(true, "want a semicolon")

#define KVERN_ASSIGN_OR_RETURN(declaration, expression) \
  KVERN_ASSIGN_OR_RETURN_INNER(KVERN_CONCAT(kvern_or_, __LINE__), declaration, expression)
#define KVERN_ASSIGN_OR_RETURN_INNER(temporary, declaration, expression) \
  auto temporary = (expression);                                         \
  if (!temporary.ok()) return std::move(temporary).status();             \
  declaration = *std::move(temporary)

// For our own invariants only: request data never reaches it.
#define KVERN_CHECK(condition)                                                               \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (false)

#endif  // KVERN_KERNELS_BASE_STATUS_MACROS_H_
