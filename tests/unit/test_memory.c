/* SPDX-License-Identifier: Apache-2.0 */
/* The lower folders when memory runs out: JSON, checkpoints, headers. */
#include <criterion/criterion.h>

#include "base/json.h"
#include "failing_memory.h"
#include "store_files.h"

TestSuite(memory, .init = make_scratch, .fini = remove_scratch);

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

static int open_checkpoint(mp_error *e)
{
    const mp_context context = {.threads = 1};
    int rc = mp_checkpoint_open(&ckpt, dir, &context, e);

    if (rc == 0)
        check_tensors();
    mp_checkpoint_release(&ckpt);
    return rc;
}

Test(memory, opening_survives_any_failed_allocation)
{
    put_checkpoint();
    cr_assert_gt(memory_exhaust(open_checkpoint), 20);
}

static int make_header(mp_error *e)
{
    const uint64_t shape[] = {2, 3};
    const mp_tensor_spec specs[] = {{"a", MP_F32, 2, shape}, {"b", MP_BF16, 0, NULL}};
    const char *const metadata[] = {"format", "pt"};
    char *header;
    uint64_t bytes, offsets[3];
    int rc = mp_safetensors_header(specs, 2, metadata, 1, 64, &header, &bytes, offsets, e);

    /* What is written does not come through jansson's parser, so there is one reason. */
    cr_assert(rc == 0 || rc == MP_ERR_IO);
    free(header);
    return rc;
}

Test(memory, writing_a_header_survives_any_failed_allocation)
{
    memory_include_jansson();
    cr_assert_gt(memory_exhaust(make_header), 10);
}

static int parse_and_print(mp_error *e)
{
    static const char text[] = "{\"a\": [1, 2.5, \"x\", {}], \"b\": null}";
    json_t *json;
    int rc = mp_json_parse(text, sizeof(text) - 1, "t", &json, e);

    if (rc == 0) {
        char *again = mp_json_text(json);
        if (!again)
            *e = (mp_error){(rc = MP_ERR_IO), "out of memory"};
        else
            cr_assert_str_eq(again, "{\n  \"a\": [\n    1,\n    2.5,\n    \"x\",\n    {}\n  ],\n"
                                    "  \"b\": null\n}\n");
        free(again);
    }
    json_decref(json);
    return rc;
}

Test(memory, json_survives_any_failed_allocation)
{
    memory_include_jansson();
    cr_assert_gt(memory_exhaust(parse_and_print), 8);
}
