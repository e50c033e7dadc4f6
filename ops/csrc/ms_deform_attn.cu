// Multi-scale deformable attention, forward and backward, one specialisation at a time.
//
// Compiled at first use by NVRTC. It includes nothing: no header can be missing or of another
// version. ops/cuda.py puts these definitions above it:
//
//   LEVELS POINTS CHANNELS    L, P and the size of a head
//   VALUE QUERY ANCHOR        types of the value, of offsets and logits (or locations and weights)
//                             and of the references: F32, F16, BF16 or F64
//   REFERENCE                 2 or 4: references of so many numbers, offsets and logits come in;
//                             0: locations and weights come in
//   VECTOR LANES ITEMS WARPS  channels a load; lanes of a warp that share an item, which is a
//                             query and a head; items a warp; warps a block
//   SHARE CHUNK               samples of an item for which a lane makes records, one after the
//                             other; how many of them it reads in one load
//   UNROLL                    samples in flight
//   FIXED_POINT               whether the value's gradient is summed in integers
//   LEVEL_PARAMETERS          int h0, int w0, int h1, ...      LEVEL_SIZES: h0, w0, h1, ...
//
// The grid is (queries by ITEMS · WARPS, heads, images): a block has neighbouring queries of one
// head, which read neighbouring pixels, and finds them without a division.
//
// An item is done by LANES neighbouring lanes, each with VECTOR (or several times VECTOR) of the
// head's channels. In turn: each lane makes the records of some of the item's samples (softmax,
// place, corners: once, not once a lane); all lanes read all records and gather or scatter
// their channels; and, backward, each lane finishes the gradients of the samples it made. Between
// these there is the warp's own part of shared memory, so a warp never waits for another.

#define F32 0
#define F16 1
#define BF16 2
#define F64 3

#define SAMPLES (LEVELS * POINTS)
#define PIECES ((CHANNELS + VECTOR * LANES - 1) / (VECTOR * LANES))

struct Half { unsigned short bits; };
struct Brain { unsigned short bits; };

template <int kind> struct TypeOf;
template <> struct TypeOf<F32> { typedef float type; };
template <> struct TypeOf<F16> { typedef Half type; };
template <> struct TypeOf<BF16> { typedef Brain type; };
template <> struct TypeOf<F64> { typedef double type; };

typedef TypeOf<VALUE>::type Value;
typedef TypeOf<QUERY>::type Query;
typedef TypeOf<ANCHOR>::type Anchor;
// Sums are float; double as soon as one argument is.
#define SINGLE (VALUE != F64 && QUERY != F64 && !(REFERENCE && ANCHOR == F64))
typedef TypeOf<SINGLE ? F32 : F64>::type Real;

// ------------------------------------------------------------------------------------------------
// Numbers

#ifndef EMULATED
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

__device__ __forceinline__ unsigned short float_to_half(float number) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  return bits;
}
#endif

__device__ __forceinline__ unsigned short float_to_brain(float number) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  return bits;
#else
  // To the nearest, ties to even; a NaN must not be rounded into an infinity.
  unsigned bits = __float_as_uint(number);
  if (number != number) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

