// What the programs over a GPU share: its name, streams that don't wait for one another, and errors as exceptions.
#pragma once

#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

#include "workloads.hpp"

namespace peers {

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline std::string device_name() {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return properties.name;
}

// Streams that live as long as the process.
class Streams {
public:
    Streams() {
        for (cudaStream_t& stream : streams_) {
            check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        }
    }
    cudaStream_t operator[](std::size_t number) const { return streams_[number]; }

private:
    std::array<cudaStream_t, stream_count> streams_{};
};

// An error of an earlier call is not to be taken for one of the next workload.
inline void forget_errors() {
    cudaDeviceSynchronize();
    cudaGetLastError();
}

}  // namespace peers
