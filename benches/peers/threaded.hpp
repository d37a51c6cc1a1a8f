// The workloads of several threads, over any memory: threads, producer/consumer, larson and xmalloc. What each does
// stands in the files of the same names in benches/src/peers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "lanes.hpp"
#include "plan.hpp"
#include "ring.hpp"
#include "workloads.hpp"

namespace peers {

// Each thread on its own stream, with 200 living blocks.
template <class Memory>
Measured run_threads(Memory& memory, std::uint32_t count, const Schedule& schedule) {
    return measure(
        schedule, count,
        [&](std::uint32_t number) { return Churning<Memory>(memory, number, Churn::of_thread(number)); },
        [](Churning<Memory>& churning, Lane& lane, const Stop& stop) {
            while (!stop.is_set()) {
                churning.steps(Lane::batch);
                lane.add(Lane::batch);
            }
        });
}

// Arrays of 1,000 blocks, each handed to a new thread after 20,000 operations.
template <class Memory>
Measured run_larson(Memory& memory, std::uint32_t count, const Schedule& schedule) {
    constexpr std::uint64_t operations_of_a_thread = 20000;
    const auto work_on = [](Churning<Memory>& array, Lane& lane, const Stop& stop) {
        for (std::uint64_t done = 0; done < operations_of_a_thread && !stop.is_set(); done += Lane::batch) {
            array.steps(Lane::batch);
            lane.add(Lane::batch);
        }
    };
    return measure(
        schedule, count,
        [&](std::uint32_t number) { return Churning<Memory>(memory, number, Churn::of_array(number)); },
        [&](Churning<Memory>& array, Lane& lane, const Stop& stop) {
            while (!stop.is_set()) {
                std::exception_ptr failure;
                std::thread worker([&] {
                    try {
                        work_on(array, lane, stop);
                    } catch (...) {
                        failure = std::current_exception();
                    }
                });
                worker.join();
                if (failure) std::rethrow_exception(failure);
            }
        });
}

// Sizes that are allocated one after the other, again and again.
class Sizes {
public:
    explicit Sizes(std::vector<std::uint64_t> sizes) : sizes_(std::move(sizes)) {}

    std::uint64_t next() {
        const std::uint64_t bytes = sizes_[next_];
        next_ = next_ + 1 == sizes_.size() ? 0 : next_ + 1;
        return bytes;
    }

private:
    std::vector<std::uint64_t> sizes_;
    std::size_t next_ = 0;
};

// Blocks of one stream that are handed over together. What is left in it is released when it is destroyed.
template <class Memory>
class Batch {
public:
    Batch(Memory& memory, std::uint32_t stream) : memory_(&memory), stream_(stream) { blocks.reserve(batch_items); }
    Batch(Batch&& other) noexcept = default;
    Batch& operator=(Batch&&) = delete;
    ~Batch() {
        for (const Block& block : blocks) {
            if (block.at) release_quietly(*memory_, block, stream_);
        }
    }

    void set_stream(std::uint32_t stream) { stream_ = stream; }

    void fill(Sizes& sizes) {
        while (blocks.size() < batch_items) {
            const std::uint64_t bytes = sizes.next();
            blocks.push_back({memory_->allocate(bytes, stream_), bytes});
        }
    }

    void drain() {
        for (Block& block : blocks) {
            memory_->release(block.at, block.bytes, stream_);
            block.at = nullptr;
        }
        blocks.clear();
    }

    std::vector<Block> blocks;

private:
    Memory* memory_;
    std::uint32_t stream_;
};

enum class Handing { two_threads, one_thread_through_the_ring, one_thread_batch_by_batch };

inline std::uint32_t threads_of(Handing handing) { return handing == Handing::two_threads ? 2 : 1; }

template <class Memory>
struct Side {
    Batch<Memory> batch;
    Ring<Block>* ring;
    std::uint32_t stream;
    std::optional<Sizes> sizes;

    void produce(const Stop& stop) {
        while (!stop.is_set()) {
            batch.fill(*sizes);
            if (!ring->push(batch.blocks, stop)) break;
        }
    }

    void consume(Lane& lane, const Stop& stop) {
        while (!stop.is_set() && ring->pop(batch.blocks, stop)) {
            batch.drain();
            lane.add(batch_items);
        }
    }

