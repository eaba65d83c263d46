/* SPDX-License-Identifier: Apache-2.0 */
/* What stands in the place of a file: a pointer to it, the page of an error, another format. */
#include "base/foreign.h"

#include <string.h>
#include <strings.h>

static const struct {
    const char *begin, *what;
} contents[] = {
    {"version https://git-lfs",
     "a Git LFS pointer, not the file itself: fetch it with \"git lfs pull\""},
    {"<!DOCTYPE", "an HTML page, not the file: download it again"},
    {"<html", "an HTML page, not the file: download it again"},
    {"GGUF",
     "a GGUF file, which is not supported: use the safetensors files that it was made from"},
};

const char *mp_foreign_content(const void *begin, size_t length)
{
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
        size_t n = strlen(contents[i].begin);

        if (length >= n && strncasecmp(begin, contents[i].begin, n) == 0)
            return contents[i].what;
    }
    return NULL;
}
