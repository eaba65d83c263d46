/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of several shards: the index, and what it and the shards must agree on. */
#include <criterion/criterion.h>

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "store_files.h"

TestSuite(checkpoint, .init = make_scratch, .fini = remove_scratch);

/* A shard of U8 tensors of 3 bytes with these one-letter names. */
static void put_shard(const char *name, const char *letters)
{
    char json[1000] = "{";
    int n = 1;
    for (int i = 0; letters[i]; i++)
        n += snprintf(json + n, sizeof(json) - (size_t)n, "%s\"%c\":" ENTRY("U8", "[3]", "[%d,%d]"),
                      i ? "," : "", letters[i], 3 * i, 3 * i + 3);
    json[n++] = '}';
    put_safetensors(name, json, (size_t)n, 3 * strlen(letters));
}

#define INDEX "model.safetensors.index.json"

Test(checkpoint, follows_the_index_and_nothing_else)
{
    put_shard("x-1.safetensors", "da");
    put_shard("x-2.safetensors", "bc");
    put_shard("y.safetensors", "a");
    put_text(INDEX,
             "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"a\":\"x-1.safetensors\","
             "\"b\":\"x-2.safetensors\",\"c\":\"x-2.safetensors\",\"d\":\"x-1.safetensors\"}}");
    expect_opens();
    cr_assert_eq(ckpt.num_shards, 2);
    cr_assert_eq(ckpt.num_tensors, 4);
    for (int i = 0; i < 4; i++) {
        const char name[2] = {(char)('a' + i), '\0'};
        cr_assert_str_eq(ckpt.tensors[i].name, name);
        cr_assert_eq(mp_checkpoint_find(&ckpt, name), &ckpt.tensors[i]);
    }
    cr_assert_str_eq(ckpt.shards[ckpt.tensors[0].shard].name, "x-1.safetensors");
    cr_assert_str_eq(ckpt.shards[ckpt.tensors[1].shard].name, "x-2.safetensors");
    cr_assert_null(mp_checkpoint_find(&ckpt, "e"));
    unsigned char byte;
    cr_assert_eq(mp_tensor_read(&ckpt, &ckpt.tensors[0], 1, 1, &byte, &err), 0);
    cr_assert_eq(byte, 4, "\"a\" is the second tensor of its shard");
}

Test(checkpoint, accepts_an_index_without_weight_map)
{
    put_shard("x.safetensors", "ab");
    put_text(INDEX, "{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}");
    expect_opens();
    cr_assert_eq(ckpt.num_tensors, 2);
    put_text(INDEX, "{\"a\":\"x.safetensors\",\"b\":1}");
    expect_refused(INDEX ": \"weight_map\" is missing");
    put_text(INDEX, "{\"metadata\":{}}");
    expect_refused(INDEX ": \"weight_map\" is missing");
}

Test(checkpoint, accepts_one_index_of_another_name)
{
    put_shard("q-1.safetensors", "a");
    put_shard("other.safetensors", "b");
    put_text("quant_model_weights.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"q-1.safetensors\"}}");
    expect_opens();
    cr_assert_eq(ckpt.num_shards, 1);

    char want[600];
    put_text("b.safetensors.index.json", "{}");
    snprintf(want, sizeof(want),
             "\"%s\" has 2 indexes, \"b.safetensors.index.json\", "
             "\"quant_model_weights.safetensors.index.json\", and none is \"" INDEX "\"",
             dir);
    expect_refused(want);

    put_text(INDEX, "{\"weight_map\":{\"b\":\"other.safetensors\"}}");
    expect_opens();
    cr_assert_not_null(mp_checkpoint_find(&ckpt, "b"));
}

Test(checkpoint, refuses_a_malformed_index)
{
    put_shard("x.safetensors", "a");
    put_text(INDEX, "[]");
    expect_refused(INDEX ": expected an object");
    put_text(INDEX, "{\"weight_map\":[]}");
    expect_refused(INDEX ": \"weight_map\" is not an object");
    put_text(INDEX, "{\"weight_map\":{}}");
    expect_refused(INDEX ": names no tensors");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":2}}");
    expect_refused(INDEX ": file of tensor \"b\" is not a string");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x\",\n\"a\":\"x\"}}");
    expect_refused(INDEX ": line 2, column 3: duplicate object key near '\"a\"'");
    put_text(INDEX, "{\"weight_map\":{");
    expect_refused(INDEX ": line 1, column 15: string or '}' expected near end of file");
}

Test(checkpoint, refuses_shard_names_that_lead_elsewhere)
{
    static const char *const names[] = {"", ".", "..", "../x.safetensors", "/x", "sub/x", "x/"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char text[200], want[300];
        snprintf(text, sizeof(text), "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
        snprintf(want, sizeof(want),
                 INDEX ": tensor \"a\": \"%s\" is not the name of a file in the directory",
                 names[i]);
        put_text(INDEX, text);
        expect_refused(want);
    }
}

Test(checkpoint, refuses_a_missing_shard)
{
    put_shard("x-1.safetensors", "a");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\"}}");
    expect_refused("x-2.safetensors: the file is missing, \"" INDEX "\" names it");
}

