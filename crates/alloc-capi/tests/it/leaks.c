// A program that ends in the way that its argument says, with blocks or without.

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device_memory.h"

static void *take(uint64_t size, uint64_t stream) {
    void *block = NULL;
    if (devmem_allocate_on(DEVMEM_KIND_CPU, 0, size, 0, stream, &block) != DEVMEM_STATUS_OK) {
        puts(devmem_last_error());
        fflush(stdout);
        _exit(3);
    }
    return block;
}

__attribute__((noinline)) void leak_here(void) {
    for (int i = 0; i < 3; ++i)
        take(5000, 0x77);
}

static void *kept;

static void free_kept(void) {
    devmem_free(kept);
}

static void *hammer(void *unused) {
    for (;;) {
        void *blocks[64];
        for (int i = 0; i < 64; ++i)
            blocks[i] = take(1 << (i % 21), 0);
        for (int i = 0; i < 64; ++i)
            devmem_free(blocks[i]);
    }
    return unused;
}

// Makes the standard error a pipe, and returns the end that is read.
static int pipe_to_stderr(void) {
    int ends[2];
    if (pipe(ends) || dup2(ends[1], 2) < 0 || close(ends[1]))
        _exit(4);
    return ends[0];
}

// Makes the standard error a pipe that is full, and does not wait for its reader. Returns the end that is read.
static int fill_stderr(void) {
    int reader = pipe_to_stderr();
    fcntl(2, F_SETFL, fcntl(2, F_GETFL) | O_NONBLOCK);
    char page[4096] = "";
    while (write(2, page, sizeof page) > 0) {
    }
    return reader;
}

static void nothing(int signal) {
    (void)signal;
}

// Has a signal come every 10 ms.
static void ring(void) {
    const struct sigaction action = {.sa_handler = nothing};
    const struct itimerval often = {{0, 10000}, {0, 10000}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
}

// A child that leaves a block; the parent reads late, and prints what it read.
static int late_reader(void) {
    int reader = fill_stderr();
    pid_t child = fork();
    if (child == 0) {
        ring();
        take(700, 0);
        exit(0);
    }
    close(2);
    usleep(200000);
    char page[4096];
    for (ssize_t bytes; (bytes = read(reader, page, sizeof page)) > 0;)
        for (ssize_t i = 0; i < bytes; ++i)
            if (page[i])
                putchar(page[i]);
    int status = 1;
    return waitpid(child, &status, 0) < 0 || status;
}

int main(int argc, char **argv) {
    const char *end = argc > 1 ? argv[1] : "";
    if (!strcmp(end, "nothing"))
        return 0;
    if (!strcmp(end, "late reader"))
        return late_reader();
    // Runs after whatever is registered later.
    if (!strcmp(end, "late"))
        atexit(free_kept);
    kept = take(1 << 20, 0);
    if (!strcmp(end, "clean"))
        return devmem_free(kept);
    if (!strcmp(end, "late"))
        return 0;
    leak_here();
    if (!strcmp(end, "tensor")) {
        const int64_t shape[] = {10, 10};
        void *tensor = NULL;
        return devmem_dlpack_zeros(DEVMEM_KIND_CPU, 0, 2, 32, shape, 2, 0, 1, &tensor);
    }
    if (!strcmp(end, "fork")) {
        if (fork() == 0)
            exit(0);
        int status = 1;
        return wait(&status) < 0 || status;
    }
    if (!strcmp(end, "closed"))
        return close(2);
    if (!strcmp(end, "broken"))
        return close(pipe_to_stderr());
    if (!strcmp(end, "full")) {
        fill_stderr();
        return 0;
    }
    if (!strcmp(end, "threads")) {
        for (int i = 0; i < 4; ++i) {
            pthread_t thread;
            pthread_create(&thread, NULL, hammer, NULL);
        }
        usleep(50000);
        return 0;
    }
#if defined(DEVMEM_WITH_CUDA)
    if (!strcmp(end, "pool")) {
        const struct devmem_torch_pool_id id = {0, 9};
        devmem_torch_begin_allocate_to_pool(0, id, NULL);
        void *block = devmem_torch_alloc(3000, 0, NULL);
        devmem_torch_end_allocate_to_pool(0, id);
        return !block || !devmem_torch_alloc(6000, 0, NULL);
    }
#endif
    return strcmp(end, "leak") != 0;
}
