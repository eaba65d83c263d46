/* SPDX-License-Identifier: Apache-2.0 */
/* numeric/job.h - one call of mp_requantize, as its parts see it. */
#ifndef MP_NUMERIC_JOB_H
#define MP_NUMERIC_JOB_H

#include <moepack/numeric.h>

#include "numeric/kernels.h"
#include "numeric/quantize.h"

typedef struct mp_requantize_job {
    const mp_kernels *kernels;
    const mp_rows *in;
    mp_rows out; /* describes what is written */
    const mp_quant_options *options;
    bool same_codes; /* the source's codes are those of the target */
    uint8_t *codes;
    uint8_t *scales;
    float *row;     /* the row at hand, finite but for NaN that may stay */
    float *decoded; /* the same row out of codes and scales */
    /* fp8_block, of each run of 128 columns. tile_exponent: the largest exponent byte of an MX
     * source, 0 where no scale makes the tile exact. */
    uint32_t *tile_amax;
    uint8_t *tile_exponent;
    mp_quant_stats *stats;
    float limits[128]; /* nvfp4: what codes can say under each scale, by its E4M3 code */
    mp_error *err;
} mp_requantize_job;

/* Decodes a row of the source into job->row. amax, which may be null: amax_bits of what is
 * not NaN in it. */
int mp_job_read_row(const mp_requantize_job *job, uint64_t row, uint32_t *amax);

/* Where a row's codes and scales go. */
uint8_t *mp_job_codes(const mp_requantize_job *job, uint64_t row);
uint8_t *mp_job_scales(const mp_requantize_job *job, uint64_t row);

/* What a job needs to know before it measures. */
void mp_job_begin_measuring(mp_requantize_job *job);

/* Holds a row that was written against job->row, or against the same row in BF16, where that is
 * not null and job->row is not set, and adds to the statistics. */
int mp_job_measure(const mp_requantize_job *job, uint64_t row, const uint16_t *bf16);

/* The same for a finite row of BF16 and its mxfp4, by a kernel. */
void mp_job_measure_bf16_as_mxfp4(const mp_requantize_job *job, const uint16_t *in,
                                  const uint8_t *codes, const uint8_t *scales);

/* MX to fp8_block. Of up to 128 rows that share scales: begins with what their exponents say,
 * checks row after row as it is read, and puts the exact scales in place of those of the tiles
 * that stay as they are; counts the others. */
void mp_job_begin_exact(const mp_requantize_job *job, uint64_t first, uint64_t rows);
void mp_job_check_exact(const mp_requantize_job *job, uint64_t row);
void mp_job_exact_scales(const mp_requantize_job *job, uint8_t *scales);

/* mxfp4 to fp8_block: what a byte of codes becomes under a tile's exponent, by how far the block's
 * is below that, and the squares of both codes together, in quarters. */
#define MP_CODE_MAPS 15

typedef struct mp_code_map {
    uint8_t pairs[MP_CODE_MAPS][256][2];
    uint16_t squares[256];
} mp_code_map;

/* Whether all tiles, which begin_exact has seen, stay as they are by their exponents alone; then
 * rows are encoded by a map, and neither checked nor read for amax. */
bool mp_job_maps_codes(const mp_requantize_job *job, uint64_t first, uint64_t rows);
void mp_job_code_map(const mp_requantize_job *job, mp_code_map *map);
void mp_job_map_codes(const mp_requantize_job *job, const mp_code_map *map, uint64_t row);

/* Adds a row that a map encoded, and that lost nothing, to the statistics. */
int mp_job_measure_mapped(const mp_requantize_job *job, const mp_code_map *map, uint64_t row);

/* mxfp4, or nvfp4 under another global scale, to nvfp4: encodes a row that was read. */
void mp_job_fp4_to_nvfp4(const mp_requantize_job *job, uint64_t row);

#endif
