// Which build this is.
#ifndef KVERN_SERVER_MAIN_VERSION_H_
#define KVERN_SERVER_MAIN_VERSION_H_

namespace kvern {

const char* Version();  // "0.1.0"
const char* Commit();   // short hash, or "unknown" outside a checkout

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_VERSION_H_
