// The workloads of one thread: replay, pair, churn and random allocations, over any memory.
//
// A memory is a class with these members, of which the first two may throw:
//
//     void* allocate(std::size_t bytes, std::uint32_t stream);
//     void release(void* at, std::size_t bytes, std::uint32_t stream);
//     void start_pass();                              // peaks begin anew, where that is possible
//     std::optional<std::uint64_t> peak_reserved();   // bytes held from the device
//
// Streams are numbers below `stream_count`; the memory knows what stands for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "plan.hpp"
#include "schedule.hpp"
#include "trace.hpp"

namespace peers {

inline constexpr std::uint32_t stream_count = 16;

struct Block {
    void* at = nullptr;
    std::size_t bytes = 0;
};

// Keeps the compiler from looking through a value.
template <class T>
inline void opaque(T& value) {
    asm volatile("" : "+r"(value) : : "memory");
}

// Releases a block when nobody is left to be told of a failure.
template <class Memory>
void release_quietly(Memory& memory, const Block& block, std::uint32_t stream) noexcept {
    try {
        memory.release(block.at, block.bytes, stream);
    } catch (...) {
    }
}

// A churn in progress. Its blocks are released when it is destroyed.
template <class Memory>
class Churning {
public:
    Churning(Memory& memory, std::uint32_t stream, Churn churn)
        : memory_(&memory), stream_(stream), steps_(std::move(churn.steps)) {
        blocks_.reserve(churn.initial.size());
        try {
            for (const std::uint64_t bytes : churn.initial) blocks_.push_back({memory.allocate(bytes, stream), bytes});
        } catch (...) {
            give_back();
            throw;
        }
    }
    Churning(Churning&& other) noexcept = default;
    Churning& operator=(Churning&&) = delete;
    ~Churning() { give_back(); }

    // Starts over when the sequence is at its end.
    void steps(std::uint64_t units) {
        for (std::uint64_t i = 0; i < units; ++i) {
            const Churn::Step& step = steps_[next_];
            next_ = next_ + 1 == steps_.size() ? 0 : next_ + 1;
            Block& block = blocks_[step.at];
            memory_->release(block.at, block.bytes, stream_);
            block.at = nullptr;
            block = {memory_->allocate(step.bytes, stream_), step.bytes};
        }
    }

private:
    void give_back() noexcept {
        for (const Block& block : blocks_) {
            if (block.at) release_quietly(*memory_, block, stream_);
        }
        blocks_.clear();
    }

    Memory* memory_;
    std::uint32_t stream_;
    std::vector<Churn::Step> steps_;
    std::vector<Block> blocks_;
    std::size_t next_ = 0;
};

template <class Memory>
Measured run_pairs(Memory& memory, std::size_t bytes, const Schedule& schedule) {
    return schedule.measure([&](std::uint64_t units) {
        for (std::uint64_t i = 0; i < units; ++i) {
            opaque(bytes);
            void* at = memory.allocate(bytes, 0);
            opaque(at);
            memory.release(at, bytes, 0);
        }
    });
}

template <class Memory>
Measured run_churn(Memory& memory, const Churn& churn, const Schedule& schedule) {
    Churning<Memory> churning(memory, 0, churn);
    return schedule.measure([&](std::uint64_t units) { churning.steps(units); });
}

// One run over a sequence: how far it came, and in which time.
struct Pass {
    std::uint64_t ops = 0;
    Nanoseconds elapsed{0};
    bool complete = true;
};

// A pass that takes longer is ended.
inline constexpr std::chrono::seconds pass_limit{3};

// Calls `step` for each of so many operations, and looks at the clock now and then.
template <class Step>
Pass run_pass(std::size_t operations, Step&& step) {
    constexpr std::size_t batch = 1024;
    const auto start = Clock::now();
    Pass pass;
    for (std::size_t i = 0; i < operations;) {
        const std::size_t end = std::min(operations, i + batch);
        for (; i < end; ++i) step(i);
        pass.elapsed = Clock::now() - start;
        if (pass.elapsed > pass_limit && i < operations) {
            pass.ops = i;
            pass.complete = false;
            return pass;
        }
    }
    pass.ops = operations;
    return pass;
}

// Blocks in slots. Those that live are released when it is destroyed, on the first stream.
template <class Memory>
class Slots {
public:
    Slots(Memory& memory, std::size_t count) : memory_(&memory), blocks_(count) {}
    Slots(const Slots&) = delete;
    Slots& operator=(const Slots&) = delete;
    ~Slots() {
        for (const Block& block : blocks_) {
            if (block.at) release_quietly(*memory_, block, 0);
        }
    }

    void allocate(std::uint32_t slot, std::size_t bytes, std::uint32_t stream) {
        blocks_[slot] = {memory_->allocate(bytes, stream), bytes};
    }

    void release(std::uint32_t slot, std::uint32_t stream) {
        Block& block = blocks_[slot];
        memory_->release(block.at, block.bytes, stream);
        block.at = nullptr;
    }

private:
    Memory* memory_;
    std::vector<Block> blocks_;
};

template <class Memory>
Pass replay(Memory& memory, const Trace& trace) {
    Slots<Memory> slots(memory, trace.slots);
    return run_pass(trace.calls.size(), [&](std::size_t i) {
        const Trace::Call& call = trace.calls[i];
        if (call.is_release) {
            slots.release(call.slot, call.stream);
        } else {
            slots.allocate(call.slot, call.bytes, call.stream);
        }
    });
}

template <class Memory>
Pass run_random(Memory& memory, const RandomAllocations& plan) {
    Slots<Memory> slots(memory, plan.slots);
    return run_pass(plan.steps.size(), [&](std::size_t i) {
        const RandomAllocations::Step& step = plan.steps[i];
        if (step.bytes == 0) {
            slots.release(step.slot, 0);
        } else {
            slots.allocate(step.slot, step.bytes, 0);
        }
    });
}

}  // namespace peers
