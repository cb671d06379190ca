// The command line of Kvern.
#include <cstdlib>
#include <string>
#include <vector>

#include "client/cli/app.h"

int main(int argc, char** argv) {
  // The transport's own log lines would stand between the user and our one-line errors.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  const kvern::cli::Console console = kvern::cli::StandardConsole();
  return kvern::cli::Run(std::vector<std::string>(argv + 1, argv + argc), console);
}
