/* SPDX-License-Identifier: Apache-2.0 */
/* Knows how commands read placements and write whole files. */
#include "files.h"
#include "output.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int blame_file(const char *path, mp_error *err)
{
    mp_error why = *err;

    return cmd_fail(err, (mp_code)why.code, "%.200s: %.800s",
                    strcmp(path, "-") == 0 ? "standard input" : path, why.message);
}

int load_placement(const char *path, uint64_t experts, uint64_t redundant, mp_placement *placement,
                   mp_error *err)
{
    char *text;
    uint64_t length;

    if (!path && experts == 0)
        return cmd_fail(err, MP_ERR_USAGE, "one of --placement and --experts is required");
    if (!path)
        return mp_placement_trivial(placement, 1, (uint32_t)experts, (uint32_t)redundant, err);
    if (redundant > 0)
        return cmd_fail(err, MP_ERR_USAGE, "--redundant and --placement cannot be used together");
    int rc = mp_read_text(path, TEXT_FILE_LIMIT, &text, &length, err);
    if (rc != 0)
        return rc;
    rc = mp_placement_parse(placement, text, length, (uint32_t)experts, err);
    free(text);
    return rc == 0 ? 0 : blame_file(path, err);
}

int write_pieces(const char *path, const file_piece *pieces, size_t count, mp_error *err)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *out = standard ? stdout : fopen(path, "wb");

    if (!out)
        return cmd_fail(err, MP_ERR_IO, "cannot write \"%s\": %s", path, strerror(errno));
    errno = 0;
    for (size_t i = 0; i < count; i++)
        fwrite(pieces[i].data, 1, pieces[i].bytes, out);
    if (standard) /* close_stdout tells what was lost */
        return 0;
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed)
        return cmd_fail(err, MP_ERR_IO, "cannot write \"%s\": %s", path,
                        errno ? strerror(errno) : "write error");
    return 0;
}

int write_text(const char *path, const char *text, mp_error *err)
{
    const file_piece piece = {text, strlen(text)};

    return write_pieces(path, &piece, 1, err);
}
