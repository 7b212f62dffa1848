// Eight floats side by side, for what lies between the products. GCC and Clang have these vectors for every processor.

#pragma once

#include <cmath>
#include "../nested_linear/any_size.h"

namespace {

inline Float8 load8(const float* from) {
  Float8 read;
  std::memcpy(&read, from, sizeof(read));
  return read;
}

inline void store8(float* to, Float8 v) { std::memcpy(to, &v, sizeof(v)); }

inline float sum8(Float8 t) {
#if defined(TAP_AVX512) || defined(TAP_AVX2)
  __m128 fours = _mm_add_ps(_mm256_castps256_ps128((__m256)t), _mm256_extractf128_ps((__m256)t, 1));
  fours = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
  return _mm_cvtss_f32(_mm_add_ss(fours, _mm_movehdup_ps(fours)));
#else
  return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
#endif
}

inline Float8 pick8(Int8 where, Float8 a, Float8 b) {
  return (Float8)((where & (Int8)a) | (~where & (Int8)b));
}

inline uint16_t float_to_half(float value) {
#if defined(__F16C__) && (defined(TAP_AVX512) || defined(TAP_AVX2))
  return static_cast<uint16_t>(_cvtss_sh(value, 0));
#else
  const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (size < 0x38800000u) {  // denormal halves: adding 0.5 puts the unit of the last place at 2^-24
    const float shifted = from_bits(size) + 0.5f;
    return static_cast<uint16_t>(sign | (to_bits(shifted) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((size + 0xc8000fffu + ((size >> 13) & 1)) >> 13));
#endif
}

// As half_to_float, which is made for metadata, with infinities and what is no number.
inline float any_half_to_float(uint16_t half) {
  if ((half & 0x7c00) != 0x7c00) return half_to_float(half);
  return from_bits(static_cast<uint32_t>(half & 0x8000) << 16 | 0x7f800000u | static_cast<uint32_t>(half & 1023) << 13);
}

// Keys and values are floats or halves.
inline Float8 load8(const uint16_t* from) {
#if defined(__F16C__) && (defined(TAP_AVX512) || defined(TAP_AVX2))
  return (Float8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Float8 read;
  for (int i = 0; i < 8; ++i) read[i] = any_half_to_float(from[i]);
  return read;
#endif
}

inline float load1(const float* from) { return *from; }
inline float load1(const uint16_t* from) { return any_half_to_float(*from); }
inline void keep1(float* to, float value) { *to = value; }
inline void keep1(uint16_t* to, float value) { *to = float_to_half(value); }

// e to the power of x within 2 units in the last place; 0 below -87, and infinity is never reached.
inline Float8 exp8(Float8 x) {
  const Int8 is_number = x == x;
  const Int8 is_tiny = x < same(-87.0f);
  Float8 v = pick8(x > same(88.0f), same(88.0f), pick8(is_tiny, same(-87.0f), x));
  v = pick8(is_number, v, same(0.0f));
  // Adding 1.5 * 2^23 rounds to the nearest whole number, in the low bits of the sum.
  const Float8 shifted = v * same(1.44269504f) + same(12582912.0f);
  const Float8 whole = shifted - same(12582912.0f);
  const Float8 r = (v - whole * same(0.693359375f)) - whole * same(-2.12194440e-4f);
  Float8 p = same(1.9875691500e-4f);
  p = p * r + same(1.3981999507e-3f);
  p = p * r + same(8.3334519073e-3f);
  p = p * r + same(4.1665795894e-2f);
  p = p * r + same(1.6666665459e-1f);
  p = p * r + same(5.0000001201e-1f);
  p = p * r * r + r + same(1.0f);
  const Int8 power = (((Int8)shifted - 0x4b400000) + 127) << 23;
  const Float8 found = pick8(is_tiny, same(0.0f), p * (Float8)power);
  return pick8(is_number, found, x);
}

inline Float8 sigmoid8(Float8 x) { return same(1.0f) / (same(1.0f) + exp8(-x)); }
inline Float8 tanh8(Float8 x) { return same(1.0f) - same(2.0f) / (exp8(x + x) + same(1.0f)); }

// A loop over `n` floats that need not fill the last eight.
template <class Work>
inline void by_eights(int64_t n, Work work) {
  for (int64_t i = 0; i + 8 <= n; i += 8) work(i, 8);
  if (n % 8) work(n / 8 * 8, n % 8);
}

inline Float8 load_some(const float* from, int64_t n) {
  if (n == 8) return load8(from);
  Float8 read = {};
  std::memcpy(&read, from, static_cast<size_t>(n) * 4);
  return read;
}

inline void store_some(float* to, Float8 v, int64_t n) {
  if (n == 8) return store8(to, v);
  std::memcpy(to, &v, static_cast<size_t>(n) * 4);
}

}  // namespace
