// A whole folded chain over tiles of a few dozen rows, so that activations never leave the first-level cache.
//
// Every step is y = Phi(products(W x + b + ||F x + f|| n)): a dense layer and its activation, or EUGen features (see
// eugen3d/layers/features.py for the symbols). A tile passes through all steps before the next one is begun; tiles are
// shared out among OpenMP's threads. The product keeps a block of ROWS x (VECTORS * LANES) sums in registers. Plain C
// interface, no torch headers: it is compiled once a machine, in seconds, and outlives an upgrade of torch.
//
// Weights come packed in panels of VECTORS * LANES outputs (the last one narrower, padded with zeros to whole vectors):
// a panel holds, input after input, the weights of its outputs side by side; in bfloat16, pair of inputs after pair.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4, ROWS = 6;  // 24 sums, 4 weights, 1 input of 32 registers
#elif defined(__AVX2__)
constexpr int LANES = 8, VECTORS = 2, ROWS = 6;  // 12 sums, 2 weights, 1 input of 16
#else
constexpr int LANES = 4, VECTORS = 4, ROWS = 6;  // as on the 32 registers of ARM's NEON
#endif
constexpr int PANEL = LANES * VECTORS, TILE = 8 * ROWS;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef uint16_t Bfloat16;  // the upper half of a float32

enum Activation : int32_t { IDENTITY, RELU, GELU, SOFTPLUS, SINE, SOFTPLUS_100 };

}  // namespace

extern "C" {

struct Step {
    int32_t in_features, out_features;  // of the matrix: out_features is P * m for features
    int32_t concatenates_input;         // the step sees [input of the chain, output of the step before]
    int32_t activation;
    int32_t num_features, order, shared;  // order 1: num_features is out_features
    int32_t norm_rank;                    // rows of F; 0: the norm of x itself
    const void *weight;
    const float *bias;         // padded to whole vectors
    const float *norm_weight;  // n, or null
    const void *norm_factor;
    const float *norm_offset;
};

int32_t chain_lanes() { return LANES; }
int32_t chain_panel() { return PANEL; }
int32_t chain_has_bfloat16() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}
}

namespace {

constexpr int padded(int size) { return (size + LANES - 1) / LANES * LANES; }

inline int features_of(const Step &step) { return step.order * step.num_features; }

inline Vector rectified(Vector value) { return value < 0 ? Vector{} : value; }  // keeps NaN, as torch does

inline Bfloat16 to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<Bfloat16>(bits >> 16 | 0x40);
    return static_cast<Bfloat16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float to_float(float value) { return value; }
inline float to_float(Bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float *to, float value) { *to = value; }
inline void store(Bfloat16 *to, float value) { *to = to_bfloat16(value); }
inline void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }
#if defined(__AVX512BF16__)
inline void store(Bfloat16 *to, Vector value) {
    __m256bh narrow = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
    std::memcpy(to, &narrow, sizeof narrow);
}
#endif

