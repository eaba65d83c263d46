/* SPDX-License-Identifier: Apache-2.0 */
/* Recorded counts: what engines write, how inputs are put together, and what is refused. */
#include <criterion/criterion.h>

#include <jansson.h>
#include <math.h>
#include <moepack/place.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "failing_memory.h"
#include "place/pickle.h"
#include "place/zip.h"

static mp_error err;

#define GOLDEN "testdata/golden/counts/"

/* ------------------------------------------------------------------------
 * Load counts
 */

/* Reads one text and adds its steps up. */
static int parse(mp_counts *c, const char *text)
{
    mp_recording r = {0};
    int rc = mp_recording_add(&r, text, strlen(text), 0, &err);
    *c = (mp_counts){0};
    if (rc == 0)
        rc = mp_recording_sum(&r, 0, c, &err);
    mp_recording_release(&r);
    return rc;
}

Test(counts, counts_of_layers_and_of_steps)
{
    static const char two[] = "{\"logical_count\": [[1, 2.5, 3], [4, 5, 0]]}";
    static const char three[] =
        "{\"rank\": 0, \"logical_count\": [[[1, 2, 3], [4, 5, 0]], [[10, 0, 1], [0, 1, 7]]]}";
    static const float sums[] = {11, 2, 4, 4, 6, 7}, rows[] = {1, 2.5f, 3, 4, 5, 0};
    mp_counts c;
    cr_assert_eq(parse(&c, two), 0, "%s", err.message);
    cr_assert_eq(c.layers, 2);
    cr_assert_eq(c.num_logical, 3);
    cr_assert_arr_eq(c.count, rows, sizeof(rows));
    mp_counts_release(&c);
    cr_assert_eq(parse(&c, three), 0, "%s", err.message);
    cr_assert_eq(c.layers, 2);
    cr_assert_eq(c.num_logical, 3);
    cr_assert_arr_eq(c.count, sums, sizeof(sums));
    mp_counts_release(&c);
    mp_counts_release(&c);
}

static void refuse_counts(const char *text, const char *message)
{
    mp_counts c;
    cr_assert_eq(parse(&c, text), MP_ERR_INPUT, "%s", text);
    cr_assert_str_eq(err.message, message);
    cr_assert_null(c.count);
}

Test(counts, bad_counts)
{
    refuse_counts("{}", "counts: \"logical_count\" is missing");
    refuse_counts("{\"logical_count\": 1}",
                  "counts: \"logical_count\" is an integer, expected an array");
    refuse_counts("{\"logical_count\": [[1]], \"ranks\": 0}", "counts: unknown key \"ranks\"");
    refuse_counts("{\"logical_count\": []}", "logical_count: no layers");
    refuse_counts("{\"logical_count\": [[]]}", "logical_count: row 0 is empty");
    refuse_counts("{\"logical_count\": [[1], []]}", "logical_count: row 1 is empty");
    refuse_counts("{\"logical_count\": [1]}", "logical_count: row 0 is not a list");
    refuse_counts("{\"logical_count\": [[1, 2], 3]}", "logical_count: row 1 is not a list");
    refuse_counts("{\"logical_count\": [[1, 2], [3]]}",
                  "logical_count: row 1 has 1 expert, row 0 has 2");
    refuse_counts("{\"logical_count\": [[1, 2], [3, -4]]}",
                  "logical_count: row 1, column 1: -4, expected 0 or more");
    refuse_counts("{\"logical_count\": [[1, \"2\"]]}",
                  "logical_count: row 0, column 1: not a number");
    refuse_counts("{\"logical_count\": [[1, null]]}",
                  "logical_count: row 0, column 1: not a number");
    refuse_counts("{\"logical_count\": [[1, 1e39]]}",
                  "logical_count: row 0, column 1: 1e+39 does not fit a float32");
    refuse_counts("{\"logical_count\": [[1, 1e999]]}",
                  "counts: line 1, column 28: real number overflow near '1e999'");
    refuse_counts("{\"logical_count\": [[1, NaN]]}",
                  "counts: line 1, column 26: invalid token near 'NaN'");
    refuse_counts("{\"logical_count\": [[[1, 2]], [[3, 4], [5, 6]]]}",
                  "logical_count: step 1 has 2 rows, step 0 has 1");
    refuse_counts("{\"logical_count\": [[[1, 2]], [[3]]]}",
                  "logical_count: step 1, row 0 has 1 expert, row 0 has 2");
    refuse_counts("{\"logical_count\": [[[1, 2], [1]], [[3]]]}",
                  "logical_count: step 0, row 1 has 1 expert, row 0 has 2");
    refuse_counts("{\"logical_count\": [[[1, 2]], [7]]}",
                  "logical_count: step 1, row 0 is not a list");
    refuse_counts("{\"logical_count\": [[[1, 2]], 7]}", "logical_count: step 1 is not a list");
    refuse_counts("{\"logical_count\": [[[1, 2]], [[3, -1]]]}",
                  "logical_count: step 1, row 0, column 1: -1, expected 0 or more");
}

