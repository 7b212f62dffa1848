// What a product is asked with: one weight, one level, one batch of rows; and the numbers it reads.
//
// Everything that depends on the processor is in wide.h and behind TAP_AVX512 and TAP_AVX2; the rest is plain C++. All of
// it is compiled on first use with -march=native, so the processor is known and nothing is chosen at run time but layouts.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if !defined(TAP_PORTABLE) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define TAP_AVX512 1
#include <immintrin.h>
#elif !defined(TAP_PORTABLE) && defined(__AVX2__) && defined(__FMA__)
#define TAP_AVX2 1
#include <immintrin.h>
#endif
#if defined(TAP_AVX512) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__) && !defined(TAP_NO_TILES)
#define TAP_TILES 1
#endif

namespace {

constexpr int kMaxPlanes = 8;
constexpr int kMaxRows = 8;
constexpr int kBlock = 4;              // rows of the weight that are worked on together
constexpr int kRowBlock = 4;           // rows of activations that share one pass over unpacked codes
constexpr int64_t kPrefetchMetaBytes = 1536;   // of minima and steps, a sixteenth of the codes
constexpr int64_t kPrefetchBytes = 9216;   // into the second-level cache: the first has no room for what is under way

// Arrays of registers stay in registers only where the loops over them are unrolled.
#define TAP_UNROLL _Pragma("GCC unroll 8")
#define TAP_UNROLL16 _Pragma("GCC unroll 16")

enum Dtype { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// One weight, one level, one batch of rows. Mirrored field by field in native.py.
struct Call {
  const void* x;               // (n_rows, cols) in x_dtype
  void* y;                     // (n_rows, out) in y_dtype
  const void* first;           // (out, groups): step of a cell, or the scale of a refitted level
  const void* second;          // (out, groups): lower edge of the cells, or the offset of a refitted level
  const uint8_t* planes[kMaxPlanes];
  int64_t n_rows, cols, out, groups, group_size;
  int32_t widths[kMaxPlanes];
  int32_t n_planes;            // planes that are read; the others are never touched
  int32_t bits;
  int32_t x_dtype, y_dtype, meta_dtype;
  int32_t n_threads;
  float times, plus;           // weight = second + first * (times * code + plus)
  const uint16_t* by_sixteen;  // first and second as fp16, 16 outputs beside each other: (out / 16, groups, 2, 16); or null
  int32_t may_round;           // whether many rows, and the weight, may be rounded to bf16 (prompt.h)
};

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Integer arithmetic: metadata are often denormal halves, and those make floating-point units stumble.
inline float half_to_float(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 31, fraction = half & 1023;
  const int32_t whole = static_cast<int32_t>(exponent ? fraction | 1024 : fraction);
  const float unit = from_bits((std::max<uint32_t>(exponent, 1) + 102) << 23);
  const float value = static_cast<float>(whole) * unit;
  return half & 0x8000 ? -value : value;
}

inline uint16_t float_to_bfloat(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// Numbers of a few rows, which lie side by side; may write up to 7 more than asked for.
void read_meta(const void* source, int dtype, int64_t start, int64_t n, float* out) {
  if (dtype == kFloat32) {
    std::memcpy(out, static_cast<const float*>(source) + start, static_cast<size_t>(n) * 4);
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(source) + start;
#if defined(__F16C__) && (defined(TAP_AVX512) || defined(TAP_AVX2))
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i))));
  if (i == n) return;
  uint16_t last[8] = {0};
  std::memcpy(last, halves + i, static_cast<size_t>(n - i) * 2);
  _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(last))));
#else
  for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(halves[i]);
#endif
}

}  // namespace