// ROWS x (N vectors) outputs of one panel; the sums stay in registers.
template <int N, typename Out>
inline void product_block(const float *x, int stride, const float *panel, int inputs, const float *bias, bool relu,
                          Out *y, int out_stride) {
    Vector sums[ROWS][N];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[row][n] = *reinterpret_cast<const Vector *>(bias + n * LANES);
#pragma GCC unroll 2
    for (int i = 0; i < inputs; ++i) {
        Vector weights[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) weights[n] = *reinterpret_cast<const Vector *>(panel + (i * N + n) * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[row][n] += x[row * stride + i] * weights[n];
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
            store(y + row * out_stride + n * LANES, relu ? rectified(sums[row][n]) : sums[row][n]);
}

#if defined(__AVX512BF16__)
template <int N, typename Out>
inline void product_block(const Bfloat16 *x, int stride, const Bfloat16 *panel, int inputs, const float *bias,
                          bool relu, Out *y, int out_stride) {
    __m512 sums[ROWS][N];
    for (int row = 0; row < ROWS; ++row)
        for (int n = 0; n < N; ++n) sums[row][n] = _mm512_loadu_ps(bias + n * LANES);
    for (int pair = 0; pair < (inputs + 1) / 2; ++pair) {
        __m512bh weights[N];
        for (int n = 0; n < N; ++n)
            weights[n] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panel + (pair * N + n) * 2 * LANES));
        for (int row = 0; row < ROWS; ++row) {
            int32_t both;
            std::memcpy(&both, x + row * stride + 2 * pair, sizeof both);
            const __m512bh inputs_pair = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
            for (int n = 0; n < N; ++n) sums[row][n] = _mm512_dpbf16_ps(sums[row][n], inputs_pair, weights[n]);
        }
    }
    for (int row = 0; row < ROWS; ++row)
        for (int n = 0; n < N; ++n) {
            const Vector sum = reinterpret_cast<Vector>(sums[row][n]);
            store(y + row * out_stride + n * LANES, relu ? rectified(sum) : sum);
        }
}
#endif

template <typename T>
inline int panel_inputs(int inputs) {
    return sizeof(T) == 2 ? (inputs + 1) / 2 * 2 : inputs;
}

// y = W x + b for the rows of a tile, and relu where asked.
template <typename T, typename Out>
void product(const T *x, int stride, int rows, const T *weight, const float *bias, int inputs, int outputs, bool relu,
             Out *y, int out_stride) {
    for (int column = 0; column < outputs; column += PANEL) {
        const int vectors = std::min(VECTORS, padded(outputs - column) / LANES);
        for (int row = 0; row < rows; row += ROWS) {
            const T *from = x + row * stride;
            Out *to = y + row * out_stride + column;
            switch (vectors) {
                case 1: product_block<1>(from, stride, weight, inputs, bias + column, relu, to, out_stride); break;
                case 2: product_block<2>(from, stride, weight, inputs, bias + column, relu, to, out_stride); break;
                case 3: product_block<3>(from, stride, weight, inputs, bias + column, relu, to, out_stride); break;
                default: product_block<4>(from, stride, weight, inputs, bias + column, relu, to, out_stride); break;
            }
        }
        weight += static_cast<size_t>(panel_inputs<T>(inputs)) * vectors * LANES;
    }
}

void activate(float *values, int count, int32_t activation) {
    switch (activation) {
        case RELU:
            for (int i = 0; i < count; ++i) values[i] = values[i] < 0 ? 0 : values[i];
            break;
        case GELU:
            for (int i = 0; i < count; ++i) values[i] *= 0.5f * (1 + std::erf(values[i] * 0.70710678f));
            break;
        case SOFTPLUS:  // above 20 torch returns the input, too
            for (int i = 0; i < count; ++i)
                values[i] = values[i] > 20 ? values[i] : std::log1p(std::exp(std::min(values[i], 20.f)));
            break;
        case SOFTPLUS_100:  // softplus(100 u) / 100; below -20 it is under 2.1e-11, and most values are beyond either end
            for (int i = 0; i < count; ++i) {
                const float scaled = 100 * values[i];
                if (scaled < -20) values[i] = 0;
                else if (!(scaled > 20)) values[i] = std::log1p(std::exp(scaled)) * 0.01f;
            }
            break;
        case SINE:
            for (int i = 0; i < count; ++i) values[i] = std::sin(values[i]);
            break;
        default: break;
    }
}

// Turns the projections of a row into the products per degree, in place: P blocks of m become k blocks of m.
void multiply_degrees(float *u, const Step &step) {
    const int m = step.num_features;
    if (step.shared) {
        for (int i = m; i < step.order * m; ++i) u[i] *= u[i - m];
        return;
    }
    float *block = u + m;
    for (int degree = 2; degree <= step.order; ++degree) {
        float *into = u + (degree - 1) * m;
        for (int i = 0; i < m; ++i) {
            float value = block[i];
            for (int factor = 1; factor < degree; ++factor) value *= block[factor * m + i];
            into[i] = value;
        }
        block += degree * m;
    }
}

