// 64 columns at a time: what AVX-512 and AVX2 do differently.

#pragma once

#include "any_size.h"

namespace {

#if defined(TAP_AVX512)
const char* const kInstructions =
#if defined(__AVX512VNNI__)
    "AVX-512 VNNI";
#else
    "AVX-512";
#endif

constexpr int kRegisters = 32;
constexpr int kPieces = 2;             // registers of 16-bit codes that hold 64 columns
constexpr int kPieceColumns = 32;
using Bytes = __m512i;                 // 64 codes
using Words = __m512i;                 // 32 codes, 16 bits each
using Ints = __m512i;
using Floats = __m512;

// How the bytes of a plane are turned until the bits of a lane stand at their place in the code.
struct Turn {
  __m512i by[2];   // for each half of a group of 128
  __m512i keep;
};

Turn turn_of(Place place, int width, int64_t group_size) {
  Turn turn;
  const int64_t lane_bytes = group_size * width / 8;
  for (int part = 0; part < 2; ++part) {
    alignas(64) int64_t by[8];
    for (int word = 0; word < 8; ++word) by[word] = ((part * 64 + word * 8) / lane_bytes * width - place.up) & 63;
    turn.by[part] = _mm512_load_si512(by);
  }
  turn.keep = _mm512_set1_epi8(static_cast<char>(place.mask));
  return turn;
}

// Bytes of one group of a plane, such that byte k holds column 64 * part + k in one of its lanes.
template <int kGroup, int kWidth>
inline Bytes spread(const uint8_t* group, int part) {
  constexpr int kBytes = kGroup * kWidth / 8;
  if constexpr (kBytes >= 64) return _mm512_loadu_si512(group + (64 * part) % kBytes);
  else if constexpr (kBytes == 32)
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)));
  else if constexpr (kBytes == 16)
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group)));
  else {
    int64_t word;
    std::memcpy(&word, group, 8);
    return _mm512_set1_epi64(word);
  }
}

// A turn may drag bits of a neighbouring byte in; they always fall outside of what is kept.
inline Bytes merge(Bytes codes, Bytes bytes, const Turn& turn, int part) {
  return _mm512_ternarylogic_epi64(codes, _mm512_rorv_epi64(bytes, turn.by[part]), turn.keep, 0xF8);  // a | (b & c)
}

inline Bytes no_codes() { return _mm512_setzero_si512(); }
inline void store(uint8_t* out, Bytes codes) { _mm512_storeu_si512(out, codes); }
inline Bytes load(const uint8_t* codes) { return _mm512_loadu_si512(codes); }

// Codes of even columns, then of odd ones: cheaper than to widen them in order, and activations are arranged alike.
inline void split(Bytes codes, Words* words) {
  words[0] = _mm512_and_si512(codes, _mm512_set1_epi16(255));
  words[1] = _mm512_srli_epi16(codes, 8);
}

inline void arrange64(int16_t* x) {
  alignas(64) static const int16_t kEven[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                                                32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const __m512i even = _mm512_load_si512(kEven), odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
  const __m512i first = _mm512_loadu_si512(x), second = _mm512_loadu_si512(x + 32);
  _mm512_storeu_si512(x, _mm512_permutex2var_epi16(first, even, second));
  _mm512_storeu_si512(x + 32, _mm512_permutex2var_epi16(first, odd, second));
}

inline Words load_words(const int16_t* x) { return _mm512_loadu_si512(x); }

inline Ints multiply_add(Ints sum, Words codes, Words x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, codes, x);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(codes, x));
#endif
}

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Floats no_floats() { return _mm512_setzero_ps(); }
inline Floats add_scaled(Floats total, Ints sums, float scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale), total);
}

// Adds a[i] * b[i] for i < n.
inline Floats add_products(Floats total, const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 there = static_cast<__mmask16>(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1);
    total = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, a + i), _mm512_maskz_loadu_ps(there, b + i), total);
  }
  return total;
}

// 16 numbers of a weight's metadata.
inline __m512 meta16(const void* source, int dtype, int64_t start, __mmask16 there) {
  if (dtype == kFloat32) return _mm512_maskz_loadu_ps(there, static_cast<const float*>(source) + start);
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, static_cast<const uint16_t*>(source) + start));
}

inline __m256 folded(Floats total) { return _mm256_add_ps(_mm512_castps512_ps256(total), _mm512_extractf32x8_ps(total, 1)); }

#elif defined(TAP_AVX2)
const char* const kInstructions = "AVX2";

