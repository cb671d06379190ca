// The build passes both as definitions of this one file, so a new commit recompiles nothing else.
#include "server/main/version.h"

namespace kvern {

const char* Version() { return KVERN_VERSION; }
const char* Commit() { return KVERN_COMMIT; }

}  // namespace kvern
