// Bytes that are no numbers, and messages that are no messages: defined answers, and a server that
// lives on.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kvern/v1/store.pb.h"
#include "tests/integration/hostile/hostile_server.h"
#include "tests/integration/hostile/raw_call.h"

namespace kvern::hostile {
namespace {

using Request = v1::CompressCacheRequest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kRows = int64_t{kLayers} * kKvHeads;

class HostileBytes : public HostileTest {
 protected:
  // The answer, which must be the same the second time.
  static v1::SequenceResult Twice(const Request& request) {
    v1::SequenceResult results[2];
    for (v1::SequenceResult& result : results) {
      auto response = server_->Client().Compress(request);
      EXPECT_TRUE(response.ok()) << response.status();
      if (!response.ok() || response->results_size() != 1) return {};
      result = response->results(0);
      EXPECT_TRUE(client::SequenceStatus(result).ok()) << client::SequenceStatus(result);
      result.clear_timings();
    }
    EXPECT_TRUE(results[0].SerializeAsString() == results[1].SerializeAsString());
    return results[0];
  }
};

std::vector<int32_t> KeptOf(const v1::SequenceResult& result) {
  std::vector<int32_t> kept(result.kept().size() / sizeof(int32_t));
  std::memcpy(kept.data(), result.kept().data(), result.kept().size());
  return kept;
}

// `value` at some dims of tokens first, first + 1, ... in every row.
void Poison(v1::Tensor* tensor, int64_t first, int64_t count, float value) {
  const BFloat16 bits = FromFloat<BFloat16>(value);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t token = first; token < first + count; ++token) {
      const int64_t at = (row * kTokens + token) * kHeadDim + token % kHeadDim;
      std::memcpy(tensor->mutable_data()->data() + at * kElementBytes, &bits, kElementBytes);
    }
  }
}

Request Unprotected(const std::string& scorer) {
  Request request = InlineRequest(kTokens);
  v1::Policy* policy = request.mutable_policy();
  policy->mutable_scorers(0)->set_name(scorer);
  policy->set_sink_tokens(0);
  policy->set_recent_tokens(0);
  policy->set_recent_share(0);
  return request;
}

v1::Tensor* SideTensor(v1::Tensor* tensor, std::vector<int64_t> shape) {
  tensor->set_dtype(v1::DTYPE_F32);
  int64_t elements = 1;
  for (const int64_t extent : shape) {
    tensor->add_shape(extent);
    elements *= extent;
  }
  std::vector<float> values(elements);
  for (int64_t i = 0; i < elements; ++i) values[i] = 1.0f + static_cast<float>(i % 97) / 97;
  tensor->set_data(values.data(), values.size() * sizeof(float));
  return tensor;
}

void SetFloat(v1::Tensor* tensor, int64_t index, float value) {
  std::memcpy(tensor->mutable_data()->data() + index * sizeof(float), &value, sizeof(value));
}

TEST_F(HostileBytes, ExternalScoresThatAreNanRankLastAndAreCounted) {
  Request request = Unprotected("external");
  v1::Tensor* scores =
      SideTensor(request.mutable_sequences(0)->mutable_side()->mutable_external_scores(),
                 {kLayers, kKvHeads, kTokens});
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t token = 50; token < 60; ++token) SetFloat(scores, row * kTokens + token, kNan);
    SetFloat(scores, row * kTokens + 70, kInfinity);
    SetFloat(scores, row * kTokens + 71, -kInfinity);
  }
  const v1::SequenceResult result = Twice(request);
  EXPECT_EQ(result.quality().nan_scores(), 10 * kRows);
  EXPECT_THAT(result.warnings(), testing::Not(testing::IsEmpty()));
  const std::vector<int32_t> kept = KeptOf(result);
  EXPECT_EQ(std::count(kept.begin(), kept.end(), 70), kRows);
  for (const int32_t token : kept) {
    EXPECT_FALSE((token >= 50 && token < 60) || token == 71) << token;
  }
  // With room for all but 5, NaN goes first and -infinity stays.
  request.mutable_policy()->mutable_budget()->set_tokens(kTokens - 5);
  const std::vector<int32_t> most = KeptOf(Twice(request));
  EXPECT_EQ(std::count(most.begin(), most.end(), 71), kRows);
}

TEST_F(HostileBytes, KeysThatAreNanOrInfiniteRankLastAndAreCounted) {
  for (const char* scorer : {"key_norm", "keydiff"}) {
    SCOPED_TRACE(scorer);
    Request request = Unprotected(scorer);
    Poison(request.mutable_sequences(0)->mutable_inline_()->mutable_k(), 50, 10, kNan);
    const v1::SequenceResult result = Twice(request);
    EXPECT_GE(result.quality().nan_scores(), 10 * kRows);
    EXPECT_EQ(KeptOf(result).size(), static_cast<size_t>(kRows * kTokens / 2));
    Poison(request.mutable_sequences(0)->mutable_inline_()->mutable_k(), 50, 10, -kInfinity);
    Twice(request);
  }
  Request request = Unprotected("key_norm");
  Poison(request.mutable_sequences(0)->mutable_inline_()->mutable_k(), 50, 10, kNan);
  const v1::SequenceResult result = Twice(request);
  EXPECT_EQ(result.quality().nan_scores(), 10 * kRows);
  for (const int32_t token : KeptOf(result)) EXPECT_FALSE(token >= 50 && token < 60) << token;
}

