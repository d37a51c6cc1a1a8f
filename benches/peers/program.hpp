// What all programs share: the command line, and the workloads one after the other, each on fresh memory. One that
// fails is noted in a record, and the next is run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "record.hpp"
#include "threaded.hpp"
#include "workloads.hpp"

namespace peers {

struct Options {
    bool is_quick = false;
    std::vector<std::string> benches;
    std::vector<std::string> traces;
    // What stands alone, such as the name of a resource.
    std::vector<std::string> words;

    static Options parse(int count, char** arguments) {
        Options options;
        std::vector<std::string>* list = nullptr;
        for (int i = 1; i < count; ++i) {
            const std::string argument = arguments[i];
            if (argument == "--quick") {
                options.is_quick = true;
                list = nullptr;
            } else if (argument == "--bench" && i + 1 < count) {
                options.benches.push_back(arguments[++i]);
                list = nullptr;
            } else if (argument == "--trace") {
                list = &options.traces;
            } else if (argument.rfind("--", 0) == 0) {
                std::fprintf(stderr, "usage: %s [NAME] [--quick] [--bench NAME]... [--trace FILE...]\n", arguments[0]);
                std::exit(2);
            } else {
                (list ? *list : options.words).push_back(argument);
            }
        }
        return options;
    }

    bool wants(const std::string& bench) const {
        if (benches.empty()) return true;
        for (const std::string& name : benches) {
            if (name == bench) return true;
        }
        return false;
    }
};

// What a fresh memory is for: to be measured from its first allocation on, or once it is warm.
enum class Purpose { cold, warm };

// Runs what the options ask for. `make(Purpose)` gives a std::unique_ptr to fresh memory, which gives back all it has
// when it is destroyed.
template <class Make>
class Program {
public:
    Program(Identity who, Options options, Make make)
        : who_(std::move(who)), options_(std::move(options)), make_(std::move(make)) {}

    // The exit code: 1 if a workload failed.
    int run() {
        if (options_.wants("replay")) {
            for (const std::string& path : options_.traces) run_replay(path);
        }
        if (options_.wants("pair")) run_pair();
        if (options_.wants("churn")) run_churn_of_many();
        if (options_.wants("random")) run_random_allocations();
        if (options_.wants("threads")) run_on_threads("threads", [this](auto& memory, std::uint32_t count) {
            return run_threads(memory, count, schedule(Schedule::threads()));
        });
        if (options_.wants("producer_consumer")) run_producer_consumer();
        if (options_.wants("larson")) run_on_threads("larson", [this](auto& memory, std::uint32_t count) {
            return run_larson(memory, count, schedule(Schedule::threads()));
        });
        if (options_.wants("xmalloc")) run_xmalloc_threads();
        return failed_ ? 1 : 0;
    }

private:
    static constexpr std::uint32_t passes = 3;
    static constexpr std::size_t mib = std::size_t{1} << 20;

    Schedule schedule(const Schedule& full) const { return options_.is_quick ? full.quick() : full; }

    std::vector<std::uint32_t> counts(std::vector<std::uint32_t> all) const {
        if (options_.is_quick) all.resize(2);
        return all;
    }

    static std::string plural(std::uint32_t count, const std::string& what) {
        return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
    }

    void run_replay(const std::string& path) {
        Record record;
        record.bench = "replay";
        record.unit = "call";
        record.name = trace_name(path);
        record.pass = 1;
        noting_failures(record, [&] {
            const Trace trace = load_trace(path);
            if (trace.streams > stream_count) throw std::runtime_error("more streams than there are");
            record.streams = trace.streams;
            record.peak_live = trace.peak_live;
            in_passes(record, Purpose::cold, [&](auto& memory) { return replay(memory, trace); });
        });
    }

    void run_random_allocations() {
        for (const std::uint32_t most_mib : {1, 4, 64, 1024}) {
            Record record;
            record.bench = "random";
            record.unit = "call";
            record.name = "up to " + std::to_string(most_mib) + " MiB";
            record.pass = 1;
            noting_failures(record, [&] {
                const RandomAllocations plan(most_mib, options_.is_quick ? 2000 : 100000);
                record.peak_live = plan.peak_live;
                in_passes(record, Purpose::warm, [&](auto& memory) { return run_random(memory, plan); });
            });
        }
    }

