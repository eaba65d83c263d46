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

#define TEXT_LIMIT (1u << 30)

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
        return mp_fail_errno(err, failed, "cannot look at \"%s/%s\"", dir, name);
    else if (!S_ISREG(status.st_mode))
        mp_fault_add(&check->faults, spot, "%s: not a regular file", name);
    else
        *there = true;
    *size = *there ? (uint64_t)status.st_size : 0;
    return 0;
}

static int read_text(mp_check *check, const mp_spot *spot, const char *dir, const char *name,
                     char **text, uint64_t *length, mp_error *err)
{
    char *path = mp_path_join(dir, name);
    if (!path)
        return mp_fail_memory(err);

    int rc = mp_read_text(path, TEXT_LIMIT, text, length, err);
    free(path);
    if (rc == MP_ERR_INPUT) {
        mp_fault_add(&check->faults, spot, "%s", err->message);
        return 0;
    }
    return rc;
}

int mp_check_text(mp_check *check, const mp_spot *spot, const char *dir, const char *name,
                  const char *xxh3, char **text, uint64_t *length, mp_error *err)
{
    char actual[MP_DIGEST_TEXT];
    mp_digest digest;
    uint64_t size;
    bool there;

    *text = NULL;
    int rc = mp_check_file(check, spot, dir, name, &size, &there, err);
    if (rc == 0 && there)
        rc = read_text(check, spot, dir, name, text, length, err);
    if (!*text)
        return rc;
    mp_digest_of(*text, *length, &digest);
    if (strcmp(mp_digest_text(&digest, actual), xxh3) == 0)
        return 0;
    mp_fault_add(&check->faults, spot, "%s: changed: its xxh3 is %s, the manifest says %s", name,
                 actual, xxh3);
    free(*text);
    *text = NULL;
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

    if (strcmp(name, MP_MANIFEST_NAME) == 0 || strcmp(name, MP_PLACEMENT_NAME) == 0)
        return true;
    if (strcmp(name, MP_CONFIG_NAME) == 0)
        return m->config_xxh3[0] != '\0';
    for (size_t i = 0; i < m->num_ranks; i++)
        if (strcmp(name, mp_rank_name(m->ranks[i].rank, rank_name)) == 0)
            return true;
    return false;
}

/* Whether a placement that could be read is one for this pack. */
static int placement_fits(const mp_check *check, mp_error *err)
{
    const mp_manifest *m = &check->manifest;
    const mp_placement *p = &check->placement;

    if (p->num_physical != m->num_physical)
        return mp_fail(err, MP_ERR_INPUT, "%u physical experts, the manifest says %" PRIu64,
                       p->num_physical, m->num_physical);
    if (p->layers != 1 && p->layers != m->num_layers)
        return mp_fail(err, MP_ERR_INPUT, "%u rows for %zu layers", p->layers, m->num_layers);
    return mp_placement_check(p, (uint32_t)m->ep_size, NULL, err);
}

static int check_placement(mp_check *check, mp_error *err)
{
    mp_spot spot = mp_spot_of_rank(MP_VERIFY_STRUCTURE, -1);
    const mp_manifest *m = &check->manifest;
    mp_error why = {0};
    char *text;
    uint64_t length;

    int rc = mp_check_text(check, &spot, check->dir, MP_PLACEMENT_NAME, m->placement_xxh3, &text,
                           &length, err);
    if (rc != 0 || !text)
        return rc;
    rc = mp_placement_parse(&check->placement, text, length, (uint32_t)m->num_experts, &why);
    free(text);
    if (rc == 0)
        rc = placement_fits(check, &why);
    if (rc == 0)
        return 0;
    mp_placement_release(&check->placement);
    if (rc != MP_ERR_INPUT && rc != MP_ERR_UNSUPPORTED) {
        *err = why;
        return rc;
    }
    mp_fault_add(&check->faults, &spot, "%s: %s", MP_PLACEMENT_NAME, why.message);
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