TEST_F(HostileBytes, ValuesThatAreNanOrInfiniteHaveADefinedAnswer) {
  for (const float value : {kNan, kInfinity, -kInfinity}) {
    SCOPED_TRACE(value);
    Request request = Unprotected("value_norm");
    Poison(request.mutable_sequences(0)->mutable_inline_()->mutable_v(), 50, 10, value);
    const v1::SequenceResult result = Twice(request);
    EXPECT_EQ(KeptOf(result).size(), static_cast<size_t>(kRows * kTokens / 2));
    if (std::isnan(value)) {
      EXPECT_EQ(result.quality().nan_scores(), 10 * kRows);
    }
    request.mutable_policy()->mutable_selector()->set_name("diverse");
    Twice(request);
  }
}

TEST_F(HostileBytes, CodecsCountWhatIsNoNumber) {
  for (const char* codec : {"i8t", "H+i8t", "lm4", "fp8t", "i4t", "sfv3"}) {
    SCOPED_TRACE(codec);
    Request request = InlineRequest(kTokens);
    request.mutable_policy()->mutable_budget()->set_tokens(kTokens);  // every token is coded
    request.mutable_policy()->mutable_codecs()->set_k(std::string(codec) + "+rm");
    request.mutable_policy()->mutable_codecs()->set_v(codec);
    v1::InlineSource* source = request.mutable_sequences(0)->mutable_inline_();
    Poison(source->mutable_k(), 50, 10, kNan);
    Poison(source->mutable_v(), 80, 10, kInfinity);
    const v1::SequenceResult result = Twice(request);
    EXPECT_GE(result.quality().nonfinite_values(), 20 * kRows);
    EXPECT_TRUE(result.has_packed());
    EXPECT_TRUE(std::isfinite(result.quality().k_error()));
    EXPECT_TRUE(std::isfinite(result.quality().v_error()));
  }
}

TEST_F(HostileBytes, QueriesAndMassThatAreNoNumbersHaveADefinedAnswer) {
  for (const float value : {kNan, kInfinity, -kInfinity, std::numeric_limits<float>::max()}) {
    SCOPED_TRACE(value);
    Request queries = Unprotected("snapkv");
    (*queries.mutable_policy()->mutable_scorers(0)->mutable_params())["window"] = "8";
    v1::Tensor* q = SideTensor(queries.mutable_sequences(0)->mutable_side()->mutable_q_window(),
                               {kLayers, kQHeads, 8, kHeadDim});
    for (int64_t i = 5; i < 1000; i += 100) SetFloat(q, i, value);
    EXPECT_EQ(KeptOf(Twice(queries)).size(), static_cast<size_t>(kRows * kTokens / 2));

    Request mass = Unprotected("attention_mass");
    v1::Tensor* sums =
        SideTensor(mass.mutable_sequences(0)->mutable_side()->mutable_attention_mass(),
                   {kLayers, kKvHeads, kTokens});
    for (int64_t row = 0; row < kRows; ++row) SetFloat(sums, row * kTokens + 50, value);
    const v1::SequenceResult result = Twice(mass);
    EXPECT_EQ(KeptOf(result).size(), static_cast<size_t>(kRows * kTokens / 2));
    if (std::isnan(value)) {
      EXPECT_EQ(result.quality().nan_scores(), kRows);
    }
    EXPECT_GE(result.quality().kept_attention_mass(), 0);
    EXPECT_LE(result.quality().kept_attention_mass(), 1);
  }
}

struct Valid {
  std::string method;
  std::string bytes;
};

