// Lets CLI11 read its configuration file as YAML.
#ifndef KVERN_SERVER_MAIN_YAML_CONFIG_H_
#define KVERN_SERVER_MAIN_YAML_CONFIG_H_

#include <istream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace kvern {

// A flat map: flag names to scalars or lists of scalars.
class YamlConfig final : public CLI::Config {
 public:
  // The flags in force, as a file that would set them.
  std::string to_config(const CLI::App* app, bool default_also, bool write_description,
                        std::string prefix) const override;
  // Throws CLI::ConversionError, as CLI11 expects of a parser.
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
};

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_YAML_CONFIG_H_