__device__ __forceinline__ Real real(float x) { return x; }
__device__ __forceinline__ Real real(double x) { return (Real)x; }
__device__ __forceinline__ Real real(Half x) { return half_to_float(x.bits); }
__device__ __forceinline__ Real real(Brain x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ __forceinline__ void set(float& to, Real x) { to = (float)x; }
__device__ __forceinline__ void set(double& to, Real x) { to = x; }
__device__ __forceinline__ void set(Half& to, Real x) { to.bits = float_to_half((float)x); }
__device__ __forceinline__ void set(Brain& to, Real x) { to.bits = float_to_brain((float)x); }

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

__device__ __forceinline__ long long rounded(float x) { return __float2ll_rn(x); }
__device__ __forceinline__ long long rounded(double x) { return __double2ll_rn(x); }

// So many channels as one load or store; all bits zero, which is zero in every type, if made by
// Packed().
struct __align__(VECTOR * sizeof(Value)) Packed { Value channel[VECTOR]; };

// The same as numbers. Pairs of bfloat16 are taken apart as the words they lie in: two
// instructions, where taking out one half and shifting it are five.
__device__ __forceinline__ void unpack(Real (&to)[VECTOR], const Packed& packed) {
#if VALUE == BF16 && VECTOR % 2 == 0 && !defined(EMULATED)
  if (SINGLE) {
    const unsigned* words = reinterpret_cast<const unsigned*>(&packed);
#pragma unroll
    for (int c = 0; c < VECTOR; c += 2) {
      to[c] = __uint_as_float(words[c / 2] << 16);
      to[c + 1] = __uint_as_float(words[c / 2] & 0xffff0000u);
    }
    return;
  }
#endif
#pragma unroll
  for (int c = 0; c < VECTOR; ++c) to[c] = real(packed.channel[c]);
}

// Neighbours in memory, read by as few loads as their place allows: count is a multiple of chunk.
template <int chunk, int count>
__device__ __forceinline__ void read(Real (&to)[count], const Query* from) {
  struct __align__(chunk * sizeof(Query)) Chunk { Query number[chunk]; };
#pragma unroll
  for (int i = 0; i < count; i += chunk) {
    const Chunk one = *reinterpret_cast<const Chunk*>(from + i);
#pragma unroll
    for (int k = 0; k < chunk; ++k) to[i + k] = real(one.number[k]);
  }
}

// The sum over the lanes of an item, in all of them; every lane of the warp takes part.
template <typename Combine>
__device__ __forceinline__ Real over_item(Real x, int lane, Combine combine) {
#if (LANES & (LANES - 1)) == 0
#pragma unroll
  for (int step = LANES / 2; step; step /= 2) x = combine(x, __shfl_xor_sync(~0u, x, step));
  return x;
#else
  const int first = lane / LANES * LANES;
  Real result = __shfl_sync(~0u, x, first & 31);
#pragma unroll
  for (int k = 1; k < LANES; ++k) result = combine(result, __shfl_sync(~0u, x, (first + k) & 31));
  return result;
#endif
}

struct Plus { __device__ __forceinline__ Real operator()(Real a, Real b) const { return a + b; } };
struct Larger {
  __device__ __forceinline__ Real operator()(Real a, Real b) const { return a > b ? a : b; }
};

// ------------------------------------------------------------------------------------------------
// Samples

// Where a sample lies: fractions right of and below its first corner, attention, and that corner's
// row (which may lie outside) times 16 plus one bit for each corner that has a value: first, right,
// below, both.
struct __align__(4 * sizeof(Real)) Record { Real right, low, weight; int code; };

// The query and head of this lane. Lanes beyond the last one stand idle at query 0, for sums over
// lanes need the whole warp.
struct Item { int number, query; bool working; };

__device__ __forceinline__ Item this_item(int lane, int warp, int queries) {
  Item item;
  item.number = lane / LANES;
  const long long query = ((long long)blockIdx.x * WARPS + warp) * ITEMS + item.number;
  item.working = item.number < ITEMS && query < queries;
  item.query = item.working ? (int)query : 0;
  if (item.number >= ITEMS) item.number = 0;
  return item;
}

struct Sizes { int height[LEVELS], width[LEVELS], first[LEVELS]; };

__device__ __forceinline__ void write_sizes(Sizes& sizes, LEVEL_PARAMETERS) {
  // From parameters through shared memory: a parameter or a register cannot be indexed at run time.
  const int given[2 * LEVELS] = {LEVEL_SIZES};
  if (threadIdx.x == 0) {
    int first = 0;
#pragma unroll
    for (int level = 0; level < LEVELS; ++level) {
      sizes.height[level] = given[2 * level];
      sizes.width[level] = given[2 * level + 1];
      sizes.first[level] = first;
      first += given[2 * level] * given[2 * level + 1];
    }
  }
  __syncthreads();
}

// The attention of the samples that this lane makes: read, or the softmax over the item's logits.
__device__ __forceinline__ void attend(
    Real (&weight)[SHARE], const Query* weights, int place, int lane, bool working) {
#pragma unroll
  for (int i = 0; i < SHARE; i += CHUNK) {
    Real chunk[CHUNK] = {0};
    if (working && place * SHARE + i < SAMPLES) read<CHUNK>(chunk, weights + place * SHARE + i);
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) weight[i + k] = chunk[k];
  }
#if REFERENCE
  Real largest = weight[0];
#pragma unroll
  for (int i = 1; i < SHARE; ++i)
    if (place * SHARE + i < SAMPLES) largest = Larger()(weight[i], largest);
  // A lane without samples holds 0, which may be larger than every logit: it borrows the first's.
  const Real borrowed = __shfl_sync(~0u, largest, lane / LANES * LANES & 31);
  if (place * SHARE >= SAMPLES) largest = borrowed;
  largest = over_item(largest, lane, Larger());
  Real sum = 0;
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    weight[i] = place * SHARE + i < SAMPLES ? exponential(weight[i] - largest) : (Real)0;
    sum += weight[i];
  }
  const Real part = 1 / over_item(sum, lane, Plus());
