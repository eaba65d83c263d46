/* SPDX-License-Identifier: Apache-2.0 */
/* repack --update. */
#include "update.h"

#include "output.h"
#include "progress.h"

#include <moepack/delta.h>
#include <stdlib.h>
#include <string.h>

/* Cuts a list at its commas. items: set to a malloc'ed array of pointers into text. */
static int cut_list(char *text, const char ***items, size_t *count, mp_error *err)
{
    size_t room = 1;

    for (const char *p = text; *p; p++)
        room += *p == ',';
    *items = malloc(room * sizeof **items);
    if (!*items)
        return cmd_fail(err, MP_ERR_IO, "out of memory");
    *count = 0;
    for (char *item, *rest = text; (item = strsep(&rest, ","));)
        if (*item)
            (*items)[(*count)++] = item;
    return 0;
}

static int do_work(const update_request *r, const work_terms *terms, const mp_plan *plan,
                   const mp_context *context, mp_error *err)
{
    const work_job work = {
        .name = "repack",
        .common = r->common,
        .options = r->work,
        .terms = terms,
        .context = context,
        .plan = plan,
    };
    const mp_plan_info *info = mp_plan_get(plan);

    if (!r->common->quiet)
        fprintf(stderr, "moepack: repack: %llu of %llu sides of experts are packed again\n",
                (unsigned long long)info->sides_anew, (unsigned long long)info->sides);
    int rc = work_do(&work, err);
    if (rc == 0 && r->common->json && !r->work->dry_run)
        rc = print_json(work_json(info->work, r->work->out, context), err);
    return rc;
}

int update_pack(const update_request *r, mp_error *err)
{
    char *text = strdup(r->deltas);
    const char **deltas = NULL;
    work_terms terms = {0};
    mp_context context;
    mp_plan *plan = NULL;
    size_t count = 0;
    int rc =
        text ? cut_list(text, &deltas, &count, err) : cmd_fail(err, MP_ERR_IO, "out of memory");

    cmd_context(r->common, &context);
    if (rc == 0)
        rc = work_settle(r->work, r->common, &terms, err);
    const mp_update_options options = {
        .size = sizeof options,
        .allow_nonfinite = r->allow_nonfinite,
        .zstd = terms.zstd,
    };
    if (rc == 0)
        rc = mp_plan_update(&plan, r->pack, deltas, count, r->source, &options, &context, err);
    if (rc == 0)
        rc = do_work(r, &terms, plan, &context, err);
    mp_plan_release(plan);
    work_release(&terms);
    free(deltas);
    free(text);
    return rc;
}
