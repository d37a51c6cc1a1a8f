// Prints the fingerprints of all drawn sequences, for comparison with those of the Rust program (`peers --golden`).
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <string>

#include "plan.hpp"

namespace {

// FNV-1a over whole numbers.
class Fingerprint {
public:
    void add(std::uint64_t number) { hash_ = (hash_ ^ number) * 0x100000001b3; }
    void print(const std::string& name) const { std::printf("%s %016" PRIx64 "\n", name.c_str(), hash_); }

private:
    std::uint64_t hash_ = 0xcbf29ce484222325;
};

void print(const std::string& name, const peers::Churn& churn) {
    Fingerprint fingerprint;
    for (const std::uint64_t bytes : churn.initial) fingerprint.add(bytes);
    for (const auto& step : churn.steps) {
        fingerprint.add(step.at);
        fingerprint.add(step.bytes);
    }
    fingerprint.add(churn.peak());
    fingerprint.print(name);
}

void print(const std::string& name, const std::vector<std::uint64_t>& sizes) {
    Fingerprint fingerprint;
    for (const std::uint64_t bytes : sizes) fingerprint.add(bytes);
    fingerprint.print(name);
}

void print(const std::string& name, const peers::RandomAllocations& plan) {
    Fingerprint fingerprint;
    for (const auto& step : plan.steps) {
        fingerprint.add(step.slot);
        fingerprint.add(step.bytes);
    }
    fingerprint.add(plan.slots);
    fingerprint.add(plan.peak_live);
    fingerprint.print(name);
}

}  // namespace

int main() {
    print("churn", peers::Churn::large());
    for (const std::uint32_t number : {0, 15}) {
        const std::string suffix = " " + std::to_string(number);
        print("thread" + suffix, peers::Churn::of_thread(number));
        print("array" + suffix, peers::Churn::of_array(number));
        print("producer" + suffix, peers::sizes_of_producer(number));
        print("xmalloc" + suffix, peers::sizes_of_xmalloc_producer(number));
    }
    for (const std::uint32_t most_mib : {1, 4, 64, 1024}) {
        print("random " + std::to_string(most_mib), peers::RandomAllocations(most_mib, 20000));
    }
    return 0;
}