#pragma unroll
  for (int i = 0; i < SHARE; ++i) weight[i] *= part;
#endif
}

__device__ __forceinline__ Record record_of(
    const Sizes& sizes, int level, Real x, Real y, const Anchor* references, Real weight,
    const unsigned char* padding) {
  const int height = sizes.height[level], width = sizes.width[level];
#if REFERENCE == 0
  x = x * width - (Real)0.5;
  y = y * height - (Real)0.5;
#elif REFERENCE == 2
  // The offset is in pixels, so the level's size need not be divided out and multiplied in again.
  x += real(references[2 * level]) * width - (Real)0.5;
  y += real(references[2 * level + 1]) * height - (Real)0.5;
#else
  const Anchor* box = references + 4 * level;
  x = (real(box[0]) + x * real(box[2]) * ((Real)0.5 / POINTS)) * width - (Real)0.5;
  y = (real(box[1]) + y * real(box[3]) * ((Real)0.5 / POINTS)) * height - (Real)0.5;
#endif
  Record record;
  record.right = record.low = 0;
  record.weight = weight;
  record.code = 0;
  if (x >= -1 && y >= -1 && x < width && y < height) {
    const int left = (int)floor(x), top = (int)floor(y);
    record.right = x - left;
    record.low = y - top;
    const int row = sizes.first[level] + top * width + left;
    int corners = 15;
    if (left < 0) corners &= ~5;
    if (left + 1 >= width) corners &= ~10;
    if (top < 0) corners &= ~3;
    if (top + 1 >= height) corners &= ~12;
    if (padding) {
      if (corners & 1 && padding[row]) corners &= ~1;
      if (corners & 2 && padding[row + 1]) corners &= ~2;
      if (corners & 4 && padding[row + width]) corners &= ~4;
      if (corners & 8 && padding[row + width + 1]) corners &= ~8;
    }
    record.code = row * 16 + corners;
  } else if (x - x != 0 || y - y != 0) {
    // A broken place must be seen, as it is in plain PyTorch: NaN times the zeros outside.
    record.right = record.low = x - x + (y - y);
  }
  return record;
}

// Hand the record of every sample that this lane makes to take(sample, record).
template <typename Take>
__device__ __forceinline__ void each_record(
    const Sizes& sizes, const Query* places, const Anchor* references, const Real (&weight)[SHARE],
    const unsigned char* padding, int place, Take take) {
#pragma unroll
  for (int i = 0; i < SHARE; i += CHUNK) {
    const int first = place * SHARE + i;
    if (first >= SAMPLES) break;
    Real xy[2 * CHUNK];
    read<2 * CHUNK>(xy, places + 2 * first);
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) {
      const int s = first + k;
      take(s, record_of(
                  sizes, s / POINTS, xy[2 * k], xy[2 * k + 1], references, weight[i + k], padding));
    }
  }
}

// The four corners of a sample, of this lane's channels; zeros where there is none.
struct Corners { Packed corner[4]; };

