/* SPDX-License-Identifier: Apache-2.0 */
/* Reads TensorRT-LLM's load balancer YAML: num_slots and the experts of each layer's slots.
 *
 *     num_slots: 288
 *     layer_updates_per_iter: 0
 *     initial_global_assignments:
 *       3: [0, 1, 2, ...]
 *
 * Events are read one at a time and go straight into rows. No tree is built, and anything that is
 * not of this form is refused with its line. Aliases are refused as well, since a few lines of them
 * can stand for gigabytes. Numbers are plain decimals: a quoted 3 is a string, and readers disagree
 * about 0x3 and 1_000. One thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/error.h"
#include "place/rows.h"

/* The events of a text, one at a time. */
typedef struct yaml_reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; YAML_NO_EVENT before the first */
} yaml_reader;

/* What the three keys of the file said. */
typedef struct balancer_config {
    bool has_num_slots, has_updates, has_assignments;
    int64_t num_slots;
} balancer_config;

static unsigned long long line_of(const yaml_reader *reader)
{
    return reader->event.start_mark.line + 1;
}

/* Moves on to the next event. Aliases are refused: they let a small file stand for a huge one. */
static int next_event(yaml_reader *reader, mp_error *err)
{
    yaml_event_delete(&reader->event);
    if (!yaml_parser_parse(&reader->parser, &reader->event)) {
        if (reader->parser.error == YAML_MEMORY_ERROR)
            return mp_fail_memory(err);
        return mp_fail(err, MP_ERR_INPUT, "placement: line %zu, column %zu: %s",
                       reader->parser.problem_mark.line + 1, reader->parser.problem_mark.column + 1,
                       reader->parser.problem ? reader->parser.problem : "not YAML");
    }
    if (reader->event.type == YAML_ALIAS_EVENT)
        return mp_fail(err, MP_ERR_INPUT, "placement: line %llu: aliases are not accepted",
                       line_of(reader));
    return 0;
}

static int expect_event(yaml_reader *reader, yaml_event_type_t type, const char *expected,
                        mp_error *err)
{
    int rc = next_event(reader, err);
    if (rc == 0 && reader->event.type != type)
        rc = mp_fail(err, MP_ERR_INPUT, "placement: line %llu: expected %s", line_of(reader),
                     expected);
    return rc;
}

/* The current event as a decimal integer. */
static int scalar_integer(const yaml_reader *reader, const char *what, int64_t *value,
                          mp_error *err)
{
    if (reader->event.type == YAML_SCALAR_EVENT &&
        reader->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE) {
        const char *text = (const char *)reader->event.data.scalar.value;
        const char *digits = text + (*text == '-');
        char *end;
        errno = 0;
        *value = strtoll(text, &end, 10);
        /* strtoll alone would accept spaces and a plus sign. */
        if (*digits >= '0' && *digits <= '9' && *end == '\0' && errno == 0)
            return 0;
    }
    return mp_fail(err, MP_ERR_INPUT, "placement: line %llu: %s is not an integer", line_of(reader),
                   what);
}

static int read_count(yaml_reader *reader, const char *key, bool *seen, int64_t *value,
                      mp_error *err)
{
    if (*seen)
        return mp_fail(err, MP_ERR_INPUT, "placement: line %llu: a second %s", line_of(reader),
                       key);
    *seen = true;
    int rc = next_event(reader, err);
    if (rc == 0)
        rc = scalar_integer(reader, key, value, err);
    if (rc == 0 && *value < 0)
        rc = mp_fail(err, MP_ERR_INPUT, "placement: line %llu: %s is negative", line_of(reader),
                     key);
    return rc;
}

