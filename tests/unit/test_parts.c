/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a run: who does which units, and which journals are those of parts. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <unistd.h>

#include "model_files.h"
#include "run/parts.h"

TestSuite(parts, .init = make_model_scratch, .fini = remove_model_scratch);

/* A run whose units write the bytes that a list says, so many in each stage. */
typedef struct listed {
    const uint64_t *bytes;
    const uint64_t *first; /* of each stage, and one more */
} listed;

/* Backwards: the order in which units are begun is not that of their numbers. */
static size_t list_units(const void *plan, uint32_t stage, uint64_t *units)
{
    const uint64_t *first = &((const listed *)plan)->first[stage];
    size_t count = 0;

    for (uint64_t u = first[1]; u > first[0]; u--)
        units[count++] = u - 1;
    return count;
}

static uint64_t unit_bytes(const void *plan, uint64_t unit)
{
    return ((const listed *)plan)->bytes[unit];
}

static mp_job job_of(const listed *plan, mp_work *work, uint32_t stages)
{
    *work = (mp_work){.num_units = plan->first[stages], .num_stages = stages, .stage_units = 200};
    return (mp_job){.plan = plan, .work = work, .units = list_units, .unit_bytes = unit_bytes};
}

static void expect_bounds(const listed *plan, uint32_t stages, uint32_t count, const char *text)
{
    uint64_t bounds[65];
    char found[512] = "";
    size_t n = 0;
    mp_work work;
    const mp_job job = job_of(plan, &work, stages);

    cr_assert_leq(count, 64);
    cr_assert_eq(mp_parts_bounds(&job, count, bounds, &err), 0);
    for (uint32_t i = 0; i <= count; i++)
        n += (size_t)snprintf(found + n, sizeof found - n, "%s%llu", i ? " " : "",
                              (unsigned long long)bounds[i]);
    cr_assert_str_eq(found, text, "%u parts", count);
}

Test(parts, write_about_the_same_number_of_bytes)
{
    const uint64_t bytes[] = {5, 1, 1, 1, 1, 1, 3, 2, 2, 3}, one[] = {0, 10};
    const listed plan = {bytes, one};

    /* 20 bytes: 10, 10; 6 to 7 each; 5 each. */
    expect_bounds(&plan, 1, 1, "0 10");
    expect_bounds(&plan, 1, 2, "0 6 10");
    expect_bounds(&plan, 1, 3, "0 2 7 10");
    expect_bounds(&plan, 1, 4, "0 1 6 8 10");
}

/* Units of two stages in turn: the second is taken to begin behind the first. */
static size_t list_in_turn(const void *of, uint32_t stage, uint64_t *units)
{
    (void)of;
    for (size_t i = 0; i < 5; i++)
        units[i] = stage / 2 * 10 + 2 * i + stage % 2;
    return 5;
}

Test(parts, end_where_stages_in_turn_do)
{
    const uint64_t first[] = {0, 0, 0, 0, 20};
    uint64_t bytes[20], bounds[3];
    const listed plan = {bytes, first};
    mp_work work;
    mp_job job = job_of(&plan, &work, 4);

    /* Half is a little nearer to the end of unit 10 than to the beginning: to unit 11, the lowest
     * of the fourth stage, but the third goes on behind that. */
    for (size_t i = 0; i < 20; i++)
        bytes[i] = i == 0 ? 0 : i == 1 ? 90 : 100;
    job.units = list_in_turn;
    cr_assert_eq(mp_parts_bounds(&job, 2, bounds, &err), 0);
    cr_assert_eq(bounds[1], 10);
}

Test(parts, may_be_more_than_units)
{
    const uint64_t bytes[] = {7, 7, 7}, one[] = {0, 3}, none[] = {0, 0};
    const listed plan = {bytes, one}, empty = {bytes, none};

    expect_bounds(&plan, 1, 5, "0 1 2 2 3 3");
    expect_bounds(&plan, 1, 9, "0 1 1 1 2 2 2 3 3 3");
    expect_bounds(&empty, 1, 3, "0 0 0 0");
}

/* Units that write nothing go to the part that they stand behind. */
Test(parts, begin_where_bytes_do)
{
    const uint64_t bytes[] = {0, 0, 4, 0, 4, 0}, one[] = {0, 6};
    const listed plan = {bytes, one};

    expect_bounds(&plan, 1, 2, "0 3 6");
}

Test(parts, begin_at_a_stage_that_is_near)
{
    uint64_t bytes[200], first[] = {0, 98, 150, 200};
    const listed plan = {bytes, first};

    for (size_t i = 0; i < 200; i++)
        bytes[i] = 10;
    /* A part of 100 units moves by up to 6; one of 50 by up to 3, of 40 by 2. */
    expect_bounds(&plan, 3, 2, "0 98 200");
    expect_bounds(&plan, 3, 4, "0 50 98 150 200");
    expect_bounds(&plan, 3, 5, "0 40 80 120 160 200");
    first[1] = 94;
    expect_bounds(&plan, 3, 2, "0 94 200");
    first[1] = 93;
    expect_bounds(&plan, 3, 2, "0 100 200");
}

/* ------------------------------------------------------------------------
 * Journals
 */

static void put(const char *name)
{
    FILE *f = fopen(in_dir(name), "wb");

    cr_assert(f && fclose(f) == 0);
}

Test(parts, are_known_by_their_journals)
{
    static const char *const others[] = {
        "journal",         "journal-0-of-3",  "journal-4-of-3",          "journal-01-of-3",
        "journal-1-of-03", "journal-1-of-3x", "journal-1-of-3.old",      "journal--1-of-3",
        "journal-1-of-",   "xjournal-1-of-3", "journal-1-of-4294967299",
    };
    mp_parts parts;

    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        put(others[i]);
    cr_assert_eq(mp_parts_list(dir, &parts, &err), 0, "%s", err.message);
    cr_assert_eq(parts.num, 0);
    cr_assert_eq(parts.count, 0);
    put("journal-11-of-12");
    put("journal-2-of-12");
    put("journal-12-of-12");
    cr_assert_eq(mp_parts_list(dir, &parts, &err), 0, "%s", err.message);
    cr_assert_eq(parts.num, 3);
    cr_assert_eq(parts.count, 12);
    cr_assert_eq(parts.numbers[0], 2);
    cr_assert_eq(parts.numbers[1], 11);
    cr_assert_eq(parts.numbers[2], 12);
    mp_parts_release(&parts);
    put("journal-1-of-7");
    cr_assert_eq(mp_parts_list(dir, &parts, &err), MP_ERR_USAGE);
    cr_assert_not_null(strstr(err.message, "holds a run in 7 parts and one in 12"), "%s",
                       err.message);
    cr_assert_null(parts.numbers);
}