Test(checkpoint, refuses_what_index_and_shards_do_not_share)
{
    put_shard("x-1.safetensors", "a");
    put_shard("x-2.safetensors", "bc");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\"}}");
    expect_refused("x-2.safetensors: tensor \"c\" is not in \"" INDEX "\"");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\","
                    "\"c\":\"x-2.safetensors\",\"d\":\"x-1.safetensors\"}}");
    expect_refused("x-1.safetensors: tensor \"d\" is missing, \"" INDEX "\" says it is here");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\","
                    "\"c\":\"x-1.safetensors\"}}");
    expect_refused("x-1.safetensors: tensor \"c\" is in \"x-2.safetensors\", \"" INDEX
                   "\" says it is here");
}

Test(checkpoint, refuses_a_tensor_in_two_shards)
{
    put_shard("x-1.safetensors", "ab");
    put_shard("x-2.safetensors", "b");
    put_text(INDEX, "{\"weight_map\":{\"a\":\"x-1.safetensors\",\"b\":\"x-2.safetensors\"}}");
    expect_refused("x-2.safetensors: tensor \"b\" is in \"x-1.safetensors\" too");
}

Test(checkpoint, takes_all_files_without_an_index)
{
    put_shard("b.safetensors", "x");
    put_shard("a.safetensors", "zy");
    put_shard(".hidden.safetensors", "h");
    put_text(".safetensors", "not one");
    put_text("notes.txt", "not one");
    expect_opens();
    cr_assert_eq(ckpt.num_shards, 2);
    cr_assert_str_eq(ckpt.shards[0].name, "a.safetensors");
    cr_assert_str_eq(ckpt.shards[1].name, "b.safetensors");
    cr_assert_eq(ckpt.num_tensors, 3);
    cr_assert_str_eq(ckpt.dir, dir);
}

Test(checkpoint, opens_a_single_file_whatever_lies_beside)
{
    put_shard("one.st", "ab");
    put_text(INDEX, "rubbish");
    cr_assert_eq(mp_checkpoint_open(&ckpt, in_dir("one.st"), NULL, &err), 0, "%s", err.message);
    cr_assert_eq(ckpt.num_tensors, 2);
    cr_assert_str_eq(ckpt.shards[0].name, "one.st");
    mp_checkpoint_release(&ckpt);
    cr_assert_eq(chdir(dir), 0);
    cr_assert_eq(mp_checkpoint_open(&ckpt, "one.st", NULL, &err), 0, "%s", err.message);
    cr_assert_str_eq(ckpt.dir, ".");
}

Test(checkpoint, refuses_a_directory_without_safetensors)
{
    char want[400];
    snprintf(want, sizeof(want), "\"%s\" holds no *.safetensors", dir);
    expect_refused(want);
}

Test(checkpoint, a_path_that_is_not_there_is_an_io_error)
{
    cr_assert_eq(mp_checkpoint_open(&ckpt, "no/such", NULL, &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "cannot open \"no/such\": No such file or directory");
    mp_checkpoint_release(&ckpt);
}

Test(checkpoint, says_to_raise_the_limit_of_open_files)
{
    int fd;
    char path[512], want[1200];
    snprintf(path, sizeof(path), "%s", in_dir("m.safetensors"));
    put_shard("m.safetensors", "a");
    /* Once before, since a first parallel loop may open files of its own. */
    cr_assert_eq(mp_checkpoint_open(&ckpt, path, NULL, &err), 0);
    mp_checkpoint_release(&ckpt);
    struct rlimit limit;
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    struct rlimit low = limit;
    low.rlim_cur = 64;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
    while ((fd = open("/dev/null", O_RDONLY)) >= 0)
        continue;
    int rc = mp_checkpoint_open(&ckpt, path, NULL, &err);
    setrlimit(RLIMIT_NOFILE, &limit);
    cr_assert_eq(rc, MP_ERR_IO);
    snprintf(want, sizeof(want),
             "m.safetensors: cannot open \"%s\" (raise `ulimit -n`): Too many open files", path);
    cr_assert_str_eq(err.message, want);
}

Test(checkpoint, reports_the_first_bad_shard_with_any_number_of_threads)
{
    for (int i = 0; i < 20; i++) {
        char name[32], letter[2] = {(char)('a' + i), '\0'};
        snprintf(name, sizeof(name), "%02d.safetensors", i);
        if (i == 7 || i == 8 || i == 19)
            put_text(name, "bad");
        else
            put_shard(name, letter);
    }
    for (int threads = 1; threads < 5; threads++) {
        const mp_context context = {.threads = threads};
        cr_assert_eq(mp_checkpoint_open(&ckpt, dir, &context, &err), MP_ERR_INPUT);
        cr_assert_str_eq(err.message, "07.safetensors: file of 3 bytes is too small for a header");
    }
    const int cancel = 1;
    const mp_context context = {.cancel = &cancel};
    cr_assert_eq(mp_checkpoint_open(&ckpt, dir, &context, &err), MP_ERR_CANCELLED);
}
