// One line of results; the counterpart of benches/src/peers/record.rs, which says what the fields are.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace peers {

// What all records of a program have in common.
struct Identity {
    std::string backend;
    std::string device;
    std::string allocator;
};

struct Record {
    std::string bench;
    std::string name;
    std::uint32_t threads = 1;
    std::uint32_t streams = 1;
    std::optional<std::uint32_t> pass;
    std::string unit = "pair";
    std::uint64_t ops = 0;
    std::uint64_t elapsed_ns = 0;
    std::optional<double> per_second;
    std::optional<std::uint64_t> peak_live;
    std::optional<std::uint64_t> peak_reserved;
    bool complete = true;
    std::optional<std::string> error;
};

// A string as JSON has it.
inline std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        const auto code = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (code < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", code);
            out += escape;
        } else if (code < 0x80) {
            out += c;
        } else {
            // Messages of peers are not always UTF-8.
            out += '?';
        }
    }
    return out + "\"";
}

inline std::string number(std::uint64_t value) { return std::to_string(value); }

inline std::string number(double value) {
    if (!std::isfinite(value)) return "null";
    char text[40];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

template <class T>
std::string or_null(const std::optional<T>& value) {
    return value ? number(*value) : "null";
}

inline void print(const Identity& who, const Record& record) {
    std::optional<double> ns, ratio;
    if (record.per_second && *record.per_second > 0) ns = 1e9 / *record.per_second;
    if (record.peak_reserved && record.peak_live && *record.peak_live > 0) {
        ratio = static_cast<double>(*record.peak_reserved) / static_cast<double>(*record.peak_live);
    }
    std::optional<std::uint64_t> pass;
    if (record.pass) pass = *record.pass;
    std::string line = "{\"bench\":" + quoted(record.bench);
    line += ",\"backend\":" + quoted(who.backend);
    line += ",\"device\":" + quoted(who.device);
    line += ",\"allocator\":" + quoted(who.allocator);
    line += ",\"case\":" + quoted(record.name);
    line += ",\"threads\":" + number(std::uint64_t{record.threads});
    line += ",\"streams\":" + number(std::uint64_t{record.streams});
    line += ",\"pass\":" + or_null(pass);
    line += ",\"unit\":" + quoted(record.unit);
    line += ",\"ops\":" + number(record.ops);
    line += ",\"elapsed_ns\":" + number(record.elapsed_ns);
    line += ",\"ns_per_op\":" + or_null(ns);
    line += ",\"ops_per_second\":" + or_null(record.per_second);
    line += ",\"peak_live\":" + or_null(record.peak_live);
    line += ",\"peak_reserved\":" + or_null(record.peak_reserved);
    line += ",\"reserved_ratio\":" + or_null(ratio);
    line += std::string(",\"complete\":") + (record.complete ? "true" : "false");
    line += ",\"error\":" + (record.error ? quoted(record.error->substr(0, 400)) : std::string("null"));
    line += "}\n";
    std::fputs(line.c_str(), stdout);
    std::fflush(stdout);
}

}  // namespace peers
