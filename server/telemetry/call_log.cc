// spdlog writes, nlohmann escapes: what a client sent cannot break a line or forge a field.
#include "server/telemetry/call_log.h"

#include <grpc/support/log.h>

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/telemetry/labels.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace kvern::telemetry {
namespace {

using Json = nlohmann::ordered_json;

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                   spdlog::level::warn, spdlog::level::err};
  return kLevels[static_cast<int>(level)];
}

LogFormat& ProcessFormat() {
  static LogFormat format = LogFormat::kText;
  return format;
}

// Invalid UTF-8 from a client becomes U+FFFD instead of an exception.
std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void GrpcLine(gpr_log_func_args* args) {
  const LogLevel level =
      args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug;
  Log(level, absl::StrCat("grpc: ", args->message));
}

Json Fields(const engine::RpcEnd& end) {
  Json fields;
  fields["rpc"] = engine::Name(end.rpc);
  fields["code"] = CodeLabel(end.code);
  if (!end.reason.empty()) fields["reason"] = end.reason;
  if (!end.message.empty()) fields["error"] = end.message;
  fields["seconds"] = end.seconds;
  fields["peer"] = end.peer;
  if (!end.request_id.empty()) fields["request_id"] = end.request_id;
  if (!end.compress) return fields;
  const engine::CompressSummary& sum = *end.compress;
  fields["policy"] = sum.preset;
  fields["sequences"] = sum.sequences;
  const std::pair<const char*, int64_t> outcomes[] = {{"applied", sum.applied},
                                                      {"noop", sum.noop},
                                                      {"skipped", sum.skipped},
                                                      {"failed", sum.failed}};
  for (const auto& [name, count] : outcomes) {
    if (count > 0) fields[name] = count;
  }
  fields["tokens_in"] = sum.source_tokens;
  fields["tokens_kept"] = sum.kept_tokens;
  fields["bytes_before"] = sum.bytes_before;
  fields["bytes_after"] = sum.bytes_after;
  fields["queue_us"] = sum.queue_us;
  fields["plan_us"] = sum.micros.plan;
  fields["score_us"] = sum.micros.score;
  fields["select_us"] = sum.micros.select;
  fields["encode_us"] = sum.micros.encode;
  fields["move_us"] = sum.micros.move;
  if (sum.replayed) fields["replayed"] = true;
  return fields;
}

}  // namespace

void StartLog(LogFormat format, LogLevel level) {
  ProcessFormat() = format;
  auto logger =
      std::make_shared<spdlog::logger>("kvernd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(ToSpdlog(level));
  logger->flush_on(spdlog::level::debug);
  logger->set_pattern(format == LogFormat::kJson
                          ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})"
                          : "%Y-%m-%dT%H:%M:%S.%e%z %-7l %v");
  spdlog::set_default_logger(std::move(logger));
  gpr_set_log_function(&GrpcLine);
}

void Log(LogLevel level, absl::string_view message) {
  const std::string text(message);
  const bool json = ProcessFormat() == LogFormat::kJson;
  spdlog::log(ToSpdlog(level), "{}", json ? absl::StrCat("\"message\":", Dump(text)) : text);
}

std::string Line(LogFormat format, const engine::RpcEnd& end) {
  const Json fields = Fields(end);
  if (format == LogFormat::kJson) {
    const std::string object = Dump(fields);
    return object.substr(1, object.size() - 2);  // the pattern opens and closes the object
  }
  std::string line;
  for (const auto& [name, value] : fields.items()) {
    absl::StrAppend(&line, line.empty() ? "" : " ", name, "=", Dump(value));
  }
  return line;
}

void CallLog::OnEnd(const engine::RpcEnd& end) {
  LogLevel level = LogLevel::kWarning;
  if (end.code == absl::StatusCode::kOk) level = LogLevel::kInfo;
  if (end.code == absl::StatusCode::kInternal || end.code == absl::StatusCode::kDataLoss) {
    level = LogLevel::kError;
  }
  spdlog::log(ToSpdlog(level), "{}", Line(format_, end));
}

}  // namespace kvern::telemetry
