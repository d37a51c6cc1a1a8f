// The workloads through one of RMM's resources: pool, arena or async, each as its constructor makes it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <rmm/mr/arena_memory_resource.hpp>
#include <rmm/mr/cuda_async_memory_resource.hpp>
#include <rmm/mr/cuda_memory_resource.hpp>
#include <rmm/mr/pool_memory_resource.hpp>
#include <rmm/mr/statistics_resource_adaptor.hpp>

#include "device.hpp"
#include "program.hpp"

namespace {

using Upstream = rmm::mr::statistics_resource_adaptor;

constexpr std::size_t alignment = 256;

// A pool has to be told how large it is at first. Measured from the first allocation on it starts with nothing, so that
// it holds what it needs; measured warm it starts with half of the free memory, as in RMM's own benches.
std::size_t initial_bytes(peers::Purpose purpose) {
    if (purpose == peers::Purpose::cold) return 0;
    std::size_t free = 0, total = 0;
    peers::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free / 2 / alignment * alignment;
}

// A resource, and a count of what it takes from the device where it takes it through another.
template <class Resource>
class Memory {
public:
    Memory(Resource resource, std::optional<Upstream> upstream, const peers::Streams& streams)
        : resource_(std::move(resource)), upstream_(std::move(upstream)), streams_(streams) {}

    void* allocate(std::size_t bytes, std::uint32_t stream) {
        return resource_.allocate(cuda::stream_ref{streams_[stream]}, bytes, alignment);
    }
    void release(void* at, std::size_t bytes, std::uint32_t stream) {
        resource_.deallocate(cuda::stream_ref{streams_[stream]}, at, bytes, alignment);
    }
    void start_pass() {
        if constexpr (is_async) {
            std::uint64_t zero = 0;
            const auto attribute = cudaMemPoolAttrReservedMemHigh;
            peers::check(cudaMemPoolSetAttribute(resource_.pool_handle(), attribute, &zero), "cudaMemPoolSetAttribute");
        }
    }
    std::optional<std::uint64_t> peak_reserved() {
        if constexpr (is_async) {
            std::uint64_t bytes = 0;
            const auto attribute = cudaMemPoolAttrReservedMemHigh;
            peers::check(cudaMemPoolGetAttribute(resource_.pool_handle(), attribute, &bytes), "cudaMemPoolGetAttribute");
            return bytes;
        }
        if (!upstream_) return std::nullopt;
        return static_cast<std::uint64_t>(upstream_->get_bytes_counter().peak);
    }

private:
    static constexpr bool is_async = std::is_same_v<Resource, rmm::mr::cuda_async_memory_resource>;

    Resource resource_;
    std::optional<Upstream> upstream_;
    const peers::Streams& streams_;
};

template <class Make>
int run_through(const std::string& name, const peers::Options& options, Make make) {
    const peers::Identity who{"cuda", peers::device_name(), "rmm-" + name};
    return peers::Program(who, options, make).run();
}

int run(int count, char** arguments) {
    const peers::Options options = peers::Options::parse(count, arguments);
    const std::string name = options.words.empty() ? "" : options.words[0];
    peers::check(cudaFree(nullptr), "the device");
    const peers::Streams streams;
    if (name == "pool") {
        using Pool = rmm::mr::pool_memory_resource;
        return run_through(name, options, [&](peers::Purpose purpose) {
            peers::forget_errors();
            Upstream upstream{rmm::mr::cuda_memory_resource{}};
            return std::make_unique<Memory<Pool>>(Pool{upstream, initial_bytes(purpose)}, upstream, streams);
        });
    }
    if (name == "arena") {
        using Arena = rmm::mr::arena_memory_resource;
        return run_through(name, options, [&](peers::Purpose) {
            peers::forget_errors();
            Upstream upstream{rmm::mr::cuda_memory_resource{}};
            return std::make_unique<Memory<Arena>>(Arena{upstream}, upstream, streams);
        });
    }
    if (name == "async") {
        using Async = rmm::mr::cuda_async_memory_resource;
        return run_through(name, options, [&](peers::Purpose) {
            peers::forget_errors();
            return std::make_unique<Memory<Async>>(Async{}, std::nullopt, streams);
        });
    }
    throw std::runtime_error("name a resource: pool, arena or async");
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
