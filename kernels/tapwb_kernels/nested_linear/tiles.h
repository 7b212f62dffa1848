// Processors with tile registers (AMX): one row of a step in vectors, more in tiles, and both the same to the last bit.
//
// Both take 16 rows of the weight at a time and make the exact integer sum of every group; it is scaled in fp32 and added up
// group by group, outputs side by side. A tile product multiplies unsigned bytes by signed ones, so a code of the activations
// is cut into two digits, 256 * high + low, whose sums stand side by side in a tile and are joined as integers.

#pragma once

#include <memory>
#include <vector>
#include "encode.h"
#include "many_rows.h"

#if defined(TAP_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(TAP_TILES)

constexpr int kTileOut = 16;       // rows of the weight in a tile
constexpr int kTileColumns = 64;
constexpr int kMaxLanes = 8;       // rows of activations in a tile, each with two digits
constexpr int64_t kCodesBytes = kTileOut * kTileColumns;

// The system gives a process tiles when it asks; kernels before 5.16 and some virtual machines do not.
bool has_tiles() {
  static const bool granted = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

// Whether so many rows are multiplied here: those of a step are, without permission one at a time.
bool takes_tiles(int64_t n_rows, int64_t group_size) { return is_wide(group_size) && n_rows <= kMaxRows; }

// Lanes that so many rows take: 1 (no tile), 2, 4 or 8.
inline int lanes_of(int64_t n_rows) {
  int lanes = 1;
  while (lanes < n_rows && lanes < kMaxLanes && has_tiles()) lanes *= 2;
  return lanes;
}

// Shapes of the tile registers, for one thread and as long as this lives: four of sums, two of codes, two of digits.
class TileShapes {
 public:
  explicit TileShapes(int lanes) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {0};
      uint16_t row_bytes[16] = {0};
      uint8_t rows[16] = {0};
    } shapes;
    for (int i = 0; i < 8; ++i) {
      shapes.rows[i] = kTileOut;
      shapes.row_bytes[i] = i == 4 || i == 5 ? kTileColumns : static_cast<uint16_t>(8 * lanes);
    }
    _tile_loadconfig(&shapes);
  }
  ~TileShapes() { _tile_release(); }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;
};

// Digits as the second operand of a tile product takes them: for every four columns the low digits of all lanes, then the
// high ones, and of each lane four columns side by side.
void arrange_tiles(int64_t n_rows, int64_t groups, int64_t group_size, Rows& rows) {
  const int64_t lanes = rows.lanes, columns = groups * group_size;
  rows.digits.assign(static_cast<size_t>(columns * lanes * 2), 0);
  rows.lane_scale.assign(static_cast<size_t>(groups * 16), 0.0f);
  rows.lane_sum.assign(static_cast<size_t>(groups * lanes), 0.0f);
  for (int64_t lane = 0; lane < n_rows; ++lane) {
    const int16_t* codes = rows.codes.data() + lane * columns;
    int8_t* to = rows.digits.data() + lane * 4;
    for (int64_t k = 0; k < columns; k += 32) {
      alignas(32) int32_t low[8], high[8];
      const __m512i code = _mm512_loadu_si512(codes + k);
      _mm256_store_si256(reinterpret_cast<__m256i*>(low), _mm512_cvtepi16_epi8(code));
      const __m512i up = _mm512_srai_epi16(_mm512_add_epi16(code, _mm512_set1_epi16(128)), 8);
      _mm256_store_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi16_epi8(up));
      for (int i = 0; i < 8; ++i, to += 8 * lanes) {
        std::memcpy(to, &low[i], 4);
        std::memcpy(to + 4 * lanes, &high[i], 4);
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      const float scale = rows.scale[static_cast<size_t>(lane * kBlock * groups + g)];
      for (int64_t i = lane; i < 16; i += lanes) rows.lane_scale[static_cast<size_t>(g * 16 + i)] = scale;
      rows.lane_sum[static_cast<size_t>(g * lanes + lane)] = rows.sum[static_cast<size_t>(lane * groups + g)];
    }
  }
}

