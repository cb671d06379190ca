// What a compression did, or would do, in words and numbers.
#ifndef KVERN_CLIENT_CLI_REPORT_H_
#define KVERN_CLIENT_CLI_REPORT_H_

#include "client/cli/console.h"
#include "client/cpp/compress_file.h"
#include "nlohmann/json.hpp"

namespace kvern::cli {

// Bytes, kept tokens, quality, time and the chain that ran. `model`: whose default calibrations the
// chain could use; without any it is not mentioned.
void PrintResult(const Console& console, const client::CacheFile& source,
                 const client::CompressedCache& compressed, const v1::Model& model);
// Tokens that each layer keeps, with a bar.
void PrintBudgets(const Console& console, const client::CacheFile& source,
                  const client::CompressedCache& compressed);
nlohmann::ordered_json ResultToJson(const client::CacheFile& source,
                                    const client::CompressedCache& compressed);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_REPORT_H_
