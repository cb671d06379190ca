// Waiting for what another process does in its own time.
#ifndef KVERN_TESTS_INTEGRATION_HOSTILE_EVENTUALLY_H_
#define KVERN_TESTS_INTEGRATION_HOSTILE_EVENTUALLY_H_

#include <chrono>

namespace kvern::hostile {

// True as soon as `holds` is; false when it was not for a minute, so that a test fails instead of
// hanging. Asks again at once: each question is a call to the server.
template <class Condition>
bool Eventually(Condition holds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  do {
    if (holds()) return true;
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace kvern::hostile

#endif  // KVERN_TESTS_INTEGRATION_HOSTILE_EVENTUALLY_H_
