// Layer norm over channels, scale and shift, and SiLU, in one pass over memory and one back.
//
// x, y and their gradients are (rows, places, channels) and contiguous, bfloat16 or float32; scale and shift are
// (rows, channels), or one row for all, in float32. All sums are in float32, and each row is one thread's work, so that
// the numbers do not depend on how many threads there are.

#include "numbers.h"

#include <cmath>

namespace {

const int MOST = 2048; // channels; the caller checks

// exp(x) = 2^n · 2^f with n = round(x / ln 2): a polynomial of 2^f on [-1/2, 1/2], relative error 2e-7
inline float exponential(float x) {
    float y = x * 1.44269504f;
    y = y < -126.f ? -126.f : (y > 126.f ? 126.f : y);
    float n = std::nearbyint(y), f = y - n;
    float p = 1.535336188e-4f;
    p = p * f + 1.339887440e-3f;
    p = p * f + 9.618437357e-3f;
    p = p * f + 5.550332548e-2f;
    p = p * f + 2.402264791e-1f;
    p = p * f + 6.931472028e-1f;
    p = p * f + 1.0f;
    uint32_t power = uint32_t(int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

inline float sigmoid(float z) { return 1.f / (1.f + exponential(-z)); }

// Normalise a place: xhat = (x - mean) / sqrt(variance + epsilon); return 1 / sqrt(variance + epsilon).
template <class T> inline float normalise(const T *x, float *xhat, int channels, float epsilon) {
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < channels; c++) {
        xhat[c] = load(x[c]);
        sum += xhat[c];
    }
    float mean = sum / channels;
#pragma omp simd reduction(+ : square)
    for (int c = 0; c < channels; c++) {
        xhat[c] -= mean;
        square += xhat[c] * xhat[c];
    }
    float inverse = 1.f / std::sqrt(square / channels + epsilon);
    for (int c = 0; c < channels; c++)
        xhat[c] *= inverse;
    return inverse;
}

template <class T, bool ACT>
void forward(const T *x, const float *scale, const float *shift, T *y, long rows, long places, int channels,
             long stride, float epsilon) {
#pragma omp parallel for schedule(static)
    for (long place = 0; place < rows * places; place++) {
        float xhat[MOST];
        const float *a = scale + place / places * stride, *b = shift + place / places * stride;
        normalise(x + place * channels, xhat, channels, epsilon);
        T *to = y + place * channels;
#pragma omp simd
        for (int c = 0; c < channels; c++) {
            float z = xhat[c] * a[c] + b[c];
            store(to + c, ACT ? z * sigmoid(z) : z);
        }
    }
}

template <class T, bool ACT>
void backward(const T *dy, const T *x, const float *scale, const float *shift, T *dx, float *dscale, float *dshift,
              long rows, long places, int channels, long stride, float epsilon) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        float xhat[MOST], g[MOST];
        const float *a = scale + row * stride, *b = shift + row * stride;
        float *da = dscale + row * channels, *db = dshift + row * channels;
        for (int c = 0; c < channels; c++)
            da[c] = db[c] = 0;
        for (long place = row * places; place < (row + 1) * places; place++) {
            float inverse = normalise(x + place * channels, xhat, channels, epsilon);
            const T *from = dy + place * channels;
            float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
            for (int c = 0; c < channels; c++) {
                float dz = load(from[c]);
                if (ACT) {
                    float z = xhat[c] * a[c] + b[c], s = sigmoid(z);
                    dz *= s * (1.f + z * (1.f - s));
                }
                da[c] += dz * xhat[c];
                db[c] += dz;
                g[c] = dz * a[c];
                first += g[c];
                second += g[c] * xhat[c];
            }
            first /= channels;
            second /= channels;
            T *to = dx + place * channels;
            for (int c = 0; c < channels; c++)
                store(to + c, inverse * (g[c] - first - xhat[c] * second));
        }
    }
}

} // namespace

#define EXPORT(name, T)                                                                                              \
    extern "C" void name##_forward(const T *x, const float *scale, const float *shift, T *y, long rows, long places, \
                                   int channels, long stride, float epsilon, int act) {                              \
        (act ? forward<T, true> : forward<T, false>)(x, scale, shift, y, rows, places, channels, stride, epsilon);   \
    }                                                                                                                \
    extern "C" void name##_backward(const T *dy, const T *x, const float *scale, const float *shift, T *dx,          \
                                    float *dscale, float *dshift, long rows, long places, int channels, long stride, \
                                    float epsilon, int act) {                                                        \
        (act ? backward<T, true> : backward<T, false>)(dy, x, scale, shift, dx, dscale, dshift, rows, places,        \
                                                       channels, stride, epsilon);                                   \
    }

EXPORT(float32, float)
EXPORT(bfloat16, bf16)
