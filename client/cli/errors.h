// What a failed command says and how it exits.
#ifndef KVERN_CLIENT_CLI_ERRORS_H_
#define KVERN_CLIENT_CLI_ERRORS_H_

#include <string>

#include "absl/status/status.h"
#include "client/cli/console.h"

namespace kvern::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitRefused = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitUnreachable = 3;

// The command line itself is wrong.
absl::Status UsageError(const std::string& message);

// One line of what happened, one line of what to do next.
std::string ErrorText(const absl::Status& status);
int ExitCode(const absl::Status& status);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_ERRORS_H_