// Rows in memory, `stride` elements apart.
template <typename T>
struct Rows {
    const T *start;
    int stride;
};

// The buffers of one thread, of TILE rows each.
template <typename T>
struct Scratch {
    T *input, *from, *to, *joined;
    float *projections, *factor;
};

// A bfloat16 product takes its inputs in pairs: the one beyond the last has weight zero, but may not be NaN.
template <typename T>
void end_in_zero(T *x, int stride, int rows, int columns) {
    if (sizeof(T) == 2 && columns % 2)
        for (int row = 0; row < rows; ++row) x[row * stride + columns] = T{};
}

template <typename T>
void copy_rows(const T *x, int stride, int rows, int columns, T *y, int out_stride) {
    for (int row = 0; row < rows; ++row)
        std::memcpy(y + static_cast<size_t>(row) * out_stride, x + static_cast<size_t>(row) * stride,
                    columns * sizeof(T));
}

template <typename T>
void run_features(const Step &step, Rows<T> x, int rows, const Scratch<T> &scratch, T *y, int out_stride) {
    const int width = padded(step.out_features), rank = padded(step.norm_rank);
    float *u = scratch.projections;
    product(x.start, x.stride, rows, static_cast<const T *>(step.weight), step.bias, step.in_features,
            step.out_features, false, u, width);
    if (step.norm_weight && step.norm_rank)
        product(x.start, x.stride, rows, static_cast<const T *>(step.norm_factor), step.norm_offset, step.in_features,
                step.norm_rank, false, scratch.factor, rank);
    for (int row = 0; row < rows; ++row) {
        float *projections = u + row * width;
        if (step.norm_weight) {
            float square = 0;
            if (step.norm_rank)
                for (int i = 0; i < step.norm_rank; ++i) {
                    const float value = scratch.factor[row * rank + i];
                    square += value * value;
                }
            else
                for (int i = 0; i < step.in_features; ++i) {
                    const float value = to_float(x.start[row * x.stride + i]);
                    square += value * value;
                }
            // An infinite norm times a zero weight would be NaN; a NaN stays one.
            const float norm = std::min(std::sqrt(square), std::numeric_limits<float>::max());
            for (int i = 0; i < step.out_features; ++i) projections[i] += norm * step.norm_weight[i];
        }
        if (step.order > 1) multiply_degrees(projections, step);
        activate(projections, features_of(step), step.activation);
        for (int i = 0; i < features_of(step); ++i) store(y + row * out_stride + i, projections[i]);
    }
}

// The rows are read where they lie and the results written where they belong, unless a product would read or write
// beyond them: it takes ROWS rows and whole vectors.
template <typename T>
void run_tile(const Step *steps, int count, const T *x, int rows, int in_features, T *y, int out_features,
              Scratch<T> scratch) {
    const int whole = (rows + ROWS - 1) / ROWS * ROWS;
    Rows<T> input{x, in_features};
    if (whole != rows || (sizeof(T) == 2 && in_features % 2)) {
        input = {scratch.input, padded(in_features)};
        copy_rows(x, in_features, rows, in_features, scratch.input, input.stride);
        end_in_zero(scratch.input, input.stride, rows, in_features);
    }
    Rows<T> from = input;
    for (int index = 0; index < count; ++index) {
        const Step &step = steps[index];
        if (step.concatenates_input) {
            const int stride = padded(step.in_features), hidden = step.in_features - in_features;
            copy_rows(input.start, input.stride, rows, in_features, scratch.joined, stride);
            copy_rows(from.start, from.stride, rows, hidden, scratch.joined + in_features, stride);
            end_in_zero(scratch.joined, stride, rows, step.in_features);
            from = {scratch.joined, stride};
        }
        const int features = features_of(step);
        const bool is_direct = index + 1 == count && whole == rows && out_features % LANES == 0;
        T *to = is_direct ? y : scratch.to;
        const int stride = is_direct ? out_features : padded(features);
        if (step.order == 1 && !step.norm_weight && step.activation <= RELU)
            product(from.start, from.stride, whole, static_cast<const T *>(step.weight), step.bias, step.in_features,
                    step.out_features, step.activation == RELU, to, stride);
        else
            run_features(step, from, whole, scratch, to, stride);
        if (!is_direct) end_in_zero(to, stride, rows, features);
        from = {to, stride};
        std::swap(scratch.from, scratch.to);
    }
    if (from.start != y) copy_rows(from.start, from.stride, rows, out_features, y, out_features);
}

