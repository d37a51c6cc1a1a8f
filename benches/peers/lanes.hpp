// Threads that work until they are told to stop, and whose rates are read while they do; the counterpart of
// benches/src/peers/lanes.rs.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <exception>
#include <optional>
#include <thread>
#include <vector>

#include "schedule.hpp"

namespace peers {

// How many operations a thread has done. Only the thread that owns the lane counts.
class alignas(128) Lane {
public:
    // Operations between two looks at whether to stop.
    static constexpr std::uint64_t batch = 64;

    void add(std::uint64_t ops) { done_.store(done_.load(std::memory_order_relaxed) + ops, std::memory_order_relaxed); }
    std::uint64_t done() const { return done_.load(std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> done_{0};
};

class alignas(128) Stop {
public:
    bool is_set() const { return is_set_.load(std::memory_order_relaxed); }
    void set() { is_set_.store(true, std::memory_order_relaxed); }

private:
    std::atomic<bool> is_set_{false};
};

// Waits a little for another thread: 64 times on the processor, then by letting others run.
class Patience {
public:
    void wait() {
        if (waited_ < 64) {
            ++waited_;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            asm volatile("isb");
#endif
        } else {
            std::this_thread::yield();
        }
    }

private:
    int waited_ = 0;
};

// How many times as long as it is meant to be a round may take.
inline constexpr int longest_round = 100;

// Runs `work` on so many threads at a time and measures their rates together. Each thread first makes ready what it
// works with, which is not measured, and drops it when all has been measured. Throws what the first thread that failed
// threw.
template <class Prepare, class Work>
Measured measure(const Schedule& schedule, std::uint32_t threads, Prepare&& prepare, Work&& work) {
    std::vector<Lane> lanes(threads);
    std::vector<std::exception_ptr> failures(threads);
    Stop stop;
    std::barrier ready(static_cast<std::ptrdiff_t>(threads) + 1);
    std::vector<std::thread> workers;
    for (std::uint32_t number = 0; number < threads; ++number) {
        workers.emplace_back([&, number] {
            std::optional<decltype(prepare(number))> prepared;
            try {
                prepared.emplace(prepare(number));
            } catch (...) {
                failures[number] = std::current_exception();
            }
            // Even a thread that failed comes here, so that the others don't wait for ever.
            ready.arrive_and_wait();
            try {
                if (prepared) work(*prepared, lanes[number], stop);
            } catch (...) {
                failures[number] = std::current_exception();
            }
            if (failures[number]) stop.set();
        });
    }
    ready.arrive_and_wait();
    std::vector<Round> rounds;
    const auto sum = [&] {
        std::uint64_t done = 0;
        for (const Lane& lane : lanes) done += lane.done();
        return done;
    };
    std::this_thread::sleep_for(schedule.warm);
    auto time = Clock::now();
    std::uint64_t done = sum();
    for (int i = 0; i < schedule.rounds && !stop.is_set(); ++i) {
        // A round in which nothing was done goes on until something is: on a machine that has other things to do a short
        // one may pass before a thread has its turn, and would tell of a rate of zero.
        auto now = time;
        std::uint64_t now_done = done;
        for (int j = 0; j < longest_round; ++j) {
            std::this_thread::sleep_for(schedule.round);
            now = Clock::now();
            now_done = sum();
            if (now_done > done || stop.is_set()) break;
        }
        rounds.push_back({now_done - done, now - time});
        time = now;
        done = now_done;
    }
    stop.set();
    for (std::thread& worker : workers) worker.join();
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
    return Measured::of_rounds(rounds);
}

}  // namespace peers
