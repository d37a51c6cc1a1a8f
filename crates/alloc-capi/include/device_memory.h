// The C interface of the device memory pools: `devmem_` functions of the library `device_memory`.
//
// A device is named by its kind (1 for the host, 2 for CUDA, 3 for page-locked host memory) and its number among its
// kind, a stream by its handle, 0 for the default stream. All functions may be called from any thread. Those that can
// fail return a status; `devmem_last_error` has the text.
//
// A child that is forked without `exec` calls none of them: host memory is one for it and its parent, which each would hand
// out without the other, locks may be held by threads that it has not, and CUDA does not work in it.
//
// With `ALLOC_LEAK_REPORT=table` in the environment when the first pool is made, the standard error gets a table of the blocks
// that were never freed when the process ends; with `backtrace`, also where they come from. `devmem_snapshot_json` has the living
// blocks at any time.


#ifndef DEVICE_MEMORY_H
#define DEVICE_MEMORY_H

// Made by cbindgen of crates/alloc-capi/src; `cargo xtask header` makes it again.

#include <stddef.h>
#include <stdint.h>

// The version of this interface. It changes when a function or a field changes its meaning, not when one is added.
#define DEVMEM_ABI_VERSION 1

// The host's memory.
#define DEVMEM_KIND_CPU 1

// The memory of CUDA devices.
#define DEVMEM_KIND_CUDA 2

// Host memory that is page-locked through a CUDA device.
#define DEVMEM_KIND_CUDA_PINNED 3

// How a call ended.
enum devmem_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It did what it says.
  DEVMEM_STATUS_OK = 0,
  // No memory, after everything that could be given back was.
  DEVMEM_STATUS_OUT_OF_MEMORY = 1,
  // An argument makes no sense.
  DEVMEM_STATUS_INVALID_ARGUMENT = 2,
  // A pointer that no block starts at.
  DEVMEM_STATUS_UNKNOWN_POINTER = 3,
  // A pointer that was freed before.
  DEVMEM_STATUS_DOUBLE_FREE = 4,
  // A pointer to memory of another device than the one named.
  DEVMEM_STATUS_WRONG_DEVICE = 5,
  // A pointer to a block of another size than the one named.
  DEVMEM_STATUS_WRONG_SIZE = 6,
  // There is no such device, no driver, or the library was built without support for it.
  DEVMEM_STATUS_UNAVAILABLE = 7,
  // The device or its driver failed. Memory whose use can't be known any more is leaked, never reused.
  DEVMEM_STATUS_DEVICE_FAILURE = 8,
  // An error in this library.
  DEVMEM_STATUS_INTERNAL = 9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum devmem_status devmem_status;
#else
typedef int32_t devmem_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What is known of the block that starts at a pointer.
typedef struct devmem_block_info_t {
  // The kind of the device.
  int32_t kind;
  // Its number.
  int32_t ordinal;
  // How many bytes were asked for.
  uint64_t size;
  // The stream that it was allocated for.
  uint64_t stream;
} devmem_block_info_t;

// The figures of a device's pool, in bytes except where a name says otherwise. New fields are added at the end.
typedef struct devmem_statistics_t {
  // Bytes that callers hold.
  uint64_t allocated;
  // The most they have held, exactly.
  uint64_t allocated_peak;
  // The sum of all that was allocated.
  uint64_t allocated_total;
  // Number of allocations.
  uint64_t allocation_count;
  // Bytes that callers hold, with the rounding of the pool; memory of private pools counts as a whole.
  uint64_t in_use;
  // The most of that.
  uint64_t in_use_peak;
  // Physical memory held from the device.
  uint64_t reserved;
  // The most of that.
  uint64_t reserved_peak;
  // Freed small blocks that wait in the caches of threads.
  uint64_t cached;
  // Freed blocks that wait for work on other streams.
  uint64_t parked;
  // The most of that.
  uint64_t parked_peak;
  // The largest block that can be served without a call to the device.
  uint64_t largest_free;
  // Bytes never to be reused, since the end of their work can't be known.
  uint64_t leaked;
  // Number of allocations served by the cache of a thread.
  uint64_t hits;
  // Number of times that no free memory fitted an allocation; one that is tried again, as memory runs out, counts each time.
  uint64_t misses;
  // Number of times that pages were moved to another address.
  uint64_t moves;
  // Number of frees that were refused by the pool.
  uint64_t rejected_frees;
  // Number of calls to the device's driver that manage memory.
  uint64_t memory_calls;
  // Number of all calls to it.
  uint64_t calls;
  // The most physical memory to hold; 0 for no limit.
  uint64_t limit;
  // Free memory of the device; 0 where that is not known.
  uint64_t device_free;
  // All memory of the device; 0 where that is not known.
  uint64_t device_total;
  // Number of blocks that callers hold.
  uint64_t block_count;
  // Number of allocations that failed for want of memory.
  uint64_t failure_count;
} devmem_statistics_t;

