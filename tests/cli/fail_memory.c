/* SPDX-License-Identifier: Apache-2.0 */
/* To be preloaded: makes allocations fail, those of the program and of the libraries that it uses,
 * the C library included. Its environment says which:
 *
 *   FAIL_AT     number of the first that fails, counted from 1; none when not set
 *   FAIL_TIMES  how many do from there on; all when not set
 *   FAIL_COUNT  file that the number of all is written to at the end
 *
 * Spared are the dynamic linker and OpenMP, which end the process where they get no memory, and
 * jansson, whose 2.14 writes out of bounds where a buffer cannot grow; that it reports everything
 * else is tested by tests/unit/test_memory.c. */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The C library's own, by names that are never interposed. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static unsigned long first = -1UL, times = -1UL;
static atomic_ulong calls;
static bool began;

__attribute__((constructor)) static void read_environment(void)
{
    const char *at = getenv("FAIL_AT"), *count = getenv("FAIL_TIMES");

    first = at ? strtoul(at, NULL, 10) : first;
    times = count ? strtoul(count, NULL, 10) : times;
    began = true;
}

__attribute__((destructor)) static void write_count(void)
{
    const char *path = getenv("FAIL_COUNT");

    began = false;
    FILE *f = path ? fopen(path, "w") : NULL;
    if (f) {
        fprintf(f, "%lu\n", (unsigned long)calls);
        fclose(f);
    }
}

static bool refuse(const void *caller)
{
    static const char *const spared[] = {"/libgomp.", "/libomp.", "/libjansson.", "/ld-linux"};
    Dl_info info;

    if (!began || !dladdr(caller, &info))
        return false;
    for (size_t i = 0; i < sizeof spared / sizeof spared[0]; i++)
        if (strstr(info.dli_fname, spared[i]))
            return false;
    unsigned long n = atomic_fetch_add(&calls, 1) + 1;
    if (n < first || n - first >= times)
        return false;
    errno = ENOMEM;
    return true;
}

#define CALLER __builtin_return_address(0)

void *malloc(size_t n)
{
    return refuse(CALLER) ? NULL : __libc_malloc(n);
}

void *calloc(size_t count, size_t n)
{
    return refuse(CALLER) ? NULL : __libc_calloc(count, n);
}

void *realloc(void *p, size_t n)
{
    return refuse(CALLER) ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    return refuse(CALLER) ? NULL : __libc_memalign(alignment, n);
}
