// The 16 Lloyd-Max levels of lm4 and the boundaries between them.
#ifndef KVERN_KERNELS_BASE_LM4_TABLE_H_
#define KVERN_KERNELS_BASE_LM4_TABLE_H_

namespace kvern {

// Optimal for one coordinate of a point on the sphere in 128 dimensions, scaled to unit variance;
// used at every head_dim (ruling 13). Ascending, each exactly an f16.
inline constexpr float kLm4Levels[16] = {-0x1.584p+1, -0x1.06p+1,  -0x1.9acp+0, -0x1.3f8p+0,
                                         -0x1.dfcp-1, -0x1.4ecp-1, -0x1.8bcp-2, -0x1.06p-3,
                                         0x1.06p-3,   0x1.8bcp-2,  0x1.4ecp-1,  0x1.dfcp-1,
                                         0x1.3f8p+0,  0x1.9acp+0,  0x1.06p+1,   0x1.584p+1};

// A coordinate's code is the number of boundaries strictly below it, so ties go to the lower index.
// Boundary j = (level j + level j + 1) / 2, exact in f32.
inline constexpr float Lm4Boundary(int j) { return 0.5f * (kLm4Levels[j] + kLm4Levels[j + 1]); }
inline constexpr int kLm4Boundaries = 15;

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_LM4_TABLE_H_
