// Instance masks from logits: pairwise shared pixels, and masks at the frame's size as bits.
//
// Compiled at first use by NVRTC, see ops/mask_bits.py. It includes nothing.

// logits (n, pixels) → bits (n, words): bit i of word w is pixel 32 w + i, set where positive.
// One warp makes one word at a time: its loads lie side by side.
extern "C" __global__ void pack(
    const float* __restrict__ logits, unsigned* __restrict__ bits, int masks, int pixels,
    int words) {
  const int lane = threadIdx.x & 31;
  const int word = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), mask = blockIdx.y;
  if (word >= words) return;
  const int pixel = word * 32 + lane;
  const bool set = pixel < pixels && logits[(long long)mask * pixels + pixel] > 0;
  const unsigned all = __ballot_sync(~0u, set);
  if (lane == 0) bits[(long long)mask * words + word] = all;
}

// bits (n, words) → counts (n, most): counts[i][k] is the number of pixels that row i shares with
// the k-th row of its own image, whose rows are first[i] to last[i]. One warp a pair.
extern "C" __global__ void shared_pixels(
    const unsigned* __restrict__ bits, const int* __restrict__ first, const int* __restrict__ last,
    int* __restrict__ counts, int words, int most) {
  const int lane = threadIdx.x & 31;
  const int k = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), i = blockIdx.y;
  const int j = first[i] + k;
  if (k >= most || j >= last[i]) return;
  const unsigned* a = bits + (long long)i * words;
  const unsigned* b = bits + (long long)j * words;
  int sum = 0;
  for (int w = lane; w < words; w += 32) sum += __popc(a[w] & b[w]);
#pragma unroll
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) counts[(long long)i * most + k] = sum;
}

// logits (n, h, w) → bits (n, width, words): bit i of word j of column x is pixel (32 j + i, x) of
// the mask at the frame's size, set where the interpolated logit is positive.
//
// Where an output row reads: between rows low and low + 1 (at most h − 1) with share of the latter;
// columns likewise. The arithmetic is that of torch's bilinear interpolation, product by product.
// One warp makes the word of 32 rows of one column; the maps are small and stay in the first cache.
extern "C" __global__ void resize(
    const float* __restrict__ logits, const int* __restrict__ row_low,
    const float* __restrict__ row_share, const int* __restrict__ column_low,
    const float* __restrict__ column_share, unsigned* __restrict__ bits, int h, int w, int height,
    int width, int words) {
  const int lane = threadIdx.x & 31;
  const int x = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  const int word = blockIdx.y, mask = blockIdx.z;
  if (x >= width) return;
  const int y = word * 32 + lane;
  bool set = false;
  if (y < height) {
    const float* map = logits + (long long)mask * h * w;
    const int top = row_low[y], left = column_low[x];
    const int down = top + 1 < h ? w : 0, right = left + 1 < w ? 1 : 0;
    const float* corner = map + top * w + left;
    const float low = row_share[y], high = 1.0f - low;
    const float after = column_share[x], before = 1.0f - after;
    const float above = before * corner[0] + after * corner[right];
    const float below = before * corner[down] + after * corner[down + right];
    set = high * above + low * below > 0;
  }
  const unsigned all = __ballot_sync(~0u, set);
  if (lane == 0) bits[((long long)mask * width + x) * words + word] = all;
}
