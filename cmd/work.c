/* SPDX-License-Identifier: Apache-2.0 */
/* What commands that write many files print: what is to be done, and what was. */
#include "work.h"

#include "output.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* "name/" is the same directory as "name". */
void print_last_part(FILE *f, const char *before, const char *path)
{
    size_t end, begin;

    if (!path)
        return;
    end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    for (begin = end; begin > 0 && path[begin - 1] != '/';)
        begin--;
    fprintf(f, "%s%.*s", before, (int)(end - begin), path + begin);
}

void print_option(FILE *f, const char *name, const char *value)
{
    if (value)
        fprintf(f, " --%s %s", name, value);
}

int select_layers(const char *list, const mp_catalog *catalog, bool **selected, mp_error *err)
{
    const char **prefixes;
    int rc;

    *selected = NULL;
    if (!list)
        return 0;
    prefixes = malloc((catalog->num_layers + 1) * sizeof *prefixes);
    *selected = calloc(catalog->num_layers + 1, sizeof **selected);
    if (prefixes && *selected) {
        for (size_t i = 0; i < catalog->num_layers; i++)
            prefixes[i] = catalog->layers[i].prefix;
        rc = mp_select_layers(list, prefixes, catalog->num_layers, *selected, err);
    } else {
        rc = cmd_fail(err, MP_ERR_IO, "out of memory");
    }
    free(prefixes);
    return rc;
}

static uint64_t peak_scratch(const mp_work *work, const mp_context *context)
{
    return work->scratch_bytes * (uint64_t)mp_threads(context);
}

void print_work(FILE *out, const mp_work *work, const mp_context *context)
{
    char size[SIZE_TEXT], read[SIZE_TEXT], written[SIZE_TEXT];

    for (size_t f = 0; f < work->num_files; f++)
        fprintf(out, "%s  %u tensors  %s\n", work->files[f].path, work->files[f].num_tensors,
                size_text(work->files[f].bytes, size));
    fprintf(out, "%llu units, %s to read, %s to write, scratch memory %s\n",
            (unsigned long long)work->num_units, size_text(work->bytes_read, read),
            size_text(work->bytes_written, written), size_text(peak_scratch(work, context), size));
}

json_t *work_json(const mp_work *work, const mp_context *context)
{
    json_t *files = json_array();

    for (size_t f = 0; files && f < work->num_files; f++)
        json_array_append_new(files, json_pack("{s:s, s:I, s:i}", "path", work->files[f].path,
                                               "bytes", (json_int_t)work->files[f].bytes, "tensors",
                                               (int)work->files[f].num_tensors));
    return json_pack("{s:o, s:I, s:I, s:I, s:I}", "files", files, "units",
                     (json_int_t)work->num_units, "bytes_read", (json_int_t)work->bytes_read,
                     "bytes_written", (json_int_t)work->bytes_written, "peak_scratch",
                     (json_int_t)peak_scratch(work, context));
}

double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void print_work_done(const char *name, const char *out, const mp_work *work, double seconds,
                     bool resumed)
{
    char size[SIZE_TEXT];

    fprintf(stderr, "moepack: %s: %s: %zu files, %s in %.1f s", name, out, work->num_files,
            size_text(work->bytes_written, size), seconds);
    if (!resumed)
        fprintf(stderr, " (%.2f GB/s)", (double)work->bytes_written / seconds / 1e9);
    fputc('\n', stderr);
}
