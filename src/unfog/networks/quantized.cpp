// Numbers as bytes: round(x / scale) + zero, what is outside 0 to 255 moved to its ends.

#include "numbers.h"

#include <algorithm>

namespace {

template <class T> void quantize(const T *x, uint8_t *y, long count, float scale, float zero) {
    const float by = 1.f / scale;
#pragma omp parallel for schedule(static) if (count > 32768)
    for (long i = 0; i < count; i++) {
        float place = load(x[i]) * by + (zero + 0.5f); // above 0 the part before the point is the nearest number
        place = place > 0.f ? place : 0.f;
        y[i] = uint8_t(int(place < 255.f ? place : 255.f));
    }
}

} // namespace

extern "C" void float32_quantize(const float *x, uint8_t *y, long count, float scale, float zero) {
    quantize(x, y, count, scale, zero);
}
extern "C" void bfloat16_quantize(const bf16 *x, uint8_t *y, long count, float scale, float zero) {
    quantize(x, y, count, scale, zero);
}
