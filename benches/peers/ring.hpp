// Hands batches of blocks from one thread to another; the counterpart of benches/src/peers/ring.rs.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "lanes.hpp"

namespace peers {

// Items that are handed over at a time.
inline constexpr std::size_t batch_items = 64;

// A ring of batches between one producer and one consumer. Two counters say which slots are full; a slot has a lock of
// its own, which nobody ever waits for. Full and empty batches are swapped, so that nothing is allocated.
template <class T>
class Ring {
public:
    static constexpr std::size_t batches = 8;

    Ring() {
        for (Slot& slot : slots_) slot.items.reserve(batch_items);
    }

    // Swaps a full batch for an empty one; false if there is no room.
    bool try_push(std::vector<T>& batch) {
        const std::size_t pushed = pushed_.value.load(std::memory_order_relaxed);
        if (pushed - popped_.value.load(std::memory_order_acquire) == batches) return false;
        swap_with(pushed, batch);
        pushed_.value.store(pushed + 1, std::memory_order_release);
        return true;
    }

    // Swaps an empty batch for the oldest full one; false if there is none.
    bool try_pop(std::vector<T>& batch) {
        const std::size_t popped = popped_.value.load(std::memory_order_relaxed);
        if (pushed_.value.load(std::memory_order_acquire) == popped) return false;
        swap_with(popped, batch);
        popped_.value.store(popped + 1, std::memory_order_release);
        return true;
    }

    // The same, waiting; false if it is time to stop.
    bool push(std::vector<T>& batch, const Stop& stop) {
        return wait_until([&] { return try_push(batch); }, stop);
    }
    bool pop(std::vector<T>& batch, const Stop& stop) {
        return wait_until([&] { return try_pop(batch); }, stop);
    }

private:
    struct Slot {
        std::mutex lock;
        std::vector<T> items;
    };
    struct alignas(128) Counter {
        std::atomic<std::size_t> value{0};
    };

    void swap_with(std::size_t number, std::vector<T>& batch) {
        Slot& slot = slots_[number % batches];
        const std::lock_guard guard(slot.lock);
        std::swap(slot.items, batch);
    }

    template <class Try>
    static bool wait_until(Try&& attempt, const Stop& stop) {
        Patience patience;
        while (!attempt()) {
            if (stop.is_set()) return false;
            patience.wait();
        }
        return true;
    }

    Slot slots_[batches];
    Counter pushed_;
    Counter popped_;
};

}  // namespace peers
