// Waiting for what another process does in its own time.
#ifndef KVERN_TESTS_INTEGRATION_HOSTILE_EVENTUALLY_H_
#define KVERN_TESTS_INTEGRATION_HOSTILE_EVENTUALLY_H_

#include <algorithm>
#include <chrono>
#include <thread>

namespace kvern::hostile {

// True soon after `holds` is; false when it was not for a minute, so that a test fails instead of
// hanging. Each question is a call to the server, and a line in its log, which is read only after
// the test: asked without a pause they would fill the pipe, and the server would wait to write.
template <class Condition>
bool Eventually(Condition holds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  auto pause = std::chrono::milliseconds(1);
  do {
    if (holds()) return true;
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::milliseconds(250));
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace kvern::hostile

#endif  // KVERN_TESTS_INTEGRATION_HOSTILE_EVENTUALLY_H_