struct TileScratch {
  std::vector<uint8_t> codes;   // where they are unpacked
  std::vector<float> scale;     // (groups, kTileOut): what a product of codes is worth, but for x's own scale
  std::vector<float> base;      // (groups, kTileOut): what a group adds for each unit of the sum
};

// Metadata of 16 rows of the weight, output beside output. Rows that are missing repeat the last one.
void read_scales(const Call& call, int64_t row, int64_t n, float* scale, float* base) {
  const __m512 times = _mm512_set1_ps(call.times), plus = _mm512_set1_ps(call.plus);
  const auto keep = [&](int64_t g, __m512 first, __m512 second) {
    _mm512_storeu_ps(scale + g * kTileOut, _mm512_mul_ps(first, times));
    _mm512_storeu_ps(base + g * kTileOut, _mm512_fmadd_ps(first, plus, second));
  };
  if (call.by_sixteen) {
    const uint16_t* at = call.by_sixteen + row * call.groups * 2;
    for (int64_t g = 0; g < call.groups; ++g, at += 2 * kTileOut) {
      __builtin_prefetch(reinterpret_cast<const char*>(at) + kPrefetchMetaBytes, 0, 2);
      keep(g, meta16(at, kFloat16, 0, 0xFFFF), meta16(at, kFloat16, kTileOut, 0xFFFF));
    }
    return;
  }
  const int64_t width = call.meta_dtype == kFloat32 ? 4 : 2;
  for (int64_t start = 0; start < call.groups; start += 16) {
    const int64_t some = std::min<int64_t>(16, call.groups - start);
    const __mmask16 there = static_cast<__mmask16>((1u << some) - 1);
    __m512i first[16], second[16];
    for (int64_t r = 0; r < kTileOut; ++r) {
      const int64_t at = (row + std::min(r, n - 1)) * call.groups + start;
      first[r] = _mm512_castps_si512(meta16(call.first, call.meta_dtype, at, there));
      second[r] = _mm512_castps_si512(meta16(call.second, call.meta_dtype, at, there));
      __builtin_prefetch(static_cast<const char*>(call.first) + at * width + kPrefetchMetaBytes, 0, 2);
      __builtin_prefetch(static_cast<const char*>(call.second) + at * width + kPrefetchMetaBytes, 0, 2);
    }
    transpose(first);
    transpose(second);
    for (int64_t g = 0; g < some; ++g) keep(start + g, _mm512_castsi512_ps(first[g]), _mm512_castsi512_ps(second[g]));
  }
}

// What the groups add for the sums of a row, for 16 outputs.
inline __m512 plain_part(const float* base, const float* sum, int64_t stride, int64_t groups) {
  __m512 plain = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g)
    plain = _mm512_fmadd_ps(_mm512_loadu_ps(base + g * kTileOut), _mm512_set1_ps(sum[g * stride]), plain);
  return plain;
}

// Of two registers of tile rows, the low digits (`digit` 0) or the high ones of each row, kLanes of them, in order.
template <int kLanes>
inline __m512i digits_of(__m512i first, __m512i second, int digit) {
  constexpr int kWords = kLanes / 2;  // 64 bits each
  alignas(64) int64_t from[8];
  TAP_UNROLL for (int i = 0; i < 8; ++i) from[i] = (2 * (i / kWords) + digit) * kWords + i % kWords;
  return _mm512_permutex2var_epi64(first, _mm512_load_si512(from), second);
}

// Output that lane i of register j belongs to, where registers hold kLanes lanes of one output after the other.
template <int kLanes>
inline __m512i output_of(int j) {
  alignas(64) int32_t of[16];
  TAP_UNROLL16 for (int i = 0; i < 16; ++i) of[i] = (16 * j + i) / kLanes;
  return _mm512_load_si512(of);
}

