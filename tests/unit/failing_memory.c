/* SPDX-License-Identifier: Apache-2.0 */
/* malloc and its kin as the linker's --wrap makes them, counting and failing on demand. */
#include "failing_memory.h"

#include <criterion/criterion.h>

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* What the linker makes of malloc ... in the objects that it wraps. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void __real_free(void *p);
FILE *__real_open_memstream(char **text, size_t *length);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t n);
void __wrap_free(void *p);
FILE *__wrap_open_memstream(char **text, size_t *length);

static bool counting;
static bool keeps_failing; /* every allocation from the chosen one on, not only that one */
static long countdown;     /* allocations that still succeed */
static memory_account account;

/* ------------------------------------------------------------------------
 * Blocks that were given out: a hash table, since some that are freed here come
 * from functions of the C library that are not wrapped
 */

#define BLOCKS 65536 /* a power of two, and far more than ever live at once */

static void *blocks[BLOCKS];
static char gone; /* its address stands where a block was */

static size_t home_of(const void *p)
{
    return (size_t)(((uintptr_t)p >> 4) * 0x9e3779b97f4a7c15u >> 48) % BLOCKS;
}

static void *add_block(void *p)
{
    size_t i = home_of(p);

    if (!counting || !p)
        return p;
    while (blocks[i] && blocks[i] != &gone)
        i = (i + 1) % BLOCKS;
    blocks[i] = p;
    account.live++;
    return p;
}

static void remove_block(const void *p)
{
    size_t i = home_of(p);

    if (!counting || !p)
        return;
    while (blocks[i] && blocks[i] != p)
        i = (i + 1) % BLOCKS;
    if (!blocks[i])
        return;
    blocks[i] = &gone;
    account.live--;
}

/* ------------------------------------------------------------------------
 * Allocation
 */

static bool refuse(size_t n)
{
    if (!counting)
        return false;
    account.bytes += n;
    if (countdown-- > 0 || (!keeps_failing && account.failures > 0))
        return false;
    account.failures++;
    return true;
}

void *__wrap_malloc(size_t n)
{
    return refuse(n) ? NULL : add_block(__real_malloc(n));
}

void *__wrap_calloc(size_t count, size_t n)
{
    return refuse(count * n) ? NULL : add_block(__real_calloc(count, n));
}

void *__wrap_realloc(void *p, size_t n)
{
    if (refuse(n))
        return NULL;
    remove_block(p);
    return add_block(__real_realloc(p, n));
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    return refuse(n) ? NULL : add_block(__real_aligned_alloc(alignment, n));
}

char *__wrap_strndup(const char *text, size_t n)
{
    size_t length = strnlen(text, n);
    char *copy = __wrap_malloc(length + 1);

    if (copy) {
        memcpy(copy, text, length);
        copy[length] = '\0';
    }
    return copy;
}

char *__wrap_strdup(const char *text)
{
    return __wrap_strndup(text, SIZE_MAX);
}

void __wrap_free(void *p)
{
    remove_block(p);
    __real_free(p);
}

/* What the text grows by is the C library's own, and does not fail. */
FILE *__wrap_open_memstream(char **text, size_t *length)
{
    return refuse(0) ? NULL : __real_open_memstream(text, length);
}

/* ------------------------------------------------------------------------
 * Runs
 */

void memory_include_jansson(void)
{
    json_object_seed(1);
    json_set_alloc_funcs(__wrap_malloc, __wrap_free);
}

void memory_fail_at(long n, bool from_then_on)
{
    keeps_failing = from_then_on;
    countdown = n;
    account = (memory_account){0};
    memset(blocks, 0, sizeof(blocks));
    counting = true;
}

memory_account memory_stop(void)
{
    counting = false;
    return account;
}

static int open_files(void)
{
    int count = 0;
    DIR *stream = opendir("/proc/self/fd");

    while (readdir(stream))
        count++;
    closedir(stream);
    return count;
}

static void check_error(int rc, const mp_error *err, long n)
{
    cr_assert(rc == MP_ERR_IO || rc == MP_ERR_INPUT, "allocation %ld: %d", n, rc);
    cr_assert_eq(rc, err->code);
    if (rc == MP_ERR_IO)
        cr_assert_not_null(strstr(err->message, "out of memory"), "%s", err->message);
}

static long exhaust(int (*run)(mp_error *err), bool from_then_on)
{
    const int before = open_files();

    for (long n = 0;; n++) {
        mp_error err = {0};

        memory_fail_at(n, from_then_on);
        int rc = run(&err);
        memory_account after = memory_stop();

        cr_assert_eq(after.live, 0, "allocation %ld: %ld blocks are lost", n, after.live);
        cr_assert_eq(open_files(), before, "allocation %ld: a file stays open", n);
        if (after.failures == 0) {
            cr_assert_eq(rc, 0, "%s", err.message);
            return n;
        }
        if (rc != 0)
            check_error(rc, &err, n);
    }
}

long memory_exhaust(int (*run)(mp_error *err))
{
    long count = exhaust(run, false);

    cr_assert_leq(exhaust(run, true), count);
    return count;
}