__device__ __forceinline__ Corners load_corners(
    const Value* value, int code, int width, long long stride) {
  Corners corners;
  const Value* first = value + (code >> 4) * stride;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    corners.corner[k] = Packed();
    if (code >> k & 1) {
      corners.corner[k] =
          *reinterpret_cast<const Packed*>(first + ((k & 1) + (k >> 1) * width) * stride);
    }
  }
  return corners;
}

// ------------------------------------------------------------------------------------------------
// Forward

// What the forward needs of a sample, made once so that its lanes have nothing left to decide: each
// corner's share with the attention in it, and its row. A corner without a value has share 0 and
// the row of one that has (which is read anyway: a NaN elsewhere must not leak in). Rows are -1
// where no corner has a value.
struct __align__(4 * sizeof(Real)) Shares { Real corner[4]; };
struct __align__(16) Rows { int corner[4]; };

__device__ __forceinline__ void write_sample(
    Shares& shares, Rows& rows, const Record& record, int width) {
  const Real low = record.low * record.weight, high = record.weight - low;
  const Real below = low * record.right, above = high * record.right;
  Shares mixed = {{high - above, above, low - below, below}};
  const int first = record.code >> 4;
  int there = -1;
#pragma unroll
  for (int k = 3; k >= 0; --k)
    if (record.code >> k & 1) there = first + (k & 1) + (k >> 1) * width;
  // A broken place or attention has to be seen, also where there is no corner.
  const bool broken = !(record.right - record.right == 0 && record.weight - record.weight == 0);
  if (broken) there = 0;
  Rows found;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const bool has = record.code >> k & 1;
    found.corner[k] = has ? first + (k & 1) + (k >> 1) * width : there;
    if (!has && !broken) mixed.corner[k] = 0;
  }
  shares = mixed;
  rows = found;
}

// value (N, S, M, C); places (N, Q, M, L, P, 2); weights (N, Q, M, L, P); references (N, Q, L, 2
// or 4); padding (N, S) bytes, or null; out (N, Q, M, C)
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) forward(
    const Value* __restrict__ value, const Query* __restrict__ places,
    const Query* __restrict__ weights, const Anchor* __restrict__ references,
    const unsigned char* __restrict__ padding, Value* __restrict__ out, int images, int pixels,
    int heads, int queries, LEVEL_PARAMETERS) {
  __shared__ Sizes sizes;
  __shared__ Shares shares[WARPS][SAMPLES][ITEMS];
  __shared__ Rows rows[WARPS][SAMPLES][ITEMS];
  write_sizes(sizes, LEVEL_SIZES);

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, place = lane % LANES;
  const Item item = this_item(lane, warp, queries);
  const int number = item.number, head = blockIdx.y, image = blockIdx.z;
  const long long query = (long long)image * queries + item.query;
  const long long row = query * heads + head;

  Real weight[SHARE];
  attend(weight, weights + row * SAMPLES, place, lane, item.working);
  if (item.working) {
    each_record(
        sizes, places + row * SAMPLES * 2, references + query * LEVELS * REFERENCE, weight,
        padding ? padding + (long long)image * pixels : padding, place,
        [&](int s, const Record& record) {
          write_sample(
              shares[warp][s][number], rows[warp][s][number], record, sizes.width[s / POINTS]);
        });
  }
  __syncwarp();
  if (!item.working) return;

  // Bytes. A row times the stride needs 64 bits, which without signs is one instruction.
  const unsigned stride = (unsigned)heads * CHANNELS * (unsigned)sizeof(Value);
#pragma unroll
  for (int piece = 0; piece < PIECES; ++piece) {
    const int channel = (piece * LANES + place) * VECTOR;
    if (channel >= CHANNELS) break;
    const char* begin = reinterpret_cast<const char*>(
        value + ((long long)image * pixels * heads + head) * CHANNELS + channel);
    Real sum[VECTOR];
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) sum[c] = 0;
#pragma unroll UNROLL
    for (int s = 0; s < SAMPLES; ++s) {
      const Rows row_of = rows[warp][s][number];
      if (row_of.corner[0] < 0) continue;
      const Shares share = shares[warp][s][number];
      Packed corner[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        corner[k] = *reinterpret_cast<const Packed*>(
            begin + (unsigned long long)(unsigned)row_of.corner[k] * stride);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Real numbers[VECTOR];
        unpack(numbers, corner[k]);
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) sum[c] += share.corner[k] * numbers[c];
      }
    }
    Packed packed;
