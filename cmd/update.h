/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/update.h - repack --update: deltas of a checkpoint carried into a pack of it. */
#ifndef MOEPACK_CMD_UPDATE_H
#define MOEPACK_CMD_UPDATE_H

#include "work.h"

typedef struct update_request {
    const common_options *common;
    const work_options *work;
    const char *pack;
    const char *deltas; /* with commas between */
    const char *source;
    bool allow_nonfinite;
} update_request;

/* Plans, prints and runs it as repack does. */
int update_pack(const update_request *request, mp_error *err);

#endif
