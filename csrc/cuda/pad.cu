// Padded <-> packed. The mask may have any pattern: padding on either side, holes, empty rows.
#include "device.cuh"

namespace m3::cuda {
namespace {

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr int ITEMS = 4;  // loads in flight for each thread

// A row's word in the look-back: what the lower half holds, 0 being nothing yet.
constexpr uint64_t OWN = uint64_t{1} << 32;     // tokens of this row
constexpr uint64_t PREFIX = uint64_t{2} << 32;  // tokens of this row and all before it

// Tokens in the rows before `row`; called by a whole warp. Rows are taken in the order of tickets,
// so those before this one are running or done, and waiting for them ends.
__device__ int32_t look_back(const uint64_t* words, int64_t row, int lane) {
  int32_t before = 0;
  for (int64_t last = row - 1; last >= 0; last -= 32) {
    uint64_t word = PREFIX;  // before the first row: none
    if (last >= lane)
      do word = load_relaxed(words + last - lane);
      while (word == 0);
    const unsigned known = __ballot_sync(ALL_LANES, word >= PREFIX);
    const int nearest = known ? __ffs(known) - 1 : 31;
    before += __reduce_add_sync(ALL_LANES, lane <= nearest ? static_cast<int32_t>(word) : 0);
    if (known) break;
  }
  return before;
}

// One block per row: count its tokens, learn where they start, write.
template <class Id, class Mask>
__global__ void __launch_bounds__(THREADS) unpad_ids_kernel(const UnpadIds a) {
  __shared__ int64_t shared_row;
  __shared__ int32_t shared_start;
  __shared__ bool shared_last;
  __shared__ int32_t shared_tokens[WARPS], shared_counted[WARPS];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  uint64_t *tickets = a.state, *done = a.state + 1, *words = a.state + 2;
  if (tid == 0) shared_row = static_cast<int64_t>(fetch_add_acq_rel(tickets, 1));
  __syncthreads();
  const int64_t row = shared_row;
  const Id* ids = static_cast<const Id*>(a.ids) + row * a.width;
  const Mask* mask = static_cast<const Mask*>(a.mask) + row * a.width;

  int32_t tokens = 0;
#pragma unroll 4
  for (int64_t column = tid; column < a.width; column += THREADS) tokens += mask[column] != 0;
  tokens = __reduce_add_sync(ALL_LANES, tokens);
  if (lane == 0) shared_tokens[warp] = tokens;
  __syncthreads();
  if (warp == 0) {
    int32_t own = 0;
    for (int w = 0; w < WARPS; ++w) own += shared_tokens[w];
    if (lane == 0) store_relaxed(words + row, OWN | own);
    const int32_t start = look_back(words, row, lane);
    __syncwarp();  // every lane has read the words it wanted
    if (lane == 0) {
      store_relaxed(words + row, PREFIX | (start + own));
      a.cu_seqlens[row + 1] = start + own < a.capacity ? start + own : a.capacity;
      if (row == 0) a.cu_seqlens[0] = 0;
      shared_start = start;
      shared_last = fetch_add_acq_rel(done, 1) + 1 == static_cast<uint64_t>(a.rows);
    }
  }
  __syncthreads();
  if (shared_last)  // nobody reads the state any more: leave it as the next launch wants it
    for (int64_t i = tid; i < a.rows + 2; i += THREADS) a.state[i] = 0;

  int64_t start = shared_start;                     // tokens before this chunk, of all rows
  int32_t position = a.has_pad ? a.pad_id + 1 : 0;  // of the chunk's first counted id
  const unsigned lower = (1u << lane) - 1;
  for (int64_t chunk = 0; chunk < a.width; chunk += THREADS * ITEMS) {
    const int64_t first = chunk + warp * 32 * ITEMS + lane;
    Id id[ITEMS];
    unsigned is_token[ITEMS], is_counted[ITEMS];  // one bit per lane
    int32_t n_tokens = 0, n_counted = 0;
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      const int64_t column = first + 32 * j;
      const bool inside = column < a.width;
      id[j] = inside ? ids[column] : 0;
      is_token[j] = __ballot_sync(ALL_LANES, inside && mask[column] != 0);
      is_counted[j] = __ballot_sync(ALL_LANES, inside && !(a.has_pad && id[j] == a.pad_id));
      n_tokens += __popc(is_token[j]);
      n_counted += __popc(is_counted[j]);
    }
    if (lane == 0) {
      shared_tokens[warp] = n_tokens;
      shared_counted[warp] = n_counted;
    }
    __syncthreads();
    int64_t slot = start;
    int32_t place = position;
    for (int w = 0; w < WARPS; ++w) {
      if (w < warp) slot += shared_tokens[w], place += shared_counted[w];
      start += shared_tokens[w], position += shared_counted[w];
    }
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      const int64_t column = first + 32 * j, i = row * a.width + column;
      if (column < a.width) {
        const bool token = is_token[j] >> lane & 1;
        const int64_t before = slot + __popc(is_token[j] & lower);
        // The k-th place without a token writes the k-th row from the end: a dummy.
        const int64_t to = token ? before : a.rows * a.width - 1 - (i - before);
        const bool fits = to < a.capacity;
        if (fits) {
          const bool counted = is_counted[j] >> lane & 1;
          const int32_t at = counted ? place + __popc(is_counted[j] & lower) : a.pad_id;
          // An id beyond 32 bits must not become a valid one.
          const auto narrow = static_cast<int32_t>(id[j]);
          a.out_ids[to] = token ? (narrow == id[j] ? narrow : -1) : 0;
          a.positions[to] = token ? at : 0;
          a.texts[to] = static_cast<int32_t>(token ? row : a.rows);
        }
        a.slots[i] = static_cast<int32_t>(!fits ? -1 : token ? to : -2 - to);
      }
      slot += __popc(is_token[j]);
      place += __popc(is_counted[j]);
    }
    __syncthreads();  // the sums have been read
  }
}

