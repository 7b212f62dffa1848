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

// Sixteen floats, one register where the processor has such.
typedef float Float16 __attribute__((vector_size(64)));

inline Float16 load16(const float* from) {
  Float16 read;
  std::memcpy(&read, from, sizeof(read));
  return read;
}

inline void store16(float* to, Float16 v) { std::memcpy(to, &v, sizeof(v)); }

// Lane i of what comes back is the sum of the lanes of register i.
inline Float16 sums_across(const Float16* v) {
#if defined(TAP_AVX512)
  __m512 a[8];
  TAP_UNROLL for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_unpacklo_ps((__m512)v[2 * i], (__m512)v[2 * i + 1]), _mm512_unpackhi_ps((__m512)v[2 * i], (__m512)v[2 * i + 1]));
  TAP_UNROLL for (int i = 0; i < 4; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44), _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xEE));
  TAP_UNROLL for (int i = 0; i < 2; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88), _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD));
  return (Float16)_mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x88), _mm512_shuffle_f32x4(a[0], a[1], 0xDD));
#else
  Float16 sums;
  for (int i = 0; i < 16; ++i) {
    Float8 halves[2];
    std::memcpy(halves, v + i, sizeof(halves));
    sums[i] = sum8(halves[0] + halves[1]);
  }
  return sums;
#endif
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

inline Float16 load16(const uint16_t* from) {
#if defined(TAP_AVX512)
  return (Float16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  const Float8 halves[] = {load8(from), load8(from + 8)};
  Float16 read;
  std::memcpy(&read, halves, sizeof(read));
  return read;
#endif
}

inline float load1(const float* from) { return *from; }
inline float load1(const uint16_t* from) { return any_half_to_float(*from); }
inline void keep1(float* to, float value) { *to = value; }
inline void keep1(uint16_t* to, float value) { *to = float_to_half(value); }

template <class Vector>
struct IntsOf;
template <>
struct IntsOf<Float8> {
  using Type = Int8;
};
template <>
struct IntsOf<Float16> {
  using Type = int32_t __attribute__((vector_size(64)));
};

// The same number in every lane, by lanes of a or of b.
template <class Vector>
inline Vector all_of(float v) {
  return Vector{} + v;
}
template <class Vector>
inline Vector pick(typename IntsOf<Vector>::Type where, Vector a, Vector b) {
  using Ints = typename IntsOf<Vector>::Type;
  return (Vector)((where & (Ints)a) | (~where & (Ints)b));
}

// e to the power of x within 2 units in the last place; 0 below -87, and infinity is never reached.
template <class Vector>
inline Vector exp_of(Vector x) {
  using Ints = typename IntsOf<Vector>::Type;
  const Ints is_number = x == x;
  const Ints is_tiny = x < all_of<Vector>(-87.0f);
  Vector v = pick<Vector>(x > all_of<Vector>(88.0f), all_of<Vector>(88.0f), pick<Vector>(is_tiny, all_of<Vector>(-87.0f), x));
  v = pick<Vector>(is_number, v, all_of<Vector>(0.0f));
  // Adding 1.5 * 2^23 rounds to the nearest whole number, in the low bits of the sum.
  const Vector shifted = v * 1.44269504f + 12582912.0f;
  const Vector whole = shifted - 12582912.0f;
  const Vector r = (v - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vector p = all_of<Vector>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints power = (((Ints)shifted - 0x4b400000) + 127) << 23;
  const Vector found = pick<Vector>(is_tiny, all_of<Vector>(0.0f), p * (Vector)power);
  return pick<Vector>(is_number, found, x);
}

inline Float8 exp8(Float8 x) { return exp_of<Float8>(x); }
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
