// Walks the descriptor: a new field of the proto shows up without a line here.
#include "client/cli/message_json.h"

#include <string>

#include "google/protobuf/descriptor.h"

namespace kvern::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using Json = nlohmann::ordered_json;

Json ScalarToJson(const Message& message, const FieldDescriptor& field) {
  const Reflection& at = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return at.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64:
      return at.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return at.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return at.GetUInt64(message, &field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return at.GetFloat(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return at.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return at.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return at.GetEnum(message, &field)->name();
    case FieldDescriptor::CPPTYPE_STRING:
      return at.GetString(message, &field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
  return ToJson(at.GetMessage(message, &field));
}

Json ElementToJson(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& at = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return at.GetRepeatedInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_INT64:
      return at.GetRepeatedInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT32:
      return at.GetRepeatedUInt32(message, &field, index);
    case FieldDescriptor::CPPTYPE_UINT64:
      return at.GetRepeatedUInt64(message, &field, index);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return at.GetRepeatedFloat(message, &field, index);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return at.GetRepeatedDouble(message, &field, index);
    case FieldDescriptor::CPPTYPE_BOOL:
      return at.GetRepeatedBool(message, &field, index);
    case FieldDescriptor::CPPTYPE_ENUM:
      return at.GetRepeatedEnum(message, &field, index)->name();
    case FieldDescriptor::CPPTYPE_STRING:
      return at.GetRepeatedString(message, &field, index);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
  return ToJson(at.GetRepeatedMessage(message, &field, index));
}

Json MapToJson(const Message& message, const FieldDescriptor& field) {
  Json object = Json::object();
  const FieldDescriptor& key = *field.message_type()->map_key();
  const FieldDescriptor& value = *field.message_type()->map_value();
  std::map<std::string, Json> sorted;  // the wire has no order
  for (int i = 0; i < message.GetReflection()->FieldSize(message, &field); ++i) {
    const Message& entry = message.GetReflection()->GetRepeatedMessage(message, &field, i);
    const Json name = ScalarToJson(entry, key);
    sorted[name.is_string() ? name.get<std::string>() : name.dump()] = ScalarToJson(entry, value);
  }
  for (auto& [name, json] : sorted) object[name] = std::move(json);
  return object;
}

}  // namespace

Json ToJson(const Message& message) {
  Json object = Json::object();
  const Reflection& at = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    if (field.type() == FieldDescriptor::TYPE_BYTES) continue;
    if (field.is_map()) {
      object[field.name()] = MapToJson(message, field);
    } else if (field.is_repeated()) {
      Json array = Json::array();
      for (int n = 0; n < at.FieldSize(message, &field); ++n) {
        array.push_back(ElementToJson(message, field, n));
      }
      object[field.name()] = std::move(array);
    } else if (!field.has_presence() || at.HasField(message, &field)) {
      object[field.name()] = ScalarToJson(message, field);
    }
  }
  return object;
}

void PrintJson(const Console& console, const Json& json) {
  console.out << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

}  // namespace kvern::cli