/* ------------------------------------------------------------------------
 * Files as engines write them
 */

static char *read_file(const char *name, uint64_t *length)
{
    char path[256], *text;
    snprintf(path, sizeof(path), GOLDEN "%s", name);
    cr_assert_eq(mp_read_text(path, 1 << 20, &text, length, &err), 0, "%s", err.message);
    return text;
}

/* Adds the files of a golden case, "a.pt b.pt" or "a.csv --experts 6". */
static int add_files(mp_recording *r, const char *names)
{
    char list[256], *end, *word;
    uint32_t experts = 0;
    int rc = 0;
    if (strstr(names, "--experts "))
        experts = (uint32_t)atoi(strstr(names, "--experts ") + 10);
    snprintf(list, sizeof(list), "%s", names);
    for (word = strtok_r(list, " ", &end); word && word[0] != '-' && rc == 0;
         word = strtok_r(NULL, " ", &end)) {
        uint64_t length;
        char *text = read_file(word, &length);
        rc = mp_recording_add(r, text, length, experts, &err);
        free(text);
    }
    return rc;
}

static void compare_golden(const mp_recording *r, const json_t *expected, const char *name)
{
    const json_t *steps = json_object_get(expected, "counts"), *ids, *id;
    size_t s, l, e;
    json_t *step, *layer, *count;
    cr_assert_eq(r->steps, json_array_size(steps), "%s", name);
    json_array_foreach(steps, s, step)
    {
        cr_assert_eq(r->layers, json_array_size(step), "%s", name);
        json_array_foreach(step, l, layer)
        {
            cr_assert_eq(r->num_logical, json_array_size(layer), "%s", name);
            json_array_foreach(layer, e, count) cr_assert_eq(
                r->count[(s * r->layers + l) * r->num_logical + e], json_number_value(count),
                "%s: step %zu, row %zu, column %zu", name, s, l, e);
        }
    }
    ids = json_object_get(expected, "layers");
    cr_assert_eq(r->layer_ids != NULL, ids != NULL, "%s", name);
    json_array_foreach(ids, l, id)
        cr_assert_eq(r->layer_ids[l], json_integer_value(id), "%s", name);
}

/* Directories are read by the command, and tested there. */
Test(counts, golden_files)
{
    json_error_t where;
    json_t *root = json_load_file(GOLDEN "expected.json", 0, &where), *expected;
    const char *name;
    uint32_t read = 0, refused = 0;
    cr_assert_not_null(root, "%s", where.text);
    json_object_foreach(root, name, expected)
    {
        mp_recording r = {0};
        int status = (int)json_integer_value(json_object_get(expected, "status"));
        if (!strchr(name, '.'))
            continue;
        cr_assert_eq(add_files(&r, name), -status, "%s: %s", name, status ? "" : err.message);
        if (status == 0)
            compare_golden(&r, expected, name);
        read += status == 0;
        refused += status != 0;
        mp_recording_release(&r);
    }
    cr_assert_eq(read, 18);
    cr_assert_eq(refused, 23);
    json_decref(root);
}

static void refuse_file(const char *names, int code, const char *message)
{
    mp_recording r = {0};
    cr_assert_eq(add_files(&r, names), code, "%s", names);
    cr_assert_str_eq(err.message, message);
    mp_recording_release(&r);
}

