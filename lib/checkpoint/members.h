/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint/members.h - walks the members of the JSON object that is a safetensors header,
 * one at a time: a tree of 100 MB of JSON would take gigabytes. Keys and values are only
 * delimited here; jansson parses them, and refuses what is not JSON. */
#ifndef MP_CHECKPOINT_MEMBERS_H
#define MP_CHECKPOINT_MEMBERS_H

#include <jansson.h>
#include <moepack/base.h>

/* A piece of the text that is walked. */
typedef struct mp_span {
    const char *text;
    size_t length;
} mp_span;

/* A walk. To begin, set text and length and zero the rest. */
typedef struct mp_members {
    const char *text; /* begins with '{' */
    size_t length;
    size_t at;
} mp_members;

/* Finds the next member; key includes its quotes. *found is false behind the last one,
 * when nothing but white space follows the object. */
int mp_members_next(mp_members *members, mp_span *key, mp_span *value, bool *found, mp_error *err);

/* Parses a span of the walked text with jansson's flags. The caller drops *json. */
int mp_members_parse(const mp_members *members, mp_span span, size_t flags, json_t **json,
                     mp_error *err);

#endif
