/* SPDX-License-Identifier: Apache-2.0 */
/* Errors, formats, arenas, digests, files, JSON and the parallel loop. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/parallel.h"
#include "base/words.h"

static char dir[256];
static mp_error err;

static void make_scratch(void)
{
    snprintf(dir, sizeof(dir), "%s/moepack-base-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(dir));
    err = (mp_error){0};
}

static void remove_scratch(void)
{
    cr_assert_eq(mp_remove_tree(dir, &err), 0, "%s", err.message);
    cr_assert_not(mp_path_exists(dir));
}

TestSuite(base, .init = make_scratch, .fini = remove_scratch);

/* "dir/name", good until the next call. */
static const char *in_dir(const char *name)
{
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

/* ------------------------------------------------------------------------
 * Errors
 */

Test(base, fail_fills_and_returns_the_code)
{
    cr_assert_eq(mp_fail(&err, MP_ERR_INPUT, "layer %d of \"%s\"", 7, "x"), MP_ERR_INPUT);
    cr_assert_eq(err.code, MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "layer 7 of \"x\"");
    cr_assert_eq(mp_fail(NULL, MP_ERR_CHECK, "nobody listens"), MP_ERR_CHECK);
}

Test(base, fail_errno_appends_the_reason)
{
    cr_assert_eq(mp_fail_errno(&err, ENOENT, "cannot open \"%s\"", "a"), MP_ERR_IO);
    cr_assert_str_eq(err.message, "cannot open \"a\": No such file or directory");
    cr_assert_eq(mp_fail_memory(&err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "out of memory");
}

Test(base, prefix_keeps_the_code)
{
    mp_fail(&err, MP_ERR_UNSUPPORTED, "no such thing");
    cr_assert_eq(mp_error_prefix(&err, "rank %d", 3), MP_ERR_UNSUPPORTED);
    cr_assert_str_eq(err.message, "rank 3: no such thing");
}

Test(base, message_may_quote_itself)
{
    mp_fail(&err, MP_ERR_INPUT, "inner");
    mp_fail(&err, MP_ERR_INPUT, "outer, %s", err.message);
    cr_assert_str_eq(err.message, "outer, inner");
}

Test(base, message_is_one_line_of_whole_characters)
{
    char name[MP_ERROR_MAX + 10];
    mp_fail(&err, MP_ERR_INPUT, "%s", "a\nb\033[1m\177");
    cr_assert_str_eq(err.message, "a?b?[1m?");
    /* Control characters of Latin-1, in UTF-8 and bare. */
    mp_fail(&err, MP_ERR_INPUT, "%s",
            "a\xc2\x9b"
            "31m\xc2\x80\xc2\x9f\x9b\xc2\xa0\xc3\x9b");
    cr_assert_str_eq(err.message, "a??31m?????\xc2\xa0\xc3\x9b");

    /* Sequences of 2, 3 and 4 bytes at every place across the end of the buffer. */
    const char *const letters[] = {"\u00e9", "\u20ac", "\U0001f600"};
    for (int width = 2; width <= 4; width++) {
        for (int shift = 0; shift < width; shift++) {
            memset(name, 'x', sizeof(name));
            memcpy(name + MP_ERROR_MAX - 1 - shift, letters[width - 2], (size_t)width);
            name[sizeof(name) - 1] = '\0';
            mp_fail(&err, MP_ERR_INPUT, "%s", name);
            cr_assert_eq(strlen(err.message), (size_t)(MP_ERROR_MAX - 1 - shift));
            cr_assert_eq(err.message[strlen(err.message) - 1], 'x');
        }
        memset(name, 'x', sizeof(name));
        memcpy(name + MP_ERROR_MAX - 1 - width, letters[width - 2], (size_t)width);
        name[sizeof(name) - 1] = '\0';
        mp_fail(&err, MP_ERR_INPUT, "%s", name);
        cr_assert_eq(strlen(err.message), (size_t)MP_ERROR_MAX - 1, "a whole one stays");
    }
}

Test(base, problems_keep_the_first_texts_and_count_all)
{
    mp_problems problems = {0};
    for (int i = 0; i < MP_PROBLEMS_KEPT + 7; i++)
        mp_problem(&problems, "layer %d\n", i);
    cr_assert_eq(problems.count, MP_PROBLEMS_KEPT + 7);
    cr_assert_str_eq(problems.text[0], "layer 0?");
    cr_assert_str_eq(problems.text[MP_PROBLEMS_KEPT - 1], "layer 19?");
    mp_problems_release(&problems);
    cr_assert_eq(problems.count, 0);
    mp_problems_release(&problems);
}

Test(base, arithmetic_notices_overflow)
{
    uint64_t out;
    cr_assert(mp_mul_u64(UINT64_MAX / 3, 3, &out));
    cr_assert_eq(out, UINT64_MAX / 3 * 3);
    cr_assert_not(mp_mul_u64(UINT64_MAX / 3 + 1, 3, &out));
    cr_assert(mp_add_u64(UINT64_MAX - 5, 5, &out));
    cr_assert_eq(out, UINT64_MAX);
    cr_assert_not(mp_add_u64(UINT64_MAX - 5, 6, &out));
    cr_assert_eq(mp_ceil_div(0, 7), 0);
    cr_assert_eq(mp_ceil_div(15, 7), 3);
    cr_assert_eq(mp_ceil_div(UINT64_MAX, 2), UINT64_MAX / 2 + 1);
    cr_assert_eq(mp_round_up(130, 128), 256);
    cr_assert_eq(mp_round_up(256, 128), 256);
}

Test(base, allocation_refuses_what_cannot_be)
{
    cr_assert_null(mp_alloc(UINT64_MAX / 2, 3));
    cr_assert_null(mp_alloc_zeroed(UINT64_MAX, 2));
    cr_assert_null(mp_alloc(UINT64_MAX / 2 + 1, 1));
    void *empty = mp_alloc(0, 8);
    cr_assert_not_null(empty);
    free(empty);
    unsigned char *zeros = mp_alloc_zeroed(9, 11);
    for (int i = 0; i < 99; i++)
        cr_assert_eq(zeros[i], 0);
    free(zeros);
}

Test(base, version_is_that_of_the_header)
{
    cr_assert_str_eq(mp_version(), MP_VERSION);
}

/* ------------------------------------------------------------------------
 * Formats
 */

Test(base, dtypes_go_by_exact_names)
{
    mp_dtype dtype;
    for (int i = 0; i < MP_DTYPE_COUNT; i++) {
        cr_assert(mp_dtype_parse(mp_dtype_name((mp_dtype)i), &dtype));
        cr_assert_eq(dtype, (mp_dtype)i);
    }
    cr_assert_not(mp_dtype_parse("f32", &dtype));
    cr_assert_not(mp_dtype_parse("I4", &dtype));
    cr_assert_not(mp_dtype_parse("", &dtype));
    cr_assert_not(mp_dtype_parse("BF16 ", &dtype));
}

Test(base, widths_are_those_that_the_names_say)
{
    /* Apart from BOOL the first number in a dtype's name is its width. */
    for (int i = 0; i < MP_DTYPE_COUNT; i++) {
        const char *name = mp_dtype_name((mp_dtype)i);
        unsigned width = 8;
        if (strcmp(name, "BOOL") != 0)
            width = (unsigned)strtoul(name + strcspn(name, "0123456789"), NULL, 10);
        cr_assert_eq(mp_dtype_bits((mp_dtype)i), width, "%s", name);
    }
    /* So it is in a scheme's, where mx and nv stand for micro-scaled formats. */
    for (int i = 0; i < MP_SCHEME_COUNT; i++) {
        mp_scheme scheme;
        const char *name = mp_scheme_name((mp_scheme)i);
        unsigned width = (unsigned)strtoul(name + strcspn(name, "0123456789"), NULL, 10);
        cr_assert_eq(mp_scheme_bits((mp_scheme)i), width, "%s", name);
        cr_assert(mp_scheme_parse(name, &scheme));
        cr_assert_eq(scheme, (mp_scheme)i);
    }
    mp_scheme scheme;
    cr_assert_not(mp_scheme_parse("MXFP4", &scheme));
}

/* ------------------------------------------------------------------------
 * Arenas
 */

Test(base, arena_objects_are_apart_and_aligned)
{
    mp_arena arena = {0};
    unsigned char *objects[601];
    for (size_t i = 0; i < 601; i++) {
        objects[i] = mp_arena_alloc(&arena, i);
        cr_assert_eq((uintptr_t)objects[i] % 8, 0);
        memset(objects[i], (int)(i % 251), i);
    }
    for (size_t i = 0; i < 601; i++)
        for (size_t j = 0; j < i; j++)
            cr_assert_eq(objects[i][j], i % 251, "object %zu was written over", i);
    cr_assert_null(mp_arena_alloc(&arena, SIZE_MAX));
    cr_assert_null(mp_arena_string(&arena, "x", SIZE_MAX));
    mp_arena_release(&arena);
    mp_arena_release(&arena);
}

Test(base, arena_join_moves_everything)
{
    mp_arena all = {0};
    const char *texts[20];
    for (int i = 0; i < 20; i++) {
        mp_arena one = {0};
        char text[32];
        int n = snprintf(text, sizeof(text), "text %d!", i);
        texts[i] = mp_arena_string(&one, text, (size_t)n - 1);
        if (i % 3 == 0)
            mp_arena_alloc(&one, 100000);
        mp_arena_join(&all, &one);
        cr_assert_null(one.blocks);
        mp_arena_join(&all, &one);
        cr_assert_not_null(mp_arena_alloc(&all, 1000));
    }
    for (int i = 0; i < 20; i++) {
        char text[32];
        snprintf(text, sizeof(text), "text %d", i);
        cr_assert_str_eq(texts[i], text);
    }
    mp_arena_release(&all);
}

/* ------------------------------------------------------------------------
 * Digests
 */

Test(base, digest_of_nothing_is_the_published_one)
{
    char text[MP_DIGEST_TEXT];
    mp_digest digest;
    mp_digest_of("", 0, &digest);
    cr_assert_str_eq(mp_digest_text(&digest, text), "99aa06d3014798d86001c324468d497f");
}

Test(base, digest_text_goes_there_and_back)
{
    mp_digest a, b;
    char text[MP_DIGEST_TEXT];
    mp_digest_of("moepack", 7, &a);
    cr_assert(mp_digest_parse(mp_digest_text(&a, text), &b));
    cr_assert(mp_digest_equal(&a, &b));
    b.bytes[15] ^= 1;
    cr_assert_not(mp_digest_equal(&a, &b));
    cr_assert_not(mp_digest_parse("99aa06d3014798d86001c324468d497", &a));
    cr_assert_not(mp_digest_parse("99aa06d3014798d86001c324468d497ff", &a));
    cr_assert_not(mp_digest_parse("99AA06D3014798D86001C324468D497F", &a));
    cr_assert_not(mp_digest_parse("99aa06d3014798d86001c324468d497g", &a));
    cr_assert_not(mp_digest_parse("", &a));
}

Test(base, digest_of_a_file_does_not_depend_on_the_buffer)
{
    unsigned char data[3001], buffer[4096];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)(i * i >> 3);
    const char *path = in_dir("data");
    cr_assert_eq(mp_write_file(path, data, sizeof(data), &err), 0);
    int fd;
    cr_assert_eq(mp_open_read(path, &fd, &err), 0);
    mp_digest want, got;
    mp_digest_of(data + 17, sizeof(data) - 40, &want);
    const size_t sizes[] = {1, 13, 64, 1024, 4096};
    for (size_t i = 0; i < 5; i++) {
        cr_assert_eq(mp_digest_file(fd, path, 17, sizeof(data) - 40, buffer, sizes[i], &got, &err),
                     0);
        cr_assert(mp_digest_equal(&want, &got));
    }
    cr_assert_eq(mp_digest_file(fd, "data", 17, sizeof(data), buffer, 100, &got, &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "\"data\" ends at byte 3001, 16 bytes too early");
    cr_assert_eq(mp_digest_file(fd, "data", 5000, 10, buffer, 100, &got, &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "\"data\" ends at byte 3001, 2009 bytes too early");
    close(fd);
}

/* ------------------------------------------------------------------------
 * Files
 */

Test(base, file_keeps_what_is_written_where)
{
    int fd;
    uint64_t size;
    char back[8] = {0};
    const char *path = in_dir("file");
    cr_assert_eq(mp_open_write(path, &fd, &err), 0);
    cr_assert_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    cr_assert_eq(mp_file_resize(fd, path, 5000, &err), 0);
    cr_assert_eq(mp_pwrite_all(fd, "abcdefg", 7, 4990, path, &err), 0);
    cr_assert_eq(mp_pread_all(fd, back, 7, 4990, path, &err), 0);
    cr_assert_str_eq(back, "abcdefg");
    cr_assert_eq(mp_file_size(fd, path, &size, &err), 0);
    cr_assert_eq(size, 5000);
    cr_assert_eq(mp_file_sync(fd, path, &err), 0);
    mp_file_forget(fd, 0, 5000);
    mp_file_forget(fd, 3, 0);
    cr_assert_eq(mp_file_close(fd, path, &err), 0);
    cr_assert_eq(mp_file_close(-1, path, &err), 0);
    cr_assert_eq(mp_file_close(fd, "file", &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "cannot close \"file\": Bad file descriptor");
    cr_assert_eq(mp_dir_sync(dir, &err), 0);
    cr_assert_eq(mp_open_write(path, &fd, &err), 0);
    cr_assert_eq(mp_file_size(fd, path, &size, &err), 0);
    cr_assert_eq(size, 5000, "opening for writing does not truncate");
    close(fd);
}

Test(base, file_faults_name_the_file)
{
    int fd;
    char byte;
    cr_assert_eq(mp_open_read("no/such", &fd, &err), MP_ERR_IO);
    cr_assert_eq(fd, -1);
    cr_assert_str_eq(err.message, "cannot open \"no/such\": No such file or directory");
    cr_assert_eq(mp_pread_all(-1, &byte, 1, 0, "x", &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "cannot read \"x\" at byte 0: Bad file descriptor");
    cr_assert_eq(mp_pwrite_all(-1, &byte, 1, 9, "x", &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "cannot write \"x\" at byte 9: Bad file descriptor");
    cr_assert_eq(mp_pread_all(0, &byte, UINT64_MAX, 1, "x", &err), MP_ERR_IO);
    cr_assert_eq(mp_pwrite_all(0, &byte, 1, UINT64_MAX, "x", &err), MP_ERR_IO);
    cr_assert_eq(mp_file_resize(0, "x", UINT64_MAX, &err), MP_ERR_IO);
    cr_assert_eq(mp_remove_tree("no/such", &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "cannot remove \"no/such\": No such file or directory");

    uint64_t size;
    fd = open(dir, O_RDONLY);
    cr_assert_eq(mp_file_size(fd, "x", &size, &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "\"x\" is not a regular file");
    close(fd);
}

Test(base, directories_are_made_once_and_removed_whole)
{
    char outside[512];
    snprintf(outside, sizeof(outside), "%s", in_dir("outside"));
    cr_assert_eq(mp_write_file(outside, "stay", 4, &err), 0);
    cr_assert_eq(mp_make_dir(in_dir("a"), &err), 0);
    cr_assert_eq(mp_make_dir(in_dir("a"), &err), 0);
    cr_assert_eq(mp_make_dir(in_dir("a/b"), &err), 0);
    cr_assert_eq(mp_write_file(in_dir("a/b/c"), "x", 1, &err), 0);
    cr_assert_eq(symlink(outside, in_dir("a/link")), 0);
    cr_assert_eq(symlink(dir, in_dir("a/b/up")), 0);
    cr_assert_eq(mp_make_dir(outside, &err), MP_ERR_IO);
    cr_assert_eq(mp_remove_tree(in_dir("a"), &err), 0);
    cr_assert_not(mp_path_exists(in_dir("a")));
    cr_assert(mp_path_exists(outside), "links are not followed");
    cr_assert_eq(symlink("nowhere", in_dir("dangling")), 0);
    cr_assert(mp_path_exists(in_dir("dangling")));
}

Test(base, paths)
{
    char *path = mp_path_join("a", "b");
    cr_assert_str_eq(path, "a/b");
    free(path);
    path = mp_path_join("/", "b");
    cr_assert_str_eq(path, "/b");
    free(path);
    path = mp_path_join("", "b");
    cr_assert_str_eq(path, "b");
    free(path);
    cr_assert_str_eq(mp_path_base("a/b.c"), "b.c");
    cr_assert_str_eq(mp_path_base("b"), "b");
    cr_assert_str_eq(mp_path_base("."), ".");
    cr_assert_str_eq(mp_path_base("/"), "/");
}

Test(base, text_up_to_its_limit)
{
    char *text;
    uint64_t length;
    char path[512];
    char big[70000];
    memset(big, 'x', sizeof(big));
    snprintf(path, sizeof(path), "%s", in_dir("text"));
    cr_assert_eq(mp_write_file(path, big, sizeof(big), &err), 0);
    cr_assert_eq(mp_read_text(path, sizeof(big), &text, &length, &err), 0);
    cr_assert_eq(length, sizeof(big));
    cr_assert_eq(text[length], '\0');
    cr_assert_eq(memcmp(text, big, sizeof(big)), 0);
    free(text);
    cr_assert_eq(mp_read_text(path, sizeof(big) - 1, &text, NULL, &err), MP_ERR_INPUT);
    char want[600];
    snprintf(want, sizeof(want), "\"%s\" is larger than 69999 bytes", path);
    cr_assert_str_eq(err.message, want);
    cr_assert_eq(mp_write_file(path, "", 0, &err), 0);
    cr_assert_eq(mp_read_text(path, 0, &text, &length, &err), 0);
    cr_assert_eq(length, 0);
    cr_assert_str_eq(text, "");
    free(text);
}

static void ignore_signal(int number)
{
    (void)number;
}

/* Writes 300 bytes slowly into standard input, from a child. */
static pid_t feed_stdin(void)
{
    int ends[2];
    cr_assert_eq(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        for (int i = 0; i < 300; i += 100) {
            char part[100];
            memset(part, 'a' + i / 100, sizeof(part));
            usleep(20000);
            if (write(ends[1], part, sizeof(part)) != (ssize_t)sizeof(part))
                _exit(1);
        }
        _exit(0);
    }
    close(ends[1]);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    return child;
}

Test(base, standard_input_through_interrupts_and_short_reads)
{
    const struct sigaction action = {.sa_handler = ignore_signal};
    const struct itimerval often = {{0, 3000}, {0, 3000}};
    const struct itimerval never = {0};
    char *text;
    uint64_t length;
    int status;
    pid_t child = feed_stdin();
    sigaction(SIGALRM, &action, NULL); /* without SA_RESTART: read fails with EINTR */
    setitimer(ITIMER_REAL, &often, NULL);
    int rc = mp_read_text("-", 1000, &text, &length, &err);
    setitimer(ITIMER_REAL, &never, NULL);
    cr_assert_eq(rc, 0, "%s", err.message);
    cr_assert_eq(length, 300);
    cr_assert_eq(text[99], 'a');
    cr_assert_eq(text[100], 'b');
    cr_assert_eq(text[299], 'c');
    free(text);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
}

/* ------------------------------------------------------------------------
 * JSON
 */

static json_t *parsed(const char *text)
{
    json_t *json;
    cr_assert_eq(mp_json_parse(text, strlen(text), "t", &json, &err), 0, "%s", err.message);
    return json;
}

Test(base, json_faults_say_where)
{
    json_t *json;
    const char *const twice = "{\"a\": 1,\n \"a\": 2}";
    cr_assert_eq(mp_json_parse(twice, strlen(twice), "conf", &json, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: line 2, column 4: duplicate object key near '\"a\"'");
    cr_assert_null(json);
    cr_assert_eq(mp_json_parse("{}x", 3, "conf", &json, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: line 1, column 3: end of file expected near 'x'");
    cr_assert_eq(mp_json_parse("[1]", 2, "conf", &json, &err), MP_ERR_INPUT);
    cr_assert_eq(mp_json_load("no/such", 10, &json, &err), MP_ERR_IO);
    cr_assert_null(json);
}

static json_t *parsed_python(const char *text)
{
    json_t *json;

    cr_assert_eq(mp_json_parse_python(text, strlen(text), "t", &json, &err), 0, "%s: %s", text,
                 err.message);
    return json;
}

Test(base, json_of_python_has_numbers_that_json_has_not)
{
    static const struct {
        const char *text, *same;
    } cases[] = {
        {"NaN", "\"NaN\""},
        {"[NaN,Infinity , -Infinity]", "[\"NaN\",\"Infinity\",\"-Infinity\"]"},
        {"{\"a\": {\"deep\": [1, NaN\n]}}", "{\"a\":{\"deep\":[1,\"NaN\"]}}"},
        {"{\"NaN\": \"Infinity, NaN\", \"b\": \"\\\"NaN\"}",
         "{\"NaN\":\"Infinity, NaN\",\"b\":\"\\\"NaN\"}"},
        {"[\"\\\\\",NaN]", "[\"\\\\\",\"NaN\"]"},
        {"\xEF\xBB\xBF{\"a\": 1}", "{\"a\":1}"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *json = parsed_python(cases[i].text), *same = parsed(cases[i].same);

        cr_assert(json_equal(json, same), "%s", cases[i].text);
        json_decref(json);
        json_decref(same);
    }
}

Test(base, json_of_python_is_not_anything)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"{NaN: 1}", "t: line 1, column 4: string or '}' expected near 'NaN'"},
        {"[-NaN]", "t: line 1, column 2: invalid token near '-'"},
        {"[nan]", "t: line 1, column 4: invalid token near 'nan'"},
        {"[NaNs]", "t: line 1, column 5: ']' expected near 's'"},
        {"[Inf]", "t: line 1, column 4: invalid token near 'Inf'"},
        {"[NaN]\xEF\xBB\xBF", "t: line 1, column 6: end of file expected near '\xEF\xBB\xBF'"},
        /* Quotes of words on the line before do not count, on the line itself they are taken off.
         */
        {"[NaN, Infinity,\n -Infinity, NaN, x]", "t: line 2, column 18: invalid token near 'x'"},
    };
    json_t *json;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(mp_json_parse_python(cases[i].text, strlen(cases[i].text), "t", &json, &err),
                     MP_ERR_INPUT);
        cr_assert_str_eq(err.message, cases[i].message);
        cr_assert_null(json);
    }
    cr_assert_eq(mp_json_parse("[NaN]", 5, "t", &json, &err), MP_ERR_INPUT,
                 "files of ours are JSON, and nothing else");
}

Test(base, json_text_keeps_the_order)
{
    json_t *json = parsed("{\"z\":1,\"a\":[true,null]}");
    char *text = mp_json_text(json);
    cr_assert_str_eq(text, "{\n  \"z\": 1,\n  \"a\": [\n    true,\n    null\n  ]\n}\n");
    cr_assert_eq(mp_write_file(in_dir("j"), text, strlen(text), &err), 0);
    json_t *again;
    cr_assert_eq(mp_json_load(in_dir("j"), 1000, &again, &err), 0);
    cr_assert(json_equal(json, again));
    free(text);
    json_decref(json);
    json_decref(again);
}

Test(base, json_members_have_types)
{
    json_t *json = parsed("{\"n\":5,\"minus\":-4,\"real\":4.0,\"s\":\"x\",\"a\":[],\"o\":{}}");
    json_t *value;
    const char *text;
    uint64_t number;
    cr_assert_eq(mp_json_get_u64(json, "n", "conf", &number, &err), 0);
    cr_assert_eq(number, 5);
    cr_assert_eq(mp_json_get_string(json, "s", "conf", &text, &err), 0);
    cr_assert_str_eq(text, "x");
    cr_assert_eq(mp_json_get_array(json, "a", "conf", &value, &err), 0);
    cr_assert_eq(mp_json_get_object(json, "o", "conf", &value, &err), 0);

    cr_assert_eq(mp_json_get_u64(json, "none", "conf", &number, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: \"none\" is missing");
    cr_assert_eq(mp_json_get_u64(json, "minus", "conf", &number, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: \"minus\" is -4, expected 0 or more");
    cr_assert_eq(mp_json_get_u64(json, "real", "conf", &number, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: \"real\" is a fraction, expected an integer");
    cr_assert_eq(mp_json_get_string(json, "n", "conf", &text, &err), MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: \"n\" is an integer, expected a string");
    cr_assert_eq(mp_json_get_object(json, "a", "conf", &value, &err), MP_ERR_INPUT);
    cr_assert_eq(mp_json_get_array(json, "o", "conf", &value, &err), MP_ERR_INPUT);
    cr_assert_eq(mp_json_get_u64(json_object_get(json, "a"), "n", "conf", &number, &err),
                 MP_ERR_INPUT);
    cr_assert_str_eq(err.message, "conf: expected an object");
    json_decref(json);
}

/* ------------------------------------------------------------------------
 * The parallel loop
 */

#define COUNT 1009

struct marks {
    unsigned char times[COUNT];
    uint64_t fail_from; /* every third index from here on fails */
    uint64_t cancel_at;
    int cancel;
};

static int mark(void *user, uint64_t index, void *scratch, mp_error *e)
{
    struct marks *marks = user;
    cr_assert_eq((uintptr_t)scratch % 64, 0);
    cr_assert_not_null(scratch);
    memset(scratch, (int)index, 100);
    __atomic_fetch_add(&marks->times[index], 1, __ATOMIC_RELAXED);
    if (index == marks->cancel_at)
        __atomic_store_n(&marks->cancel, 1, __ATOMIC_RELEASE);
    if (index >= marks->fail_from && (index - marks->fail_from) % 3 == 0) {
        if (index == marks->fail_from)
            usleep(2000); /* lets higher ones fail before it does */
        return mp_fail(e, MP_ERR_CHECK, "index %llu", (unsigned long long)index);
    }
    for (int i = 0; i < 100; i++)
        if (((unsigned char *)scratch)[i] != (unsigned char)index)
            return mp_fail(e, MP_ERR_IO, "scratch is shared");
    return 0;
}

Test(base, parallel_does_everything_once)
{
    for (int threads = 0; threads <= 7; threads++) {
        struct marks marks = {.fail_from = UINT64_MAX, .cancel_at = UINT64_MAX};
        const mp_context context = {.threads = threads, .cancel = &marks.cancel};
        cr_assert_eq(mp_parallel(&context, COUNT, 100, mark, &marks, &err), 0);
        for (int i = 0; i < COUNT; i++)
            cr_assert_eq(marks.times[i], 1);
    }
    cr_assert_eq(mp_parallel(NULL, 0, 100, mark, NULL, &err), 0);
}

Test(base, parallel_reports_the_lowest_error)
{
    for (int threads = 1; threads <= 7; threads++) {
        struct marks marks = {.fail_from = 500, .cancel_at = UINT64_MAX};
        const mp_context context = {.threads = threads};
        err = (mp_error){0};
        cr_assert_eq(mp_parallel(&context, COUNT, 100, mark, &marks, &err), MP_ERR_CHECK);
        cr_assert_eq(err.code, MP_ERR_CHECK);
        cr_assert_str_eq(err.message, "index 500");
        for (int i = 0; i <= 500; i++)
            cr_assert_eq(marks.times[i], 1);
        cr_assert_eq(mp_parallel(&context, COUNT, 100, mark, &marks, NULL), MP_ERR_CHECK);
    }
}

Test(base, parallel_starts_nothing_after_an_error)
{
    struct marks marks = {.fail_from = 500, .cancel_at = UINT64_MAX};
    const mp_context context = {.threads = 1};
    mp_parallel(&context, COUNT, 100, mark, &marks, &err);
    for (int i = 501; i < COUNT; i++)
        cr_assert_eq(marks.times[i], 0);
}

Test(base, parallel_can_be_cancelled)
{
    for (int threads = 1; threads <= 7; threads++) {
        struct marks marks = {.fail_from = UINT64_MAX, .cancel_at = 300};
        const mp_context context = {.threads = threads, .cancel = &marks.cancel};
        cr_assert_eq(mp_parallel(&context, COUNT, 100, mark, &marks, &err), MP_ERR_CANCELLED);
        cr_assert_str_eq(err.message, "cancelled");
        cr_assert_eq(marks.times[300], 1);
        for (int i = 0; i < 300 && threads == 1; i++)
            cr_assert_eq(marks.times[i], 1);
        cr_assert_eq(marks.times[COUNT - 1], 0);
    }
}

Test(base, threads_are_at_least_one_and_not_too_many)
{
    const mp_context many = {.threads = 1 << 30};
    const mp_context three = {.threads = 3};
    cr_assert_geq(mp_threads(NULL), 1);
    cr_assert_eq(mp_threads(&three), 3);
    cr_assert_leq(mp_threads(&many), 1024);
    cr_assert_not(mp_cancelled(NULL));
    cr_assert_not(mp_cancelled(&three));
    cr_assert_eq(mp_parallel(&three, 5, UINT64_MAX, mark, NULL, &err), MP_ERR_IO);
    cr_assert_str_eq(err.message, "out of memory");
}
