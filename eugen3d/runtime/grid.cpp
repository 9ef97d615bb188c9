// Weighted means of a multi-resolution hash grid over Gaussians, and their gradient in the table.
//
// The layout is tiny-cuda-nn's (see eugen3d/fields/hash_grid.py for the symbols). Rows are taken level by level, so that
// one level's entries stay in the cache; OpenMP's threads share blocks of rows forwards and levels backwards, where each
// thread adds to entries that no other one touches. Plain C interface, no torch headers.

#include <algorithm>
#include <cmath>
#include <cstdint>

extern "C" {

struct Level {
    float scale;
    int32_t resolution, size, is_dense;
    int64_t start;  // of its entries in the table
};
}

namespace {

constexpr int64_t BLOCK = 256;  // rows

struct Corners {
    uint32_t index[8];
    float weight[8];
};

inline Corners corners_of(const Level &level, const float *x) {
    uint32_t low[3];
    float fraction[3];
    for (int axis = 0; axis < 3; ++axis) {
        const float position = x[axis] * level.scale + 0.5f, lowest = std::floor(position);
        low[axis] = static_cast<uint32_t>(lowest);
        fraction[axis] = position - lowest;
    }
    const uint32_t r = level.resolution, size = level.size;
    const bool is_dense = level.is_dense;  // an index is less than r + r² + r³ then; else the size is a power of 2
    const uint32_t strides[3] = {1u, is_dense ? r : 2654435761u, is_dense ? r * r : 805459861u};
    Corners corners;
    for (int corner = 0; corner < 8; ++corner) {
        uint32_t ways[3];
        float weight = 1;
        for (int axis = 0; axis < 3; ++axis) {
            const int up = corner >> axis & 1;
            ways[axis] = (low[axis] + up) * strides[axis];
            weight *= up ? fraction[axis] : 1 - fraction[axis];
        }
        const uint32_t index = is_dense ? ways[0] + ways[1] + ways[2] : ways[0] ^ ways[1] ^ ways[2];
        corners.index[corner] = is_dense ? (index < size ? index : index - size) : index & (size - 1);
        corners.weight[corner] = weight;
    }
    return corners;
}

inline float omega_of(float std, float scale) {
    return std::erf(1 / std::max(2.8284271247461903f * std * scale, 1e-20f));
}

template <int FEATURES>
void forward_row(const Level &level, const float *table, int features, const float *means, const float *stds,
                 int points, float *output, float *omega) {
    float sums[FEATURES ? FEATURES : 64] = {}, total = 0;
    const int width = FEATURES ? FEATURES : features;
    for (int point = 0; point < points; ++point) {
        const float own = stds ? omega_of(stds[point], level.scale) : 1;
        const Corners corners = corners_of(level, means + 3 * point);
        for (int corner = 0; corner < 8; ++corner) {
            const float weight = own * corners.weight[corner];
            const float *entry = table + (level.start + corners.index[corner]) * width;
            for (int feature = 0; feature < width; ++feature) sums[feature] += weight * entry[feature];
        }
        total += own;
    }
    for (int feature = 0; feature < width; ++feature) output[feature] = sums[feature] / points;
    if (omega) *omega = total / points;
}

template <int FEATURES>
void backward_row(const Level &level, float *table, int features, const float *means, const float *stds, int points,
                  const float *gradient) {
    const int width = FEATURES ? FEATURES : features;
    for (int point = 0; point < points; ++point) {
        const float own = (stds ? omega_of(stds[point], level.scale) : 1) / points;
        const Corners corners = corners_of(level, means + 3 * point);
        for (int corner = 0; corner < 8; ++corner) {
            const float weight = own * corners.weight[corner];
            float *entry = table + (level.start + corners.index[corner]) * width;
            for (int feature = 0; feature < width; ++feature) entry[feature] += weight * gradient[feature];
        }
    }
}

using Forward = decltype(&forward_row<0>);
using Backward = decltype(&backward_row<0>);

}  // namespace

extern "C" {

// output (rows, levels * features), omega (rows, levels) or null; stds null: every weight is 1.
void grid_forward(const Level *levels, int32_t num_levels, const float *table, int32_t features, const float *means,
                  const float *stds, int64_t rows, int32_t points, float *output, float *omega, int32_t threads) {
    const Forward run = features == 1 ? forward_row<1> : features == 2 ? forward_row<2> : features == 4 ? forward_row<4> : forward_row<0>;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t start = 0; start < rows; start += BLOCK) {
        const int64_t end = std::min(rows, start + BLOCK);
        for (int level = 0; level < num_levels; ++level)
            for (int64_t row = start; row < end; ++row)
                run(levels[level], table, features, means + row * points * 3, stds ? stds + row * points : nullptr,
                    points, output + (row * num_levels + level) * features,
                    omega ? omega + row * num_levels + level : nullptr);
    }
}

// Adds to table, of the table's shape; gradient is (rows, levels * features).
void grid_backward(const Level *levels, int32_t num_levels, float *table, int32_t features, const float *means,
                   const float *stds, int64_t rows, int32_t points, const float *gradient, int32_t threads) {
    const Backward run = features == 1 ? backward_row<1> : features == 2 ? backward_row<2> : features == 4 ? backward_row<4> : backward_row<0>;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int level = 0; level < num_levels; ++level)
        for (int64_t row = 0; row < rows; ++row)
            run(levels[level], table, features, means + row * points * 3, stds ? stds + row * points : nullptr, points,
                gradient + (row * num_levels + level) * features);
}
}
