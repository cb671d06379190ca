// A reader of JSON events that knows the one form it accepts, so depth and memory stay bounded.
#include "formats/safetensors_header.h"

#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace kvern::formats {
namespace {

using Json = nlohmann::json;

constexpr char kMetadataName[] = "__metadata__";
constexpr size_t kMaxAxes = 32;

// Where the next event belongs.
enum class Place : uint8_t {
  kStart,
  kTop,          // between tensors
  kTensorStart,  // after a tensor's name
  kTensor,       // between its members
  kDtype,        // after that member's name
  kShapeStart,
  kShape,  // inside its array
  kOffsetsStart,
  kOffsets,
  kMetadataStart,
  kMetadata,
  kMetadataValue,
  kEnd,
};

// Called by the JSON lexer, event by event; false ends the reading.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  absl::StatusOr<Header> Result() && {
    if (!problem_.ok()) return problem_;
    if (place_ != Place::kEnd) return absl::InvalidArgumentError("safetensors: header ends early");
    return std::move(header_);
  }

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::kStart:
        return Enter(Place::kTop);
      case Place::kTensorStart:
        return Enter(Place::kTensor);
      case Place::kMetadataStart:
        return Enter(Place::kMetadata);
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() override {
    switch (place_) {
      case Place::kTop:
        return Enter(Place::kEnd);
      case Place::kTensor:
        return EndTensor();
      case Place::kMetadata:
        return Enter(Place::kTop);
      default:
        return Unexpected("the end of an object");
    }
  }

  bool key(string_t& name) override {
    switch (place_) {
      case Place::kTop:
        return BeginTensor(name);
      case Place::kTensor:
        return BeginMember(name);
      case Place::kMetadata:
        metadata_key_ = name;
        return Enter(Place::kMetadataValue);
      default:
        return Unexpected("a name");
    }
  }

  bool string(string_t& value) override {
    switch (place_) {
      case Place::kDtype:
        tensor_.dtype = value;
        return Enter(Place::kTensor);
      case Place::kMetadataValue:
        if (!header_.metadata.emplace(metadata_key_, value).second) return Twice(metadata_key_);
        return Enter(Place::kMetadata);
      default:
        return Unexpected("a string");
    }
  }

  bool start_array(std::size_t) override {
    switch (place_) {
      case Place::kShapeStart:
        return Enter(Place::kShape);
      case Place::kOffsetsStart:
        return Enter(Place::kOffsets);
      default:
        return Unexpected("an array");
    }
  }

  bool end_array() override {
    if (place_ == Place::kOffsets) {
      if (offsets_.size() != 2) return Fail("data_offsets got one number, want two");
      tensor_.begin = offsets_[0];
      tensor_.end = offsets_[1];
    } else if (place_ != Place::kShape) {
      return Unexpected("the end of an array");
    }
    return Enter(Place::kTensor);
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat("got the number ", value, ", want less than 2^63"));
    }
    const auto number = static_cast<int64_t>(value);
    if (place_ == Place::kShape) {
      if (tensor_.shape.size() == kMaxAxes) {
        return Fail(absl::StrCat("got a shape of more than ", kMaxAxes, " axes"));
      }
      tensor_.shape.push_back(number);
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (offsets_.size() == 2) return Fail("data_offsets got three numbers, want two");
      offsets_.push_back(number);
      return true;
    }
    return Unexpected("a number");
  }

  // The lexer calls this one for negative numbers only.
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a truth value"); }
  bool binary(binary_t&) override { return Unexpected("binary"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("no JSON at byte ", position));
  }

 private:
  bool Enter(Place place) {
    place_ = place;
    return true;
  }
  bool Fail(const std::string& problem) {
    problem_ = absl::InvalidArgumentError(absl::StrCat("safetensors: header: ", problem));
    return false;
  }
  bool Unexpected(const char* what) {
    return Fail(absl::StrCat("got ", what,
                             " out of place, want {name: {dtype, shape, data_offsets}} with "
                             "numbers of 0 or more"));
  }
  bool Twice(const std::string& name) {
    return Fail(absl::StrCat("got the name '", absl::CHexEscape(name.substr(0, 64)),
                             "' twice, want it once"));
  }

  bool BeginTensor(const std::string& name) {
    if (!names_.insert(name).second) return Twice(name);
    if (name == kMetadataName) return Enter(Place::kMetadataStart);
    name_ = name;
    tensor_ = {};
    members_.clear();
    return Enter(Place::kTensorStart);
  }

  bool BeginMember(const std::string& name) {
    if (!members_.insert(name).second) return Twice(name);
    offsets_.clear();
    if (name == "dtype") return Enter(Place::kDtype);
    if (name == "shape") return Enter(Place::kShapeStart);
    if (name == "data_offsets") return Enter(Place::kOffsetsStart);
    return Fail("got an unknown member of a tensor, want dtype, shape and data_offsets");
  }

  bool EndTensor() {
    if (members_.size() != 3) return Fail("want dtype, shape and data_offsets of each tensor");
    header_.entries.emplace(std::move(name_), std::move(tensor_));
    return Enter(Place::kTop);
  }

  Place place_ = Place::kStart;
  absl::Status problem_;
  Header header_;
  std::set<std::string> names_;    // of the top object
  std::set<std::string> members_;  // of the tensor being read
  std::string name_;
  HeaderEntry tensor_;
  std::vector<int64_t> offsets_;
  std::string metadata_key_;
};

}  // namespace

absl::StatusOr<Header> ParseHeader(absl::string_view text) {
  // The JSON lexer takes a NUL for the end of its input and skips a byte order mark.
  if (text.empty() || text.front() != '{' || text.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        "safetensors: header: got other text, want JSON that begins with '{' and holds no NUL");
  }
  HeaderReader reader;
  Json::sax_parse(text.begin(), text.end(), &reader);
  return std::move(reader).Result();
}

}  // namespace kvern::formats
