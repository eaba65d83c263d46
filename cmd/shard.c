/* SPDX-License-Identifier: Apache-2.0 */
/* --shard: which part of a run, as the user or a scheduler says it. */
#include "shard.h"

#include "output.h"
#include "values.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PARTS_MAX 4096u /* who finishes has all their journals open */

/* The number in a variable. required: else it may be missing, and *number stays. */
static int read_variable(const char *name, bool required, uint64_t *number, mp_error *err)
{
    const char *text = getenv(name);

    if (!text && !required)
        return 0;
    if (!text)
        return cmd_fail(err, MP_ERR_USAGE, "--shard auto: %s is not set", name);
    if (!value_u64(text, number) || *number > UINT32_MAX)
        return cmd_fail(err, MP_ERR_USAGE, "--shard auto: %s is '%s', which is not a number", name,
                        text);
    return 0;
}

/* index: from 0. */
static int set_part(uint64_t index, uint64_t count, mp_part *part, mp_error *err)
{
    if (count < 1 || count > PARTS_MAX)
        return cmd_fail(err, MP_ERR_USAGE, "--shard: %llu parts, expected 1 to %u",
                        (unsigned long long)count, PARTS_MAX);
    if (index >= count)
        return cmd_fail(err, MP_ERR_USAGE, "--shard: there is no part %llu of %llu",
                        (unsigned long long)index + 1, (unsigned long long)count);
    part->number = (uint32_t)index + 1;
    part->count = (uint32_t)count;
    return 0;
}

/* Tasks 4-10:2, say, are parts 1 to 4. Of tasks that are no such row it cannot be told which of
 * them has which part. */
static int read_slurm(mp_part *part, mp_error *err)
{
    uint64_t id, count, min, step = 1, max;

    if (read_variable("SLURM_ARRAY_TASK_ID", true, &id, err) != 0 ||
        read_variable("SLURM_ARRAY_TASK_COUNT", true, &count, err) != 0 ||
        read_variable("SLURM_ARRAY_TASK_MIN", true, &min, err) != 0 ||
        read_variable("SLURM_ARRAY_TASK_STEP", false, &step, err) != 0)
        return err->code;
    step = step > 0 ? step : 1;
    max = min + (count - 1) * step;
    if (read_variable("SLURM_ARRAY_TASK_MAX", false, &max, err) != 0)
        return err->code;
    if (count < 1 || id < min || (id - min) % step != 0 || max != min + (count - 1) * step)
        return cmd_fail(err, MP_ERR_USAGE,
                        "--shard auto: task %llu of %llu from %llu to %llu, which are not "
                        "consecutive: use --array=1-%llu, or --shard I/N",
                        (unsigned long long)id, (unsigned long long)count, (unsigned long long)min,
                        (unsigned long long)max, (unsigned long long)count);
    return set_part((id - min) / step, count, part, err);
}

static int read_kubernetes(mp_part *part, mp_error *err)
{
    uint64_t index, count;

    if (read_variable("JOB_COMPLETION_INDEX", true, &index, err) != 0 ||
        read_variable("JOB_COMPLETIONS", true, &count, err) != 0)
        return err->code;
    return set_part(index, count, part, err);
}

static int read_auto(mp_part *part, mp_error *err)
{
    if (getenv("SLURM_ARRAY_TASK_ID"))
        return read_slurm(part, err);
    if (getenv("JOB_COMPLETION_INDEX"))
        return read_kubernetes(part, err);
    return cmd_fail(err, MP_ERR_USAGE,
                    "--shard auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set");
}

int shard_parse(const char *text, shard_choice *choice, mp_error *err)
{
    const char *slash = text ? strchr(text, '/') : NULL;
    uint64_t number, count;
    char first[24];

    *choice = (shard_choice){0};
    if (!text)
        return 0;
    if (strcmp(text, "auto") == 0)
        return read_auto(&choice->part, err);
    choice->finish = strcmp(text, "finish") == 0;
    if (choice->finish)
        return 0;
    if (slash)
        snprintf(first, sizeof first, "%.*s", (int)(slash - text), text);
    if (!slash || !value_u64(first, &number) || !value_u64(slash + 1, &count))
        return cmd_fail(err, MP_ERR_USAGE, "option --shard: '%s' is not I/N, auto or finish", text);
    if (number == 0)
        return cmd_fail(err, MP_ERR_USAGE,
                        "--shard: parts are numbered from 1: there is no part 0");
    return set_part(number - 1, count, &choice->part, err);
}

char *shard_how(const cmd_strings *words)
{
    char *dir = getcwd(NULL, 0), *line = NULL;
    json_t *list = json_array(), *json;
    bool whole = dir && list;

    for (size_t i = 0; whole && i < words->count; i++)
        whole = json_array_append_new(list, json_string(words->items[i])) == 0;
    json = json_pack("{s:s?, s:o?}", "directory", dir, "words", list);
    if (whole && json)
        line = json_dumps(json, JSON_COMPACT | JSON_ENSURE_ASCII);
    json_decref(json);
    free(dir);
    return line;
}
