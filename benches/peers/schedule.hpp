// For how long a workload is measured, and what comes of it; the counterpart of benches/src/peers/schedule.rs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace peers {

using Clock = std::chrono::steady_clock;
using Nanoseconds = std::chrono::nanoseconds;

struct Round {
    std::uint64_t ops;
    Nanoseconds time;

    double per_second() const { return static_cast<double>(ops) * 1e9 / static_cast<double>(time.count()); }
};

// What a workload did in all rounds, and how fast: the median of the rounds.
struct Measured {
    std::uint64_t ops = 0;
    Nanoseconds elapsed{0};
    double per_second = 0;

    static Measured of_rounds(const std::vector<Round>& rounds) {
        Measured measured;
        std::vector<double> rates;
        for (const Round& round : rounds) {
            measured.ops += round.ops;
            measured.elapsed += round.time;
            rates.push_back(round.per_second());
        }
        std::sort(rates.begin(), rates.end());
        if (!rates.empty()) measured.per_second = rates[rates.size() / 2];
        return measured;
    }
};

// A warm-up, then rounds of one length.
struct Schedule {
    Nanoseconds warm;
    Nanoseconds round;
    int rounds;

    static Schedule one_thread() { return {std::chrono::milliseconds(60), std::chrono::milliseconds(60), 5}; }
    static Schedule threads() { return {std::chrono::milliseconds(75), std::chrono::milliseconds(150), 3}; }
    // A twentieth of the time: to see that everything works.
    Schedule quick() const { return {warm / 20, round / 20, rounds}; }

    // Measures what one thread does. `work` is told how many operations to do.
    template <class Work>
    Measured measure(Work&& work) const {
        run_for(warm, work);
        std::vector<Round> done;
        for (int i = 0; i < rounds; ++i) done.push_back(run_for(round, work));
        return Measured::of_rounds(done);
    }

private:
    // Operations between two looks at the clock.
    static constexpr std::uint64_t batch = 4096;

    template <class Work>
    static Round run_for(Nanoseconds time, Work&& work) {
        const auto start = Clock::now();
        std::uint64_t ops = 0;
        for (;;) {
            work(batch);
            ops += batch;
            const Nanoseconds elapsed = Clock::now() - start;
            if (elapsed >= time) return {ops, elapsed};
        }
    }
};

}  // namespace peers
