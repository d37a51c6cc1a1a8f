// The workloads through PyTorch's caching allocator, called as its tensors call it but without Python:
// PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment chooses its expandable segments. An argument is
// the name that the records give it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include <c10/cuda/CUDACachingAllocator.h>

#include "device.hpp"
#include "program.hpp"

namespace {

namespace caching = c10::cuda::CUDACachingAllocator;

// The allocator of the process, with nothing cached at first.
class Torch {
public:
    Torch(caching::CUDAAllocator& allocator, const peers::Streams& streams) : allocator_(allocator), streams_(streams) {
        peers::forget_errors();
        allocator_.emptyCache();
    }
    Torch(const Torch&) = delete;
    Torch& operator=(const Torch&) = delete;
    ~Torch() {
        try {
            allocator_.emptyCache();
        } catch (...) {
            // The next workload finds out.
        }
    }

    void* allocate(std::size_t bytes, std::uint32_t stream) {
        return allocator_.raw_alloc_with_stream(bytes, streams_[stream]);
    }
    void release(void* at, std::size_t, std::uint32_t) { allocator_.raw_delete(at); }
    void start_pass() { allocator_.resetPeakStats(0); }
    std::optional<std::uint64_t> peak_reserved() {
        // The first of the statistics of a kind is that of all its pools together.
        return static_cast<std::uint64_t>(allocator_.getDeviceStats(0).reserved_bytes[0].peak);
    }

private:
    caching::CUDAAllocator& allocator_;
    const peers::Streams& streams_;
};

int run(int count, char** arguments) {
    const peers::Options options = peers::Options::parse(count, arguments);
    peers::check(cudaFree(nullptr), "the device");
    caching::init(1);
    caching::CUDAAllocator& allocator = *caching::get();
    const peers::Streams streams;
    const peers::Identity who{"cuda", peers::device_name(), options.words.empty() ? "torch" : options.words[0]};
    const auto make = [&](peers::Purpose) { return std::make_unique<Torch>(allocator, streams); };
    return peers::Program(who, options, make).run();
}

}  // namespace

int main(int count, char** arguments) {
    int code = 1;
    try {
        code = run(count, arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", arguments[0], error.what());
    }
    std::fflush(stdout);
    // The libraries' own destructors run in an order that not all of them survive.
    std::_Exit(code);
}
