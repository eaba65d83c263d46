/* SPDX-License-Identifier: Apache-2.0 */
/* What commands that write many files have in common: checking their options, printing the plan,
 * the run itself, and what was done. repack, quantize and the like differ in their plans only; how
 * a run is resumed, replaced, cut into parts or interrupted is said here once, in the same
 * words. */
#include "work.h"

#include "output.h"
#include "progress.h"
#include "zstd.h"

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

void print_quant_options(FILE *f, mp_scale_rule scale_rule, double amax_floor, bool allow_nonfinite)
{
    if (scale_rule != MP_SCALE_CEIL)
        print_option(f, "scale-rule", "mse");
    if (amax_floor > 0)
        fprintf(f, " --amax-floor %.9g", amax_floor);
    if (allow_nonfinite)
        fprintf(f, " --allow-nonfinite");
}

static uint64_t peak_scratch(const mp_work *work, const mp_context *context)
{
    /* What threads take at most; files and buffers of the system come on top. */
    return work->scratch_bytes * (uint64_t)mp_threads(context);
}

static void print_work(FILE *out, const mp_work *work, const mp_context *context)
{
    char size[SIZE_TEXT], read[SIZE_TEXT], written[SIZE_TEXT];

    for (size_t f = 0; f < work->num_files; f++) {
        print_name(out, work->files[f].path);
        fprintf(out, "  %u tensor%s  %s\n", work->files[f].num_tensors,
                plural(work->files[f].num_tensors), size_text(work->files[f].bytes, size));
    }
    fprintf(out, "%llu unit%s, %s to read, %s to write, scratch memory %s\n",
            (unsigned long long)work->num_units, plural(work->num_units),
            size_text(work->bytes_read, read), size_text(work->bytes_written, written),
            size_text(peak_scratch(work, context), size));
}

json_t *work_json(const mp_work *work, const char *out, const mp_context *context)
{
    json_t *files = json_array(), *json;
    mp_compress_report report;

    for (size_t f = 0; files && f < work->num_files; f++)
        json_array_append_new(files, json_pack("{s:s, s:I, s:i}", "path", work->files[f].path,
                                               "bytes", (json_int_t)work->files[f].bytes, "tensors",
                                               (int)work->files[f].num_tensors));
    json = json_pack("{s:o, s:I, s:I, s:I, s:I}", "files", files, "units",
                     (json_int_t)work->num_units, "bytes_read", (json_int_t)work->bytes_read,
                     "bytes_written", (json_int_t)work->bytes_written, "peak_scratch",
                     (json_int_t)peak_scratch(work, context));
    if (json && work->part.count > 0) {
        json_object_set_new(json, "part", json_integer(work->part.number));
        json_object_set_new(json, "parts", json_integer(work->part.count));
    }
    if (json && out && work->zstd && work->part.count == 0 &&
        mp_compress_measure(out, context, &report, NULL) == 0)
        json_object_set_new(json, "zstd", zstd_json(&report));
    return json;
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Of a resumed run nobody knows how much was left to do, and the speed is left out. */
static void print_done(const work_job *job, double seconds)
{
    const mp_work *work = mp_plan_get(job->plan)->work;
    const mp_part *part = &work->part;
    mp_compress_report report;
    char size[SIZE_TEXT];

    if (part->count > 0) {
        fprintf(stderr, "moepack: %s: %s: part %u of %u in %.1f s\n", job->name, job->options->out,
                part->number, part->count, seconds);
        return;
    }
    fprintf(stderr, "moepack: %s: %s: %zu file%s, %s in %.1f s", job->name, job->options->out,
            work->num_files, plural(work->num_files), size_text(work->bytes_written, size),
            seconds);
    if (!job->options->resume && !job->terms->shard.finish)
        fprintf(stderr, " (%.2f GB/s)", (double)work->bytes_written / seconds / 1e9);
    fputc('\n', stderr);
    if (work->zstd && mp_compress_measure(job->options->out, job->context, &report, NULL) == 0)
        zstd_print(stderr, &report);
}

int work_check(const work_options *o, mp_error *err)
{
    if (o->resume && o->force)
        return cmd_fail(err, MP_ERR_USAGE, "--resume and --force cannot be used together");
    if (!o->out && !o->dry_run)
        return cmd_fail(err, MP_ERR_USAGE, "option --output is required");
    return 0;
}

int work_settle(const work_options *o, const common_options *common, work_terms *terms,
                mp_error *err)
{
    *terms = (work_terms){0};
    if (work_check(o, err) != 0 || zstd_option(o->zstd, o->zstd_given, &terms->zstd, err) != 0 ||
        shard_parse(o->shard, &terms->shard, err) != 0)
        return err->code;
    if (o->shard && o->force)
        return cmd_fail(err, MP_ERR_USAGE,
                        "--shard and --force cannot be used together: other parts may be at work");
    if (terms->shard.part.count > 0)
        terms->shard.part.how = terms->how = shard_how(&common->words);
    return 0;
}

void work_release(work_terms *terms)
{
    free(terms->how);
}

bool work_writes_out(const work_options *o, const work_terms *terms)
{
    return !o->dry_run && terms->shard.part.count == 0;
}

static int run(const work_job *job, mp_error *err)
{
    const work_options *o = job->options;
    mp_run_mode mode = job->terms->shard.finish ? MP_RUN_FINISH
                       : o->resume              ? MP_RUN_RESUME
                       : o->force               ? MP_RUN_FORCE
                                                : MP_RUN_FRESH;
    double begin = seconds_now();
    int rc = mp_plan_run(job->plan, o->out, mode, job->context, err);

    if (rc == MP_ERR_CANCELLED && job->terms->shard.part.count > 0)
        return cmd_fail(err, rc, "interrupted: the same command continues %s.partial", o->out);
    if (rc == MP_ERR_CANCELLED)
        return cmd_fail(err, rc, "interrupted: --resume continues %s.partial", o->out);
    if (rc != 0)
        return rc;
    progress_clear();
    if (!job->common->quiet)
        print_done(job, seconds_now() - begin);
    return 0;
}

int work_do(const work_job *job, mp_error *err)
{
    const mp_plan_info *info = mp_plan_get(job->plan);
    char warning[64];

    snprintf(warning, sizeof warning, "moepack: %s: warning", job->name);
    if (!job->common->quiet)
        print_problems(stderr, warning, info->warnings);
    if (!job->options->dry_run) {
        if (job->common->verbose)
            print_work(stderr, info->work, job->context);
        return run(job, err);
    }
    if (job->common->json)
        return print_json(work_json(info->work, NULL, job->context), err);
    print_work(stdout, info->work, job->context);
    return 0;
}
