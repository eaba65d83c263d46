/* SPDX-License-Identifier: Apache-2.0 */
/* base/pattern.h - names of modules in the lists of quantization configs. */
#ifndef MP_BASE_PATTERN_H
#define MP_BASE_PATTERN_H

#include <regex.h>
#include <stdbool.h>

/* What a pattern says of a name. */
typedef enum mp_match { MP_MATCH_NO, MP_MATCH_YES, MP_MATCH_UNKNOWN } mp_match;

/* A pattern, made ready for many names. */
typedef struct mp_pattern {
    const char *text;
    bool has_regex;
    bool unknown;
    regex_t regex;
} mp_pattern;

/* Means a module by its name or that of a module around it, with the wildcards of fnmatch(3), or,
 * behind "re:", by a regular expression that fits the name's beginning, as Python's re.match has
 * it. What is not understood matches nothing: MP_MATCH_UNKNOWN.
 * text: is kept, not copied. */
void mp_pattern_init(mp_pattern *pattern, const char *text);
mp_match mp_pattern_match(const mp_pattern *pattern, const char *name);
void mp_pattern_release(mp_pattern *pattern);

#endif