#pragma unroll
    for (int c = 0; c < VECTOR; ++c) set(packed.channel[c], sum[c]);
    *reinterpret_cast<Packed*>(out + row * CHANNELS + channel) = packed;
  }
}

// ------------------------------------------------------------------------------------------------
// Backward

// What the value's gradient is summed in. Half precision is too coarse for thousands of additions.
#if FIXED_POINT
typedef unsigned long long Sum;
#else
typedef Real Sum;
#endif

__device__ __forceinline__ void add(Sum* to, const Real (&x)[VECTOR], Real scale) {
#if FIXED_POINT
  // The sum of integers does not depend on their order: the same bits in every run.
#pragma unroll
  for (int c = 0; c < VECTOR; ++c) atomicAdd(to + c, (unsigned long long)rounded(x[c] * scale));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && VECTOR % 4 == 0 && SINGLE
#pragma unroll
  for (int c = 0; c < VECTOR; c += 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to + c), "f"(x[c]),
                 "f"(x[c + 1]), "f"(x[c + 2]), "f"(x[c + 3])
                 : "memory");
  }
#else
#pragma unroll
  for (int c = 0; c < VECTOR; ++c) atomicAdd(to + c, x[c]);
#endif
}

// grad (N, Q, M, C); as forward, then the gradients: by_value (N, S, M, C) sums, zeros before;
// by_places and by_weights as places and weights; by_references (N, Q, M, L, 2 or 4), one a head,
// or null; scale: one number, by which what goes into integers is multiplied
extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) backward(
    const Value* __restrict__ grad, const Value* __restrict__ value,
    const Query* __restrict__ places, const Query* __restrict__ weights,
    const Anchor* __restrict__ references, const unsigned char* __restrict__ padding,
    const Real* __restrict__ scale, Sum* __restrict__ by_value, Query* __restrict__ by_places,
    Query* __restrict__ by_weights, Real* __restrict__ by_references, int images, int pixels,
    int heads, int queries, LEVEL_PARAMETERS) {
  __shared__ Sizes sizes;
  __shared__ Record records[WARPS][SAMPLES][ITEMS];
  // Of the sample: the gradients by its x and y in pixels, without attention, and by attention.
  __shared__ Record slopes[WARPS][SAMPLES][ITEMS];
  write_sizes(sizes, LEVEL_SIZES);

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, place = lane % LANES;
  const Item item = this_item(lane, warp, queries);
  const int number = item.number, head = blockIdx.y, image = blockIdx.z;
  const bool working = item.working;
  const long long query = (long long)image * queries + item.query;
  const long long row = query * heads + head;
  const Real units = FIXED_POINT ? *scale : (Real)1;

  Real weight[SHARE];
  attend(weight, weights + row * SAMPLES, place, lane, working);
  if (working) {
    each_record(
        sizes, places + row * SAMPLES * 2, references + query * LEVELS * REFERENCE, weight,
        padding ? padding + (long long)image * pixels : padding, place,
        [&](int s, const Record& record) { records[warp][s][number] = record; });
  }
  __syncwarp();

  const long long stride = (long long)heads * CHANNELS;
  const long long begin = (long long)image * pixels * stride + head * CHANNELS;
  Real g[PIECES][VECTOR];
#pragma unroll
  for (int piece = 0; piece < PIECES; ++piece) {
    const int channel = (piece * LANES + place) * VECTOR;
    Packed packed = Packed();
    if (working && channel < CHANNELS)
      packed = *reinterpret_cast<const Packed*>(grad + row * CHANNELS + channel);
    unpack(g[piece], packed);
  }

  // No lane leaves early or skips a turn: the sums over lanes need the whole warp.
#pragma unroll 1
  for (int level = 0; level < LEVELS; ++level) {
    const int width = sizes.width[level];
#pragma unroll 1
    for (int p = 0; p < POINTS; ++p) {
      const int s = level * POINTS + p;
      Record record = records[warp][s][number];
      if (!working) record.code = 0;
      const Real right = record.right, low = record.low, left = 1 - right, high = 1 - low;
      const Real area[4] = {high * left, high * right, low * left, low * right};
      Real dot[4] = {0, 0, 0, 0};
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece) {
        const int channel = (piece * LANES + place) * VECTOR;
        const int code = channel < CHANNELS ? record.code : 0;
        const Corners corners = load_corners(value + begin + channel, code, width, stride);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Real numbers[VECTOR];
          unpack(numbers, corners.corner[k]);
#pragma unroll
          for (int c = 0; c < VECTOR; ++c) dot[k] += g[piece][c] * numbers[c];
          if (code >> k & 1) {
            Real part[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) part[c] = area[k] * record.weight * g[piece][c];
            const long long at = (code >> 4) + (k & 1) + (k >> 1) * width;
            add(by_value + begin + channel + at * stride, part, units);
          }
        }
      }
      // Three sums over lanes instead of four.
      Record slope;
      slope.right = over_item(high * (dot[1] - dot[0]) + low * (dot[3] - dot[2]), lane, Plus());
      slope.low = over_item(left * (dot[2] - dot[0]) + right * (dot[3] - dot[1]), lane, Plus());
      slope.weight = over_item(
          area[0] * dot[0] + area[1] * dot[1] + area[2] * dot[2] + area[3] * dot[3], lane, Plus());
      slope.code = 0;
      if (working && place == 0) slopes[warp][s][number] = slope;
    }
  }
  __syncwarp();

