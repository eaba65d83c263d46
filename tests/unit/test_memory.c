/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that runs out at the first, second, third ... allocation of a call. Linked with
 * -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free, so that the project's
 * allocations come here; jansson is told to use the same functions. */
#include <criterion/criterion.h>

#include <dirent.h>
#include <jansson.h>

#include "base/json.h"
#include "store_files.h"

/* What the linker makes of malloc ... in the objects that it wraps. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__wrap_realloc(void *p, size_t n);
void __wrap_free(void *p);

static bool counting;
static bool keeps_failing; /* every allocation from the chosen one on, not only that one */
static long countdown;     /* allocations that still succeed */
static long failures;
static long live; /* blocks that are not freed yet */

static bool refuse(void)
{
    if (!counting || countdown-- > 0)
        return false;
    if (!keeps_failing && failures > 0)
        return false;
    failures++;
    return true;
}

static void *count_block(void *p)
{
    if (counting && p)
        live++;
    return p;
}

void *__wrap_malloc(size_t n)
{
    return refuse() ? NULL : count_block(__real_malloc(n));
}

void *__wrap_calloc(size_t count, size_t n)
{
    return refuse() ? NULL : count_block(__real_calloc(count, n));
}

void *__wrap_realloc(void *p, size_t n)
{
    if (refuse())
        return NULL;
    return p ? __real_realloc(p, n) : count_block(__real_realloc(p, n));
}

void __wrap_free(void *p)
{
    if (counting && p)
        live--;
    __real_free(p);
}

static void fail_at(long n, bool from_then_on)
{
    keeps_failing = from_then_on;
    countdown = n;
    failures = 0;
    live = 0;
    counting = true;
}

static void use_failing_memory(void)
{
    make_scratch();
    json_object_seed(1);
    json_set_alloc_funcs(__wrap_malloc, __wrap_free);
}

TestSuite(memory, .init = use_failing_memory, .fini = remove_scratch);

static int open_files(void)
{
    int count = 0;
    DIR *stream = opendir("/proc/self/fd");
    while (readdir(stream))
        count++;
    closedir(stream);
    return count;
}

/* jansson drops what it cannot store of a token, and later takes the token for malformed
 * or for another: so a fault may be reported as one of the input, but never go unseen. */
static void check_failure(int rc, long n)
{
    cr_assert(rc == MP_ERR_IO || rc == MP_ERR_INPUT, "allocation %ld: %d", n, rc);
    cr_assert_eq(rc, err.code);
    if (rc == MP_ERR_IO)
        cr_assert_not_null(strstr(err.message, "out of memory"), "%s", err.message);
}

static void put_checkpoint(void)
{
    static const char one[] = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":" ENTRY(
        "U8", "[2,2]", "[0,4]") ",\"a\":" ENTRY("BF16", "[]", "[4,6]") "}";
    static const char two[] = "{\"c\":" ENTRY("F32", "[1]", "[0,4]") "}";
    put_safetensors("m-1.safetensors", one, sizeof(one) - 1, 6);
    put_safetensors("m-2.safetensors", two, sizeof(two) - 1, 4);
    put_text("model.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-1.safetensors\","
             "\"c\":\"m-2.safetensors\"}}");
}

static void check_tensor(size_t i, const char *name, mp_dtype dtype, uint32_t rank, uint64_t offset)
{
    const mp_tensor *t = &ckpt.tensors[i];
    cr_assert_str_eq(t->name, name);
    cr_assert_eq(t->dtype, dtype);
    cr_assert_eq(t->rank, rank);
    cr_assert_eq(t->offset - ckpt.shards[t->shard].header_bytes, offset);
}

static void check_tensors(void)
{
    cr_assert_eq(ckpt.num_tensors, 3);
    check_tensor(0, "a", MP_BF16, 0, 4);
    check_tensor(1, "b", MP_U8, 2, 0);
    check_tensor(2, "c", MP_F32, 1, 0);
    cr_assert_eq(ckpt.num_metadata, 1);
    cr_assert_str_eq(ckpt.metadata[0], "format");
    cr_assert_str_eq(ckpt.metadata[1], "pt");
}

static long exhaust_open(bool from_then_on)
{
    const mp_context context = {.threads = 1};
    const int before = open_files();
    for (long n = 0;; n++) {
        fail_at(n, from_then_on);
        int rc = mp_checkpoint_open(&ckpt, dir, &context, &err);
        if (rc == 0)
            check_tensors();
        mp_checkpoint_release(&ckpt);
        counting = false;
        cr_assert_eq(live, 0, "allocation %ld: %ld blocks are lost", n, live);
        cr_assert_eq(open_files(), before);
        if (failures == 0) {
            cr_assert_eq(rc, 0);
            return n;
        }
        if (rc != 0)
            check_failure(rc, n);
    }
}

Test(memory, opening_survives_any_failed_allocation)
{
    put_checkpoint();
    cr_assert_gt(exhaust_open(false), 40);
    cr_assert_gt(exhaust_open(true), 40);
}

Test(memory, writing_a_header_survives_any_failed_allocation)
{
    const uint64_t shape[] = {2, 3};
    const mp_tensor_spec specs[] = {{"a", MP_F32, 2, shape}, {"b", MP_BF16, 0, NULL}};
    const char *const metadata[] = {"format", "pt"};
    for (long n = 0;; n++) {
        char *header;
        uint64_t bytes, offsets[3];
        fail_at(n, false);
        int rc = mp_safetensors_header(specs, 2, metadata, 1, 64, &header, &bytes, offsets, &err);
        free(header);
        counting = false;
        cr_assert_eq(live, 0);
        if (failures == 0) {
            cr_assert_eq(rc, 0);
            cr_assert_gt(n, 10);
            break;
        }
        cr_assert_eq(rc, MP_ERR_IO);
        cr_assert_str_eq(err.message + strlen(err.message) - 13, "out of memory");
    }
}

Test(memory, json_survives_any_failed_allocation)
{
    static const char text[] = "{\"a\": [1, 2.5, \"x\", {}], \"b\": null}";
    for (long n = 0;; n++) {
        json_t *json;
        fail_at(n, true);
        int rc = mp_json_parse(text, sizeof(text) - 1, "t", &json, &err);
        char *again = rc == 0 ? mp_json_text(json) : NULL;
        json_decref(json);
        bool done = again != NULL;
        free(again);
        counting = false;
        cr_assert_eq(live, 0);
        if (failures == 0) {
            cr_assert(done);
            break;
        }
        cr_assert_not(done);
        if (rc != 0)
            check_failure(rc, n);
    }
}
