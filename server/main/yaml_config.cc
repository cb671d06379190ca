// yaml-cpp reads, CLI11 checks names and values as if they were flags.
#include "server/main/yaml_config.h"

#include <utility>

#include "yaml-cpp/yaml.h"

namespace kvern {

std::string YamlConfig::to_config(const CLI::App* app, bool default_also, bool, std::string) const {
  YAML::Emitter out;
  out << YAML::BeginMap;
  for (const CLI::Option* option : app->get_options({})) {
    if (option->get_lnames().empty() || !option->get_configurable()) continue;
    if (option->count() == 0 && !default_also) continue;
    out << YAML::Key << option->get_lnames().front() << YAML::Value;
    if (option->count() == 0) {
      out << option->get_default_str();
    } else if (option->results().size() == 1) {
      out << option->results().front();
    } else {
      out << option->results();
    }
  }
  out << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

std::vector<CLI::ConfigItem> YamlConfig::from_config(std::istream& input) const {
  YAML::Node root;
  try {
    root = YAML::Load(input);
  } catch (const YAML::Exception& error) {
    throw CLI::ConversionError("configuration file is not YAML: " + std::string(error.what()));
  }
  std::vector<CLI::ConfigItem> items;
  if (root.IsNull()) return items;
  if (!root.IsMap()) throw CLI::ConversionError("configuration file: want a map of flags");
  for (const auto& entry : root) {
    CLI::ConfigItem item;
    item.name = entry.first.as<std::string>("");
    if (entry.second.IsScalar()) {
      item.inputs.push_back(entry.second.Scalar());
    } else if (entry.second.IsSequence()) {
      for (const auto& value : entry.second) item.inputs.push_back(value.as<std::string>(""));
    } else {
      throw CLI::ConversionError("configuration file: " + item.name + ": want a value or a list");
    }
    items.push_back(std::move(item));
  }
  return items;
}

}  // namespace kvern