Test(counts, golden_files_are_refused_for_what_they_are)
{
    refuse_file("global.pt", MP_ERR_UNSUPPORTED,
                "pickle: it names posix.system, which counts do not need; nothing was run");
    refuse_file("quantized.pt", MP_ERR_UNSUPPORTED,
                "pickle: it names torch._utils._rebuild_qtensor, which counts do not need; "
                "nothing was run");
    refuse_file("inst.pt", MP_ERR_UNSUPPORTED,
                "pickle: byte 9: opcode 0x69, which counts do not need; nothing was run");
    refuse_file("legacy.pt", MP_ERR_UNSUPPORTED,
                "a pickle without torch's zip archive, as torch wrote it before 1.6; load it and "
                "save it again: python -c \"import sys, torch; torch.save(torch.load(sys.argv[1]), "
                "sys.argv[2])\" OLD.pt NEW.pt");
    refuse_file("big-endian.pt", MP_ERR_UNSUPPORTED,
                "zip: byteorder is not \"little\": the file is from a big-endian machine");
    refuse_file("deflated.pt", MP_ERR_UNSUPPORTED,
                "zip: \"a/data.pkl\" is compressed; torch.save stores uncompressed");
    refuse_file("no-counts.pt", MP_ERR_INPUT,
                "pickle: neither \"logical_count\" nor \"records\" is in the dict");
    refuse_file("negative.pt", MP_ERR_INPUT,
                "logical_count: row 1, column 1: -4, expected 0 or more");
    refuse_file("nan.pt", MP_ERR_INPUT,
                "logical_count: row 0, column 1: nan, expected a finite number");
    refuse_file("one-d.pt", MP_ERR_INPUT, "logical_count: shape [4], expected 2 or 3 dimensions");
    refuse_file("short-storage.pt", MP_ERR_INPUT,
                "logical_count: \"data/0\" holds 44 bytes, 48 expected for 12 elements");
    refuse_file("no-storage.pt", MP_ERR_INPUT,
                "logical_count: there is no \"data/0\" in the archive");
    refuse_file("beyond.pt", MP_ERR_INPUT,
                "logical_count: shape [1, 3, 4] reaches element 12 of 12");
    refuse_file("huge.pt", MP_ERR_INPUT,
                "logical_count: shape [1073741824, 1073741824, 1073741824] has more elements than "
                "its storage, 12");
    refuse_file("stack.pt", MP_ERR_INPUT, "pickle: byte 3: there is no mark");
    refuse_file("memo.pt", MP_ERR_INPUT, "pickle: byte 4: memo 5 is empty");
    refuse_file("cut.pt", MP_ERR_INPUT,
                "zip: there is no end of the central directory; the file was truncated");
    refuse_file("cut-pickle.pt", MP_ERR_INPUT, "pickle: byte 47: the pickle ends early");
    refuse_file("deep.pt", MP_ERR_INPUT, "pickle: it holds no dict");
    refuse_file("unknown-key.json", MP_ERR_INPUT, "counts: unknown key \"extra\"");
    refuse_file("ranks-0.csv --experts 3", MP_ERR_INPUT, "line 6: expert 3, expected 0 to 2");
    refuse_file("columns.csv", MP_ERR_INPUT,
                "line 2: expected three columns, layer_id,expert_id,count");
    refuse_file("minus.csv", MP_ERR_INPUT, "line 2: count -5, expected 0 or more");
    refuse_file("stat-uint8.pt stat-int32.pt", MP_ERR_INPUT, "8 experts, inputs before have 4");
    refuse_file("bare.json ranks-0.csv", MP_ERR_INPUT,
                "its layers are numbered, those of inputs before are not");
}

/* Whatever allocation fails, no entry of an archive is taken for missing. */
Test(counts, archives_say_when_memory_is_short)
{
    static const char *const names[] = {"stat-int32.pt", "big-endian.pt"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        uint64_t length;
        char *text = read_file(names[i], &length);
        long failures = 1;

        for (long n = 0; failures > 0; n++) {
            mp_recording r = {0};
            int rc;

            memory_fail_at(n, false);
            rc = mp_recording_add(&r, text, length, 0, &err);
            failures = memory_stop().failures;
            cr_expect_eq(rc,
                         failures > 0 ? MP_ERR_IO
                         : i == 0     ? 0
                                      : MP_ERR_UNSUPPORTED,
                         "%s, allocation %ld: %s", names[i], n, err.message);
            mp_recording_release(&r);
        }
        free(text);
    }
}