#if defined(DEVMEM_WITH_CUDA)
// PyTorch's name of a pool, passed by value.
typedef struct devmem_torch_pool_id {
  // The number of a graph's pool, or 0.
  uint64_t first;
  // The number of a user's pool, or 0.
  uint64_t second;
} devmem_torch_pool_id;
#endif

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the interface that the library has; compare with `DEVMEM_ABI_VERSION` of the header.
uint32_t devmem_abi_version(void);

// What the last call of this thread that failed has to say; empty if none failed, and in a thread that is ending, as the main one is
// in functions of `atexit`. Valid until the next failure in this thread.
const char *devmem_last_error(void);

// The name of a status, in lower case.
const char *devmem_status_name(int32_t status);

// Number of devices of a kind. 0, and no failure, where there is no driver or no support for the kind.
//
// # Safety
// `count` is valid for a write.
devmem_status devmem_device_count(int32_t kind,
                                  uint32_t *count);

// Whether the device's pool is there already: 1 or 0. The first call that needs it makes it, one that asks for figures too,
// and on a CUDA device a context with it, which takes some of the device's memory. This call makes nothing.
//
// # Safety
// `open` is valid for a write.
devmem_status devmem_is_open(int32_t kind,
                             int32_t ordinal,
                             int32_t *open);

// Allocates `size` bytes for the device's default stream, aligned to 512 bytes. Zero bytes get an address of their own.
//
// # Safety
// `pointer` is valid for a write.
devmem_status devmem_allocate(int32_t kind,
                              int32_t ordinal,
                              uint64_t size,
                              void **pointer);

// Allocates `size` bytes that work submitted to `stream` from now on may use. `align` is a power of two, or 0; blocks
// are aligned to 512 bytes in any case.
//
// # Safety
// `pointer` is valid for a write; `stream` is a living stream of the device.
devmem_status devmem_allocate_on(int32_t kind,
                                 int32_t ordinal,
                                 uint64_t size,
                                 uint64_t align,
                                 uint64_t stream,
                                 void **pointer);

// Frees a block, in constant time, by its pointer alone. Its last use was on the stream that it was allocated for, or on
// those recorded. A null pointer is fine.
//
// # Safety
// No use of the block follows. Pointers that are no block's are refused.
devmem_status devmem_free(void *pointer);

// Frees a block whose last use was on `stream`: later work there may have the memory at once.
//
// # Safety
// As `devmem_free`; `stream` is a living stream of the block's device.
devmem_status devmem_free_on(void *pointer, uint64_t stream);

// Frees a block whose device and size the caller knows; refuses it if they are others.
//
// # Safety
// As `devmem_free_on`.
devmem_status devmem_free_checked(void *pointer,
                                  int32_t kind,
                                  int32_t ordinal,
                                  uint64_t size,
                                  uint64_t stream);

// Notes that work on `stream` uses the block, so that its memory is not reused before that work is done: the caller
// has made `stream` wait for the block's own stream, and frees the block after it submitted the work.
//
// # Safety
// `stream` is a living stream of the block's device.
devmem_status devmem_record_stream(void *pointer,
                                   uint64_t stream);

// Finds out about a block.
//
// # Safety
// `info` is valid for a write.
devmem_status devmem_block_info(const void *pointer, struct devmem_block_info_t *info);

// Gives physical memory back to the device until at most `keep` bytes are held, as far as blocks in use allow. Writes
// the bytes given back to `given` unless it is null. May wait for work that still uses freed memory.
//
// # Safety
// `given` is null or valid for a write.
devmem_status devmem_trim(int32_t kind,
                          int32_t ordinal,
                          uint64_t keep,
                          uint64_t *given);

