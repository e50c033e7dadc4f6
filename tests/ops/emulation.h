// Enough of CUDA C++ to run ops/csrc/ms_deform_attn.cu, as it is, on the processor.
//
// Put before it with -include. Every thread of a block is a fibre (ucontext). A barrier or a
// shuffle gives the processor to the next fibre, so all lanes reach it before one leaves it; that
// asks of a kernel what a GPU asks too, that all lanes of a warp come to the same ones.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct Index { int x, y, z; };
static Index threadIdx, blockIdx, blockDim;

namespace emulation {
const int most_threads = 1024;
const size_t stack_bytes = 256 * 1024;
ucontext_t scheduler, fibres[most_threads];
bool finished[most_threads];
double slots[2][most_threads];  // two, so that the next shuffle does not overwrite this one
int turns[most_threads];
void (*body)();

void wait() {
  const int me = threadIdx.x;
  swapcontext(&fibres[me], &scheduler);
  threadIdx.x = me;
}

template <typename T> T exchange(T mine, int lane) {
  const int me = threadIdx.x, slot = turns[me]++ & 1;
  memcpy(&slots[slot][me], &mine, sizeof mine);
  wait();
  if (turns[me / 32 * 32 + lane] < turns[me]) abort();  // that lane did not come to this shuffle
  T theirs;
  memcpy(&theirs, &slots[slot][me / 32 * 32 + lane], sizeof theirs);
  return theirs;
}

void enter() {
  body();
  finished[threadIdx.x] = true;
}

void run_block(int threads) {
  static char* stacks = (char*)malloc(most_threads * stack_bytes);
  for (int t = 0; t < threads; ++t) {
    getcontext(&fibres[t]);
    fibres[t].uc_stack.ss_sp = stacks + t * stack_bytes;
    fibres[t].uc_stack.ss_size = stack_bytes;
    fibres[t].uc_link = &scheduler;
    makecontext(&fibres[t], enter, 0);
    finished[t] = false;
    turns[t] = 0;
  }
  for (int left = threads; left;) {
    left = 0;
    for (int t = 0; t < threads; ++t) {
      if (finished[t]) continue;
      threadIdx.x = t;
      swapcontext(&scheduler, &fibres[t]);
      left += !finished[t];
    }
  }
}

// Shared memory is static, so it holds what the last block left: as bad as on a GPU.
void run(const int* blocks, int threads, void (*kernel)()) {
  body = kernel;
  blockDim = {threads, 1, 1};
  for (blockIdx.z = 0; blockIdx.z < blocks[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < blocks[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < blocks[0]; ++blockIdx.x) run_block(threads);
}
}  // namespace emulation

inline void __syncthreads() { emulation::wait(); }
inline void __syncwarp() { emulation::wait(); }
template <typename T> T __shfl_sync(unsigned, T x, int lane) { return emulation::exchange(x, lane); }
template <typename T> T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulation::exchange(x, (threadIdx.x & 31) ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane)
    all |= (unsigned)emulation::exchange((int)mine, lane) << lane;
  return all;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <typename T> void atomicAdd(T* to, T x) { *to += x; }

inline long long __float2ll_rn(float x) { return llrintf(x); }
inline long long __double2ll_rn(double x) { return llrint(x); }

inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}

inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 31 ? (fraction ? NAN : INFINITY)
            : exponent     ? ldexpf((float)(fraction + 1024), exponent - 25)
                           : ldexpf((float)fraction, -24);
  return bits & 0x8000 ? -x : x;
}

inline unsigned short float_to_half(float x) {
  const unsigned short sign = __float_as_uint(x) >> 31 << 15;
  x = fabsf(x);
  if (x != x) return 0x7e00 | sign;
  if (x == 0) return sign;
  if (x >= 65520.0f) return 0x7c00 | sign;
  int exponent;
  frexpf(x, &exponent);
  if (exponent < -13) exponent = -13;  // below the normal numbers the steps stay the same
  const int steps = (int)rintf(ldexpf(x, 11 - exponent));  // to the nearest, ties to even
  return (unsigned short)((((exponent + 13) << 10) + steps) | sign);
}
