// What a refused request must carry: INVALID_ARGUMENT, the field's path, and what was wanted.
#ifndef KVERN_TESTS_UNIT_SERVER_RPC_BAD_FIELD_H_
#define KVERN_TESTS_UNIT_SERVER_RPC_BAD_FIELD_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::rpc {

// One way to spoil a good request, and how it must be refused.
template <class Message>
struct Spoiled {
  const char* field;
  const char* message;  // part of it
  std::function<void(Message*)> spoil;
};

inline void ExpectBadField(const absl::Status& status, const std::string& field,
                           const std::string& message) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(FieldOf(status), field) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(message));
}

}  // namespace kvern::rpc

#endif  // KVERN_TESTS_UNIT_SERVER_RPC_BAD_FIELD_H_
