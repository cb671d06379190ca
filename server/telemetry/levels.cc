// One pass over the engine's gauges and /proc per scrape; nothing is kept between scrapes.
#include "server/telemetry/levels.h"

#include <string>
#include <utility>

#include "server/telemetry/labels.h"
#include "server/telemetry/process_stats.h"

namespace kvern::telemetry {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Family(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void Add(double value, std::vector<ClientMetric::Label> labels, MetricFamily* family) {
  ClientMetric metric;
  metric.label = std::move(labels);
  if (family->type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family->metric.push_back(std::move(metric));
}

MetricFamily Gauge(const char* name, const char* help, double value) {
  MetricFamily family = Family(name, help, MetricType::Gauge);
  Add(value, {}, &family);
  return family;
}

MetricFamily Counter(const char* name, const char* help, double value) {
  MetricFamily family = Family(name, help, MetricType::Counter);
  Add(value, {}, &family);
  return family;
}

void AddProcess(std::vector<MetricFamily>* families) {
  const ProcessStats stats = ReadProcessStats();
  families->push_back(Counter("process_cpu_seconds_total", "User and system time of the process.",
                              stats.cpu_seconds));
  families->push_back(
      Gauge("process_resident_memory_bytes", "Resident memory.", stats.resident_bytes));
  families->push_back(
      Gauge("process_virtual_memory_bytes", "Virtual memory.", stats.virtual_bytes));
  families->push_back(Gauge("process_start_time_seconds", "Start of the process, Unix time.",
                            stats.start_time_seconds));
  families->push_back(Gauge("process_open_fds", "Open file descriptors.", stats.open_fds));
  families->push_back(
      Gauge("process_max_fds", "Most file descriptors the process may open.", stats.max_fds));
}

}  // namespace

std::vector<MetricFamily> Levels::Collect() const {
  const engine::EngineGauges now = options_.sample();
  std::vector<MetricFamily> families;
  MetricFamily build =
      Family("kvern_build_info", "Always 1; the labels say which build runs.", MetricType::Gauge);
  Add(1, {{"version", options_.version}, {"commit", options_.commit}}, &build);
  families.push_back(std::move(build));
  families.push_back(Gauge("kvern_queue_depth", "Calls waiting for the worker.", now.queue_depth));
  families.push_back(Gauge("kvern_queue_oldest_seconds", "Age of the oldest waiting call.",
                           now.queue_oldest_seconds));
  families.push_back(
      Gauge("kvern_queued_bytes", "Payload bytes of waiting calls.", now.queued_bytes));
  MetricFamily pools = Family("kvern_pools", "Registered pools.", MetricType::Gauge);
  MetricFamily mapped =
      Family("kvern_pool_mapped_bytes", "Frontend memory mapped for pools.", MetricType::Gauge);
  const std::vector<std::string> engines = EngineLabels();
  for (size_t i = 0; i < engines.size(); ++i) {
    for (const auto& [kind, levels] :
         {std::pair("memfd", now.host_pools[i]), std::pair("device", now.device_pools[i])}) {
      Add(levels.count, {{"engine", engines[i]}, {"kind", kind}}, &pools);
      Add(levels.mapped_bytes, {{"engine", engines[i]}, {"kind", kind}}, &mapped);
    }
  }
  families.push_back(std::move(pools));
  families.push_back(std::move(mapped));
  families.push_back(
      Gauge("kvern_store_sequences", "Sequences in the store.", now.store_sequences));
  families.push_back(Gauge("kvern_store_bytes", "Store memory in use.", now.store_used_bytes));
  MetricFamily capacity = Family("kvern_store_capacity_bytes",
                                 "Store memory in all, by where it lies.", MetricType::Gauge);
  Add(static_cast<double>(now.store_capacity_bytes),
      {{"memory", now.store_on_device ? "device" : "host"}}, &capacity);
  families.push_back(std::move(capacity));
  families.push_back(
      Gauge("kvern_attachments", "Memory objects held for broker connections.", now.attachments));
  families.push_back(Gauge("kvern_remembered_sequences",
                           "Paged sequences whose epoch is remembered.", now.remembered_sequences));
  families.push_back(Counter("kvern_replay_evictions_total",
                             "Stored answers dropped early because their limit was reached.",
                             now.replay_evictions));
  families.push_back(Gauge("kvern_observed_bytes", "Bytes of statistics of observed queries.",
                           now.observed_bytes));
  families.push_back(
      Gauge("kvern_plans", "Compression plans that wait to be applied.", now.plans.plans));
  families.push_back(Gauge("kvern_plan_bytes", "Bytes of waiting plans.", now.plans.bytes));
  MetricFamily plan_events =
      Family("kvern_plan_events_total", "Compression plans made, and how they ended.",
             MetricType::Counter);
  const std::pair<const char*, int64_t> ends[] = {{"made", now.plans.made},
                                                  {"applied", now.plans.applied},
                                                  {"expired", now.plans.expired},
                                                  {"released", now.plans.released}};
  for (const auto& [event, count] : ends) {
    Add(static_cast<double>(count), {{"event", event}}, &plan_events);
  }
  families.push_back(std::move(plan_events));
  MetricFamily limits =
      Family("kvern_limit", "Limits in force, in the unit their name says.", MetricType::Gauge);
  for (const LimitField& field : LimitFields()) {
    Add(static_cast<double>(options_.limits.*field.field), {{"limit", field.flag}}, &limits);
  }
  families.push_back(std::move(limits));
  AddProcess(&families);
  return families;
}

}  // namespace kvern::telemetry
