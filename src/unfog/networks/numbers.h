// float32 and bfloat16 in memory, for the kernels.

#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline void store(float *to, float x) { *to = x; }
inline void store(bf16 *to, float x) { // to the nearest, ties to even, as torch does
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits;
    to->bits = uint16_t(bits >> 16);
}