constexpr int kRegisters = 16;
constexpr int kPieces = 4;
constexpr int kPieceColumns = 16;
struct Bytes {
  __m256i half[2];
};
using Words = __m256i;
using Ints = __m256i;
using Floats = __m256;

struct Turn {
  __m256i right[4], left[4];   // for each quarter of a group of 128
  __m256i keep;
};

Turn turn_of(Place place, int width, int64_t group_size) {
  Turn turn;
  const int64_t lane_bytes = group_size * width / 8;
  for (int part = 0; part < 4; ++part) {
    alignas(32) int64_t right[4], left[4];
    for (int word = 0; word < 4; ++word) {
      const int64_t by = (part * 32 + word * 8) / lane_bytes * width - place.up;
      right[word] = std::max<int64_t>(by, 0);
      left[word] = std::max<int64_t>(-by, 0);
    }
    turn.right[part] = _mm256_load_si256(reinterpret_cast<const __m256i*>(right));
    turn.left[part] = _mm256_load_si256(reinterpret_cast<const __m256i*>(left));
  }
  turn.keep = _mm256_set1_epi8(static_cast<char>(place.mask));
  return turn;
}

template <int kBytes>
inline __m256i spread32(const uint8_t* group, int part) {
  if constexpr (kBytes >= 32)
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + (32 * part) % kBytes));
  else if constexpr (kBytes == 16)
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group)));
  else {
    int64_t word;
    std::memcpy(&word, group, 8);
    return _mm256_set1_epi64x(word);
  }
}

template <int kGroup, int kWidth>
inline Bytes spread(const uint8_t* group, int part) {
  constexpr int kBytes = kGroup * kWidth / 8;
  return {{spread32<kBytes>(group, 2 * part), spread32<kBytes>(group, 2 * part + 1)}};
}

inline Bytes merge(Bytes codes, Bytes bytes, const Turn& turn, int part) {
  for (int i = 0; i < 2; ++i) {
    __m256i turned = _mm256_srlv_epi64(bytes.half[i], turn.right[2 * part + i]);
    turned = _mm256_sllv_epi64(turned, turn.left[2 * part + i]);
    codes.half[i] = _mm256_or_si256(codes.half[i], _mm256_and_si256(turned, turn.keep));
  }
  return codes;
}

inline Bytes no_codes() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
inline void store(uint8_t* out, Bytes codes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes.half[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), codes.half[1]);
}
inline Bytes load(const uint8_t* codes) {
  return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)),
           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32))}};
}

// Of each 32 columns the even ones, then the odd ones; activations are arranged alike.
inline void split(Bytes codes, Words* words) {
  for (int i = 0; i < 2; ++i) {
    words[2 * i] = _mm256_and_si256(codes.half[i], _mm256_set1_epi16(255));
    words[2 * i + 1] = _mm256_srli_epi16(codes.half[i], 8);
  }
}

inline void arrange64(int16_t* x) {
  int16_t before[64];
  std::memcpy(before, x, sizeof(before));
  for (int i = 0; i < 64; ++i) x[i / 32 * 32 + i % 2 * 16 + i % 32 / 2] = before[i];
}

inline Words load_words(const int16_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }

inline Ints multiply_add(Ints sum, Words codes, Words x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(codes, x)); }

inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Floats no_floats() { return _mm256_setzero_ps(); }
inline Floats add_scaled(Floats total, Ints sums, float scale) {
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale), total);
}

inline Floats add_products(Floats total, const float* a, const float* b, int64_t n) {
  static const int32_t kThere[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  for (int64_t i = 0; i < n; i += 8) {
    const int32_t* at = kThere + 8 - std::min<int64_t>(8, n - i);
    const __m256i there = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    total = _mm256_fmadd_ps(_mm256_maskload_ps(a + i, there), _mm256_maskload_ps(b + i, there), total);
  }
  return total;
}

inline __m256 folded(Floats total) { return total; }

#else
const char* const kInstructions = "portable C++";
#endif

// Whether groups of a size have the loops of 64 columns at a time.
inline bool is_wide(int64_t group_size) {
#if defined(TAP_AVX512) || defined(TAP_AVX2)
  return group_size == 64 || group_size == 128;
#else
  return false;
#endif
}

// Activations in the order in which the wide loops take them; n is a multiple of 64.
inline void arrange(int16_t* codes, int64_t n) {
#if defined(TAP_AVX512) || defined(TAP_AVX2)
  for (int64_t i = 0; i < n; i += 64) arrange64(codes + i);
#endif
}

}  // namespace
