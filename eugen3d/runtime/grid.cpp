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
constexpr int LANES = 8;        // points that are looked up side by side

// The eight corners around up to LANES points, and their weights in the row's mean.
struct Lookup {
    uint32_t index[8][LANES];
    float weight[8][LANES];
    float omega;  // their sum over points
};

// The error function from 0 to 4, where it is 1 in float32; linear in between it is off by 1.2e-7 at most.
constexpr int STEPS = 1024;
struct Erf {
    float values[4 * STEPS + 1];
    Erf() {
        for (int i = 0; i < 4 * STEPS + 1; ++i) values[i] = static_cast<float>(std::erf(static_cast<double>(i) / STEPS));
    }
};
const Erf ERF;

// The share of a Gaussian that is within half a cell of its middle.
inline float omega_of(float std, float scale) {
    const float x = STEPS / std::max(2.8284271247461903f * std * scale, 1e-20f);
    if (!(x < 4 * STEPS)) return x > 0 ? 1 : x;  // what is no number stays none
    const int i = static_cast<int>(x);
    return ERF.values[i] + (x - i) * (ERF.values[i + 1] - ERF.values[i]);
}

inline void look_up(const Level &level, const float *x, const float *stds, int points, float share, Lookup &found) {
    float fraction[3][LANES] = {}, own[LANES] = {};
    uint32_t low[3][LANES] = {};
    for (int axis = 0; axis < 3; ++axis)
        for (int point = 0; point < points; ++point) fraction[axis][point] = x[3 * point + axis];
    for (int axis = 0; axis < 3; ++axis)
        for (int point = 0; point < LANES; ++point) {
            const float position = fraction[axis][point] * level.scale + 0.5f, lowest = std::floor(position);
            low[axis][point] = static_cast<uint32_t>(static_cast<int32_t>(lowest));
            fraction[axis][point] = position - lowest;
        }
    found.omega = 0;
    for (int point = 0; point < points; ++point) {
        const float omega = stds ? omega_of(stds[point], level.scale) : 1.0f;
        own[point] = omega * share;
        found.omega += omega;
    }
    const uint32_t r = level.resolution, size = level.size;
    const bool is_dense = level.is_dense;  // an index is less than r + r² + r³ then; else the size is a power of 2
    const uint32_t second = is_dense ? r : 2654435761u, third = is_dense ? r * r : 805459861u;
    for (int corner = 0; corner < 8; ++corner) {
        const int i = corner & 1, j = corner >> 1 & 1, k = corner >> 2;
        for (int point = 0; point < LANES; ++point) {
            const float a = i ? fraction[0][point] : 1 - fraction[0][point];
            const float b = j ? fraction[1][point] : 1 - fraction[1][point];
            const float c = k ? fraction[2][point] : 1 - fraction[2][point];
            found.weight[corner][point] = a * b * c * own[point];
            const uint32_t u = low[0][point] + i, v = (low[1][point] + j) * second, w = (low[2][point] + k) * third;
            const uint32_t sum = u + v + w;
            const uint32_t dense = sum < size ? sum : sum - size < size ? sum - size : 0;  // 0: x is no number
            found.index[corner][point] = is_dense ? dense : (u ^ v ^ w) & (size - 1);
        }
    }
}

// Visits the entries around a row's points, each with its weight in the mean; gives the sum of the points' omegas.
template <typename Entry, typename Visit>
inline float visit_entries(const Level &level, Entry *table, int width, const float *means, const float *stds,
                           int points, Visit visit) {
    Lookup found;
    float omega = 0;
    for (int start = 0; start < points; start += LANES) {
        const int count = std::min(LANES, points - start);
        look_up(level, means + 3 * start, stds ? stds + start : nullptr, count, 1.0f / points, found);
        const auto entry = [&](int point, int corner) { return table + (level.start + found.index[corner][point]) * width; };
        for (int point = 0; point < count; ++point)
            for (int corner = 0; corner < 8; ++corner) __builtin_prefetch(entry(point, corner));
        for (int point = 0; point < count; ++point)
            for (int corner = 0; corner < 8; ++corner) visit(entry(point, corner), found.weight[corner][point]);
        omega += found.omega;
    }
    return omega;
}

template <int FEATURES>
void forward_row(const Level &level, const float *table, int features, const float *means, const float *stds,
                 int points, float *output, float *omega) {
    float sums[FEATURES ? FEATURES : 64] = {};
    const int width = FEATURES ? FEATURES : features;
    const float total = visit_entries(level, table, width, means, stds, points, [&](const float *entry, float weight) {
        for (int feature = 0; feature < width; ++feature) sums[feature] += weight * entry[feature];
    });
    for (int feature = 0; feature < width; ++feature) output[feature] = sums[feature];
    if (omega) *omega = total / points;
}

template <int FEATURES>
void backward_row(const Level &level, float *table, int features, const float *means, const float *stds, int points,
                  const float *gradient) {
    const int width = FEATURES ? FEATURES : features;
    visit_entries(level, table, width, means, stds, points, [&](float *entry, float weight) {
        for (int feature = 0; feature < width; ++feature) entry[feature] += weight * gradient[feature];
    });
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
