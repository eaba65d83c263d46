/* SPDX-License-Identifier: Apache-2.0 */
/* verify/converted.h - a checkpoint against the one that it was made of. */
#ifndef MP_VERIFY_CONVERTED_H
#define MP_VERIFY_CONVERTED_H

#include <moepack/verify.h>

/* As mp_verify, of a checkpoint that ModelOpt, llm-compressor, msmodelslim or moepack quantize has
 * made of options->source. report: its level is set. */
int mp_verify_converted(const char *path, const mp_verify_options *options,
                        const mp_context *context, mp_verify_report *report, mp_error *err);

#endif
