/* SPDX-License-Identifier: Apache-2.0 */
/* place/counts.h - what readers of recorded counts hand to the recording. */
#ifndef MP_PLACE_COUNTS_H
#define MP_PLACE_COUNTS_H

#include <moepack/place.h>

/* The steps of one input, as in mp_recording. Readers check counts, naming where; the rest is
 * checked when steps are added. */
typedef struct mp_steps {
    uint32_t layers, num_logical;
    uint64_t steps;
    double *count;       /* [steps][layers][N]; owned */
    uint32_t *layer_ids; /* [layers] ascending, or null; owned */
    int64_t *pass;       /* [steps], or null; owned */
    bool guessed;
} mp_steps;

/* Zeroed counts of this size; MP_ERR_INPUT where it is none that counts can have. */
int mp_steps_init(mp_steps *s, uint64_t steps, uint64_t layers, uint64_t num_logical,
                  mp_error *err);
void mp_steps_release(mp_steps *s);

/* MP_ERR_INPUT for more cells than lines of CSV can ask for: the largest numbers that they name
 * size the table, and not what is there. */
int mp_check_cells(uint64_t layers, uint64_t num_logical, mp_error *err);

/* MP_ERR_INPUT unless a count is finite and not negative; the place goes before the number. */
int mp_check_count(double value, bool has_steps, uint64_t step, uint64_t layer, uint64_t expert,
                   mp_error *err);

/* Readers. The caller releases the steps in either case. */
int mp_counts_read_json(mp_steps *s, const char *text, uint64_t length, mp_error *err);
int mp_counts_read_csv(mp_steps *s, const char *text, uint64_t length, uint32_t num_logical,
                       mp_error *err);
int mp_counts_read_torch(mp_steps *s, const char *data, uint64_t length, mp_error *err);

#endif