// Requests that would do something, over a pool that nobody else needs.
std::vector<Valid> ValidMessages(const TestPool& pool) {
  Request side = PagedRequest(pool.Name(), kTokens);
  SideTensor(side.mutable_sequences(0)->mutable_side()->mutable_q_window(),
             {kLayers, kQHeads, 4, kHeadDim});
  side.mutable_sequences(0)->add_protected_()->set_end(9);
  side.set_request_id("replayed");
  v1::RegisterPoolRequest register_pool;
  *register_pool.mutable_pool() = TestPool::Describe(pool.Attachment(), kPoolBlocks);
  v1::RegisterModelRequest register_model;
  *register_model.mutable_model() = TestModel();
  v1::PutSequenceRequest put;
  put.mutable_header()->set_name("sequences/fuzzed");
  put.mutable_header()->set_model(TestModel().name());
  put.mutable_header()->set_dtype(v1::DTYPE_F16);
  v1::AppendSequenceRequest append;
  append.mutable_header()->set_name("sequences/fuzzed");
  append.mutable_header()->set_num_tokens(1);
  v1::FetchSequenceRequest fetch;
  fetch.set_name("sequences/fuzzed");
  fetch.set_decode(true);
  v1::ReleaseSequencesRequest release;
  release.add_sequence_ids("base");
  v1::ImportCalibrationRequest import;
  import.set_data("no calibration");
  v1::PlanCompressionRequest plan;
  *plan.mutable_compression() = PagedRequest(pool.Name(), kTokens);
  v1::ApplyCompressionRequest apply;
  apply.set_plan("plans/0123456789abcdef0123456789abcdef");
  apply.add_sequences()->set_sequence_id("base");
  apply.mutable_sequences(0)->add_appended_block_ids(3);
  v1::ObserveQueriesRequest observe;
  observe.set_model(TestModel().name());
  observe.set_form(v1::QUERY_FORM_AFTER_ROPE);
  observe.add_positions(3);
  observe.mutable_queries()->set_dtype(v1::DTYPE_BF16);
  for (const int64_t extent : {kLayers, kQHeads, 1, kHeadDim}) {
    observe.mutable_queries()->add_shape(extent);
  }
  observe.mutable_queries()->set_data(RandomBf16(kLayers * kQHeads * kHeadDim, /*seed=*/31));
  v1::ExportCalibrationRequest exported;
  exported.set_model(TestModel().name());
  exported.set_format("kvern-calibration/1");
  const std::string service = "/kvern.v1.";
  return {{service + "CompressionService/CompressCache",
           PagedRequest(pool.Name(), kTokens).SerializeAsString()},
          {service + "CompressionService/CompressCache", InlineRequest(8).SerializeAsString()},
          {service + "CompressionService/CompressCache", side.SerializeAsString()},
          {service + "CompressionService/PlanCompression", plan.SerializeAsString()},
          {service + "CompressionService/ApplyCompression", apply.SerializeAsString()},
          {service + "CompressionService/ReleaseSequences", release.SerializeAsString()},
          {service + "PoolService/RegisterPool", register_pool.SerializeAsString()},
          {service + "ModelService/RegisterModel", register_model.SerializeAsString()},
          {service + "ModelService/ImportCalibration", import.SerializeAsString()},
          {service + "ModelService/ObserveQueries", observe.SerializeAsString()},
          {service + "ModelService/ExportCalibration", exported.SerializeAsString()},
          {service + "StoreService/PutSequence", put.SerializeAsString()},
          {service + "StoreService/AppendSequence", append.SerializeAsString()},
          {service + "StoreService/FetchSequence", fetch.SerializeAsString()}};
}

// Flips bits, cuts, doubles or lies about lengths.
std::string Mutated(std::string bytes, std::mt19937* random) {
  const auto below = [&](size_t limit) { return (*random)() % limit; };
  const size_t flips = below(4);
  for (size_t i = 0; i <= flips && !bytes.empty(); ++i) {
    // Most often in the beginning, where the fields are and not the tensors.
    const size_t span = below(4) == 0 ? bytes.size() : std::min<size_t>(bytes.size(), 200);
    bytes[below(span)] = static_cast<char>(below(2) == 0 ? (*random)() : 0xFF);
  }
  if (below(4) == 0) bytes.resize(below(bytes.size() + 1));
  if (below(8) == 0) bytes += bytes.substr(0, 4096);
  return bytes;
}

TEST_F(HostileBytes, TwoThousandMutatedMessagesGetAStatusEach) {
  auto fuzzed = TestPool::Register(server_->Client(), server_->Process(), "fuzzed", kPoolBlocks);
  ASSERT_TRUE(fuzzed.ok()) << fuzzed.status();
  const std::vector<Valid> valid = ValidMessages(**fuzzed);
  std::mt19937 random(20240607);
  int refused = 0, accepted = 0;
  for (int i = 0; i < 2000; ++i) {
    const Valid& base = valid[random() % valid.size()];
    const RawAnswer answer =
        RawCall(server_->Client().Channel(), base.method, Mutated(base.bytes, &random));
    (answer.status.ok() ? accepted : refused) += 1;
    // The server said so itself: it neither died nor fell silent nor tripped over its own state.
    ASSERT_NE(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE)
        << i << " " << base.method << " " << answer.status.error_message();
    ASSERT_NE(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << i;
    ASSERT_NE(answer.status.error_code(), grpc::StatusCode::UNKNOWN) << i << " " << base.method;
    if (i % 50 == 0) server_->ExpectUnharmed();
  }
  EXPECT_GT(refused, 500);
  EXPECT_GT(accepted, 50);  // not all of them die in the parser
  const auto pools = server_->Client().ListPools();
  ASSERT_TRUE(pools.ok()) << pools.status();
  for (const v1::Pool& pool : pools->pools()) {
    if (pool.name() != "pools/victim") {
      EXPECT_TRUE(server_->Client().UnregisterPool(pool.name()).ok());
    }
  }
}

TEST_F(HostileBytes, MessagesOfNoServiceAreUnimplemented) {
  for (const char* method : {"/kvern.v1.CompressionService/Explode", "/kvern.v1.None/None", "/"}) {
    EXPECT_EQ(RawCall(server_->Client().Channel(), method, "x").status.error_code(),
              grpc::StatusCode::UNIMPLEMENTED)
        << method;
  }
}

}  // namespace
}  // namespace kvern::hostile
