// The workloads through the C library's heap: to see on any machine that they work.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>

#include "program.hpp"

namespace {

class Heap {
public:
    void* allocate(std::size_t bytes, std::uint32_t) {
        void* at = std::malloc(bytes);
        if (!at) throw std::bad_alloc();
        return at;
    }
    void release(void* at, std::size_t, std::uint32_t) { std::free(at); }
    void start_pass() {}
    std::optional<std::uint64_t> peak_reserved() { return std::nullopt; }
};

}  // namespace

int main(int count, char** arguments) {
    const peers::Identity who{"cpu", "host", "heap"};
    const auto make = [](peers::Purpose) { return std::make_unique<Heap>(); };
    return peers::Program(who, peers::Options::parse(count, arguments), make).run();
}
