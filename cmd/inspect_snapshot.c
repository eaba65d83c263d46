/* SPDX-License-Identifier: Apache-2.0 */
/* moepack inspect on what an engine has dumped: which kind it is, what each rank has, and what its
 * files do not bear out. */
#include "inspect.h"
#include "output.h"

#include <inttypes.h>

static const char *const kinds[] = {
    [MP_SNAPSHOT_PRESHARDED] = "SGLang presharded",
    [MP_SNAPSHOT_SHARDED_STATE] = "sharded_state",
    [MP_SNAPSHOT_BIG_TENSOR] = "BigTensorLoader",
};

static uint64_t bytes_of(const mp_checkpoint *view)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < view->num_tensors; i++)
        bytes += view->tensors[i].bytes;
    return bytes;
}

static json_t *findings_json(const mp_snapshot *s)
{
    json_t *list = json_array();

    for (size_t i = 0; i < s->num_findings; i++)
        json_array_append_new(list, json_string(s->findings[i].text ? s->findings[i].text : "?"));
    return list;
}

static int print_snapshot_json(const mp_snapshot *s, bool with_tensors, mp_error *err)
{
    json_t *ranks = json_array();

    for (size_t r = 0; r < s->num_ranks; r++) {
        const mp_checkpoint *view = &s->ranks[r].tensors;
        json_t *rank =
            json_pack("{s:I, s:I, s:I}", "rank", (json_int_t)s->ranks[r].rank, "num_tensors",
                      (json_int_t)view->num_tensors, "bytes", (json_int_t)bytes_of(view));

        if (rank && with_tensors)
            json_object_set_new(rank, "tensors", tensors_json(view));
        json_array_append_new(ranks, rank);
    }
    return print_json(json_pack("{s:s, s:o, s:I, s:o}", "snapshot", kinds[s->kind], "ranks", ranks,
                                "shards", (json_int_t)s->num_files, "problems", findings_json(s)),
                      err);
}

static void print_snapshot(const mp_snapshot *s, bool with_tensors, const output_ink *ink)
{
    char bytes[SIZE_TEXT];

    printf("%s%s%s, %zu rank%s, %zu file%s\n", ink->bold, kinds[s->kind], ink->plain, s->num_ranks,
           plural(s->num_ranks), s->num_files, plural(s->num_files));
    for (size_t r = 0; r < s->num_ranks; r++) {
        const mp_checkpoint *view = &s->ranks[r].tensors;

        printf("rank %u: %zu tensor%s, %s\n", s->ranks[r].rank, view->num_tensors,
               plural(view->num_tensors), size_text(bytes_of(view), bytes));
        if (with_tensors)
            print_tensors(view);
    }
}

int inspect_snapshot(const inspect_options *o, mp_snapshot_kind kind, const mp_context *context,
                     mp_error *err)
{
    mp_snapshot s;
    int rc = mp_snapshot_open(&s, kind, o->path, NULL, context, err);

    if (rc != 0)
        return rc;
    if (o->common.json) {
        rc = print_snapshot_json(&s, o->tensors, err);
    } else {
        output_ink ink = ink_for(stdout, &o->common);

        print_snapshot(&s, o->tensors, &ink);
    }
    for (size_t i = 0; rc == 0 && i < s.num_findings; i++) {
        const mp_finding *f = &s.findings[i];

        fprintf(stderr, "moepack: inspect: ");
        if (f->rank >= 0)
            fprintf(stderr, "rank %" PRId64 "%s", f->rank, f->tensor ? ", " : ": ");
        if (f->tensor) {
            print_name(stderr, f->tensor);
            fputs(": ", stderr);
        }
        print_name(stderr, f->text ? f->text : "?");
        putc('\n', stderr);
    }
    if (rc == 0 && s.total_findings > 0)
        rc = cmd_fail(err, MP_ERR_INPUT, "%s: problems: %" PRIu64, o->path, s.total_findings);
    mp_snapshot_release(&s);
    return rc;
}