    void go_round(Memory& memory, Lane& lane, const Stop& stop) {
        Batch<Memory> oldest(memory, stream);
        while (!stop.is_set()) {
            batch.fill(*sizes);
            if (ring->try_push(batch.blocks)) continue;
            ring->try_pop(oldest.blocks);
            oldest.drain();
            lane.add(batch_items);
            ring->try_push(batch.blocks);
        }
    }

    void go_batch_by_batch(Lane& lane, const Stop& stop) {
        while (!stop.is_set()) {
            batch.fill(*sizes);
            batch.drain();
            lane.add(batch_items);
        }
    }
};

// One thread allocates and another releases, or one does both, on each of so many streams.
template <class Memory>
Measured run_producers_and_consumers(Memory& memory, std::uint32_t count, Handing handing, const Schedule& schedule) {
    std::vector<Ring<Block>> rings(count);
    const auto empty_the_rings = [&] {
        for (std::uint32_t stream = 0; stream < count; ++stream) {
            Batch<Memory> rest(memory, stream);
            while (rings[stream].try_pop(rest.blocks)) rest.drain();
        }
    };
    const auto prepare = [&](std::uint32_t number) {
        const std::uint32_t pair = number / threads_of(handing);
        const bool is_consumer = handing == Handing::two_threads && number % 2 == 1;
        Side<Memory> side{Batch<Memory>(memory, pair), &rings[pair], pair, std::nullopt};
        if (!is_consumer) side.sizes.emplace(sizes_of_producer(pair));
        return side;
    };
    const auto work = [&](Side<Memory>& side, Lane& lane, const Stop& stop) {
        if (!side.sizes) {
            side.consume(lane, stop);
        } else if (handing == Handing::two_threads) {
            side.produce(stop);
        } else if (handing == Handing::one_thread_through_the_ring) {
            side.go_round(memory, lane, stop);
        } else {
            side.go_batch_by_batch(lane, stop);
        }
    };
    try {
        const Measured measured = measure(schedule, threads_of(handing) * count, prepare, work);
        empty_the_rings();
        return measured;
    } catch (...) {
        empty_the_rings();
        throw;
    }
}

// Batches behind a lock, first in, first out.
template <class Memory>
class Queue {
public:
    void put(Batch<Memory>&& batch) {
        const std::lock_guard guard(lock_);
        batches_.push_back(std::move(batch));
    }

    // Waits for a batch; nothing if it is time to stop.
    std::optional<Batch<Memory>> wait_for(const Stop& stop) {
        Patience patience;
        while (!stop.is_set()) {
            if (auto batch = take()) return batch;
            patience.wait();
        }
        return std::nullopt;
    }

private:
    std::optional<Batch<Memory>> take() {
        const std::lock_guard guard(lock_);
        if (batches_.empty()) return std::nullopt;
        std::optional<Batch<Memory>> batch(std::move(batches_.front()));
        batches_.pop_front();
        return batch;
    }

    std::mutex lock_;
    std::deque<Batch<Memory>> batches_;
};

// So many threads that allocate batches, and as many that release whatever batch they get.
template <class Memory>
Measured run_xmalloc(Memory& memory, std::uint32_t count, const Schedule& schedule) {
    constexpr std::uint32_t batches_of_a_producer = 4;
    Queue<Memory> empty, full;
    for (std::uint32_t i = 0; i < batches_of_a_producer * count; ++i) empty.put(Batch<Memory>(memory, 0));
    const auto prepare = [](std::uint32_t number) {
        std::optional<std::pair<Sizes, std::uint32_t>> producer;
        if (number % 2 == 0) producer.emplace(Sizes(sizes_of_xmalloc_producer(number / 2)), number / 2);
        return producer;
    };
    const auto work = [&](std::optional<std::pair<Sizes, std::uint32_t>>& producer, Lane& lane, const Stop& stop) {
        if (producer) {
            auto& [sizes, stream] = *producer;
            while (auto batch = empty.wait_for(stop)) {
                batch->set_stream(stream);
                batch->fill(sizes);
                full.put(std::move(*batch));
            }
        } else {
            while (auto batch = full.wait_for(stop)) {
                batch->drain();
                lane.add(batch_items);
                empty.put(std::move(*batch));
            }
        }
    };
    // Batches that are still in the queues release their blocks when those go.
    return measure(schedule, 2 * count, prepare, work);
}

}  // namespace peers
