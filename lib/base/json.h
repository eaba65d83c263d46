/* SPDX-License-Identifier: Apache-2.0 */
/* base/json.h - jansson with our errors. Every getter names what it missed. */
#ifndef MP_BASE_JSON_H
#define MP_BASE_JSON_H

#include <jansson.h>
#include <moepack/base.h>

/* Parses a text whole; duplicate keys are errors. what: names it in messages,
 * which also say line and column. */
int mp_json_parse(const char *text, uint64_t length, const char *what, json_t **json,
                  mp_error *err);

/* The same for files that Python's json writes and engines read with it, config.json above all. A
 * byte order mark (UTF-8) is skipped. NaN, Infinity and -Infinity where a value stands, outside of
 * strings, are read as the strings "NaN", "Infinity" and "-Infinity", for jansson holds no such
 * numbers: members that nobody needs do not matter, and whoever needs a number finds a string and
 * refuses it by its key.
 * text: ends with a NUL behind its length. */
int mp_json_parse_python(const char *text, uint64_t length, const char *what, json_t **json,
                         mp_error *err);

/* The text behind its byte order mark, if it has one. */
const char *mp_json_skip_mark(const char *text);

/* Whether jansson failed for want of memory: mostly it then leaves no text. */
bool mp_json_out_of_memory(const json_error_t *where);

/* Reads and parses a file of at most `limit` bytes; `-` is standard input. */
int mp_json_load(const char *path, uint64_t limit, json_t **json, mp_error *err);
int mp_json_load_python(const char *path, uint64_t limit, json_t **json, mp_error *err);

/* Text of a value: keys in insertion order, indent 2, a newline at the end;
 * malloc'ed, null without memory. */
char *mp_json_text(const json_t *json);

/* What Python's json.dumps(value, sort_keys=True) gives; malloc'ed, null without memory. */
char *mp_json_text_python(const json_t *json);

/* Typed members of an object; `what` names the object in messages. A missing
 * member or another type is MP_ERR_INPUT. The value is borrowed. */
int mp_json_get_u64(const json_t *object, const char *key, const char *what, uint64_t *value,
                    mp_error *err);
int mp_json_get_string(const json_t *object, const char *key, const char *what, const char **value,
                       mp_error *err);
int mp_json_get_array(const json_t *object, const char *key, const char *what, json_t **value,
                      mp_error *err);
int mp_json_get_object(const json_t *object, const char *key, const char *what, json_t **value,
                       mp_error *err);

#endif