// Fresh memory comes in pages of 4 KiB, each a fault at its first write: in large ones there are 512 times fewer.
void ask_for_large_pages(void *start, size_t bytes) {
#if defined(__linux__)
    const uintptr_t size = 1 << 21, from = reinterpret_cast<uintptr_t>(start);
    const uintptr_t first = (from + size - 1) / size * size, last = (from + bytes) / size * size;
    if (first < last) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);  // a wish: may be refused
#else
    (void)start, (void)bytes;
#endif
}

template <typename T>
int run(const Step *steps, int count, const T *x, int64_t rows, int in_features, T *y, int num_threads) {
    int width = padded(in_features);  // of what a step sees, projects to and takes the norm of: whole vectors
    for (int index = 0; index < count; ++index) {
        const Step &step = steps[index];
        width = std::max({width, padded(step.in_features), padded(step.out_features), padded(step.norm_rank)});
    }
    const int out_features = features_of(steps[count - 1]);
    const int64_t tiles = (rows + TILE - 1) / TILE;
    ask_for_large_pages(y, static_cast<size_t>(rows) * out_features * sizeof(T));
    const size_t buffer = static_cast<size_t>(TILE) * width, bytes = buffer * (4 * sizeof(T) + 2 * sizeof(float));
    bool failed = false;
#pragma omp parallel num_threads(num_threads) if (tiles > 1)
    {
        char *memory = static_cast<char *>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        Scratch<T> scratch{};
        if (memory) {
            std::memset(memory, 0, bytes);
            T *narrow = reinterpret_cast<T *>(memory);
            float *wide = reinterpret_cast<float *>(memory + 4 * buffer * sizeof(T));
            scratch = {narrow, narrow + buffer, narrow + 2 * buffer, narrow + 3 * buffer, wide, wide + buffer};
        }
#pragma omp for schedule(dynamic)  // a core that others use holds up nobody
        for (int64_t tile = 0; tile < tiles; ++tile) {  // every thread has to come by here, without memory, too
            const int64_t start = tile * TILE;
            if (memory) {
                run_tile(steps, count, x + start * in_features, static_cast<int>(std::min<int64_t>(TILE, rows - start)),
                         in_features, y + start * out_features, out_features, scratch);
            } else {
#pragma omp atomic write
                failed = true;
            }
        }
        std::free(memory);
    }
    return failed;
}

}  // namespace

extern "C" {

// Rows (rows, in_features) to (rows, out_features), both contiguous. Returns 0, or 1 where memory was short.
int32_t chain_run_float32(const Step *steps, int32_t count, const float *x, int64_t rows, int32_t in_features,
                          float *y, int32_t num_threads) {
    return run(steps, count, x, rows, in_features, y, num_threads);
}

#if defined(__AVX512BF16__)
int32_t chain_run_bfloat16(const Step *steps, int32_t count, const uint16_t *x, int64_t rows, int32_t in_features,
                           uint16_t *y, int32_t num_threads) {
    return run(steps, count, x, rows, in_features, y, num_threads);
}
#endif
}