/* ------------------------------------------------------------------------
 * Pickles
 */

static void refuse_pickle(const char *bytes, size_t length, int code, const char *message)
{
    mp_pickle p;
    cr_assert_eq(mp_pickle_load(&p, bytes, length, &err), code, "%s", message);
    cr_assert_str_eq(err.message, message);
}

#define REFUSE(bytes, message) \
    refuse_pickle(bytes, sizeof(bytes) - 1, MP_ERR_INPUT, "pickle: byte " message)

Test(counts, bad_pickles)
{
    refuse_pickle("", 0, MP_ERR_INPUT, "pickle: byte 0: the pickle ends early");
    REFUSE(".", "1: the stack is empty");
    REFUSE("a", "1: the stack is empty");
    REFUSE("NNa", "3: no list to append to");
    REFUSE("](NNe", "5: the pickle ends early");
    REFUSE("N(NNe", "5: no list to append to");
    REFUSE("(NNe", "4: no list to append to");
    REFUSE("](Na", "4: the stack is empty");
    REFUSE("}Ns", "3: the stack is empty");
    REFUSE("}(Nu", "4: a key without a value");
    REFUSE("](NNu", "5: no dict to set items of");
    REFUSE("t", "1: there is no mark");
    REFUSE("N(\x85", "3: the stack is empty");
    REFUSE("(q\x01", "3: the stack is empty");
    REFUSE("h\x07", "2: memo 7 is empty");
    REFUSE("Nr\xff\xff\xff\xff", "6: a number of the memo that is too large");
    REFUSE("X\x05\0\0\0abc", "5: the pickle ends early");
    REFUSE("ctorch", "1: the pickle ends early");
    REFUSE("NN\x93", "3: a global that is not named by strings");
    REFUSE("NQ", "2: a persistent id that is not a storage");
    REFUSE("N)R", "3: a call of what cannot be called");
    REFUSE("ctorch._utils\n_rebuild_tensor_v2\n)R",
           "35: a tensor without storage, offset, sizes and strides");
    refuse_pickle("\x80\x01", 2, MP_ERR_UNSUPPORTED, "pickle: protocol 1, 2 to 5 are read");
    refuse_pickle("\x8a\x09", 2, MP_ERR_UNSUPPORTED,
                  "pickle: byte 2: an integer of 9 bytes, at most 8 are read");
    refuse_pickle("ctorch\nFloatStorage\n)R", 22, MP_ERR_UNSUPPORTED,
                  "pickle: it calls torch.FloatStorage, which counts do not need; nothing was "
                  "run");
    refuse_pickle("ctorch\nFloat\x1bStorage\n", 21, MP_ERR_UNSUPPORTED,
                  "pickle: it names torch.Float?Storage, which counts do not need; nothing was "
                  "run");
    char marks[65];
    memset(marks, '(', sizeof(marks));
    refuse_pickle(marks, sizeof(marks), MP_ERR_INPUT,
                  "pickle: byte 65: marks nest more than 64 deep");
}

