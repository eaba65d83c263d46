/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as moepack.json, as they are and with a seal that fits: refused with a message,
 * or the value has a text that gives the same value. */
#include <moepack/artifact.h>

#include "base/digest.h"
#include "fuzz.h"
#include "pack/manifest.h"

static void check_value(const mp_manifest *value)
{
    mp_error err = {0};
    mp_manifest again;
    char *text, *second;

    require(value->ep_size > 0 && value->num_physical % value->ep_size == 0, "ranks");
    for (size_t r = 0; r < value->num_ranks; r++) {
        require(value->ranks[r].rank < value->ep_size, "rank");
        for (size_t f = 0; f < value->ranks[r].num_files; f++)
            require(!strchr(value->ranks[r].files[f].name, '/'), "file name");
    }
    require(mp_manifest_text(value, &text, &err) == 0, "text");
    require(mp_manifest_parse(&again, text, strlen(text), &err) == 0, err.message);
    require(mp_manifest_text(&again, &second, &err) == 0, "text of the text");
    require(strcmp(text, second) == 0, "another value");
    mp_manifest_release(&again);
    free(text);
    free(second);
}

static void check_text(const char *text, size_t length)
{
    mp_error err = {0};
    mp_manifest manifest;

    if (mp_manifest_parse(&manifest, text, length, &err) == 0)
        check_value(&manifest);
    else
        require_message(&err);
    mp_manifest_release(&manifest);
}

/* The same with the end that a manifest has. */
static void check_sealed(const char *data, size_t size)
{
    size_t cut = strlen(MP_SEAL_CUT);
    char *body = malloc(size + cut + 1), *sealed;
    char hex[MP_DIGEST_TEXT];
    mp_digest digest;
    int length;

    memcpy(body, data, size);
    memcpy(body + size, MP_SEAL_CUT, cut + 1);
    mp_digest_of(body, size + cut, &digest);
    body[size] = '\0';
    length = asprintf(&sealed, "%s" MP_SEAL_BEFORE "%s" MP_SEAL_AFTER, body,
                      mp_digest_text(&digest, hex));
    require(length > 0, "sealed text");
    check_text(sealed, (size_t)length);
    free(body);
    free(sealed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_text((const char *)data, size);
    check_sealed((const char *)data, size);
    return 0;
}
