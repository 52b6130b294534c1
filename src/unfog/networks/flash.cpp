// softmax(q·k / sqrt(d))·v for heads of few channels, in one pass there and one back.
//
// Of q, k, v and the gradient that comes back, bfloat16 or float32, the channels of a place are contiguous, and the
// distances of batches, heads and places are given. Scores are never in memory but those of one row. All sums are in
// float32, and each head is one thread's work, so that the numbers do not depend on how many threads there are.

#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

const int LANES = 16;
const int ROWS = 4; // that go through the gradients of keys and values together
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

inline floats get(const float *from) {
    floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline void put(float *to, floats x) { std::memcpy(to, &x, sizeof x); }
inline floats all(float x) { return x - floats{}; }
inline float sum(floats x) {
    float parts[LANES], total = 0;
    std::memcpy(parts, &x, sizeof parts);
    for (int lane = 0; lane < LANES; lane++)
        total += parts[lane];
    return total;
}

// 2^y for y <= 0: 2^n · 2^f with n the nearest number, and a polynomial of 2^f on [-1/2, 1/2], relative error 2e-7
inline floats power(floats y) {
    y = y < -126.f ? all(-126.f) : y;
    ints n = __builtin_convertvector(y - 0.5f, ints);
    floats f = y - __builtin_convertvector(n, floats);
    floats p = all(1.535336188e-4f);
    p = p * f + 1.339887440e-3f;
    p = p * f + 9.618437357e-3f;
    p = p * f + 5.550332548e-2f;
    p = p * f + 2.402264791e-1f;
    p = p * f + 6.931472028e-1f;
    p = p * f + 1.0f;
    ints bits = (n + 127) << 23;
    floats scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// What a head reads or writes: the distances of batches, heads and places.
struct Strides {
    long batch, head, place;
};

// Copy the places of a head, channel by channel, padded with zeros to a multiple of the lanes.
template <class T, int D> void turned(const T *from, long place, long count, long padded, float *to) {
    for (int c = 0; c < D; c++) {
        for (long j = 0; j < count; j++)
            to[c * padded + j] = load(from[j * place + c]);
        for (long j = count; j < padded; j++)
            to[c * padded + j] = 0;
    }
}

// Scores of a row in powers of two, q·k·log2(e)/sqrt(d) + bias, which is minus infinity behind the last token; return
// the largest of each lane.
template <int D> inline floats scored(const floats *q, const float *keys, const float *bias, long padded, float *to) {
    floats most = all(-INFINITY);
    for (long j = 0; j < padded; j += LANES) {
        floats s = get(bias + j);
        for (int c = 0; c < D; c++)
            s += q[c] * get(keys + c * padded + j);
        put(to + j, s);
        most = s > most ? s : most;
    }
    return most;
}

template <class T, int D>
void forward(const T *q, const T *k, const T *v, T *y, float *kept, long batch, long heads, long places, long tokens,
             Strides of_q, Strides of_k, Strides of_v, Strides of_y) {
    const float scale = 1.44269504f / std::sqrt(float(D));
    const long padded = (tokens + LANES - 1) / LANES * LANES;
#pragma omp parallel
    {
        std::vector<float> keys(D * padded), values(D * padded), row(padded), bias(padded);
        std::fill(bias.begin() + tokens, bias.end(), -INFINITY);
#pragma omp for schedule(static)
        for (long task = 0; task < batch * heads; task++) {
            long b = task / heads, h = task % heads;
            turned<T, D>(k + b * of_k.batch + h * of_k.head, of_k.place, tokens, padded, keys.data());
            turned<T, D>(v + b * of_v.batch + h * of_v.head, of_v.place, tokens, padded, values.data());
            for (long i = 0; i < places; i++) {
                const T *from = q + b * of_q.batch + h * of_q.head + i * of_q.place;
                floats wide[D], sums[D], total = {};
                for (int c = 0; c < D; c++) {
                    wide[c] = all(load(from[c]) * scale);
                    sums[c] = floats{};
                }
                floats most = scored<D>(wide, keys.data(), bias.data(), padded, row.data());
                float top = most[0];
                for (int lane = 1; lane < LANES; lane++)
                    top = most[lane] > top ? most[lane] : top;
                for (long j = 0; j < padded; j += LANES) {
                    floats p = power(get(row.data() + j) - top);
                    total += p;
                    for (int c = 0; c < D; c++)
                        sums[c] += p * get(values.data() + c * padded + j);
                }
                float weight = sum(total);
                kept[task * places + i] = top + std::log2(weight);
                T *to = y + b * of_y.batch + h * of_y.head + i * of_y.place;
                for (int c = 0; c < D; c++)
                    store(to + c, sum(sums[c]) / weight);
            }
        }
    }
}

template <class T, int D>
void backward(const T *dy, const T *q, const T *k, const T *v, const float *kept, T *dq, T *dk, T *dv, long batch,
              long heads, long places, long tokens, Strides of_dy, Strides of_q, Strides of_k, Strides of_v,
              Strides of_dq, Strides of_dk, Strides of_dv) {
    const float root = 1.f / std::sqrt(float(D)), scale = 1.44269504f * root;
    const long padded = (tokens + LANES - 1) / LANES * LANES;
#pragma omp parallel
    {
        std::vector<float> keys(D * padded), values(D * padded), dkeys(D * padded), dvalues(D * padded), bias(padded);
        std::vector<float> p(ROWS * padded), ds(ROWS * padded);
        std::fill(bias.begin() + tokens, bias.end(), -INFINITY);
#pragma omp for schedule(static)
        for (long task = 0; task < batch * heads; task++) {
            long b = task / heads, h = task % heads;
            turned<T, D>(k + b * of_k.batch + h * of_k.head, of_k.place, tokens, padded, keys.data());
            turned<T, D>(v + b * of_v.batch + h * of_v.head, of_v.place, tokens, padded, values.data());
            std::fill(dkeys.begin(), dkeys.end(), 0.f);
            std::fill(dvalues.begin(), dvalues.end(), 0.f);
            for (long first = 0; first < places; first += ROWS) {
                float query[ROWS][D], back[ROWS][D];
                for (int r = 0; r < ROWS; r++) {
                    long i = first + r;
                    if (i >= places) { // a row that is not there adds nothing
                        std::memset(query[r], 0, sizeof query[r]);
                        std::memset(back[r], 0, sizeof back[r]);
                        std::memset(&p[r * padded], 0, padded * 4);
                        std::memset(&ds[r * padded], 0, padded * 4);
                        continue;
                    }
                    const T *of = q + b * of_q.batch + h * of_q.head + i * of_q.place;
                    const T *in = dy + b * of_dy.batch + h * of_dy.head + i * of_dy.place;
                    float *pr = &p[r * padded], *dr = &ds[r * padded], less = kept[task * places + i];
                    floats wide[D], along = {};
                    for (int c = 0; c < D; c++) {
                        query[r][c] = load(of[c]) * root;
                        back[r][c] = load(in[c]);
                        wide[c] = all(load(of[c]) * scale);
                    }
                    scored<D>(wide, keys.data(), bias.data(), padded, pr);
                    for (int c = 0; c < D; c++)
                        wide[c] = all(back[r][c]);
                    for (long j = 0; j < padded; j += LANES) {
                        floats weight = power(get(pr + j) - less), dp = wide[0] * get(values.data() + j);
                        for (int c = 1; c < D; c++)
                            dp += wide[c] * get(values.data() + c * padded + j);
                        along += weight * dp;
                        put(pr + j, weight);
                        put(dr + j, dp);
                    }
                    float even = sum(along);
                    for (int c = 0; c < D; c++)
                        wide[c] = floats{};
                    for (long j = 0; j < padded; j += LANES) {
                        floats d = get(pr + j) * (get(dr + j) - even);
                        put(dr + j, d);
                        for (int c = 0; c < D; c++)
                            wide[c] += d * get(keys.data() + c * padded + j);
                    }
                    T *to = dq + b * of_dq.batch + h * of_dq.head + i * of_dq.place;
                    for (int c = 0; c < D; c++)
                        store(to + c, sum(wide[c]) * root);
                }
                for (long j = 0; j < padded; j += LANES) {
                    floats weights[ROWS], d[ROWS];
                    for (int r = 0; r < ROWS; r++) {
                        weights[r] = get(&p[r * padded + j]);
                        d[r] = get(&ds[r * padded + j]);
                    }
                    for (int c = 0; c < D; c++) {
                        floats key = get(&dkeys[c * padded + j]), value = get(&dvalues[c * padded + j]);
                        for (int r = 0; r < ROWS; r++) {
                            key += d[r] * query[r][c];
                            value += weights[r] * back[r][c];
                        }
                        put(&dkeys[c * padded + j], key);
                        put(&dvalues[c * padded + j], value);
                    }
                }
            }
            T *tok = dk + b * of_dk.batch + h * of_dk.head, *tov = dv + b * of_dv.batch + h * of_dv.head;
            for (long j = 0; j < tokens; j++)
                for (int c = 0; c < D; c++) {
                    store(tok + j * of_dk.place + c, dkeys[c * padded + j]);
                    store(tov + j * of_dv.place + c, dvalues[c * padded + j]);
                }
        }
    }
}

} // namespace

// parts: the addresses in the order of the functions above; strides: batch, head and place of each but `kept`
#define EXPORT(name, T, D)                                                                                           \
    extern "C" void name##_##D##_forward(void **parts, const long *strides, long batch, long heads, long places,     \
                                         long tokens) {                                                              \
        const Strides *of = (const Strides *)strides;                                                                \
        forward<T, D>((T *)parts[0], (T *)parts[1], (T *)parts[2], (T *)parts[3], (float *)parts[4], batch, heads,   \
                      places, tokens, of[0], of[1], of[2], of[3]);                                                   \
    }                                                                                                                \
    extern "C" void name##_##D##_backward(void **parts, const long *strides, long batch, long heads, long places,    \
                                          long tokens) {                                                             \
        const Strides *of = (const Strides *)strides;                                                                \
        backward<T, D>((T *)parts[0], (T *)parts[1], (T *)parts[2], (T *)parts[3], (float *)parts[4], (T *)parts[5], \
                       (T *)parts[6], (T *)parts[7], batch, heads, places, tokens, of[0], of[1], of[2], of[3],       \
                       of[4], of[5], of[6]);                                                                         \
    }

EXPORT(float32, float, 8)
EXPORT(float32, float, 16)
EXPORT(bfloat16, bf16, 8)
EXPORT(bfloat16, bf16, 16)