#if REFERENCE
  Real mean = 0;
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    const int s = place * SHARE + i;
    if (working && s < SAMPLES) mean += weight[i] * slopes[warp][s][number].weight;
  }
  mean = over_item(mean, lane, Plus());
#endif
  if (working) {
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int s = place * SHARE + i;
      if (s < SAMPLES) {
        const int level = s / POINTS;
        Record slope = slopes[warp][s][number];
        Real x = slope.right * weight[i], y = slope.low * weight[i], by_weight = slope.weight;
        const Real across = x * sizes.width[level], along = y * sizes.height[level];
#if REFERENCE == 0
        x = across;
        y = along;
#else
        by_weight = weight[i] * (by_weight - mean);
#endif
#if REFERENCE == 4
        const Anchor* box = references + (query * LEVELS + level) * 4;
        x = across * real(box[2]) * ((Real)0.5 / POINTS);
        y = along * real(box[3]) * ((Real)0.5 / POINTS);
#endif
        set(by_weights[row * SAMPLES + s], by_weight);
        set(by_places[(row * SAMPLES + s) * 2], x);
        set(by_places[(row * SAMPLES + s) * 2 + 1], y);
        slope.right = across;
        slope.low = along;
        slopes[warp][s][number] = slope;
      }
    }
  }
#if REFERENCE
  if (!by_references) return;
  __syncwarp();
  if (!working) return;
  for (int level = place; level < LEVELS; level += LANES) {
    Real sums[4] = {0, 0, 0, 0};
    for (int p = 0; p < POINTS; ++p) {
      const int s = level * POINTS + p;
      const Record slope = slopes[warp][s][number];
      sums[0] += slope.right;
      sums[1] += slope.low;
#if REFERENCE == 4
      sums[2] += slope.right * real(places[(row * SAMPLES + s) * 2]) * ((Real)0.5 / POINTS);
      sums[3] += slope.low * real(places[(row * SAMPLES + s) * 2 + 1]) * ((Real)0.5 / POINTS);
#endif
    }
#pragma unroll
    for (int c = 0; c < REFERENCE; ++c)
      by_references[(row * LEVELS + level) * REFERENCE + c] = sums[c];
  }
#endif
}