// Registers that hold kLanes lanes of 16 outputs, one output after the other, become one for each lane.
template <int kLanes>
inline void split_lanes(__m512* now) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  // Even lanes to the front, odd ones behind them, again and again; lanes end up in reversed order of bits.
  TAP_UNROLL for (int width = kLanes; width > 1; width /= 2) {
    __m512 next[kLanes];
    TAP_UNROLL for (int from = 0; from < kLanes; from += width)
      TAP_UNROLL for (int i = 0; i < width / 2; ++i) {
        next[from + i] = _mm512_permutex2var_ps(now[from + 2 * i], even, now[from + 2 * i + 1]);
        next[from + width / 2 + i] = _mm512_permutex2var_ps(now[from + 2 * i], odd, now[from + 2 * i + 1]);
      }
    TAP_UNROLL for (int i = 0; i < kLanes; ++i) now[i] = next[i];
  }
}

constexpr int kReversed[] = {0, 4, 2, 6, 1, 5, 3, 7};

// Products take a while to come out of the tiles, and what was stored a while to be there: of a stream of groups, group i is
// multiplied, the sums of group i - 3 are stored, and those of group i - kDone are added.
constexpr int kSums = 8;      // groups whose sums are in memory
constexpr int kDone = 5;

// `at` holds 16 rows of codes, pieces of 64 columns kCodesBytes apart; nothing is multiplied where it is null.
#define TAP_TURN(sums_tile, done_tile, codes_tile, digits_tile)                               \
  do {                                                                                        \
    if (at) {                                                                                 \
      _tile_zero(sums_tile);                                                                  \
      TAP_UNROLL for (int piece = 0; piece < kPieces; ++piece) {                              \
        _tile_loadd(codes_tile, at + piece * kCodesBytes, stride);                            \
        _tile_loadd(digits_tile, x + piece * 2 * kTileColumns * kLanes, 8 * kLanes);          \
        _tile_dpbusd(sums_tile, codes_tile, digits_tile);                                     \
      }                                                                                       \
    }                                                                                         \
    _tile_stored(done_tile, sums + (i + kSums - 3) % kSums * 32 * kLanes, 8 * kLanes);        \
  } while (false)

template <int kLanes, int kPieces>
inline void turn_tiles(int64_t i, const uint8_t* at, int64_t stride, const int8_t* x, int32_t* sums) {
  switch (i % 4) {
    case 0: TAP_TURN(0, 1, 4, 6); break;
    case 1: TAP_TURN(1, 2, 5, 7); break;
    case 2: TAP_TURN(2, 3, 4, 6); break;
    default: TAP_TURN(3, 0, 5, 7);
  }
}