Test(counts, values_of_a_pickle)
{
    /* {1: -2, "a": (258, -1, 2^40, 0.5, None)}, twice the key "a" */
    static const char bytes[] =
        "\x80\x04}(K\x01J\xfe\xff\xff\xffX\x01\0\0\0aN"
        "\x8c\x01"
        "a(M\x02\x01\x8a\x01\xff\x8a\x06\0\0\0\0\0\x01G\x3f\xe0\0\0\0\0\0\0Ntu.";
    mp_pickle p;
    mp_pickle_value v;
    uint64_t numbers[3];
    uint32_t count;
    cr_assert_eq(mp_pickle_load(&p, bytes, sizeof(bytes) - 1, &err), 0, "%s", err.message);
    cr_assert_eq(p.root.kind, MP_PICKLE_DICT);
    cr_assert(mp_pickle_get(&p, p.root, "a", &v));
    cr_assert_eq(v.kind, MP_PICKLE_TUPLE);
    cr_assert_eq(p.objects[v.u.index].count, 5);
    cr_assert(!mp_pickle_integers(&p, v, numbers, 3, &count), "more than asked for");
    const mp_pickle_item *item = &p.items[p.objects[v.u.index].first];
    cr_assert_eq(item->value.u.integer, 258);
    item = &p.items[item->next];
    cr_assert_eq(item->value.u.integer, -1);
    item = &p.items[item->next];
    cr_assert_eq(item->value.u.integer, INT64_C(1) << 40);
    item = &p.items[item->next];
    cr_assert_eq(item->value.kind, MP_PICKLE_REAL);
    cr_assert_eq(item->value.u.real, 0.5);
    cr_assert(!mp_pickle_get(&p, p.root, "b", &v));
    cr_assert(!mp_pickle_get(&p, v, "a", &v), "a tuple has no keys");
    mp_pickle_release(&p);
    mp_pickle_release(&p);
}

/* ------------------------------------------------------------------------
 * Archives
 */

Test(counts, damaged_archives_are_refused)
{
    uint64_t length;
    char *text = read_file("stat-uint8.pt", &length);
    for (uint64_t n = 4; n < length; n++) { /* cut anywhere */
        mp_recording r = {0};
        char *cut = malloc(n);
        memcpy(cut, text, n);
        cr_assert_eq(mp_recording_add(&r, cut, n, 0, &err), MP_ERR_INPUT, "cut to %d", (int)n);
        mp_recording_release(&r);
        free(cut);
    }
    for (uint64_t i = 0; i < 8 * length; i++) { /* any bit turned over */
        mp_recording r = {0};
        text[i / 8] ^= (char)(1 << i % 8);
        int rc = mp_recording_add(&r, text, length, 0, &err);
        cr_assert(rc == 0 || rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED);
        text[i / 8] ^= (char)(1 << i % 8);
        mp_recording_release(&r);
    }
    free(text);
}

/* Sizes and offset of 0xffffffff stand in an extra field, the end in a record before it. */
Test(counts, zip64)
{
    static const char archive[] =
        "PK\3\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0a"
        "hello"
        "PK\1\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff"
        "\xff\xff\xff\xff\1\0\x1c\0\0\0\0\0\0\0\0\0\0\0"
        "\xff\xff\xff\xff"
        "a\1\0\x18\0\5\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        "PK\6\6\x2c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        "\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\x4b\0\0\0\0\0\0\0\x24\0\0\0\0\0\0\0"
        "PK\6\7\0\0\0\0\x6f\0\0\0\0\0\0\0\1\0\0\0"
        "PK\5\6\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0";
    mp_zip zip;
    const unsigned char *data;
    cr_assert_eq(mp_zip_open(&zip, archive, sizeof(archive) - 1, &err), 0, "%s", err.message);
    cr_assert_eq(zip.count, 1);
    const mp_zip_entry *entry = mp_zip_find(&zip, "a", 1);
    cr_assert_not_null(entry);
    cr_assert_null(mp_zip_find(&zip, "ab", 2));
    cr_assert_eq(mp_zip_data(&zip, entry, &data, &err), 0, "%s", err.message);
    cr_assert_eq(entry->bytes, 5);
    cr_assert_eq(memcmp(data, "hello", 5), 0);
    mp_zip_release(&zip);
}

/* ------------------------------------------------------------------------
 * Putting together
 */

static void add_text(mp_recording *r, const char *text, uint32_t experts)
{
    cr_assert_eq(mp_recording_add(r, text, strlen(text), experts, &err), 0, "%s", err.message);
}

#define CSV "layer_id,expert_id,count\n"

