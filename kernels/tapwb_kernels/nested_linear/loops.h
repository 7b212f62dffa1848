// The layouts worth a loop of their own, and which loop a call takes.

#pragma once

#include "wide.h"

namespace {

struct Plan;
struct RowsView;
struct TileScratch;
using One = void (*)(const Call&, const Plan&, const RowsView&, int64_t m, int64_t row, uint16_t there, const TileScratch&);
using Dot = void (*)(const Call&, const Plan&, const Block&);
using DotAny = void (*)(const Call&, const Block&);
constexpr DotAny kDotAny[] = {dot_any<1>, dot_any<2>, dot_any<3>, dot_any<4>};
static_assert(sizeof(kDotAny) == kRowBlock * sizeof(DotAny), "one for each number of rows");
using Unpack = void (*)(const Call&, const Plan&, int64_t row, uint8_t* codes);

using UnpackTile = void (*)(const Call&, const Plan&, int64_t row, int64_t n, int64_t group, uint8_t* to);

struct Plan {
#if defined(TAP_AVX512) || defined(TAP_AVX2)
  Turn turn[kMaxPlanes];
#endif
  Place place[kMaxPlanes];
  Dot straight[kMaxRows] = {nullptr};  // 1 to kMaxRows rows of activations, codes taken from the planes
  Dot rows[kMaxRows] = {nullptr};      // the same, codes in memory
  One one = nullptr, one_unpacked = nullptr;   // the first loop where the processor has tiles (tiles.h)
  UnpackTile unpack_tile = nullptr;
  Unpack unpack = nullptr;          // codes of one row of the weight
};

#if defined(TAP_AVX512) || defined(TAP_AVX2)

// Four sums of 8 floats each, always added in the same order.
inline void store_sums(const __m256* total, float* out) {
  const __m256 pairs01 = _mm256_hadd_ps(total[0], total[1]);
  const __m256 pairs23 = _mm256_hadd_ps(total[2], total[3]);
  const __m256 fours = _mm256_hadd_ps(pairs01, pairs23);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
}

// Codes that lie in memory as bytes, one for each column.
template <int kGroup>
struct InMemory {
  static inline void words(const Call& call, const Plan&, const Block& block, int r, int64_t g, int part, Words* words) {
    split(load(block.codes + (r * call.groups + g) * kGroup + part * 64), words);
  }
};

// The only plane that is read is of 8 bits, and all of them are wanted.
template <int kGroup>
struct Whole {
  static inline void words(const Call& call, const Plan&, const Block& block, int r, int64_t g, int part, Words* words) {
    const uint8_t* at = call.planes[0] + ((block.row + r) * call.groups + g) * kGroup + part * 64;
    __builtin_prefetch(at + kPrefetchBytes, 0, 2);
    split(load(at), words);
  }
};

template <int kGroup, int kWidth>
inline Bytes add_plane64(Bytes codes, const Call& call, const Turn& turn, int i, int64_t group, int part) {
  constexpr int kBytes = kGroup * kWidth / 8;
  const uint8_t* at = call.planes[i] + group * kBytes;
  // Planes of one bit advance so slowly that the processor's own prefetcher keeps up.
  if (kWidth > 1 && part == 0) __builtin_prefetch(at + kPrefetchBytes, 0, 2);
  return merge(codes, spread<kGroup, kWidth>(at, part), turn, part);
}

// Planes of these widths, joined in registers.
template <int kGroup, int... kWidths>
struct Joined {
  static inline Bytes bytes(const Call& call, const Turn* turns, int64_t group, int part) {
    Bytes found = no_codes();
    int i = 0;
    ((found = add_plane64<kGroup, kWidths>(found, call, turns[i], i, group, part), ++i), ...);
    return found;
  }
  static inline void words(const Call& call, const Plan& plan, const Block& block, int r, int64_t g, int part, Words* words) {
    split(bytes(call, plan.turn, (block.row + r) * call.groups + g, part), words);
  }
};

// The same for other widths, which are looked at while running.
template <int kGroup>
struct Joined<kGroup> {
  static inline Bytes bytes(const Call& call, const Turn* turns, int64_t group, int part) {
    Bytes found = no_codes();
    for (int i = 0; i < call.n_planes; ++i) switch (call.widths[i]) {
        case 1: found = add_plane64<kGroup, 1>(found, call, turns[i], i, group, part); break;
        case 2: found = add_plane64<kGroup, 2>(found, call, turns[i], i, group, part); break;
        case 4: found = add_plane64<kGroup, 4>(found, call, turns[i], i, group, part); break;
        default: found = add_plane64<kGroup, 8>(found, call, turns[i], i, group, part);
      }
    return found;
  }
  static inline void words(const Call& call, const Plan& plan, const Block& block, int r, int64_t g, int part, Words* words) {
    split(bytes(call, plan.turn, (block.row + r) * call.groups + g, part), words);
  }
};

// Rows of the weight that are worked on at once, such that their sums with kRows rows of activations stay in registers.
template <int kRows>
constexpr int rows_at_once() {
  if (kRegisters < 32) return kRows * 4 <= kRegisters / 2 ? 4 : kRows * 2 <= kRegisters / 2 ? 2 : 1;
  return kRows <= 2 ? 4 : kRows <= 6 ? 2 : 1;
}

// kRows rows of activations with kBlock rows of the weight. Each sum is added up in the same order whatever kRows is,
// so that a result does not depend on how many rows are multiplied together.
template <class Source, int kGroup, int kRows>
void dot_wide(const Call& call, const Plan& plan, const Block& block) {
  constexpr int kSome = rows_at_once<kRows>();
  constexpr int kShare = kRegisters < 32 ? 1 : kSome;  // rows of the weight that share each load of activations
  const int64_t groups = call.groups, stride = groups * kGroup;
  __m256 sums_of[kRows][kBlock];
  TAP_UNROLL for (int first = 0; first < kBlock; first += kSome) {
    Floats total[kRows][kSome];
    TAP_UNROLL for (int m = 0; m < kRows; ++m)
      TAP_UNROLL for (int r = 0; r < kSome; ++r)
        total[m][r] = add_products(no_floats(), block.base + (first + r) * groups, block.x_sum + m * groups, groups);
    for (int64_t g = 0; g < groups; ++g)
      TAP_UNROLL for (int start = 0; start < kSome; start += kShare) {
        Ints sums[kRows][kShare];
        TAP_UNROLL for (int m = 0; m < kRows; ++m)
          TAP_UNROLL for (int r = 0; r < kShare; ++r) sums[m][r] = no_ints();
        TAP_UNROLL for (int part = 0; part < kGroup / 64; ++part) {
          Words words[kShare][kPieces];
          TAP_UNROLL for (int r = 0; r < kShare; ++r) Source::words(call, plan, block, first + start + r, g, part, words[r]);
          const int16_t* x = block.x + g * kGroup + part * 64;
          TAP_UNROLL for (int m = 0; m < kRows; ++m)
            TAP_UNROLL for (int i = 0; i < kPieces; ++i) {
              const Words own = load_words(x + m * stride + i * kPieceColumns);
              TAP_UNROLL for (int r = 0; r < kShare; ++r) sums[m][r] = multiply_add(sums[m][r], words[r][i], own);
            }
        }
        TAP_UNROLL for (int m = 0; m < kRows; ++m)
          TAP_UNROLL for (int r = 0; r < kShare; ++r)
            total[m][start + r] =
                add_scaled(total[m][start + r], sums[m][r], block.scale[(m * kBlock + first + start + r) * groups + g]);
      }
    TAP_UNROLL for (int m = 0; m < kRows; ++m)
      TAP_UNROLL for (int r = 0; r < kSome; ++r) sums_of[m][first + r] = folded(total[m][r]);
  }
  TAP_UNROLL for (int m = 0; m < kRows; ++m) store_sums(sums_of[m], block.out + m * kBlock);
}

#if defined(TAP_TILES)
template <class Source, int kGroup>
void multiply_one(const Call&, const Plan&, const RowsView&, int64_t m, int64_t row, __mmask16 there, const TileScratch&);
template <class Source, int kGroup, bool kIsCommon>
void set_loops(Plan& plan) {
  plan.one = multiply_one<Source, kGroup>;
}
template <class Source, int kGroup>
void set_unpacked_loops(Plan& plan) {
  plan.one_unpacked = multiply_one<Source, kGroup>;
}
#else
// Loops for several rows of activations; what is missing is cut into halves. Each takes a compiler a third of a second.
template <class Source, int kGroup>
void for_rows(Dot* dots) {
  dots[0] = dot_wide<Source, kGroup, 1>, dots[1] = dot_wide<Source, kGroup, 2>;
  dots[2] = dot_wide<Source, kGroup, 3>, dots[3] = dot_wide<Source, kGroup, 4>;
  if constexpr (kGroup == 64) dots[4] = dot_wide<Source, kGroup, 5>, dots[7] = dot_wide<Source, kGroup, 8>;
}
// Layouts that are not common have a loop for one row only.
template <class Source, int kGroup, bool kIsCommon>
void set_loops(Plan& plan) {
  if constexpr (kIsCommon) for_rows<Source, kGroup>(plan.straight);
  else plan.straight[0] = dot_wide<Source, kGroup, 1>;
}
template <class Source, int kGroup>
void set_unpacked_loops(Plan& plan) {
  for_rows<Source, kGroup>(plan.rows);
}
#endif

template <class Source, int kGroup>
void unpack64(const Call& call, const Plan& plan, int64_t row, uint8_t* codes) {
  Turn turns[kMaxPlanes];  // a copy stays in registers: for all the compiler knows, the codes are written over the plan
  std::copy(plan.turn, plan.turn + call.n_planes, turns);
  for (int64_t g = 0; g < call.groups; ++g)
    for (int part = 0; part < kGroup / 64; ++part, codes += 64)
      store(codes, Source::bytes(call, turns, row * call.groups + g, part));
}

#if defined(TAP_TILES)
// One group of n <= 16 rows of the weight: a row every 64 bytes, of 64 columns of all, then of the next 64.
template <int kGroup, int... kWidths>
void unpack_tile(const Call& call, const Plan& plan, int64_t row, int64_t n, int64_t group, uint8_t* to) {
  constexpr int kPlanes = sizeof...(kWidths);
  const uint8_t* at[kPlanes];
  int64_t stride[kPlanes];
  Turn turns[kPlanes];
  int i = 0;
  ((stride[i] = call.groups * (kGroup * kWidths / 8), at[i] = call.planes[i] + row * stride[i] + group * (kGroup * kWidths / 8),
    turns[i] = plan.turn[i], ++i), ...);
  for (int64_t r = 0; r < n; ++r) {
    TAP_UNROLL for (int part = 0; part < kGroup / 64; ++part) {
      Bytes codes = no_codes();
      i = 0;
      ((codes = merge(codes, spread<kGroup, kWidths>(at[i], part), turns[i], part), ++i), ...);
      store(to + part * 1024 + r * 64, codes);
    }
    i = 0;
    // Once for every line of memory; planes of one bit advance so slowly that the processor's own prefetcher keeps up.
    ((kWidths > 1 && group * (kGroup * kWidths / 8) % 64 == 0 ? __builtin_prefetch(at[i] + kPrefetchBytes, 0, 2) : void(), at[i] += stride[i], ++i), ...);
  }
}

// Widths that are looked at while running.
template <int kGroup>
void unpack_any_tile(const Call& call, const Plan& plan, int64_t row, int64_t n, int64_t group, uint8_t* to) {
  for (int64_t r = 0; r < n; ++r)
    for (int part = 0; part < kGroup / 64; ++part)
      store(to + part * 1024 + r * 64, Joined<kGroup>::bytes(call, plan.turn, (row + r) * call.groups + group, part));
}
#endif

template <int... kWidths>
bool takes(const Call& call) {
  constexpr int kWanted[] = {kWidths...};
  return call.n_planes == static_cast<int>(sizeof...(kWidths)) && std::equal(kWanted, kWanted + call.n_planes, call.widths);
}

// The layout that is stored by default, and its lowest level, which every draft is read at.
template <int... kWidths>
constexpr bool kIsCommon = false;
template <>
constexpr bool kIsCommon<4> = true;
template <>
constexpr bool kIsCommon<4, 1, 1, 2> = true;

template <int kGroup, int... kWidths>
void join(Plan& plan) {
  set_loops<Joined<kGroup, kWidths...>, kGroup, kIsCommon<kWidths...>>(plan);
  plan.unpack = unpack64<Joined<kGroup, kWidths...>, kGroup>;
#if defined(TAP_TILES)
  if constexpr (sizeof...(kWidths) > 0) plan.unpack_tile = unpack_tile<kGroup, kWidths...>;
  else plan.unpack_tile = unpack_any_tile<kGroup>;
#endif
}

template <int kGroup>
void choose_loops(const Call& call, Plan& plan) {
  if (takes<4>(call)) join<kGroup, 4>(plan);
  else if (takes<4, 4>(call)) join<kGroup, 4, 4>(plan);
  else if (takes<4, 1>(call)) join<kGroup, 4, 1>(plan);
  else if (takes<4, 1, 1>(call)) join<kGroup, 4, 1, 1>(plan);
  else if (takes<4, 1, 1, 2>(call)) join<kGroup, 4, 1, 1, 2>(plan);
  else if (takes<2, 1>(call)) join<kGroup, 2, 1>(plan);
  else if (takes<2, 1, 1>(call)) join<kGroup, 2, 1, 1>(plan);
  else if (takes<2, 1, 1, 4>(call)) join<kGroup, 2, 1, 1, 4>(plan);
  else if (takes<2, 1, 1, 1>(call)) join<kGroup, 2, 1, 1, 1>(plan);
  else if (takes<2, 1, 1, 1, 1>(call)) join<kGroup, 2, 1, 1, 1, 1>(plan);
  else if (takes<2, 1, 1, 1, 1, 2>(call)) join<kGroup, 2, 1, 1, 1, 1, 2>(plan);
  else join<kGroup>(plan);
  set_unpacked_loops<InMemory<kGroup>, kGroup>(plan);
  if (takes<8>(call) && call.bits == 8) set_loops<Whole<kGroup>, kGroup, true>(plan);
}
#endif

Plan plan_of(const Call& call) {
  Plan plan;
  for (int i = 0; i < call.n_planes; ++i) plan.place[i] = place_of(call, i);
#if defined(TAP_AVX512) || defined(TAP_AVX2)
  if (!is_wide(call.group_size)) return plan;
  for (int i = 0; i < call.n_planes; ++i) plan.turn[i] = turn_of(plan.place[i], call.widths[i], call.group_size);
  if (call.group_size == 64) choose_loops<64>(call, plan);
  else choose_loops<128>(call, plan);
#endif
  return plan;
}

}  // namespace