    template <class Work>
    void in_passes(Record& record, Purpose purpose, Work&& work) {
        auto memory = make_(purpose);
        for (std::uint32_t number = 1; number <= passes && record.complete; ++number) {
            record.pass = number;
            memory->start_pass();
            const Pass pass = work(*memory);
            record.ops = pass.ops;
            record.elapsed_ns = static_cast<std::uint64_t>(pass.elapsed.count());
            record.per_second = static_cast<double>(pass.ops) * 1e9 / static_cast<double>(pass.elapsed.count());
            record.complete = pass.complete;
            record.peak_reserved = memory->peak_reserved();
            print(who_, record);
        }
    }

    void run_pair() {
        const std::pair<const char*, std::size_t> sizes[] = {
            {"512 B", 512}, {"64 KiB", 64 << 10}, {"1 MiB", mib}, {"20 MiB", 20 * mib}, {"256 MiB", 256 * mib}};
        for (const auto& [name, bytes] : sizes) {
            Record record;
            record.bench = "pair";
            record.name = name;
            record.peak_live = bytes;
            in_rounds(record, [&, size = bytes](auto& memory) {
                return run_pairs(memory, size, schedule(Schedule::one_thread()));
            });
        }
    }

    void run_churn_of_many() {
        const Churn churn = Churn::large();
        Record record;
        record.bench = "churn";
        record.name = "2000 live";
        record.peak_live = churn.peak();
        in_rounds(record, [&](auto& memory) { return run_churn(memory, churn, schedule(Schedule::one_thread())); });
    }

    template <class Work>
    void run_on_threads(const std::string& bench, Work&& work) {
        for (const std::uint32_t count : counts({1, 2, 4, 8, 16})) {
            Record record;
            record.bench = bench;
            record.name = plural(count, "thread");
            record.threads = record.streams = count;
            in_rounds(record, [&](auto& memory) { return work(memory, count); });
        }
    }

    void run_producer_consumer() {
        for (const std::uint32_t count : counts({1, 4, 8})) {
            const std::pair<Handing, std::string> kinds[] = {
                {Handing::two_threads, plural(count, "pair")},
                {Handing::one_thread_through_the_ring, plural(count, "thread") + ", ring"},
                {Handing::one_thread_batch_by_batch, plural(count, "thread") + ", batch"}};
            for (const auto& [handing, name] : kinds) {
                Record record;
                record.bench = "producer_consumer";
                record.name = name;
                record.threads = threads_of(handing) * count;
                record.streams = count;
                in_rounds(record, [&, kind = handing](auto& memory) {
                    return run_producers_and_consumers(memory, count, kind, schedule(Schedule::threads()));
                });
            }
        }
    }

    void run_xmalloc_threads() {
        for (const std::uint32_t count : counts({1, 4, 8})) {
            Record record;
            record.bench = "xmalloc";
            record.name = std::to_string(count) + " + " + plural(count, "thread");
            record.threads = 2 * count;
            record.streams = count;
            in_rounds(record, [&](auto& memory) { return run_xmalloc(memory, count, schedule(Schedule::threads())); });
        }
    }

    template <class Work>
    void in_rounds(Record& record, Work&& work) {
        noting_failures(record, [&] {
            auto memory = make_(Purpose::warm);
            memory->start_pass();
            const Measured measured = work(*memory);
            record.ops = measured.ops;
            record.elapsed_ns = static_cast<std::uint64_t>(measured.elapsed.count());
            record.per_second = measured.per_second;
            record.peak_reserved = memory->peak_reserved();
            print(who_, record);
        });
    }

    template <class Work>
    void noting_failures(Record& record, Work&& work) {
        try {
            work();
            return;
        } catch (const std::exception& error) {
            record.error = error.what();
        } catch (...) {
            record.error = "something that is no std::exception was thrown";
        }
        failed_ = true;
        record.complete = false;
        record.ops = record.elapsed_ns = 0;
        record.per_second = std::nullopt;
        record.peak_reserved = std::nullopt;
        print(who_, record);
    }

    Identity who_;
    Options options_;
    Make make_;
    bool failed_ = false;
};

}  // namespace peers