// Has the device's pool hold at least `bytes` of physical memory, made now in place of when it is first needed, and writes how
// many it holds to `held` unless that is null. The memory is free for blocks of every size and stream. `stream` is one that the
// program works on: what is free already, and others used last, is waited for there.
//
// # Safety
// `held` is null or valid for a write; `stream` is a living stream of the device.
devmem_status devmem_grow_to(int32_t kind,
                             int32_t ordinal,
                             uint64_t bytes,
                             uint64_t stream,
                             uint64_t *held);

// Sets the most physical memory to hold, in bytes; 0 for no limit. What is held beyond it is given back as far as it is
// free.
devmem_status devmem_set_limit(int32_t kind,
                               int32_t ordinal,
                               uint64_t bytes);

// The most physical memory to hold, in bytes; 0 for no limit, and 1 for a limit that leaves none.
//
// # Safety
// `bytes` is valid for a write.
devmem_status devmem_limit(int32_t kind, int32_t ordinal, uint64_t *bytes);

// Counts the peaks of the statistics from what there is now.
devmem_status devmem_reset_peaks(int32_t kind, int32_t ordinal);

// Says that a stream is about to be destroyed: no later call names it.
//
// # Safety
// The stream is still a living one of the device.
devmem_status devmem_retire_stream(int32_t kind, int32_t ordinal, uint64_t stream);

// Writes the device's figures: the first `size` bytes of them, so that a caller who knows fewer fields gets those.
//
// # Safety
// `statistics` is valid for writes of `size` bytes.
devmem_status devmem_statistics(int32_t kind,
                                int32_t ordinal,
                                struct devmem_statistics_t *statistics,
                                size_t size);

// Writes the device's figures as JSON, ended by a zero byte and cut off where `capacity` ends. Returns the length of the
// whole without the zero byte; 0 for a failure.
//
// # Safety
// `text` is null or valid for writes of `capacity` bytes.
size_t devmem_statistics_json(int32_t kind,
                              int32_t ordinal,
                              char *text,
                              size_t capacity);

// Writes all living blocks of the device, where its memory is, and its figures, as JSON: as `devmem_statistics_json` does.
// Each part is of its own moment, and nothing is asked of the device.
//
// `blocks` are those that callers hold. `arenas` is null where a program's own allocator serves the device. Else each has
// `runs` of addresses that have memory, and a run has `pieces` one after the other, each of a `kind`: `block`; `parked`, which is
// freed and waits for other streams; `free`, with the streams whose work may still touch it as `users`; or `slab`. A slab has
// blocks of `slot_size` bytes, of which `slots` has a letter each: `u` that somebody holds, `t` in the cache of a thread, or held
// by somebody unknown here, `c` in a cache, `p` parked, `f` free. `unplaced` are bytes of memory at no address, `lost` such as are
// never used again. `private_pools` has the same of each private pool, whose memory is in blocks of the device's own pool.
//
// # Safety
// `text` is null or valid for writes of `capacity` bytes.
size_t devmem_snapshot_json(int32_t kind,
                            int32_t ordinal,
                            char *text,
                            size_t capacity);

// Writes a page of HTML with the map of the device's memory, and its figures: as `devmem_statistics_json` does. A page for people,
// whose form may change. Nothing is asked of the device.
//
// # Safety
// `text` is null or valid for writes of `capacity` bytes.
size_t devmem_picture_html(int32_t kind,
                           int32_t ordinal,
                           char *text,
                           size_t capacity);

// Makes a tensor of zeros: a `DLManagedTensorVersioned` of DLPack 1, or with `versioned` 0 a `DLManagedTensor`. Its
// elements are of DLPack's type `code` with `bits` bits, row by row. Work on `stream` may use it from now on; its
// deleter gives the memory back once what was submitted to that stream by then is done.
//
// # Safety
// `shape` is valid for reads of `dimensions` numbers, `tensor` for a write; `stream` is a living stream of the device.
devmem_status devmem_dlpack_zeros(int32_t kind,
                                  int32_t ordinal,
                                  uint8_t code,
                                  uint8_t bits,
                                  const int64_t *shape,
                                  int32_t dimensions,
                                  uint64_t stream,
                                  int32_t versioned,
                                  void **tensor);

