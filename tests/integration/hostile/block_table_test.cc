// Block tables that lie about ids, lengths or each other are refused before a byte is touched.
#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using Request = v1::CompressCacheRequest;
using absl::StatusCode;

constexpr char kTable[] = "sequences[0].paged.block_ids";
constexpr char kDestination[] = "sequences[0].paged.destination_block_ids";
constexpr char kLengths[] = "sequences[0].paged.lengths";

v1::PagedSource* Paged(Request* request) { return request->mutable_sequences(0)->mutable_paged(); }

class BlockTable : public HostileTest {
 protected:
  static void ExpectAllRefused(const std::vector<BadRequestCase>& cases) {
    for (const v1::Placement placement :
         {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT, v1::PLACEMENT_TO_STORE}) {
      for (const BadRequestCase& bad : cases) {
        SCOPED_TRACE(bad.what + ", " + v1::Placement_Name(placement));
        Request request = server_->Paged();
        request.mutable_policy()->set_placement(placement);
        bad.spoil(&request);
        ExpectRefused(server_->Compress(request), bad.want);
        server_->Process().Log();
      }
      server_->ExpectUnharmed();
    }
  }
};

TEST_F(BlockTable, OfIdsThatAreNotItsOwnIsRefused) {
  ExpectAllRefused(
      {{"id twice", [](Request* r) { Paged(r)->set_block_ids(3, 4); }, {kTable}},
       {"first id past the pool",
        [](Request* r) { Paged(r)->set_block_ids(2, kPoolBlocks); },
        {kTable, StatusCode::kInvalidArgument, "", "40"}},
       {"largest id", [](Request* r) { Paged(r)->set_block_ids(12, 0xFFFFFFFF); }, {kTable}},
       {"too short",
        [](Request* r) { Paged(r)->mutable_block_ids()->RemoveLast(); },
        {kTable, StatusCode::kInvalidArgument, "", "want 13"}},
       {"too long", [](Request* r) { Paged(r)->add_block_ids(39); }, {kTable}},
       {"none for its tokens", [](Request* r) { Paged(r)->clear_block_ids(); }, {kTable}},
       {"some for no tokens", [](Request* r) { Paged(r)->set_num_tokens(0); }, {kTable}},
       {"one token more than its blocks",
        [](Request* r) { Paged(r)->set_num_tokens(13 * kBlockTokens + 1); },
        {kTable}},
       {"2^40 tokens",
        [](Request* r) { Paged(r)->set_num_tokens(int64_t{1} << 40); },
        {"sequences[0].paged.num_tokens"}},
       {"-1 tokens",
        [](Request* r) { Paged(r)->set_num_tokens(-1); },
        {"sequences[0].paged.num_tokens"}},
       {"a million ids",
        [](Request* r) {
          for (uint32_t id = 0; id <= 1 << 20; ++id) Paged(r)->add_block_ids(id);
        },
        {kTable}}});
}

TEST_F(BlockTable, OfLengthsThatDoNotFitIsRefused) {
  const auto lengths = [](std::vector<int32_t> values) {
    return
        [values](Request* r) { Paged(r)->mutable_lengths()->Assign(values.begin(), values.end()); };
  };
  ExpectAllRefused(
      {{"of another size", lengths({200, 200, 200}), {kLengths}},
       {"above num_tokens", lengths({200, 201}), {std::string(kLengths) + "[1]"}},
       {"negative", lengths({-1, 200}), {std::string(kLengths) + "[0]"}},
       {"most negative", lengths({200, 200, 200, INT32_MIN}), {std::string(kLengths) + "[3]"}},
       {"largest", lengths({INT32_MAX, 0}), {std::string(kLengths) + "[0]"}}});
}

TEST_F(BlockTable, OfAnotherPoolIsRefused) {
  ExpectAllRefused(
      {{"no name", [](Request* r) { Paged(r)->clear_pool(); }, {"sequences[0].paged.pool"}},
       {"a path",
        [](Request* r) { Paged(r)->set_pool("pools/../victim"); },
        {"sequences[0].paged.pool"}},
       {"unknown",
        [](Request* r) { Paged(r)->set_pool("pools/none"); },
        {"", StatusCode::kNotFound, "POOL_EXPIRED"}}});
}

TEST_F(BlockTable, WithAnotherModelIsRefused) {
  v1::Model other = TestModel();
  other.set_name("models/wider");
  other.mutable_spec()->set_head_dim(2 * kHeadDim);
  ASSERT_TRUE(server_->Client().RegisterModel(other).ok());
  ExpectAllRefused({{"wider rows",
                     [](Request* r) { r->set_model("models/wider"); },
                     {"sequences[0].paged.pool"}}});
}

TEST_F(BlockTable, WithADestinationThatIsNotFreshIsRefused) {
  ExpectAllRefused(
      {{"block of the source",
        [](Request* r) { Paged(r)->set_destination_block_ids(1, 0); },
        {kDestination}},
       {"id twice", [](Request* r) { Paged(r)->set_destination_block_ids(1, 13); }, {kDestination}},
       {"past the pool",
        [](Request* r) { Paged(r)->set_destination_block_ids(0, kPoolBlocks); },
        {kDestination}}});
}

TEST_F(BlockTable, WithTooFewDestinationBlocksIsToldTheNumber) {
  Request request = server_->Paged();  // 100 tokens of 200 stay: 7 blocks of 16
  Paged(&request)->mutable_destination_block_ids()->Truncate(6);
  const Refusal refusal = {"", StatusCode::kFailedPrecondition, "DESTINATION_TOO_SMALL", "want 7"};
  ExpectRefused(server_->Compress(request), refusal);
  Paged(&request)->clear_destination_block_ids();
  ExpectRefused(server_->Compress(request), refusal);
}

// Two sequences, the second over blocks 20 and on unless told otherwise.
Request TwoSequences(const Request& base, uint32_t second_block, uint32_t second_destination) {
  Request request = base;
  v1::SequenceRequest* second = request.add_sequences();
  second->set_sequence_id("second");
  v1::PagedSource* paged = second->mutable_paged();
  paged->set_pool(base.sequences(0).paged().pool());
  paged->set_num_tokens(kBlockTokens);
  paged->add_block_ids(second_block);
  paged->add_destination_block_ids(second_destination);
  return request;
}

TEST_F(BlockTable, SharedWithAnotherSequenceOfTheCallIsRefused) {
  const Request base = server_->Paged();  // reads 0..12, writes 13..19
  ExpectRefused(server_->Compress(TwoSequences(base, 20, 14)),
                {"sequences[1].paged.destination_block_ids"});
  ExpectRefused(server_->Compress(TwoSequences(base, 15, 21)), {"sequences[1].paged.block_ids"});
  ExpectRefused(server_->Compress(TwoSequences(base, 20, 5)), {"sequences[0].paged.block_ids"});
}

}  // namespace
}  // namespace kvern::hostile
