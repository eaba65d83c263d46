/* SPDX-License-Identifier: Apache-2.0 */
/* cmd/progress.h - how a long call is shown to the user and stopped by one. */
#ifndef MOEPACK_CMD_PROGRESS_H
#define MOEPACK_CMD_PROGRESS_H

#include "options.h"

/* Fills the context that a command hands to the library: threads, a progress bar
 * where one is wanted, and a flag that SIGINT and SIGTERM raise from now on. The
 * second signal ends the program at once. */
void cmd_context(const common_options *common, mp_context *context);

/* Takes the progress bar off the screen, if there is one. */
void progress_clear(void);

/* The signal that raised the flag, or 0. */
int cancel_signal(void);

/* "45%  1.21 GB/s  0:32 left": what the bar says after `seconds`, in which `moved`
 * bytes went by, with `done` of `total` done; without the speed where these are no
 * bytes. Returns its length. */
#define PROGRESS_TEXT 96
int progress_text(uint64_t done, uint64_t total, uint64_t moved, double seconds, bool bytes,
                  char text[PROGRESS_TEXT]);

#endif