// Hands a tensor of `devmem_dlpack_zeros` to work on another stream of its device: that work comes after the zeros, and all
// else that the tensor's own stream was given so far, and the memory is not used again before it is done.
//
// # Safety
// `tensor` is such a tensor and lives, `versioned` is what it was made with; `stream` is a living stream of its device.
devmem_status devmem_dlpack_hand_to(const void *tensor,
                                    int32_t versioned,
                                    uint64_t stream);

// The destructor of a capsule of Python with a tensor of `devmem_dlpack_zeros`: lets the tensor go, unless a consumer has
// taken it and renamed the capsule. Python destroys capsules while an exception is on its way, and when the interpreter
// has all but ended, where no function that is written in Python can run.
//
// # Safety
// Called by Python; a capsule named `dltensor` or `dltensor_versioned` holds such a tensor.
void devmem_dlpack_drop_capsule(void *capsule);

#if defined(DEVMEM_WITH_CUDA)
// `alloc_fn`: `size` bytes for work on `stream`. Null for zero bytes, as PyTorch's own allocator has it.
//
// # Safety
// Called by PyTorch with a living stream of the device.
void *devmem_torch_alloc(ptrdiff_t size,
                         int device,
                         void *stream);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `free_fn`: frees a block on the stream that it was allocated for.
//
// # Safety
// Called by PyTorch: all uses of the block were submitted to `stream` or recorded.
void devmem_torch_free(void *pointer, ptrdiff_t size, int device, void *stream);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `init_fn`: PyTorch is about to use `device_count` devices. Their pools are made at their first allocation.
void devmem_torch_init(int device_count);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `reset_fn`, which `torch.cuda.empty_cache` calls: gives back all memory that is free.
void devmem_torch_reset(void);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `memory_fraction_fn`: limits the device's pool to a fraction of the device's memory.
//
// # Safety
// Called by PyTorch.
void devmem_torch_memory_fraction(double fraction, int device);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `base_alloc_fn`: the block that a pointer belongs to, which is its own start, and its size.
//
// # Safety
// `size` is null or valid for a write.
void *devmem_torch_base_alloc(void *pointer, size_t *size);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `record_stream_fn`: work on `stream` uses the block, too.
//
// # Safety
// Called by PyTorch with a living stream of the block's device.
void devmem_torch_record_stream(void *pointer, void *stream);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `begin_allocate_to_pool`: allocations that the filter accepts come from the pool `id`, which stays where it is, from
// now on.
//
// # Safety
// Called by PyTorch: `filter` points to a `std::function<bool(cudaStream_t)>`, or is null.
void devmem_torch_begin_allocate_to_pool(int device,
                                         struct devmem_torch_pool_id id,
                                         void *filter);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `end_allocate_to_pool_fn`: allocations come from the device's pool again. The pool `id` keeps what it has.
//
// # Safety
// Called by PyTorch.
void devmem_torch_end_allocate_to_pool(int device,
                                       struct devmem_torch_pool_id id);
#endif

#if defined(DEVMEM_WITH_CUDA)
// `release_pool`: one user of the pool `id` is gone. With the last one, and the last block, its memory goes back.
void devmem_torch_release_pool(int device,
                               struct devmem_torch_pool_id id);
#endif

#if defined(DEVMEM_WITH_CUDA)
// One more user of the pool `id`, which is made if need be; `devmem_torch_release_pool` ends that.
devmem_status devmem_torch_retain_pool(int device, struct devmem_torch_pool_id id);
#endif

#if defined(DEVMEM_WITH_CUDA)
// How many use the pool `id`.
uint32_t devmem_torch_pool_users(int device, struct devmem_torch_pool_id id);
#endif

#if defined(DEVMEM_WITH_CUDA)
// Which exceptions failures become in this process: 0 for none, as PyTorch is not loaded; 1 for `RuntimeError`; 2 for
// `torch.OutOfMemoryError` where memory has run out.
int devmem_torch_exceptions(void);
#endif

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DEVICE_MEMORY_H */
