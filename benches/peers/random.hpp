// The generator of all drawn sequences, and sizes made of whole numbers alone: the same numbers as the Rust program
// draws (benches/src/peers/draw.rs says what they are).
#pragma once

#include <cstdint>

namespace peers {

// xorshift64* (Vigna 2014).
class Random {
public:
    // Numbers of sequences that follow one another give states that are far apart.
    explicit Random(std::uint64_t sequence) : state_(sequence * 0x9e3779b97f4a7c15) {
        if (state_ == 0) state_ = 1;
    }

    std::uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1d;
    }

    // A number below the bound.
    std::uint32_t below(std::uint32_t bound) {
        return static_cast<std::uint32_t>(((next() >> 32) * bound) >> 32);
    }

    // From `low` up to, not including, `low` times two to the `doublings`, evenly in the logarithm.
    std::uint64_t log_uniform(std::uint64_t low, std::uint32_t doublings) {
        constexpr std::uint64_t one = std::uint64_t{1} << 32;
        constexpr std::uint64_t coefficient = 0x57ef9db2;
        const std::uint64_t exponent = (next() >> 32) * doublings;
        const std::uint64_t whole = exponent >> 32, fraction = exponent & 0xffffffff;
        const std::uint64_t square = (fraction * fraction) >> 32;
        const std::uint64_t power = one + ((fraction * (one - coefficient)) >> 32) + ((square * coefficient) >> 32);
        return ((low << whole) * power) >> 32;
    }

private:
    std::uint64_t state_;
};

}  // namespace peers
