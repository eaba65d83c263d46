/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base/json_edit.h - changing members of a JSON text and nothing else of it.
 *
 * Parsing a text and writing it again changes how numbers are written, and indentation. Here
 * every byte outside the member stays. Texts are valid JSON (mp_json_parse has read them), and
 * their outermost value is an object.
 */
#ifndef MP_BASE_JSON_EDIT_H
#define MP_BASE_JSON_EDIT_H

#include "base/json.h"

/* Objects inside objects, from the outermost one in, ended by null: {"text_config", NULL}.
 * Each is there. A null path is the outermost object itself. These and all keys are ASCII. */
typedef const char *const *mp_json_path;

/* Gives a member of the object at `path` a value, in its place or, where there is none, behind
 * the others; indented as its neighbours are.
 * text: malloc'ed, replaced; unchanged after a failure, which is for want of memory. */
int mp_json_set(char **text, mp_json_path path, const char *key, const json_t *value,
                mp_error *err);

/* Takes a member out; nothing where there is none. */
int mp_json_remove(char **text, mp_json_path path, const char *key, mp_error *err);

#endif