// The sums of the low digits and 256 times those of the high ones, of two registers of tile rows.
template <int kLanes>
inline __m512 joined(const int32_t* sum) {
  const __m512i first = _mm512_load_si512(sum), second = _mm512_load_si512(sum + 16);
  const __m512i low = digits_of<kLanes>(first, second, 0), high = digits_of<kLanes>(first, second, 1);
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

// What one group adds to the totals of 16 outputs; `scale` has their scales.
template <int kLanes>
inline void add_group(const int32_t* sum, const float* scale, const float* lane_scale, __m512* total) {
  const __m512 x_scale = _mm512_loadu_ps(lane_scale), scales = _mm512_loadu_ps(scale);
  TAP_UNROLL for (int j = 0; j < kLanes; ++j) {
    const __m512 own = _mm512_permutexvar_ps(output_of<kLanes>(j), scales);
    total[j] = _mm512_fmadd_ps(joined<kLanes>(sum + 32 * j), _mm512_mul_ps(own, x_scale), total[j]);
  }
}

inline void store_outputs(const Call& call, int64_t at, __mmask16 there, __m512 y) {
  if (call.y_dtype == kFloat32) return _mm512_mask_storeu_ps(static_cast<float*>(call.y) + at, there, y);
  alignas(64) float values[16];
  _mm512_store_ps(values, y);
  for (int r = 0; r < 16 && (there >> r & 1); ++r) static_cast<uint16_t*>(call.y)[at + r] = float_to_bfloat(values[r]);
}

// The totals of the tile of activations as outputs of its rows; a view may begin within the tile.
template <int kLanes>
inline void store_tile(const Call& call, const RowsView& rows, int64_t row, int64_t n, const float* base, __m512* total) {
  split_lanes<kLanes>(total);
  TAP_UNROLL for (int i = 0; i < kLanes; ++i) {
    const int lane = kReversed[i] * kLanes / kMaxLanes;
    const int64_t at = lane - rows.first;
    if (at < 0 || at >= call.n_rows) continue;
    const __m512 y = _mm512_add_ps(total[i], plain_part(base, rows.lane_sum + lane, kLanes, call.groups));
    store_outputs(call, at * call.out + row, static_cast<__mmask16>((1u << n) - 1), y);
  }
}

// Rows of a step, which are one tile: groups of 16 rows of the weight follow each other in a stream, and codes are unpacked
// some groups before they are multiplied.
template <int kLanes, int kPieces>
void stream_tile(const Call& call, const Plan& plan, const RowsView& rows, int64_t begin, int64_t end, TileScratch& scratch) {
  constexpr int64_t kSlotBytes = kPieces * kCodesBytes;
  constexpr int kSlots = 16, kAhead = 8;
  alignas(64) int32_t sums[kSums * 32 * kLanes];
  alignas(64) uint8_t ring[kSlots * kSlotBytes];
  const int64_t groups = call.groups, columns = groups * call.group_size;
  // A plane of 8 bits holds codes as they are.
  const bool is_whole = kPieces == 1 && call.n_planes == 1 && call.widths[0] == 8 && call.bits == 8;
  int64_t unpack_row = begin, unpack_group = 0, put_row = begin, put_group = 0, unpacked = 0;
  const auto unpack_until = [&](int64_t i) {
    while (unpacked <= i && unpack_row < end) {
      const int64_t n = std::min<int64_t>(kTileOut, end - unpack_row);
      if (is_whole && n == kTileOut) {
        const uint8_t* later = call.planes[0] + (unpack_row + kTileOut) * columns + unpack_group * kCodesBytes;
        TAP_UNROLL16 for (int r = 0; r < kTileOut; ++r) __builtin_prefetch(later + 64 * r, 0, 2);
      } else plan.unpack_tile(call, plan, unpack_row, n, unpack_group, ring + unpacked % kSlots * kSlotBytes);
      ++unpacked;
      if (++unpack_group == groups) unpack_group = 0, unpack_row += kTileOut;
    }
  };
  int64_t i = 0;
  const auto turn = [&] {
    unpack_until(i + kAhead);
    const uint8_t* at = nullptr;
    int64_t stride = kTileColumns;
    if (put_row < end) {
      at = ring + i % kSlots * kSlotBytes;
      if (is_whole && put_row + kTileOut <= end)
        at = call.planes[0] + put_row * columns + put_group * kTileColumns, stride = columns;
    }
    turn_tiles<kLanes, kPieces>(i, at, stride, rows.digits + put_group * call.group_size * 2 * kLanes, sums);
    if (++put_group == groups) put_group = 0, put_row += kTileOut;
    ++i;
  };
  for (int early = 0; early < kDone; ++early) turn();
  for (int64_t row = begin; row < end; row += kTileOut) {
    const int64_t n = std::min<int64_t>(kTileOut, end - row);
    __m512 total[kLanes];
    TAP_UNROLL for (int lane = 0; lane < kLanes; ++lane) total[lane] = _mm512_setzero_ps();
    read_scales(call, row, n, scratch.scale.data(), scratch.base.data());
    for (int64_t g = 0; g < groups; ++g) {
      turn();
      const int32_t* sum = sums + (i - 1 - kDone) % kSums * 32 * kLanes;
      add_group<kLanes>(sum, &scratch.scale[static_cast<size_t>(g * kTileOut)], rows.lane_scale + g * 16, total);
    }
    store_tile<kLanes>(call, rows, row, n, scratch.base.data(), total);
  }
}

// Sums across the lanes of 16 registers: lane i of what comes back is that of register i. Integers, so any order will do.
inline __m512i sums_across(__m512i* v) {
  TAP_UNROLL for (int i = 0; i < 8; ++i)
    v[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  TAP_UNROLL for (int i = 0; i < 4; ++i)
    v[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
  TAP_UNROLL for (int i = 0; i < 2; ++i)
    v[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0x88), _mm512_shuffle_i32x4(v[2 * i], v[2 * i + 1], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x88), _mm512_shuffle_i32x4(v[0], v[1], 0xdd));
}

// Row `m` of the activations with 16 rows of the weight from `row` on.
template <class Source, int kGroup>
void multiply_one(const Call& call, const Plan& plan, const RowsView& rows, int64_t m, int64_t row, __mmask16 there,
                  const TileScratch& scratch) {
  const int64_t groups = call.groups;
  const Block block{row, scratch.codes.data(), rows.codes + m * groups * kGroup, nullptr, nullptr, nullptr, nullptr};
  const float *x_scale = rows.scale + m * kBlock * groups, *x_sum = rows.sum + m * groups;
  __m512 total = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    __m512i sums[kTileOut];
    TAP_UNROLL16 for (int r = 0; r < kTileOut; ++r) {
      sums[r] = _mm512_setzero_si512();
      TAP_UNROLL for (int part = 0; part < kGroup / 64; ++part) {
        Words words[kPieces];
        Source::words(call, plan, block, r, g, part, words);
        const int16_t* x = block.x + g * kGroup + part * 64;
        sums[r] = multiply_add(multiply_add(sums[r], words[0], load_words(x)), words[1], load_words(x + kPieceColumns));
      }
    }
    const __m512 worth = _mm512_mul_ps(_mm512_loadu_ps(&scratch.scale[static_cast<size_t>(g * kTileOut)]), _mm512_set1_ps(x_scale[g]));
    total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums_across(sums)), worth, total);
  }
  store_outputs(call, m * call.out + row, there, _mm512_add_ps(total, plain_part(scratch.base.data(), x_sum, 1, groups)));
}