/* Files of ranks that did not all see the same: what one does not name was not chosen. */
Test(counts, csv_files_of_ranks)
{
    static const uint32_t ids[] = {1, 3, 8};
    static const double counts[] = {0, 5, 0, /**/ 2,   0, 0, /**/ 0, 0, 0,
                                    0, 0, 0, /**/ 1.5, 0, 0, /**/ 0, 0, 4};
    mp_recording r = {0};
    add_text(&r, CSV "3,0,2\n1,1,4\n1,1,1\n", 0);
    add_text(&r, CSV "8,2,4\r\n3,0,1.5", 0);
    cr_assert_eq(r.steps, 2);
    cr_assert_eq(r.layers, 3);
    cr_assert_eq(r.num_logical, 3);
    cr_assert(r.guessed);
    cr_assert_arr_eq(r.layer_ids, ids, sizeof(ids));
    cr_assert_arr_eq(r.count, counts, sizeof(counts));
    mp_recording_release(&r);
    add_text(&r, CSV "3,0,2\n", 7);
    cr_assert_eq(r.num_logical, 7);
    cr_assert(!r.guessed);
    mp_recording_release(&r);
    refuse_counts(CSV, "counts: no line after the first");
    refuse_counts(CSV "1,2\n", "line 2: expected three columns, layer_id,expert_id,count");
    refuse_counts(CSV "1,2,3,4\n", "line 2: expected three columns, layer_id,expert_id,count");
    refuse_counts(CSV "1,2,3\n\n1,2,3\n",
                  "line 3: expected three columns, layer_id,expert_id,count");
    refuse_counts(CSV "x,2,3\n", "line 2: layer_id is not a layer number");
    refuse_counts(CSV "1,-2,3\n", "line 2: expert_id is not an expert number");
    refuse_counts(CSV "1,2,\n", "line 2: count is not a number");
    refuse_counts(CSV "1,2,nan\n", "line 2: count is not a number");
    refuse_counts(CSV "1,2147483646,1\n",
                  "1 layer of 2147483647 experts are more than any model has");
    /* Neither asks for much, but both together. */
    static const char more[] = CSV "2,0,1\n3,0,1\n";
    add_text(&r, CSV "1,5592405,1\n", 0);
    cr_assert_eq(mp_recording_add(&r, more, sizeof more - 1, 0, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "3 layers of 5592406 experts are more than any model has");
    mp_recording_release(&r);
    refuse_counts("1,2,3\n", "counts: neither JSON, nor a .pt, nor CSV with the first line "
                             "layer_id,expert_id,count");
    refuse_counts(" \n", "counts: the file is empty");
}

/* Steps of passes that several ranks recorded, in the order of the passes. */
Test(counts, steps_follow_each_other)
{
    static const double counts[] = {1, 0, /**/ 2, 3, /**/ 7, 7};
    mp_recording r = {0};
    add_text(&r, "[[[1, 0]], [[2, 3]]]", 2);
    add_text(&r, "{\"logical_count\": [[7, 7]]}", 0);
    cr_assert_eq(r.steps, 3);
    cr_assert_arr_eq(r.count, counts, sizeof(counts));
    cr_assert_eq(mp_recording_add(&r, "[[1, 2, 3]]", 11, 0, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "3 experts, inputs before have 2");
    cr_assert_eq(mp_recording_add(&r, "[[1, 2], [3, 4]]", 16, 0, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "2 layers, inputs before have 1");
    cr_assert_eq(mp_recording_add(&r, "[[1, 2]]", 8, 5, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "counts of 2 experts, the model has 5");
    mp_recording_release(&r);
    mp_recording a = {0}, b = {0};
    cr_assert_eq(add_files(&a, "records-0.pt records-1.pt"), 0, "%s", err.message);
    cr_assert_eq(add_files(&b, "records-1.pt records-0.pt"), 0, "%s", err.message);
    cr_assert_eq(a.steps, 4);
    for (uint64_t i = 0; i < a.steps * a.layers * a.num_logical; i++)
        cr_assert_eq(a.count[i], b.count[i], "the order of files does not matter");
    for (uint64_t step = 1; step < a.steps; step++)
        cr_assert_lt(a.pass[step - 1], a.pass[step]);
    mp_recording_release(&a);
    mp_recording_release(&b);
}

/* Rows are of layers that an input may number, and then every other one has to number them so. */
Test(counts, inputs_are_of_the_same_layers)
{
    static const double count[] = {1, 2, /**/ 3, 4};
    static const uint32_t ids[] = {1, 3}, others[] = {1, 4};
    mp_recording r = {0};
    for (uint64_t i = 0; i < 2; i++)
        cr_assert_eq(mp_recording_add_steps(&r, count, 1, 2, 2, ids, &err), 0, "%s", err.message);
    cr_assert_eq(mp_recording_add_steps(&r, count, 1, 2, 2, others, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "row 1 is layer 4, in inputs before layer 3");
    cr_assert_eq(mp_recording_add_steps(&r, count, 1, 2, 2, NULL, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "its layers are not numbered, those of inputs before are");
    cr_assert_eq(r.steps, 2);
    mp_recording_release(&r);
}

/* A recording of one expert: step i counts i + 1, or nothing where `empty` says so. */
static void make_steps(mp_recording *r, uint64_t steps, uint64_t empty)
{
    double *count = calloc(steps, sizeof(*count));
    for (uint64_t i = 0; i < steps; i++)
        count[i] = i == empty ? 0 : (double)(i + 1);
    cr_assert_eq(mp_recording_add_steps(r, count, steps, 1, 1, NULL, &err), 0, "%s", err.message);
    free(count);
}

static void expect_windows(uint64_t steps, uint64_t empty, uint64_t window, const float *expected,
                           uint32_t windows)
{
    mp_recording r = {0};
    mp_counts c;
    make_steps(&r, steps, empty);
    cr_assert_eq(mp_recording_sum(&r, window, &c, &err), 0, "%s", err.message);
    cr_assert_eq(c.windows, windows);
    cr_assert_arr_eq(windows == 1 ? c.count : c.window, expected, windows * sizeof(float));
    float sum = 0;
    for (uint32_t w = 0; w < windows; w++)
        sum += expected[w];
    cr_assert_eq(c.count[0], sum);
    mp_counts_release(&c);
    mp_recording_release(&r);
}

Test(counts, windows)
{
    expect_windows(7, 99, 0, (const float[]){28}, 1);
    expect_windows(7, 99, 3, (const float[]){6, 22}, 2); /* one step is under half of three */
    expect_windows(8, 99, 3, (const float[]){6, 15, 15}, 3);
    expect_windows(8, 99, 4, (const float[]){10, 26}, 2);
    expect_windows(6, 99, 4, (const float[]){10, 11}, 2);
    expect_windows(5, 99, 4, (const float[]){15}, 1);
    expect_windows(5, 99, 9, (const float[]){15}, 1);
    expect_windows(5, 1, 2, (const float[]){4, 9}, 2); /* the empty step is no step */
    expect_windows(1, 0, 1, (const float[]){0}, 1);
    mp_recording r = {0};
    mp_counts c;
    make_steps(&r, 200, 999);
    cr_assert_eq(mp_recording_sum(&r, 1, &c, &err), MP_ERR_USAGE);
    cr_assert_str_eq(err.message, "200 windows, at most 64: take 4 steps for one, or more");
    cr_assert_eq(mp_recording_sum(&r, 3, &c, &err), MP_ERR_USAGE);
    cr_assert_eq(mp_recording_sum(&r, 4, &c, &err), 0);
    cr_assert_eq(c.windows, 50);
    mp_counts_release(&c);
    mp_recording_release(&r);
}

/* ------------------------------------------------------------------------
 * Memory
 */

static char *texts[3];
static uint64_t lengths[3];

static int read_all(mp_error *e)
{
    mp_recording r = {0};
    mp_counts c = {0};
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = mp_recording_add(&r, texts[i], lengths[i], 0, e);
    if (rc == 0)
        rc = mp_recording_sum(&r, 2, &c, e);
    mp_counts_release(&c);
    mp_recording_release(&r);
    for (int i = 0; i < 2 && rc == 0; i++)
        rc = mp_recording_add(&r, texts[2], lengths[2], 0, e);
    mp_recording_release(&r);
    return rc;
}

Test(counts, reading_survives_any_failed_allocation)
{
    static const char *const names[] = {"records-0.pt", "records-1.pt", "ranks-0.csv"};
    for (int i = 0; i < 3; i++)
        texts[i] = read_file(names[i], &lengths[i]);
    cr_assert_gt(memory_exhaust(read_all), 30);
    for (int i = 0; i < 3; i++)
        free(texts[i]);
}
