// A program that opens the library, leaves a block, and closes it before its own end.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

int main(int argc, char **argv) {
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    int32_t (*allocate)(int32_t, int32_t, uint64_t, void **) = NULL;
    if (library)
        *(void **)&allocate = dlsym(library, "devmem_allocate");
    void *block = NULL;
    if (!allocate || allocate(1, 0, 700, &block) || dlclose(library))
        return 1;
    fputs("closed\n", stderr);
    return 0;
}
