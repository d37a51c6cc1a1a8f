// The C interface on the host's memory: allocate, use, free, and see what happened.
//
//     cc -I crates/alloc-capi/include crates/alloc-capi/examples/quickstart.c -L target/release -ldevice_memory

#include <stdio.h>
#include <string.h>

#include "device_memory.h"

// The layout that the library counts on.
_Static_assert(sizeof(devmem_status) == 4, "a status is 32 bits");
_Static_assert(sizeof(devmem_block_info_t) == 24, "two numbers, a size and a stream");
_Static_assert(sizeof(devmem_statistics_t) % 8 == 0, "64 bits each");

static int failed(const char *what, devmem_status status) {
    fprintf(stderr, "%s: %s: %s\n", what, devmem_status_name(status), devmem_last_error());
    return 1;
}

#define TRY(call)                              \
    do {                                       \
        devmem_status status = (call);         \
        if (status != DEVMEM_STATUS_OK)        \
            return failed(#call, status);      \
    } while (0)

int main(void) {
    if (devmem_abi_version() != DEVMEM_ABI_VERSION)
        return fprintf(stderr, "header and library don't fit\n"), 1;

    void *block = NULL;
    TRY(devmem_allocate(DEVMEM_KIND_CPU, 0, 1 << 20, &block));
    memset(block, 7, 1 << 20);

    devmem_block_info_t info;
    TRY(devmem_block_info(block, &info));
    if (info.kind != DEVMEM_KIND_CPU || info.size != 1 << 20)
        return fprintf(stderr, "another block\n"), 1;

    TRY(devmem_free(block));
    // Misuse is an error, never a crash.
    if (devmem_free(block) != DEVMEM_STATUS_DOUBLE_FREE)
        return fprintf(stderr, "freed twice\n"), 1;
    if (devmem_free(&info) != DEVMEM_STATUS_UNKNOWN_POINTER)
        return fprintf(stderr, "freed what was never allocated\n"), 1;

    // Memory is limited, and running out of it is an error like any other.
    TRY(devmem_set_limit(DEVMEM_KIND_CPU, 0, 64 << 20));
    if (devmem_allocate(DEVMEM_KIND_CPU, 0, 1ull << 30, &block) != DEVMEM_STATUS_OUT_OF_MEMORY)
        return fprintf(stderr, "the limit did not hold\n"), 1;
    puts(devmem_last_error());
    TRY(devmem_set_limit(DEVMEM_KIND_CPU, 0, 0));

    devmem_statistics_t statistics;
    TRY(devmem_statistics(DEVMEM_KIND_CPU, 0, &statistics, sizeof statistics));
    printf("%llu bytes in use at most, %llu reserved now\n", (unsigned long long)statistics.allocated_peak,
           (unsigned long long)statistics.reserved);

    char json[4096];
    size_t length = devmem_statistics_json(DEVMEM_KIND_CPU, 0, json, sizeof json);
    if (length == 0 || length >= sizeof json)
        return failed("statistics", DEVMEM_STATUS_INTERNAL);

    uint64_t given = 0;
    TRY(devmem_trim(DEVMEM_KIND_CPU, 0, 0, &given));
    printf("%llu bytes given back\n", (unsigned long long)given);
    return 0;
}
