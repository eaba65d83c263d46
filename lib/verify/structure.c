/* SPDX-License-Identifier: Apache-2.0 */
/* The top of a packed directory: placement.json, config.json, and nothing unknown. */
#include "verify/check.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "pack/manifest.h"

int mp_check_file(mp_check *check, const mp_spot *spot, const char *dir, const char *name,
                  uint64_t *size, bool *there, mp_error *err)
{
    char *path = mp_path_join(dir, name);
    struct stat status;

    *there = false;
    if (!path)
        return mp_fail_memory(err);
    int failed = stat(path, &status) != 0 ? errno : 0;
    free(path);
    if (failed == ENOENT || failed == ENOTDIR || failed == ELOOP)
        mp_fault_add(&check->faults, spot, "%s: missing", name);
    else if (failed != 0)
        return mp_fail_errno(err, failed, "cannot access \"%s/%s\"", dir, name);
    else if (!S_ISREG(status.st_mode))
        mp_fault_add(&check->faults, spot, "%s: not a regular file", name);
    else
        *there = true;
    *size = *there ? (uint64_t)status.st_size : 0;
    return 0;
}

int mp_check_text(mp_check *check, const mp_spot *spot, const char *dir, const char *name,
                  const char *xxh3, char **text, uint64_t *length, mp_error *err)
{
    mp_error why = {0};
    int rc = mp_pack_text(dir, name, xxh3, text, length, &why);

    if (rc == MP_ERR_INPUT)
        mp_fault_add(&check->faults, spot, "%s", why.message);
    else if (rc != 0)
        return mp_fail(err, (mp_code)rc, "%s", why.message);
    return 0;
}

int mp_check_entries(mp_check *check, const mp_spot *spot, const char *dir,
                     bool (*known)(const void *user, const char *name), const void *user,
                     bool *there, mp_error *err)
{
    DIR *stream = opendir(dir);
    const struct dirent *entry;

    *there = stream != NULL;
    if (!stream)
        return errno == ENOENT || errno == ENOTDIR
                   ? 0
                   : mp_fail_errno(err, errno, "cannot open \"%s\"", dir);
    for (errno = 0; (entry = readdir(stream)) != NULL; errno = 0) {
        const char *name = entry->d_name;

        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !known(user, name))
            mp_fault_add(&check->faults, spot, "%s: the manifest does not name it", name);
    }
    int failed = errno;
    closedir(stream);
    return failed != 0 ? mp_fail_errno(err, failed, "cannot list \"%s\"", dir) : 0;
}

/* What belongs into the directory itself. */
static bool known_entry(const void *user, const char *name)
{
    const mp_manifest *m = user;
    char rank_name[MP_RANK_NAME_MAX];

    if (strcmp(name, MP_MANIFEST_NAME) == 0 || strcmp(name, MP_PLACEMENT_NAME) == 0 ||
        strcmp(name, MP_SUMS_NAME) == 0)
        return true;
    if (strcmp(name, MP_CONFIG_NAME) == 0)
        return m->config_xxh3[0] != '\0';
    for (size_t i = 0; i < m->num_ranks; i++)
        if (strcmp(name, mp_rank_name(m->ranks[i].rank, rank_name)) == 0)
            return true;
    return false;
}

static int check_placement(mp_check *check, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    mp_error why = {0};
    int rc = mp_pack_placement(check->dir, &check->manifest, &check->placement, &why);

    if (rc == MP_ERR_INPUT || rc == MP_ERR_UNSUPPORTED)
        mp_fault_add(&check->faults, &spot, "%s", why.message);
    else if (rc != 0)
        return mp_fail(err, (mp_code)rc, "%s", why.message);
    return 0;
}

int mp_check_directory(mp_check *check, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    const mp_manifest *m = &check->manifest;
    char *text = NULL;
    uint64_t length;
    bool there;

    int rc = check_placement(check, err);
    if (rc == 0 && m->config_xxh3[0] != '\0')
        rc = mp_check_text(check, &spot, check->dir, MP_CONFIG_NAME, m->config_xxh3, &text, &length,
                           err);
    free(text);
    if (rc == 0)
        rc = mp_check_entries(check, &spot, check->dir, known_entry, m, &there, err);
    return rc;
}
