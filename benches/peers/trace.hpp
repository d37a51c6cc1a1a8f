// Loads a recording: plain CSV in the format of RMM's logging adaptor, with the columns
// Thread,Time,Action,Pointer,Size,Stream. `peers --write-csv` writes such files from the compressed ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace peers {

struct Trace {
    struct Call {
        std::uint32_t slot;
        std::uint32_t stream;
        std::uint64_t bytes;
        bool is_release;
    };
    std::string name;
    // What still lives at the end of the recording is released at the end, in the order of allocation, on the stream
    // of its allocation.
    std::vector<Call> calls;
    std::uint32_t slots = 0;
    std::uint32_t streams = 0;
    std::uint64_t peak_live = 0;
};

struct TraceLoader {
    struct Living {
        std::uint64_t number;
        Trace::Call allocation;
    };

    Trace trace;
    std::uint64_t live = 0;
    std::uint64_t allocations = 0;
    std::vector<std::uint32_t> free;
    std::unordered_map<std::uint64_t, Living> living;
    std::unordered_map<std::uint64_t, std::uint32_t> streams;

    bool add(const std::string& line) {
        std::vector<std::string> cells;
        for (std::size_t start = 0; start <= line.size();) {
            const std::size_t end = std::min(line.find(',', start), line.size());
            cells.push_back(line.substr(start, end - start));
            start = end + 1;
        }
        if (cells.size() < 6) return false;
        std::uint64_t pointer = 0, bytes = 0, handle = 0;
        try {
            pointer = std::stoull(cells[3], nullptr, 16);
            bytes = std::stoull(cells[4]);
            handle = std::stoull(cells[5], nullptr, 16);
        } catch (const std::exception&) {
            return false;
        }
        const auto stream = streams.emplace(handle, static_cast<std::uint32_t>(streams.size())).first->second;
        if (cells[2] == "allocate") return allocate(pointer, bytes, stream);
        if (cells[2] == "free") return release(pointer, stream);
        // Failed allocations are no operations.
        return cells[2] == "allocate failure";
    }

    bool allocate(std::uint64_t pointer, std::uint64_t bytes, std::uint32_t stream) {
        std::uint32_t slot = trace.slots;
        if (free.empty()) {
            ++trace.slots;
        } else {
            slot = free.back();
            free.pop_back();
        }
        const Trace::Call call{slot, stream, bytes, false};
        if (!living.emplace(pointer, Living{allocations++, call}).second) return false;
        trace.calls.push_back(call);
        live += bytes;
        trace.peak_live = std::max(trace.peak_live, live);
        return true;
    }

    bool release(std::uint64_t pointer, std::uint32_t stream) {
        const auto found = living.find(pointer);
        if (found == living.end()) return false;
        const Trace::Call allocation = found->second.allocation;
        living.erase(found);
        trace.calls.push_back({allocation.slot, stream, allocation.bytes, true});
        free.push_back(allocation.slot);
        live -= allocation.bytes;
        return true;
    }

    void finish() {
        std::map<std::uint64_t, Trace::Call> rest;
        for (const auto& [pointer, block] : living) rest.emplace(block.number, block.allocation);
        for (const auto& [order, call] : rest) trace.calls.push_back({call.slot, call.stream, call.bytes, true});
        trace.streams = static_cast<std::uint32_t>(streams.size());
    }
};

// The file's name up to its first point.
inline std::string trace_name(const std::string& path) {
    const std::string file = path.substr(path.find_last_of('/') + 1);
    return file.substr(0, file.find('.'));
}

inline Trace load_trace(const std::string& path) {
    std::ifstream input(path);
    if (!input) throw std::runtime_error("cannot open " + path);
    TraceLoader loader;
    std::string line;
    for (std::size_t number = 1; std::getline(input, line); ++number) {
        if (line.empty() || (number == 1 && line.rfind("Thread,", 0) == 0)) continue;
        if (!loader.add(line)) throw std::runtime_error(path + ", line " + std::to_string(number) + ": " + line);
    }
    loader.finish();
    loader.trace.name = trace_name(path);
    return std::move(loader.trace);
}

}  // namespace peers
