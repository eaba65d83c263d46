/* SPDX-License-Identifier: Apache-2.0 */
/* verify/sample.h - the experts that are held against a source, where not all are. */
#ifndef MP_VERIFY_SAMPLE_H
#define MP_VERIFY_SAMPLE_H

#include <moepack/verify.h>

/* Chooses options->sample routed experts in each layer anew. sample: set to
 * [layers][experts], to be freed; null where all are looked at. */
int mp_sample_draw(const mp_verify_options *options, size_t layers, uint32_t experts, bool **sample,
                   mp_error *err);

#endif
