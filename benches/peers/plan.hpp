// What each workload does, drawn before any clock starts; the counterpart of benches/src/peers/plan.rs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "random.hpp"

namespace peers {

// A set of living blocks, one of which is released and replaced in each step.
struct Churn {
    struct Step {
        std::uint32_t at;
        std::uint64_t bytes;
    };
    std::vector<std::uint64_t> initial;
    std::vector<Step> steps;

    static Churn draw(std::uint64_t sequence, std::uint32_t live, std::size_t steps, std::uint32_t doublings) {
        Random random(sequence);
        Churn churn;
        for (std::uint32_t i = 0; i < live; ++i) churn.initial.push_back(random.log_uniform(512, doublings));
        for (std::size_t i = 0; i < steps; ++i) {
            const std::uint32_t at = random.below(live);
            churn.steps.push_back({at, random.log_uniform(512, doublings)});
        }
        return churn;
    }

    // 2,000 blocks of 512 B to 16 MiB.
    static Churn large() { return draw(1, 2000, 100000, 15); }
    // 200 blocks of 512 B to 1 MiB on the thread of this number.
    static Churn of_thread(std::uint32_t number) { return draw(100 + number, 200, 50000, 11); }
    // 1,000 blocks of 512 B to 1 MiB in the array of this number.
    static Churn of_array(std::uint32_t number) { return draw(300 + number, 1000, 50000, 11); }

    // The most bytes that live at one time while the steps are done once.
    std::uint64_t peak() const {
        std::vector<std::uint64_t> sizes = initial;
        std::uint64_t live = 0;
        for (const std::uint64_t bytes : sizes) live += bytes;
        std::uint64_t peak = live;
        for (const Step& step : steps) {
            live = live - sizes[step.at] + step.bytes;
            sizes[step.at] = step.bytes;
            peak = std::max(peak, live);
        }
        return peak;
    }
};

// Sizes of 512 B to 1 MiB.
inline std::vector<std::uint64_t> draw_sizes(std::uint64_t sequence) {
    Random random(sequence);
    std::vector<std::uint64_t> sizes;
    for (int i = 0; i < 50000; ++i) sizes.push_back(random.log_uniform(512, 11));
    return sizes;
}

inline std::vector<std::uint64_t> sizes_of_producer(std::uint32_t number) { return draw_sizes(200 + number); }
inline std::vector<std::uint64_t> sizes_of_xmalloc_producer(std::uint32_t number) { return draw_sizes(400 + number); }

// Allocations of random sizes and releases of random blocks, after the bench of random allocations that comes with
// RMM: 73 of 100 operations allocate as long as what lives stays within the cap.
struct RandomAllocations {
    struct Step {
        std::uint32_t slot;
        // 0 for the release of the block in the slot.
        std::uint32_t bytes;
    };
    std::vector<Step> steps;
    std::uint32_t slots = 0;
    std::uint64_t peak_live = 0;

    static constexpr std::uint32_t allocations_of_100 = 73;
    static constexpr std::uint64_t cap = std::uint64_t{16000} << 20;

    RandomAllocations(std::uint32_t most_mib, std::uint32_t allocations) {
        Random random(500 + most_mib);
        std::vector<Step> living;
        std::vector<std::uint32_t> free;
        std::uint32_t made = 0;
        std::uint64_t live = 0;
        while (made < allocations || !living.empty()) {
            const std::uint32_t bytes = 1 + random.below(most_mib << 20);
            const bool wanted = random.below(100) < allocations_of_100;
            const bool fits = live + bytes <= cap;
            if (made < allocations && fits && (wanted || living.empty())) {
                std::uint32_t slot = slots;
                if (free.empty()) {
                    ++slots;
                } else {
                    slot = free.back();
                    free.pop_back();
                }
                living.push_back({slot, bytes});
                steps.push_back({slot, bytes});
                live += bytes;
                peak_live = std::max(peak_live, live);
                ++made;
            } else {
                const std::uint32_t at = random.below(static_cast<std::uint32_t>(living.size()));
                const Step block = living[at];
                living[at] = living.back();
                living.pop_back();
                free.push_back(block.slot);
                steps.push_back({block.slot, 0});
                live -= block.bytes;
            }
        }
    }
};

}  // namespace peers
