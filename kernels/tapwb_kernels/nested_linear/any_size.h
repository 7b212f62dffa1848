// Planes to codes and codes to sums for any layout and group size, on every processor.

#pragma once

#include "call.h"

namespace {

// Where the bits of a plane stand in the code of a level; below 0, the lowest of them are not part of the level.
struct Place {
  int up, mask;
};

Place place_of(const Call& call, int plane) {
  int above = 0;
  for (int i = 0; i <= plane; ++i) above += call.widths[i];
  const int width = call.widths[plane], up = call.bits - above;
  return {up, up >= 0 ? ((1 << width) - 1) << up : (1 << (width + up)) - 1};
}

// One plane of a row, a word of bytes at a time. Bits that a shift drags in from a neighbouring byte are never kept.
template <class Word>
void add_plane(const uint8_t* plane, int width, Place place, int64_t n_groups, int64_t group_size, uint8_t* codes) {
  const int64_t n_bytes = group_size * width / 8;
  const Word keep = static_cast<Word>(0x0101010101010101ull * static_cast<uint64_t>(place.mask));
  for (int64_t g = 0; g < n_groups; ++g, plane += n_bytes, codes += group_size) {
    for (int lane = 0; lane < 8 / width; ++lane) {
      const int right = std::max(0, lane * width - place.up), left = std::max(0, place.up - lane * width);
      for (int64_t j = 0; j < n_bytes; j += static_cast<int64_t>(sizeof(Word))) {
        Word bits, code;
        std::memcpy(&bits, plane + j, sizeof(Word));
        std::memcpy(&code, codes + lane * n_bytes + j, sizeof(Word));
        code = static_cast<Word>(code | (((bits >> right) << left) & keep));
        std::memcpy(codes + lane * n_bytes + j, &code, sizeof(Word));
      }
    }
  }
}

void unpack_any(const Call& call, int64_t row, uint8_t* codes) {
  std::memset(codes, 0, static_cast<size_t>(call.groups * call.group_size));
  for (int i = 0; i < call.n_planes; ++i) {
    const int width = call.widths[i];
    const int64_t n_bytes = call.group_size * width / 8;
    const uint8_t* plane = call.planes[i] + row * call.groups * n_bytes;
    const Place place = place_of(call, i);
    if (n_bytes % 8 == 0) add_plane<uint64_t>(plane, width, place, call.groups, call.group_size, codes);
    else if (n_bytes % 4 == 0) add_plane<uint32_t>(plane, width, place, call.groups, call.group_size, codes);
    else if (n_bytes % 2 == 0) add_plane<uint16_t>(plane, width, place, call.groups, call.group_size, codes);
    else add_plane<uint8_t>(plane, width, place, call.groups, call.group_size, codes);
  }
}

// What the loops below read and write; kBlock rows of the weight at a time.
struct Block {
  int64_t row;                 // the first row of the weight
  const uint8_t* codes;        // (kBlock, groups * group_size), where they are unpacked
  const int16_t* x;            // (rows, groups * group_size)
  const float* x_sum;          // (rows, groups)
  const float* base;           // (kBlock, groups): what a group adds for each unit of x_sum
  const float* scale;          // (rows, kBlock, groups): what a product of two codes is worth
  float* out;                  // (rows, kBlock)
};

// Eight columns side by side, in the vector types that GCC and Clang have for every processor.
typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef int16_t Short8 __attribute__((vector_size(16)));
typedef uint8_t Byte8 __attribute__((vector_size(8)));

template <class Vector>
inline Float8 eight(const void* from) {
  Vector read;
  std::memcpy(&read, from, sizeof(read));
  return __builtin_convertvector(__builtin_convertvector(read, Int8), Float8);
}

inline Float8 same(float v) { return Float8{v, v, v, v, v, v, v, v}; }

// kRows rows of activations with kBlock rows of the weight, for any group size. Products of codes are below 2^23: exact.
template <int kRows>
void dot_any(const Call& call, const Block& block) {
  const int64_t size = call.group_size, groups = call.groups, padded = groups * size;
  for (int r = 0; r < kBlock; ++r) {
    const uint8_t* q = block.codes + r * padded;
    const int16_t* x = block.x;
    Float8 total[kRows] = {};
    float offset[kRows] = {};
    for (int64_t g = 0; g < groups; ++g) {
      Float8 sum[kRows] = {};
      for (int64_t start = 0; start < size; start += 8, q += 8, x += 8) {
        const Float8 codes = eight<Byte8>(q);
        TAP_UNROLL for (int m = 0; m < kRows; ++m) sum[m] += codes * eight<Short8>(x + m * padded);
      }
      TAP_UNROLL for (int m = 0; m < kRows; ++m) {
        total[m] += sum[m] * same(block.scale[(m * kBlock + r) * groups + g]);
        offset[m] += block.base[r * groups + g] * block.x_sum[m * groups + g];
      }
    }
    for (int m = 0; m < kRows; ++m) {
      const Float8& t = total[m];
      block.out[m * kBlock + r] = offset[m] + (((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7])));
    }
  }
}

}  // namespace
