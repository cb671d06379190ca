// Keys near the mean direction are the common ones; the score is how far a key turns away from it.
// All of it in f64: with a large key bias every cosine is close to 1.
#include "kernels/ref/key_diff.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

constexpr double kSmallestNorm = 1e-12;    // of a key, before it is divided
constexpr double kSmallestProduct = 1e-8;  // of the two norms under the cosine

class HeadKeys {
 public:
  HeadKeys(const KeyDiffArgs& args, int64_t layer, int64_t head)
      : args_(args), keys_(args.keys[layer]), layer_(layer), head_(head), row_(keys_.head_dim) {}

  int32_t head_dim() const { return keys_.head_dim; }
  int64_t Tokens(int64_t row_tokens) const { return TokensOf(keys_, head_, row_tokens); }
  bool Alive(int64_t token) const { return args_.alive(layer_, head_, token) != 0; }

  // False for a key that has no direction to compare: not finite.
  bool Load(int64_t token, std::vector<double>* key) {
    LoadRow(keys_, head_, token, row_.data());
    if (args_.unrotate != nullptr) {
      Unrotate(*args_.unrotate, args_.unrotate->Row(layer_, head_, token), row_.data());
    }
    key->assign(row_.begin(), row_.end());
    return AllFinite(row_.data(), keys_.head_dim);
  }

 private:
  const KeyDiffArgs& args_;
  const KvRef& keys_;
  int64_t layer_;
  int64_t head_;
  std::vector<float> row_;
};

double NormOf(const std::vector<double>& row) {
  return std::sqrt(LaneDot(row.data(), row.data(), static_cast<int64_t>(row.size())));
}

// Mean unit key over the finite keys alive.
absl::Status Anchor(const StopCheck* stop, HeadKeys& keys, int64_t tokens,
                    std::vector<double>* anchor) {
  std::vector<double> key;
  std::vector<TokenSum> sums(keys.head_dim());
  int64_t count = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
    if (!keys.Alive(token) || !keys.Load(token, &key)) continue;
    const double inverse = 1.0 / std::max(NormOf(key), kSmallestNorm);
    for (int32_t d = 0; d < keys.head_dim(); ++d) sums[d].AddProduct(token, key[d], inverse);
    ++count;
  }
  anchor->assign(keys.head_dim(), 0.0);
  if (count == 0) return absl::OkStatus();
  for (int32_t d = 0; d < keys.head_dim(); ++d) {
    (*anchor)[d] = sums[d].Total() / static_cast<double>(count);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status KeyDiff(const StopCheck* stop, const KeyDiffArgs& args, ScoreView scores) {
  std::vector<double> anchor;
  std::vector<double> key;
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      HeadKeys keys(args, layer, head);
      const int64_t tokens = keys.Tokens(scores.shape[2]);
      KVERN_RETURN_IF_ERROR(Anchor(stop, keys, tokens, &anchor));
      const double anchor_norm = NormOf(anchor);
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
        scores(layer, head, token) = NoScore();
        if (token >= tokens || !keys.Load(token, &key)) continue;
        const double product = std::max(NormOf(key) * anchor_norm, kSmallestProduct);
        const double dot = LaneDot(key.data(), anchor.data(), keys.head_dim());
        scores(layer, head, token) = ScoreFrom(-dot / product);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