/* The experts of one layer. The current event is its key. */
static int read_layer(yaml_reader *reader, mp_rows_read *rows, mp_error *err)
{
    int64_t layer, id;
    int rc = scalar_integer(reader, "layer", &layer, err);
    if (rc == 0)
        rc = mp_rows_layer(rows, layer, err);
    if (rc != 0)
        return rc;
    rc = expect_event(reader, YAML_SEQUENCE_START_EVENT, "a list of experts", err);
    while (rc == 0 && (rc = next_event(reader, err)) == 0 &&
           reader->event.type != YAML_SEQUENCE_END_EVENT) {
        rc = scalar_integer(reader, "expert", &id, err);
        if (rc == 0)
            rc = mp_rows_add(rows, id, err);
    }
    return rc != 0 ? rc : mp_rows_end(rows, err);
}

static int read_assignments(yaml_reader *reader, balancer_config *config, mp_rows_read *rows,
                            mp_error *err)
{
    if (config->has_assignments)
        return mp_fail(err, MP_ERR_INPUT,
                       "placement: line %llu: a second initial_global_assignments",
                       line_of(reader));
    config->has_assignments = true;
    int rc = expect_event(reader, YAML_MAPPING_START_EVENT, "layers and their experts", err);
    while (rc == 0 && (rc = next_event(reader, err)) == 0 &&
           reader->event.type != YAML_MAPPING_END_EVENT)
        rc = read_layer(reader, rows, err);
    return rc;
}

/* One key of the file and its value. The current event is the key. */
static int read_member(yaml_reader *reader, balancer_config *config, mp_rows_read *rows,
                       mp_error *err)
{
    if (reader->event.type != YAML_SCALAR_EVENT)
        return mp_fail(err, MP_ERR_INPUT, "placement: line %llu: expected a key", line_of(reader));
    const char *key = (const char *)reader->event.data.scalar.value;
    int64_t updates;
    if (strcmp(key, "num_slots") == 0)
        return read_count(reader, "num_slots", &config->has_num_slots, &config->num_slots, err);
    if (strcmp(key, "layer_updates_per_iter") == 0)
        return read_count(reader, "layer_updates_per_iter", &config->has_updates, &updates, err);
    if (strcmp(key, "initial_global_assignments") == 0)
        return read_assignments(reader, config, rows, err);
    return mp_fail(err, MP_ERR_INPUT, "placement: line %llu: unknown key \"%.60s\"",
                   line_of(reader), key);
}

static int read_document(yaml_reader *reader, balancer_config *config, mp_rows_read *rows,
                         mp_error *err)
{
    int rc = expect_event(reader, YAML_STREAM_START_EVENT, "YAML", err);
    if (rc == 0)
        rc = expect_event(reader, YAML_DOCUMENT_START_EVENT, "a document", err);
    if (rc == 0)
        rc = expect_event(reader, YAML_MAPPING_START_EVENT, "keys and values", err);
    while (rc == 0 && (rc = next_event(reader, err)) == 0 &&
           reader->event.type != YAML_MAPPING_END_EVENT)
        rc = read_member(reader, config, rows, err);
    if (rc == 0)
        rc = expect_event(reader, YAML_DOCUMENT_END_EVENT, "the end of the document", err);
    return rc != 0 ? rc : expect_event(reader, YAML_STREAM_END_EVENT, "a single document", err);
}

int mp_placement_read_yaml(mp_rows_read *rows, const char *text, uint64_t length, mp_error *err)
{
    yaml_reader reader = {0};
    balancer_config config = {0};
    if (!yaml_parser_initialize(&reader.parser))
        return mp_fail_memory(err);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, length);
    int rc = read_document(&reader, &config, rows, err);
    yaml_event_delete(&reader.event);
    yaml_parser_delete(&reader.parser);
    if (rc != 0)
        return rc;
    if (!config.has_num_slots || !config.has_assignments)
        return mp_fail(err, MP_ERR_INPUT, "placement: %s is missing",
                       config.has_num_slots ? "initial_global_assignments" : "num_slots");
    if (rows->rows > 0 && (uint64_t)config.num_slots != rows->columns)
        return mp_fail(err, MP_ERR_INPUT, "placement: num_slots is %lld, row 0 has %llu columns",
                       (long long)config.num_slots, (unsigned long long)rows->columns);
    return 0;
}
