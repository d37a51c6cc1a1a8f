// Calls the functions for pools with functions of C++, as PyTorch does: ones with state on the heap, that look at the stream.

#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#define DEVMEM_WITH_CUDA
#include "device_memory.h"

using Id = std::pair<unsigned long long, unsigned long long>;
using Filter = std::function<bool(void *)>;

static int fail(const char *what) {
    std::fprintf(stderr, "%s (%s)\n", what, devmem_last_error());
    return 1;
}

struct Counted {
    static int living;
    std::shared_ptr<int> calls;
    void *wanted;
    char padding[64] = {};
    Counted(std::shared_ptr<int> calls, void *wanted) : calls(calls), wanted(wanted) { living++; }
    Counted(const Counted &other) : calls(other.calls), wanted(other.wanted) { living++; }
    ~Counted() { living--; }
    bool operator()(void *stream) const {
        ++*calls;
        return stream == wanted;
    }
};
int Counted::living = 0;

// Throws when it is copied.
struct Fragile {
    static bool breaks;
    Fragile() = default;
    Fragile(const Fragile &) {
        if (breaks) throw std::runtime_error("copied");
    }
    bool operator()(void *) const { return true; }
};
bool Fragile::breaks = false;

template <typename F> static bool throws(const char *text, F function) {
    try {
        function();
    } catch (const std::runtime_error &error) {
        return std::string(error.what()) == text;
    }
    return false;
}

static uint64_t allocated() {
    devmem_statistics_t figures;
    return devmem_statistics(DEVMEM_KIND_CUDA, 0, &figures, sizeof figures) == DEVMEM_STATUS_OK ? figures.allocated : 0;
}

int main() {
    // As PyTorch declares what it calls.
    std::function<void(int, Id, Filter)> begin = reinterpret_cast<void (*)(int, Id, Filter)>(
        reinterpret_cast<void *>(&devmem_torch_begin_allocate_to_pool));
    std::function<void(int, Id)> end =
        reinterpret_cast<void (*)(int, Id)>(reinterpret_cast<void *>(&devmem_torch_end_allocate_to_pool));
    std::function<void(int, Id)> release =
        reinterpret_cast<void (*)(int, Id)>(reinterpret_cast<void *>(&devmem_torch_release_pool));

    const Id id{0, 41};
    auto calls = std::make_shared<int>(0);
    void *const first = nullptr, *const other = reinterpret_cast<void *>(1);
    begin(0, id, Counted(calls, first));
    if (Counted::living != 1) return fail("the filter was not copied, once");
    if (devmem_torch_pool_users(0, {0, 41}) != 1) return fail("the pool was passed by another name");

    void *const in_pool = devmem_torch_alloc(1 << 20, 0, first);
    void *const outside = devmem_torch_alloc(1 << 20, 0, other);
    if (!in_pool || !outside) return fail("no memory");
    if (*calls != 2) return fail("the filter was not asked for each allocation");
    devmem_torch_free(in_pool, 1 << 20, 0, first);
    devmem_torch_free(outside, 1 << 20, 0, other);
    if (devmem_torch_alloc(1 << 20, 0, first) != in_pool) return fail("the pool did not reuse its memory");

    end(0, id);
    if (Counted::living != 0) return fail("the filter was not destroyed");
    devmem_torch_free(in_pool, 1 << 20, 0, first);
    void *const after = devmem_torch_alloc(1 << 20, 0, first);
    if (after == in_pool) return fail("memory of a pool left it");
    devmem_torch_free(after, 1 << 20, 0, first);
    release(0, id);
    if (devmem_torch_pool_users(0, {0, 41}) != 0) return fail("the pool is still there");

    // A function without state, and none.
    begin(0, id, Filter([](void *) { return true; }));
    end(0, id);
    begin(0, id, Filter());
    end(0, id);
    release(0, id);
    release(0, id);

    // One that throws, as PyTorch's does where the driver refuses to answer; the caller hears of it, and all goes on.
    const uint64_t before = allocated();
    auto asked = std::make_shared<int>(0);
    begin(0, id, [asked, other](void *stream) -> bool {
        ++*asked;
        return stream == other ? throw std::runtime_error("asked") : true;
    });
    for (int round = 0; round < 3; round++) {
        if (!throws("asked", [&] { devmem_torch_alloc(1 << 20, 0, other); })) return fail("an exception was lost");
        void *found = nullptr;
        std::thread([&] { found = devmem_torch_alloc(1 << 20, 0, first); }).join();
        if (!found) return fail("nothing is allocated after an exception");
        devmem_torch_free(found, 1 << 20, 0, first);
    }
    if (*asked != 6) return fail("a filter that threw was not asked again");
    end(0, id);
    if (asked.use_count() != 1) return fail("a filter that threw was not destroyed");
    release(0, id);
    Filter fragile{Fragile()};
    Fragile::breaks = true;
    if (!throws("copied", [&] { begin(0, id, std::move(fragile)); })) return fail("an exception of a copy was lost");
    if (devmem_torch_pool_users(0, {0, 41}) != 0) return fail("a pool was begun without its filter");
    void *const last = devmem_torch_alloc(1 << 20, 0, other);
    if (!last || allocated() != before + (1 << 20)) return fail("what threw counts as allocated");
    devmem_torch_free(last, 1 << 20, 0, other);
    return 0;
}
