/* SPDX-License-Identifier: Apache-2.0 */
/* The placement of a snapshot. SGLang puts what it was started with into shard_config: "trivial",
 * the placement itself, or the name of its file and the first digits of its SHA-1. */
#include "experts/dumped.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/sha.h"

#define TEXT_MAX (UINT64_C(1) << 28)

/* Holds a file against "file:NAME:sha1:DIGITS". */
static int check_digest(const mp_snapshot *s, const char *path, const char *text, uint64_t length,
                        mp_error *err)
{
    const char *record = s->expert_location, *digits = record ? strstr(record, ":sha1:") : NULL;
    char digest[MP_SHA_TEXT];
    mp_sha sha;

    if (!digits)
        return 0;
    digits += strlen(":sha1:");
    mp_sha1_begin(&sha);
    mp_sha_update(&sha, text, length);
    mp_sha_end(&sha, digest);
    if (digits[0] != '\0' && strncmp(digest, digits, strlen(digits)) == 0)
        return 0;
    return mp_fail(err, MP_ERR_INPUT, "%s: its SHA-1 is %.16s, \"%s\" was dumped with \"%s\"", path,
                   digest, s->dir, record);
}

int mp_dumped_placement(const mp_snapshot *s, const char *path, uint32_t experts,
                        mp_placement *placement, mp_error *err)
{
    const char *record = s->expert_location;
    uint64_t length;
    char *text;

    *placement = (mp_placement){0};
    if (!path && record && (record[0] == '{' || record[0] == '['))
        return mp_placement_parse(placement, record, strlen(record), experts, err) == 0
                   ? 0
                   : mp_error_prefix(err, "%s: init_expert_location", s->dir);
    if (!path && record && strcmp(record, "trivial") != 0)
        return mp_fail(
            err, MP_ERR_USAGE,
            "\"%s\" was dumped with the placement \"%s\": name its file with --placement", s->dir,
            record);
    if (!path)
        return 0;
    if (mp_read_text(path, TEXT_MAX, &text, &length, err) != 0)
        return err->code;
    int rc = check_digest(s, path, text, length, err);
    if (rc == 0 && mp_placement_parse(placement, text, length, experts, err) != 0)
        rc = mp_error_prefix(err, "%s", path);
    free(text);
    return rc;
}

uint32_t mp_dumped_placement_row(const mp_placement *placement, const mp_config *config,
                                 uint64_t layer, size_t index, size_t count)
{
    if (placement->layer_ids || placement->layers == 1 ||
        placement->layers == config->num_hidden_layers)
        return mp_placement_row_of(placement, layer);
    return placement->layers == count ? (uint32_t)index : UINT32_MAX;
}