constexpr int COPY_THREADS = 256;

// One row by a group of `step` threads; `from` null: zeros.
template <class Vector>
__device__ void copy_row(const Vector* __restrict__ from, Vector* __restrict__ to, int vectors,
                         int first, int step) {
  if (from == nullptr) {
    for (int c = first; c < vectors; c += step) to[c] = Vector{};
    return;
  }
#pragma unroll 4
  for (int c = first; c < vectors; c += step) to[c] = from[c];
}

// 1 << shift threads, at most a warp, for each padded row.
template <class Vector>
__global__ void __launch_bounds__(COPY_THREADS)
    gather_rows_kernel(const Vector* hidden, const int32_t* slots, Vector* packed, int64_t rows,
                       int64_t tokens, int vectors, int shift) {
  const int64_t thread = int64_t{blockIdx.x} * COPY_THREADS + threadIdx.x, row = thread >> shift;
  if (row >= rows) return;
  const int64_t slot = slots[row], to = slot < 0 ? -2 - slot : slot;
  if (to < 0 || to >= tokens) return;
  const int step = 1 << shift;
  copy_row(slot < 0 ? nullptr : hidden + row * vectors, packed + to * vectors, vectors,
           static_cast<int>(thread & (step - 1)), step);
}

template <class Vector>
__global__ void __launch_bounds__(COPY_THREADS)
    scatter_rows_kernel(const Vector* packed, const int32_t* slots, Vector* padded, int64_t rows,
                        int64_t tokens, int vectors, int shift) {
  const int64_t thread = int64_t{blockIdx.x} * COPY_THREADS + threadIdx.x, row = thread >> shift;
  if (row >= rows) return;
  const int64_t slot = slots[row];
  const int step = 1 << shift;
  copy_row(slot < 0 || slot >= tokens ? nullptr : packed + slot * vectors, padded + row * vectors,
           vectors, static_cast<int>(thread & (step - 1)), step);
}

template <class Id, class Mask>
void launch_unpad(const UnpadIds& a, const Stream& stream) {
  launch("unpad_ids_kernel", unpad_ids_kernel<Id, Mask>, a.rows, THREADS, stream, a);
}

template <class Id>
void launch_unpad(const UnpadIds& a, const Stream& stream) {
  if (a.mask_bytes == 1)
    launch_unpad<Id, int8_t>(a, stream);
  else if (a.mask_bytes == 4)
    launch_unpad<Id, int32_t>(a, stream);
  else
    launch_unpad<Id, int64_t>(a, stream);
}

// body(Vector{}): the widest vector that rows and addresses are multiples of.
template <class Body>
void with_vector(const void* from, const void* to, int64_t row_bytes, Body&& body) {
  const uint64_t all = reinterpret_cast<uint64_t>(from) | reinterpret_cast<uint64_t>(to) | row_bytes;
  if (all % 16 == 0)
    body(uint4{});
  else if (all % 4 == 0)
    body(uint32_t{});
  else
    body(uint8_t{});
}

template <class Kernel, class Vector>
void launch_copy(const char* name, Kernel kernel, const Vector* from, const int32_t* slots,
                 Vector* to, int64_t rows, int64_t tokens, int64_t row_bytes,
                 const Stream& stream) {
  const auto vectors = static_cast<int>(row_bytes / sizeof(Vector));
  int shift = 0;
  while (shift < 5 && 1 << shift < vectors) ++shift;
  const int64_t blocks = ((rows << shift) + COPY_THREADS - 1) / COPY_THREADS;
  launch(name, kernel, blocks, COPY_THREADS, stream, from, slots, to, rows, tokens, vectors, shift);
}

}  // namespace

void unpad_ids(const UnpadIds& a, const Stream& stream) {
  if (a.id_bytes == 4)
    launch_unpad<int32_t>(a, stream);
  else
    launch_unpad<int64_t>(a, stream);
}

void gather_rows(const void* hidden, const int32_t* slots, void* packed, int64_t rows,
                 int64_t tokens, int64_t row_bytes, const Stream& stream) {
  with_vector(hidden, packed, row_bytes, [&](auto vector) {
    using Vector = decltype(vector);
    launch_copy("gather_rows_kernel", gather_rows_kernel<Vector>,
                static_cast<const Vector*>(hidden), slots, static_cast<Vector*>(packed), rows,
                tokens, row_bytes, stream);
  });
}

void scatter_rows(const void* packed, const int32_t* slots, void* padded, int64_t rows,
                  int64_t tokens, int64_t row_bytes, const Stream& stream) {
  with_vector(packed, padded, row_bytes, [&](auto vector) {
    using Vector = decltype(vector);
    launch_copy("scatter_rows_kernel", scatter_rows_kernel<Vector>,
                static_cast<const Vector*>(packed), slots, static_cast<Vector*>(padded), rows,
                tokens, row_bytes, stream);
  });
}

}  // namespace m3::cuda
