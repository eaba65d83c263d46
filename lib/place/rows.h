/* SPDX-License-Identifier: Apache-2.0 */
/* place/rows.h - gathering a placement row by row while a file is read. */
#ifndef MP_PLACE_ROWS_H
#define MP_PLACE_ROWS_H

#include <moepack/place.h>

/* Rows read so far. A zeroed value is empty and ready. */
typedef struct mp_rows_read {
    int32_t *ids;     /* all ids, row after row */
    uint64_t count;   /* of ids */
    uint64_t room;    /* of ids */
    uint64_t columns; /* of the first row, which all others must match */
    uint64_t rows;    /* complete ones */
    uint32_t *layers; /* decoder layers of the rows, as far as they are stated; else null */
    uint64_t layer_room;
    uint64_t devices; /* ranks that the file is for; 0: it does not say */
} mp_rows_read;

/* Adds an id to the current row; MP_ERR_INPUT unless it fits a logical id. */
int mp_rows_add(mp_rows_read *rows, int64_t id, mp_error *err);

/* States the decoder layer of the current row; MP_ERR_INPUT unless it is above that before. */
int mp_rows_layer(mp_rows_read *rows, int64_t layer, mp_error *err);

/* Ends the current row; MP_ERR_INPUT when it is empty or not as long as the first. */
int mp_rows_end(mp_rows_read *rows, mp_error *err);

/* Column of the next id in the current row. */
uint64_t mp_rows_column(const mp_rows_read *rows);

/* Readers of the file formats. They gather rows; whether these are a placement
 * of num_logical experts is checked afterwards. */
int mp_placement_read_json(mp_rows_read *rows, const char *text, uint64_t length, mp_error *err);
int mp_placement_read_yaml(mp_rows_read *rows, const char *text, uint64_t length, mp_error *err);

/* Copies of an expert beyond the first on the same rank, added up over the ranks.
 * row: num_physical ids, each rank's num_physical / ep together.
 * seen: scratch of num_logical numbers.
 * first: set to the physical index of the first such copy; may be null. */
uint32_t mp_colocated(const int32_t *row, uint32_t num_logical, uint32_t num_physical, uint32_t ep,
                      uint32_t *seen, uint32_t *first);

#endif