void multiply_ones(const Call& call, const Plan& plan, const RowsView& rows, int64_t begin, int64_t end, TileScratch& scratch) {
  scratch.codes.resize(static_cast<size_t>(call.groups * call.group_size * kTileOut));
  for (int64_t row = begin; row < end; row += kTileOut) {
    const int64_t n = std::min<int64_t>(kTileOut, end - row);
    const bool is_full = n == kTileOut;  // else by way of memory, so that nothing beyond the planes is read
    read_scales(call, row, n, scratch.scale.data(), scratch.base.data());
    for (int64_t r = 0; r < n && !is_full; ++r)
      plan.unpack(call, plan, row + r, scratch.codes.data() + r * call.groups * call.group_size);
    for (int64_t m = 0; m < call.n_rows; ++m)
      (is_full ? plan.one : plan.one_unpacked)(call, plan, rows, m, row, static_cast<__mmask16>((1u << n) - 1), scratch);
  }
}

using OnTiles = void (*)(const Call&, const Plan&, const RowsView&, int64_t, int64_t, TileScratch&);

template <int kPieces>
OnTiles tile_loop(int lanes) {
  return lanes == 2 ? stream_tile<2, kPieces> : lanes == 4 ? stream_tile<4, kPieces> : stream_tile<8, kPieces>;
}

void work_on_tiles(const Call& call, const Plan& plan, const RowsView& rows, int64_t begin, int64_t end) {
  static thread_local TileScratch scratch;
  const size_t groups = static_cast<size_t>(call.groups);
  scratch.scale.resize(groups * kTileOut);
  scratch.base.resize(groups * kTileOut);
  if (rows.lanes == 1) return multiply_ones(call, plan, rows, begin, end, scratch);
  const TileShapes shapes(rows.lanes);
  (call.group_size == kTileColumns ? tile_loop<1>(rows.lanes) : tile_loop<2>(rows.lanes))(call, plan, rows, begin, end, scratch);
}

#else

constexpr int kTileOut = 16;
bool has_tiles() { return false; }
bool takes_tiles(int64_t, int64_t) { return false; }
inline int lanes_of(int64_t) { return 1; }
void arrange_tiles(int64_t, int64_t, int64_t, Rows&) {}
void work_on_tiles(const Call&, const Plan&, const RowsView&, int64_t, int64_t) {}

#endif

}  // namespace
